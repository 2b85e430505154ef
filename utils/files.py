"""Files: rows read with the place of every fault, outputs written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import IO, Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from utils.config import UsageError

Row = TypeVar("Row", bound=BaseModel)


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


def locked(path: Path) -> FileIO:
    """Open a file, unbuffered and for appending, that no other run may write.

    Raises:
        UsageError: another run has it.
    """
    while True:
        file = open(path, "ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UsageError(f"{path} is being written by another run; wait for it, or stop it first") from None
        # The run that had it may have removed it between our opening and our claim.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()


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


def file_name(name: str) -> str:
    """A model's name as a file name."""
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in name).lstrip(".") or "model"
