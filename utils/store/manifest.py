"""What made an output: so that the same command knows it is done, and a reader can believe it."""

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
from utils.store.files import atomic, lock_path, locked
from utils.store.provenance import command_line, commit, machine, versions

UNFINISHED = "unfinished"  # the only key of a manifest whose output is being made: by which command
WHOLE_FILE_LIMIT = 1 << 30


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
    about = path.stat()
    return _file_hash(path, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _file_hash(path: Path, size: int, mtime: int) -> str:
    seen = hashlib.sha256()
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


class _Manifest(BaseModel):
    key: str
    rows: int
    command: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    output_sha256: str
    beside: dict[str, str] = {}
    # For readers only; nothing is decided by them.
    output: str = ""
    dropped: dict[str, int] = {}
    facts: dict[str, Any] = {}
    seconds: float = 0.0
    machine: str = "unknown"
    versions: dict[str, str] = {}
    commit: str = "unknown"


class Phase:
    """One output of one command, with its manifest ``OUTPUT.manifest.json``.

    Args:
        output: the file or folder that the command makes.
        inputs: files, folders or hub ids that it is made from.
        settings: every setting that changes it; none of them secret.
        scratch: files and folders of the work on it, each locked while work goes on (a folder by ``FOLDER.lock``);
            what a kill has left of them is removed once the output is found finished.
        folder: whether the output is a folder.

    Raises:
        UsageError: an input is not what its manifest says, two inputs come from different versions of one file, or
            something stands where the output is to lie that it cannot replace.
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
        check_place(self.output, folder)
        self._scratch = tuple(scratch)
        self.settings = {k: v for k, v in settings.items() if k not in SECRETS}
        self.inputs = {str(path): fingerprint(path) for path in inputs}
        self.key = digest([self.inputs, self.settings])
        self._started = datetime.now(UTC)
        check_inputs(self.inputs)

    @property
    def manifest(self) -> Path:
        """Path of the manifest."""
        return manifest_path(self.output)

    def is_done(self, overwrite: bool) -> bool:
        """True, and said, if the output stands and was made from the same inputs and settings.

        Raises:
            UsageError: it was made so, and changed afterwards by hand.
        """
        if overwrite or not self.output.exists() or not self.manifest.exists():
            return False
        done = read_manifest(self.manifest)
        if UNFINISHED in done:
            return False
        if done["key"] != self.key:
            changed = [k for k in self.settings if done["settings"].get(k) != self.settings[k]]
            changed += [p for p in self.inputs if done["inputs"].get(p) != self.inputs[p]]
            print(
                f"{self.output} was made with other {', '.join(changed) or 'settings'}; making it again",
                file=sys.stderr,
            )
            return False
        if fingerprint(self.output) != done["output_sha256"]:
            raise UsageError(
                f"{self.output} has changed since it was made; --overwrite makes it again (to keep it as it is, remove "
                f"{self.manifest} and move it)"
            )
        self._sweep()
        print(f"{self.output} is finished ({done['rows']} rows); --overwrite makes it again")
        return True

    def _sweep(self) -> None:
        for path in filter(Path.exists, self._scratch):
            # A run with --overwrite may be at work on it.
            with contextlib.suppress(UsageError), locked(lock_path(path) if path.is_dir() else path):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def claim(self) -> None:
        """Note before the output is written that it is this project's, for phases that spare other people's files."""
        with atomic(self.manifest) as handle:
            handle.write(orjson.dumps({UNFINISHED: command_line()}))

    def finish(
        self, rows: int, dropped: Mapping[str, int] | None = None, beside: Iterable[Path] = (), **facts: Any
    ) -> None:
        """Write the manifest and say in one line what was made and what was dropped.

        Args:
            rows: in the output.
            dropped: how many rows are not, by reason.
            beside: files that belong to the output and are checked with it.
            facts: whatever else a reader should know.
        """
        seconds = (datetime.now(UTC) - self._started).total_seconds()
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
            "beside": {path.name: fingerprint(path) for path in beside},
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "versions": versions(),
            "commit": commit(),
            "machine": machine(),
        }
        with atomic(self.manifest) as handle:
            handle.write(orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
        lost = ", ".join(f"{n} {reason}" for reason, n in dropped.items()) or "none"
        print(f"{self.output}: {rows} rows in {record['seconds']} s; dropped: {lost}")


def manifest_path(output: Path) -> Path:
    """``OUTPUT.manifest.json``."""
    return output.with_name(f"{output.name}.manifest.json")


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest as `Phase.finish` or `Phase.claim` writes it.

    Raises:
        UsageError: the file holds something else.
    """
    content = path.read_bytes()
    try:
        found = orjson.loads(content)
        if isinstance(found, dict) and isinstance(found.get(UNFINISHED), str):
            return found
        return _Manifest.model_validate(found).model_dump()
    except (orjson.JSONDecodeError, ValidationError):
        raise UsageError(f"{path} is damaged; remove it, and make again what it belongs to") from None


def check_place(output: Path, folder: bool) -> None:
    """Refuse, before the work, a path that what is made could not be given in the end.

    Raises:
        UsageError: a folder stands where a file is to be made, or the other way round, or a file where a folder
            above it would be.
    """
    for path, wanted in ((output, folder), *((parent, True) for parent in output.parents)):
        if path.exists() and path.is_dir() != wanted:
            found, expected = ("a file", "a folder") if wanted else ("a folder", "a file")
            raise UsageError(f"{path} is {found}, but {expected} is to be made there; choose another path for {output}")


def check_inputs(inputs: Mapping[str, str]) -> None:
    """Hold files that this project made against the manifests that lie beside them.

    Args:
        inputs: path -> fingerprint.

    Raises:
        UsageError: a file was changed after it was made, or two were made from different versions of one file.
            The message names the command that makes it again.
    """
    origins = dict(inputs)
    for name, found in inputs.items():
        path = Path(name)
        if not manifest_path(path).exists():
            continue
        made = read_manifest(manifest_path(path))
        if UNFINISHED in made:
            raise UsageError(f"the making of {path} was interrupted; run: {made[UNFINISHED]}")
        parts = {path: found} | {path.with_name(other): None for other in made["beside"]}
        for part, known in parts.items():
            promised = made["output_sha256"] if part == path else made["beside"][part.name]
            if (known or fingerprint(part)) != promised:
                raise UsageError(
                    f"{part} is not what {manifest_path(path)} says was made: it was changed since, or its making was "
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
