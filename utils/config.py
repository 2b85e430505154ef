"""Settings: one YAML file of defaults, an optional profile over it, flags over both.

``utils/basic_config.yaml`` is the only list of settings. Each script names the sections it uses;
every key of those sections becomes a ``--key`` flag whose help is the comment on the key's line.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.bounds import faults

BASIC_CONFIG = Path(__file__).with_name("basic_config.yaml")
Config = dict[str, dict[str, Any]]
SECRETS = ("api_key",)
SECRET_FLAGS = tuple(f"--{name}" for name in SECRETS)
REPEATED = ("base_url",)  # flags that may be given more than once
FREE_SECTION = "prices"  # the user's own keys
# Faults of disk, rights and paths, which are no faults of the program.
MENDABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
)


class UsageError(Exception):
    """A mistake the user can mend; the message names the file, the field and the next step."""


def load_config(profile: str | None = None) -> Config:
    """Read the defaults and lay a profile over them.

    Args:
        profile: path of a YAML file with some of the sections and keys of ``basic_config.yaml``; its
            ``extends: other.yaml`` lays it over another profile of the same folder.

    Returns:
        Section name -> key -> value.

    Raises:
        UsageError: the profile is missing, is no mapping, or has a section, key or type that
            ``basic_config.yaml`` does not know.
    """
    config: Config = read_yaml(BASIC_CONFIG)
    if profile is None:
        return config
    overlay = read_yaml(Path(profile))
    if base := overlay.pop("extends", None):
        config = load_config(str(Path(profile).with_name(str(base))))
    for section, values in overlay.items():
        if section not in config:
            raise UsageError(f"{profile}: unknown section '{section}'{_nearest(section, config)}")
        if not isinstance(values, (dict, type(None))):
            raise UsageError(
                f"{profile}: section '{section}' must be a mapping of settings, not {type(values).__name__}"
            )
        if section == FREE_SECTION:
            config[section] |= values or {}
            continue
        for key, value in (values or {}).items():
            if key not in config[section]:
                hint = _nearest(str(key), config[section])
                raise UsageError(f"{profile}: unknown key '{section}.{key}'{hint}")
            config[section][key] = _coerce(value, config[section][key], f"{profile}: {section}.{key}")
    return config


def phase_arguments(
    doc: str | None,
    sections: Sequence[str],
    argv: Sequence[str] | None = None,
    extra: Iterable[tuple[str, dict[str, Any]]] = (),
) -> argparse.Namespace:
    """Parse one script's command line.

    Args:
        doc: the script's docstring, shown by ``--help``.
        sections: sections of the YAML file whose keys become flags, besides ``common``.
        argv: the arguments; ``sys.argv[1:]`` if None.
        extra: flags of this script alone, as ``(flag, add_argument's keywords)``.

    Returns:
        A namespace with one attribute a key, ``prompts`` and ``prices`` (the sections of that name),
        ``overwrite`` and the extras. Secrets come from ``--api_key``, else the environment, else the file.
    """
    sections = ("common", *sections)
    if argv is None:
        _hide_key()
    pre = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    pre.add_argument("--config")
    profile = pre.parse_known_args(argv)[0].config
    config = load_config(profile)

    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="YAML", help="profile laid over utils/basic_config.yaml")
    parser.add_argument("--overwrite", action="store_true", help="redo the phase even if its output is finished")
    for flag, keywords in extra:
        parser.add_argument(flag, **keywords)
    comments, basic = _comments(), read_yaml(BASIC_CONFIG)
    repeated: dict[str, Any] = {}
    for section in sections:
        group = parser.add_argument_group(f"{section} (utils/basic_config.yaml)")
        for key, default in config[section].items():
            shown = "set" if key == "api_key" and default else default
            told = f"{comments.get((section, key), '')} [{shown}]".replace("%", "%%")
            if key in REPEATED:
                group.add_argument(f"--{key}", action="append", help=told)
                repeated[key] = default
                continue
            group.add_argument(
                f"--{key}",
                default=default,
                type=_flag_type(basic[section][key]),
                nargs="?" if isinstance(basic[section][key], bool) else None,
                const=True if isinstance(basic[section][key], bool) else None,
                help=told,
            )
    args = parser.parse_args(argv)
    for key, default in repeated.items():
        given = getattr(args, key) or default
        setattr(args, key, given[0] if isinstance(given, list) and len(given) == 1 else given)
    args.prompts, args.prices = config["prompts"], config["prices"]
    for key in ("dataset", "split"):
        check_plain_name(f"--{key}", getattr(args, key, "train"))
    if "api_key" in vars(args) and not any(a.startswith("--api_key") for a in argv or sys.argv[1:]):
        args.api_key = os.environ.get("OPENAI_API_KEY") or args.api_key
    if getattr(args, "api_key", None) is not None:
        args.api_key = str(args.api_key)  # YAML reads one of digits as a number
    for fault in faults(vars(args), args.prompts):
        raise UsageError(fault)
    return args


def _hide_key() -> None:
    """Start this process again with a key from the command line in its environment: every user can read titles."""
    words, kept, key = sys.argv[1:], [], None
    while words:
        name, equals, value = words.pop(0).partition("=")
        if name not in SECRET_FLAGS:
            kept.append(name + equals + value)
        elif equals or (words and not words[0].startswith("-")):
            key = value if equals else words.pop(0)
    command = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if key is not None and sys.orig_argv[len(command) :] == sys.argv[1:]:
        os.environ["OPENAI_API_KEY"] = key
        os.execv(sys.executable, [sys.executable, *command[1:], *kept])


def check_plain_name(flag: str, name: str) -> None:
    """Accept the name of any file or folder below ``data_dir``, and nothing that leaves it."""
    if not name or Path(name).name != name or name in (".", ".."):
        raise UsageError(f"{flag} {name!r} must be a plain name below data_dir")


def dataset_dir(args: argparse.Namespace) -> Path:
    """``data_dir/dataset``."""
    return Path(args.data_dir) / args.dataset


def docs_path(args: argparse.Namespace) -> Path:
    """Where get_docs writes and every later phase reads the candidates of the training questions."""
    return dataset_dir(args) / f"train_docs_{args.train_questions or 'all'}.jsonl"


def training_lines_path(args: argparse.Namespace) -> Path:
    """Where score_cache_to_dataset.py writes and run_finetune.sh reads unless told otherwise."""
    return dataset_dir(args) / "reason+retrieval/FinetuneDataset_for_flagembedding.jsonl"


def checkpoint_path(args: argparse.Namespace) -> Path:
    """Where run_finetune.sh puts the reranker."""
    return Path(args.output_dir or f"checkpoints/{args.dataset}_radio")


def settings_of(args: argparse.Namespace, *keys: str) -> dict[str, Any]:
    """The named settings, as a manifest records them and a resumed phase compares them."""
    return {key: getattr(args, key) for key in keys}


def without_secrets(args: argparse.Namespace) -> argparse.Namespace:
    """The settings for a worker elsewhere, whose memory and logs others may read."""
    return argparse.Namespace(**{key: value for key, value in vars(args).items() if key not in SECRETS})


def printable(text: str) -> str:
    """Text of models, servers and files without what would steer a terminal: control characters as escapes."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def run_main(main: Any) -> None:
    """Run a script's ``main`` and exit with its code.

    A `UsageError`, and a disk that is full or must not be written, end it with a message and code 2, no traceback.
    """
    try:
        code = main()
    except UsageError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        code = 2
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        print(
            f"error: {printable(str(error))}; finished files are as they were. Once that is mended, the same command "
            "goes on",
            file=sys.stderr,
        )
        code = 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        code = 130
    sys.exit(code)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that is a mapping; it can make no objects.

    Raises:
        UsageError: missing file, or another content.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = ", ".join(sorted(file.name for file in path.parent.glob("*.yaml"))) or "no YAML file"
        raise UsageError(f"{path} is missing (there are: {there})") from None
    except yaml.MarkedYAMLError as error:
        # Its own text shows the faulty line and the names in it, which may be a key.
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        what = re.sub(r"(alias|handle|tag) '.*", r"\1", error.problem or error.context or "")
        raise UsageError(f"{path}{place}: not valid YAML: {what}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or an impossible date
        raise UsageError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path} must be a mapping of sections")
    return content


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else "; utils/basic_config.yaml lists what there is"


def _coerce(value: Any, default: Any, where: str) -> Any:
    """Give ``value`` the type of ``default``; YAML reads 6e-5 as a string, people write 2 for 2.0."""
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        raise UsageError(f"{where} must be a list of texts; put each in quotes")
    if default is None or value is None or type(value) is type(default):
        return value
    if isinstance(default, float) and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise UsageError(f"{where} must be {type(default).__name__}, not {value!r}")


def _flag_type(default: Any) -> Any:
    if isinstance(default, bool):
        return _boolean
    if isinstance(default, list):
        return _strings
    return str if default is None else type(default)


def _strings(text: str) -> list[str]:
    """A JSON list of strings, or one string as it stands: "[/INST]" is one."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else [text]


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _comments() -> dict[tuple[str, str], str]:
    """The comment on each key's line of ``basic_config.yaml``, which PyYAML does not keep."""
    comments, section = {}, ""
    for line in BASIC_CONFIG.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"(\w+):\s*$", line):
            section = match[1]
        elif match := re.match(r"  (\w+):.*?\s#\s(.*)$", line):
            comments[section, match[1]] = match[2]
    return comments
