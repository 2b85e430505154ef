"""What made an output: so that the same command knows it is done, and a reader can believe it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson

from utils.files import atomic

SECRETS = ("api_key",)
WHOLE_FILE_LIMIT = 1 << 30
REPORTED_PACKAGES = (
    "torch",
    "transformers",
    "flashrag-dev",
    "FlagEmbedding",
    "faiss-cpu",
    "faiss-gpu",
    "openai",
    "vllm",
)


def digest(value: Any) -> str:
    """A short hash of any JSON value, independent of the order of keys."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def fingerprint(path: str | os.PathLike[str]) -> str:
    """A hash of a file or folder, or the name itself if neither exists (a hub id).

    Files up to 1 GiB are hashed whole; larger ones by size and 64 blocks of 1 MiB spread evenly,
    because reading a 65 GB index takes minutes. Folders hash their files' names and contents.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        return digest([(str(p.relative_to(path)), fingerprint(p)) for p in files])
    if not path.exists():
        return f"name:{path}"
    size, seen = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as handle:
        if size <= WHOLE_FILE_LIMIT:
            while block := handle.read(1 << 20):
                seen.update(block)
        else:
            seen.update(str(size).encode())
            for i in range(64):
                handle.seek((size - (1 << 20)) * i // 63)
                seen.update(handle.read(1 << 20))
    return seen.hexdigest()


class Phase:
    """One output of one command, with its manifest ``OUTPUT.manifest.json``.

    Args:
        output: the file or folder that the command makes.
        inputs: files, folders or hub ids that it is made from.
        settings: every setting that changes it; none of them secret.
    """

    def __init__(self, output: str | os.PathLike[str], inputs: Iterable[Any], settings: Mapping[str, Any]) -> None:
        self.output = Path(output)
        self.settings = {k: v for k, v in settings.items() if k not in SECRETS}
        self.inputs = {str(path): fingerprint(path) for path in inputs}
        self.key = digest([self.inputs, self.settings])
        self._started = time.time()

    @property
    def manifest(self) -> Path:
        """Path of the manifest."""
        return self.output.with_name(f"{self.output.name}.manifest.json")

    def is_done(self, overwrite: bool) -> bool:
        """True, and said, if the output stands and was made from the same inputs and settings."""
        if overwrite or not self.output.exists() or not self.manifest.exists():
            return False
        done = orjson.loads(self.manifest.read_bytes())
        if done["key"] != self.key:
            changed = [k for k in self.settings if done["settings"].get(k) != self.settings[k]]
            changed += [p for p in self.inputs if done["inputs"].get(p) != self.inputs[p]]
            print(
                f"{self.output} was made with other {', '.join(changed) or 'settings'}; making it again",
                file=sys.stderr,
            )
            return False
        print(f"{self.output} is finished ({done['rows']} rows); --overwrite makes it again")
        return True

    def finish(self, rows: int, dropped: Mapping[str, int] | None = None, **facts: Any) -> None:
        """Write the manifest and say in one line what was made and what was dropped."""
        dropped = {reason: n for reason, n in (dropped or {}).items() if n}
        record = {
            "output": str(self.output),
            "key": self.key,
            "rows": rows,
            "dropped": dropped,
            **facts,
            "command": command_line(),
            "settings": self.settings,
            "inputs": self.inputs,
            "output_sha256": fingerprint(self.output),
            "seconds": round(time.time() - self._started, 1),
            "versions": versions(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        with atomic(self.manifest) as handle:
            handle.write(orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
        lost = ", ".join(f"{n} {reason}" for reason, n in dropped.items()) or "none"
        print(f"{self.output}: {rows} rows in {record['seconds']} s; dropped: {lost}")


def command_line() -> str:
    """The command as typed, the key's value left out."""
    words, hide = [], False
    for word in [Path(sys.argv[0]).name, *sys.argv[1:]]:
        name, equals, _ = word.partition("=")
        secret = name.lstrip("-") in SECRETS
        words.append("***" if hide else f"{name}=***" if secret and equals else word)
        hide = secret and not equals
    return shlex.join(words)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide results."""
    found = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
