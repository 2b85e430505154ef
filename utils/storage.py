"""Files: rows read with the place of every fault, outputs written whole or not at all.

A `Journal` holds a phase's finished work while the phase runs, so that a kill costs only what was
in flight. A manifest beside each output says what made it, so that the same command knows it is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from utils.config import UsageError

Row = TypeVar("Row", bound=BaseModel)
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


def read_jsonl(path: str | os.PathLike[str], made_by: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number, object)`` of a JSON-lines file; blank lines and a BOM are passed over.

    Args:
        path: the file.
        made_by: the command that makes it, told when it is missing.

    Raises:
        UsageError: the file is missing, or a line is no JSON object; the message has ``path:line``.
    """
    for number, _, row in _read_with_offsets(path, made_by):
        yield number, row


def _read_with_offsets(path: str | os.PathLike[str], made_by: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    try:
        lines = open(path, "rb")
    except FileNotFoundError:
        raise UsageError(f"{path} is missing" + (f"; run: {made_by}" if made_by else "")) from None
    offset = 0
    with lines:
        for number, line in enumerate(lines, 1):
            start, offset = offset, offset + len(line)
            line = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if not line:
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise UsageError(f"{path}:{number}: not valid JSON ({error}); mend or remove the line") from None
            if not isinstance(row, dict):
                raise UsageError(f"{path}:{number}: a JSON object is expected, not {type(row).__name__}")
            yield number, start, row


class LineIndex:
    """Rows of a JSON-lines file by key; memory holds two integers a row, the rows stay on disk.

    Args:
        path: the file.
        key: gives a row's key; a KeyError is told as a missing field.
        made_by: the command that makes the file, told when it is missing.

    Raises:
        UsageError: as `read_jsonl`, and for a key that stands twice or a file without rows.
    """

    def __init__(self, path: str | os.PathLike[str], key: Callable[[dict[str, Any]], str], made_by: str = "") -> None:
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}
        for number, offset, row in _read_with_offsets(path, made_by):
            try:
                name = key(row)
            except KeyError as error:
                raise UsageError(f"{path}:{number}: field {error} is missing") from None
            if name in self._places:
                raise UsageError(f"{path}:{number}: {name[:80]!r} stands on line {self._places[name][0]} too")
            self._places[name] = (number, offset)
        if not self._places:
            raise UsageError(f"{path} has no rows" + (f"; run: {made_by}" if made_by else ""))
        self._file = open(path, "rb")

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, key: str) -> tuple[str, dict[str, Any]]:
        """``("path:line", row)`` of a key; KeyError if there is none."""
        number, offset = self._places[key]
        self._file.seek(offset)
        line = self._file.readline().removeprefix(b"\xef\xbb\xbf")
        return f"{self.path}:{number}", orjson.loads(line)


def read_rows(
    path: str | os.PathLike[str], model: type[Row], made_by: str = "", limit: int = 0, unique: str = "id"
) -> list[Row]:
    """Read a JSON-lines file as rows of ``model``, checking every field at the border.

    Args:
        path: the file.
        model: the pydantic row.
        made_by: the command that makes the file, told when it is missing.
        limit: read only the first rows (0: all).
        unique: the field that no two rows may share.

    Raises:
        UsageError: as `read_jsonl`, and for a wrong field (``path:line: field``), a repeated
            ``unique`` field, or a file without rows.
    """
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for number, raw in read_jsonl(path, made_by):
        if limit and len(rows) == limit:
            break
        row = parse_row(raw, model, f"{path}:{number}")
        key = getattr(row, unique)
        if key in seen:
            raise UsageError(f"{path}:{number}: {unique} {key!r} stands on line {seen[key]} too; it must be unique")
        seen[key] = number
        rows.append(row)
    if not rows:
        raise UsageError(f"{path} has no rows" + (f"; run: {made_by}" if made_by else ""))
    return rows


def parse_row(raw: Mapping[str, Any], model: type[Row], where: str) -> Row:
    """Validate one object; the error names ``where`` and the field."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "row"
        raise UsageError(f"{where}: field '{field}': {first['msg']} (found {str(first['input'])[:80]!r})") from None


def dump_line(row: Any) -> bytes:
    """One JSON line; numpy numbers are accepted, NaN becomes null and is caught by the reader."""
    if isinstance(row, BaseModel):
        row = row.model_dump(exclude_none=True)
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name only when whole: written aside, synced, renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make a rename inside ``path`` survive a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_lines(path: str | os.PathLike[str], rows: Iterable[Any]) -> int:
    """Write rows as JSON lines, atomically; returns how many."""
    count = 0
    with atomic(path) as handle:
        for row in rows:
            handle.write(dump_line(row))
            count += 1
    return count


class Journal:
    """Append-only records of finished work, found again by key after a kill.

    Each line is ``{"key": ..., **record}``. A torn last line, whatever the byte, is cut off when the
    journal is opened: it costs that record and no other.

    Args:
        path: the file; made with its folder if missing.
        made_with: settings that the records depend on. If the file was made with others it is
            begun anew, and that is said. None: the keys alone say what a record depends on.
        sync_every: seconds between fsyncs, the most a power cut can lose.
    """

    def __init__(self, path: str | os.PathLike[str], made_with: Any = None, sync_every: float = 1.0) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.records: dict[str, dict[str, Any]] = {}
        self._sync_every, self._synced = sync_every, time.monotonic()
        header = digest(made_with)
        keep = self._load(header) if self.path.exists() else 0
        self._file = open(self.path, "ab")
        self._file.truncate(keep)
        if keep == 0:
            self._write({"made_with": header})

    def _load(self, header: str) -> int:
        """Read whole records; returns the offset up to which the file is sound (0: begin anew)."""
        sound = 0
        with open(self.path, "rb") as handle:
            for line in handle:
                if not line.endswith(b"\n"):
                    break
                try:
                    record = orjson.loads(line)
                except orjson.JSONDecodeError:
                    break
                if sound == 0:
                    if record.get("made_with") != header:
                        print(f"{self.path}: left by other inputs or settings; begun anew", file=sys.stderr)
                        return 0
                else:
                    self.records[record.pop("key")] = record
                sound += len(line)
        return sound

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def append(self, key: str, record: dict[str, Any]) -> None:
        """Keep one finished record."""
        self.records[key] = record
        self._write({"key": key, **record})

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(dump_line(row))
        self._file.flush()
        if time.monotonic() - self._synced >= self._sync_every:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close the file."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def delete(self) -> None:
        """Remove the journal once its records stand in a finished output."""
        self.close()
        self.path.unlink(missing_ok=True)


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


def in_chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive slices of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def resume(
    journal: Journal,
    items: list[Any],
    key: Callable[[Any], str],
    chunk: int,
    work: Callable[[list[Any]], list[dict[str, Any]]],
    desc: str,
) -> None:
    """Do ``work`` on the items that the journal does not hold yet, a chunk at a time, with a bar.

    Args:
        journal: receives one record an item.
        items: all items, done or not.
        key: the journal key of an item.
        chunk: items a call of ``work``; at most so many are done again after a kill.
        work: items -> one record each, in order.
        desc: text of the progress bar.
    """
    from tqdm import tqdm

    todo = [item for item in items if key(item) not in journal]
    with tqdm(total=len(items), initial=len(items) - len(todo), desc=desc, unit="question") as bar:
        for part in in_chunks(todo, chunk):
            for item, record in zip(part, work(part), strict=True):
                journal.append(key(item), record)
            bar.update(len(part))
