"""Settings: one YAML file of defaults, an optional profile over it, flags over both.

``utils/basic_config.yaml`` is the only list of settings. Every key of a script's sections becomes a ``--key`` flag;
the comment on the key's line is its help and gives its bounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from errno import EACCES, EDQUOT, EEXIST, EFBIG, EISDIR, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path
from typing import Any

import yaml

BASIC_CONFIG = Path(__file__).with_name("basic_config.yaml")
Config = dict[str, dict[str, Any]]
KNOWN = "utils/basic_config.yaml lists what there is"
SECRET = "api_key"  # never shown, and never written
SHARED_SECTION, SHARERS = "llm", ("rationale", "rag")  # the sharers have every key of the shared section
FREE_SECTION = "prices"  # the user's own keys
BOUNDS = re.compile(r"([\[(])(-?\d+)\.\.(\d*)\] ")  # at the beginning of a comment, see the YAML's first lines
# What is filled into the templates of the prompts section; rationale_system is sent as it is.
FIELDS = {
    "rationale_user": ("question", "answers"), "rationale_completion": ("question", "answers"),
    "rag_system": ("reference",), "rag_system_closed_book": ("reference",), "rag_user": ("reference", "question"),
    "rag_completion": ("reference", "question"), "rag_completion_closed_book": ("reference", "question"),
}  # fmt: skip
ANSWER_ONLY = "answer_only"  # folder of the scores without rationales
# Faults of disks, rights and paths.
MENDABLE = (EACCES, EDQUOT, EEXIST, EFBIG, EISDIR, ENOSPC, ENOTDIR, EPERM, EROFS)


class UsageError(Exception):
    """A mistake the user can mend; the message names the file, the field and the next step."""


def load_config(profile: str | None = None) -> Config:
    """Return section -> key -> value of the defaults with a profile laid over them.

    The sections `SHARERS` have the keys of ``llm`` too: a file's ``llm`` sets them in both, and its sections of these
    names override that. A profile with ``extends: other.yaml`` is laid over that profile.
    """
    if profile is None:
        config: Config = read_yaml(BASIC_CONFIG)
        return config | {name: config[SHARED_SECTION] | config[name] for name in SHARERS}
    overlay = read_yaml(Path(profile))
    base = overlay.pop("extends", None)
    config = load_config(str(Path(profile).with_name(str(base))) if base else None)
    # Sorted, so that the shared section comes before those that override it.
    for section, values in sorted(overlay.items(), key=lambda item: item[0] != SHARED_SECTION):
        if section not in config:
            raise UsageError(f"{profile}: unknown section '{section}'; {KNOWN}")
        if not isinstance(values, (dict, type(None))):
            raise UsageError(f"{profile}: section '{section}' must be a mapping of settings")
        if section == FREE_SECTION:
            config[section] |= values or {}
            continue
        for key, value in (values or {}).items():
            if key not in config[section]:
                raise UsageError(f"{profile}: unknown key '{section}.{key}'; {KNOWN}")
            for target in (section, *(SHARERS if section == SHARED_SECTION else ())):
                config[target][key] = _coerce(value, config[target][key], f"{profile}: {section}.{key}")
    return config


def script_parser(doc: str | None, **options: Any) -> argparse.ArgumentParser:
    """Return a parser that shows the script's docstring as it is written and takes no abbreviated flags."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, formatter_class=layout, allow_abbrev=False, **options)


def phase_arguments(
    doc: str | None,
    sections: Sequence[str],
    argv: Sequence[str] | None = None,
    extra: Iterable[tuple[str, dict[str, Any]]] = (),
) -> argparse.Namespace:
    """Parse a script's command line into one attribute per flag, and the sections ``prompts`` and ``prices``.

    The keys of ``common`` and ``sections`` become flags, and so does ``extra``, with add_argument's keywords. The API
    key comes from ``--api_key``, else from the environment, else from the file.
    """
    if argv is None:
        _hide_key()
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", metavar="YAML", help="profile laid over utils/basic_config.yaml")
    config, basic = load_config(first.parse_known_args(argv)[0].config), load_config()
    parser = script_parser(doc, parents=[first])
    parser.add_argument("--overwrite", action="store_true", help="redo the phase even if its output is finished")
    for flag, keywords in extra:
        parser.add_argument(flag, **keywords)
    told, comments = _comments(), dict[str, str]()
    readers: dict[Any, Any] = {bool: _boolean, list: _strings, dict: _mapping, type(None): str}
    for section in ("common", *sections):
        group = parser.add_argument_group(f"{section} (utils/basic_config.yaml)")
        for key, default in config[section].items():
            if key == SECRET:
                default = os.environ.get("OPENAI_API_KEY") or (None if default is None else str(default))
            kind = type(basic[section][key])
            comments[key] = told.get((section, key)) or told[SHARED_SECTION, key]
            shown = "set" if key == SECRET and default else default
            text = f"{comments[key]} (default: {shown})".replace("%", "%%")
            # A switch may be given without a value: --use_fp16, --use_fp16=false.
            optional: dict[str, Any] = {"nargs": "?", "const": True} if kind is bool else {}
            group.add_argument(f"--{key}", default=default, type=readers.get(kind, kind), help=text, **optional)
    args = parser.parse_args(argv)
    args.prompts, args.prices = config["prompts"], config["prices"]
    _check(args, comments)
    return args


def split_key(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the API key among the words of a command line, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{SECRET}")
    found, others = parser.parse_known_args(words)
    return getattr(found, SECRET), others


def _hide_key() -> None:
    """Restart this process with a key from the command line moved to its environment: `ps` shows command lines."""
    key, kept = split_key(sys.argv[1:])
    command = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if key is not None and sys.orig_argv[len(command) :] == sys.argv[1:]:
        os.environ["OPENAI_API_KEY"] = key
        os.execv(sys.executable, [sys.executable, *command[1:], *kept])


def _comments() -> dict[tuple[str, str], str]:
    """Return (section, key) -> the comment on the key's line of the YAML; PyYAML does not keep comments."""
    comments, section = {}, ""
    for line in BASIC_CONFIG.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"(\w+):\s*$", line):
            section = match[1]
        elif match := re.match(r"  (\w+):.*?\s#\s(.*)$", line):
            comments[section, match[1]] = match[2]
    return comments


def _check(args: argparse.Namespace, comments: dict[str, str]) -> None:
    """Refuse settings that cannot work; no message shows a secret."""
    for name in ("dataset", "split"):
        folder = getattr(args, name, "train")
        if not folder or Path(folder).name != folder or folder in (".", ".."):
            raise UsageError(f"--{name} {folder!r} must be a plain name below data_dir")
    for name, comment in comments.items():
        value, bounds = getattr(args, name), BOUNDS.match(comment)
        if bounds and not _within(value, *bounds.groups()):
            low = f"{'at least' if bounds[1] == '[' else 'more than'} {bounds[2]}"
            raise UsageError(f"--{name} must be {low}{' and at most ' + bounds[3] if bounds[3] else ''}, not {value!r}")
    key, url = getattr(args, SECRET, None), getattr(args, "base_url", None)
    if key is not None and not re.fullmatch("[!-~]*", key):
        raise UsageError("the API key holds a character that no key has; was a blank or a line break copied too?")
    if url is not None and not str(url).startswith(("http://", "https://")):
        raise UsageError(f"--base_url {url!r} is no address such as http://127.0.0.1:8000/v1")
    if fault := _request_fault(getattr(args, "request", None) or {}):
        raise UsageError(f"--request: {fault}")
    for name, text in args.prompts.items():
        if name.endswith("_user") and not (text or "").strip():
            raise UsageError(f"prompts.{name} must not be blank")
        if name in FIELDS and (fault := template_fault(text or "", FIELDS[name])):
            raise UsageError(f"prompts.{name}: {fault}")


def _request_fault(changes: Mapping[str, Any]) -> str:
    """Return why these cannot be fields of a request; empty if they can."""
    if taken := [name for name in changes if name in ("model", "messages", "prompt", "stream")]:
        return f"{taken[0]!r} is decided by other settings and cannot be changed here"
    with contextlib.suppress(TypeError, ValueError):
        if json.loads(json.dumps(changes, allow_nan=False)) == changes:
            return ""
    return "its fields and values must be what JSON has: texts, numbers, true, false, null, lists, mappings"


def _within(value: Any, opening: str, least: str, most: str) -> bool:
    """Return whether a value is a number within the groups of `BOUNDS`."""
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value > float(most or "inf"):
        return False
    return value >= float(least) if opening == "[" else value > float(least)


def template_fault(text: str, fields: Collection[str]) -> str:
    """Return why `str.format` cannot fill a template with these fields; empty if it can."""
    try:
        text.format(**dict.fromkeys(fields, ""))
    except (LookupError, ValueError, AttributeError) as error:
        allowed = " and ".join(f"{{{field}}}" for field in fields)
        return f"{error!r}; {allowed} are filled in, other braces are written twice"
    return ""


def dataset_dir(args: argparse.Namespace) -> Path:
    """Return ``data_dir/dataset``."""
    return Path(args.data_dir) / args.dataset


def docs_path(args: argparse.Namespace) -> Path:
    """Return the file of the training questions' candidates."""
    return dataset_dir(args) / f"train_docs_{args.train_questions or 'all'}.jsonl"


def rationale_dir(args: argparse.Namespace) -> Path:
    """Return the folder of the rationales and their scores; without rationales, of the scores of the answers alone."""
    name = args.rationale
    if name in ("", ".", "..", "retrieval", ANSWER_ONLY) or Path(name).name != name:
        raise UsageError(f"--rationale {name!r}: give a folder's name, other than retrieval and {ANSWER_ONLY}, or none")
    return dataset_dir(args) / (ANSWER_ONLY if name == "none" else name)


def training_lines_path(args: argparse.Namespace) -> Path:
    """Return the training file of score_cache_to_dataset.py, which run_finetune.sh reads unless told otherwise."""
    return dataset_dir(args) / f"{rationale_dir(args).name}+retrieval/FinetuneDataset_for_flagembedding.jsonl"


def checkpoint_path(args: argparse.Namespace) -> Path:
    """Return the folder of the reranker that run_finetune.sh makes."""
    return Path(args.output_dir or f"checkpoints/{args.dataset}_radio")


def settings_of(args: argparse.Namespace, *keys: str) -> dict[str, Any]:
    """Return the named settings, as a manifest records them and a resumed phase compares them."""
    return {key: getattr(args, key) for key in keys}


def without_secrets(args: argparse.Namespace) -> argparse.Namespace:
    """Return the settings without keys, for workers on machines whose memory and logs others may read."""
    return argparse.Namespace(**{key: value for key, value in vars(args).items() if key != SECRET})


def printable(text: str) -> str:
    """Return a text from outside with its control characters escaped, so that it does not steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's ``main`` and exit with its code; faults that a user can correct are shown without a traceback."""
    try:
        code = main()
    except (UsageError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in MENDABLE:
            raise
        hint = "; finished files are unharmed. Mend it and run the same command again"
        print(f"error: {printable(str(error))}{hint if isinstance(error, OSError) else ''}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        code = 130
    sys.exit(code)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that is a mapping; tags that would run Python code are refused."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or an impossible date
        # The error's own text shows the faulty line and its names, which may hold an API key.
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UsageError(f"{path}{place}: not valid YAML in UTF-8") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} must be a mapping of sections")
    return content


def _coerce(value: Any, default: Any, where: str) -> Any:
    """Return a value with the type of ``default``; YAML reads 6e-5 as a string, people write 2 for 2.0."""
    if default is None or value is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) in (int, str):
        with contextlib.suppress(ValueError):
            return float(value)
    raise UsageError(f"{where} must be {type(default).__name__}, not {value!r}")


def _strings(text: str) -> list[str]:
    """Read a JSON list of strings, or take one string as it stands: "[/INST]" is one."""
    with contextlib.suppress(json.JSONDecodeError):
        found = json.loads(text)
        if isinstance(found, list) and all(isinstance(item, str) for item in found):
            return found
    return [text]


def _mapping(text: str) -> dict[str, Any]:
    """Read a JSON object."""
    with contextlib.suppress(json.JSONDecodeError):
        if isinstance(found := json.loads(text), dict):
            return found
    raise argparse.ArgumentTypeError(f"{text!r} is no JSON object such as '{{\"seed\": null}}'")


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"
