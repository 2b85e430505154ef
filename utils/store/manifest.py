"""Manifests: what made each output. A repeated command sees that it is done, and people can trace the result."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from utils.config import SECRETS, UsageError
from utils.store.files import locked, write_file
from utils.store.provenance import command_line, commit, machine, versions

UNFINISHED = "unfinished"  # the only key of a manifest whose output is not finished: the command that makes it
WHOLE_FILE_LIMIT = 1 << 30


def digest(value: Any) -> str:
    """Return a short hash of any JSON value, independent of the order of keys."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return a hash of a file or folder, or ``name:PATH`` if there is none (a hub id).

    A folder is hashed by the names and contents of its files. Of a file above 1 GiB, the size and 64 blocks of 1 MiB
    spread evenly over it are hashed, because reading an index of 65 GB takes minutes.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        return digest([(str(p.relative_to(path)), fingerprint(p)) for p in files])
    if not path.exists():
        return f"name:{path}"
    about = path.stat()
    return _file_hash(path, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _file_hash(path: Path, size: int, mtime: int) -> str:
    with open(path, "rb") as handle:
        if size <= WHOLE_FILE_LIMIT:
            return hashlib.file_digest(handle, "sha256").hexdigest()
        seen = hashlib.sha256(str(size).encode())
        for i in range(64):
            handle.seek((size - (1 << 20)) * i // 63)
            seen.update(handle.read(1 << 20))
        return seen.hexdigest()


class _Manifest(BaseModel):
    key: str
    rows: int
    command: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    output_sha256: str
    beside: dict[str, str] = {}
    # The rest is for readers only.
    output: str = ""
    dropped: dict[str, int] = {}
    facts: dict[str, Any] = {}
    seconds: float = 0.0
    machine: str = "unknown"
    versions: dict[str, str] = {}
    commit: str = "unknown"


class Phase:
    """One output of one command, made from files, folders or hub ids, with its manifest ``OUTPUT.manifest.json``.

    ``settings`` are all that change the output. ``scratch`` are the files and folders that the command works in and
    removes at its end; those that a kill has left are removed once the output is found finished.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        inputs: Iterable[Any],
        settings: Mapping[str, Any],
        scratch: Iterable[Path] = (),
        folder: bool = False,
    ) -> None:
        self.output = Path(output)
        _check_place(self.output, folder)
        self.manifest = manifest_path(self.output)
        self._scratch = tuple(scratch)
        self.settings = {name: value for name, value in settings.items() if name not in SECRETS}
        self.inputs = {str(path): fingerprint(path) for path in inputs}
        self.key = digest([self.inputs, self.settings])
        self._started = datetime.now(UTC)
        _check_inputs(self.inputs)

    def is_done(self, overwrite: bool) -> bool:
        """Return whether the output was made from the same inputs and settings; refuse one that was changed since."""
        if overwrite or not self.output.exists() or not self.manifest.exists():
            return False
        done = read_manifest(self.manifest)
        if UNFINISHED in done:
            return False
        if done["key"] != self.key:
            changed = [name for name in self.settings if done["settings"].get(name) != self.settings[name]]
            changed += [path for path in self.inputs if done["inputs"].get(path) != self.inputs[path]]
            others = ", ".join(changed) or "settings"
            print(f"{self.output} was made with other {others}; making it again", file=sys.stderr)
            return False
        if fingerprint(self.output) != done["output_sha256"]:
            raise UsageError(
                f"{self.output} has changed since it was made; --overwrite makes it again (to keep it as it is, remove "
                f"{self.manifest} and move it)"
            )
        for path in filter(Path.exists, self._scratch):
            # The lock is taken where a run with --overwrite is at work.
            with contextlib.suppress(UsageError), locked(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        print(f"{self.output} is finished ({done['rows']} rows); --overwrite makes it again")
        return True

    def claim(self) -> None:
        """Write a manifest before the output, so that after a kill the script knows the file as its own."""
        write_file(self.manifest, orjson.dumps({UNFINISHED: command_line()}))

    def finish(
        self, rows: int, dropped: Mapping[str, int] | None = None, beside: Iterable[Path] = (), **facts: Any
    ) -> None:
        """Write the manifest, and print how many rows were written and how many were dropped, by fault.

        The files ``beside`` belong to the output and are checked with it.
        """
        seconds = round((datetime.now(UTC) - self._started).total_seconds(), 1)
        dropped = {fault: count for fault, count in (dropped or {}).items() if count}
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
            "beside": {path.name: fingerprint(path) for path in beside},
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": seconds,
            "versions": versions(),
            "commit": commit(),
            "machine": machine(),
        }
        write_file(self.manifest, orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
        lost = ", ".join(f"{count} {fault}" for fault, count in dropped.items()) or "none"
        print(f"{self.output}: {rows} rows in {seconds} s; dropped: {lost}")


def manifest_path(output: Path) -> Path:
    """Return ``OUTPUT.manifest.json``."""
    return output.with_name(f"{output.name}.manifest.json")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest as `Phase.finish` or `Phase.claim` writes it."""
    content = path.read_bytes()
    try:
        found = orjson.loads(content)
        if isinstance(found, dict) and isinstance(found.get(UNFINISHED), str):
            return found
        return _Manifest.model_validate(found).model_dump()
    except (orjson.JSONDecodeError, ValidationError):
        raise UsageError(f"{path} is damaged; remove it, and make again what it belongs to") from None


def _check_place(output: Path, folder: bool) -> None:
    """Refuse, before the work, a path where the output could not be put: a folder for a file, or the other way."""
    for path, wanted in ((output, folder), *((parent, True) for parent in output.parents)):
        if path.exists() and path.is_dir() != wanted:
            found, expected = ("a file", "a folder") if wanted else ("a folder", "a file")
            raise UsageError(f"{path} is {found}, but {expected} is to be made there; choose another path for {output}")


def _check_inputs(inputs: Mapping[str, str]) -> None:
    """Refuse inputs (path -> fingerprint) that the manifests beside them contradict."""
    origins = dict(inputs)
    for name in inputs:
        path = Path(name)
        manifest = manifest_path(path)
        if not manifest.exists():
            continue
        made = read_manifest(manifest)
        if UNFINISHED in made:
            raise UsageError(f"the making of {path} was interrupted; run: {made[UNFINISHED]}")
        for name_beside, value in {path.name: made["output_sha256"], **made["beside"]}.items():
            part = path.with_name(name_beside)
            if fingerprint(part) != value:
                raise UsageError(
                    f"{part} is not what {manifest} says was made: it was changed since, or its making was "
                    f"interrupted. Make it again by {made['command']} --overwrite, or remove the manifest to use it as "
                    "it is"
                )
        for origin, value in made["inputs"].items():
            if origins.setdefault(origin, value) != value:
                raise UsageError(
                    f"{name} was made from another version of {origin} than the rest of the input; make what is older "
                    f"again, {name} by: {made['command']}"
                )
            if origin not in inputs and Path(origin).exists() and fingerprint(origin) != value:
                print(f"note: {origin} has changed since {name} was made from it", file=sys.stderr)
