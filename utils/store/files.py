"""Files: rows read with the place of every fault, outputs written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from utils.config import UsageError, printable

Row = TypeVar("Row", bound=BaseModel)


def read_jsonl(path: str | os.PathLike[str], made_by: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number, object)`` of a JSON-lines file; blank lines and a BOM are passed over.

    Args:
        path: the file.
        made_by: the command that makes it, told when it is missing.

    Raises:
        UsageError: the file is missing, or a line is no JSON object; the message has ``path:line``.
    """
    for number, _, _, row in read_with_offsets(path, made_by):
        yield number, row


def refuse(kind: str, error: UsageError) -> None:
    """What `read_with_offsets` does with a bad line unless told otherwise."""
    raise error from None


def read_with_offsets(
    path: str | os.PathLike[str], made_by: str, bad: Callable[[str, UsageError], None] = refuse
) -> Iterator[tuple[int, int, int, dict[str, Any]]]:
    """Yield ``(line number, place of its first byte, its bytes, object)``, as `read_jsonl` reads them.

    Args:
        path: the file.
        made_by: the command that makes it, told when it is missing.
        bad: gets each bad line's kind of fault and the error; it raises it, or the line is passed over.
    """
    try:
        lines = open(path, "rb")
    except FileNotFoundError:
        raise UsageError(f"{path} is missing" + (f"; run: {made_by}" if made_by else "")) from None
    with lines:
        yield from parse_lines(lines, path, bad)


def parse_lines(
    lines: Iterable[bytes],
    path: str | os.PathLike[str],
    bad: Callable[[str, UsageError], None] = refuse,
    first: int = 1,
) -> Iterator[tuple[int, int, int, dict[str, Any]]]:
    """As `read_with_offsets`, of lines that have been read.

    Args:
        lines: of the file, from number ``first``; places count from the first byte of these.
        path: for messages.
        bad: as of `read_with_offsets`.
        first: number of the first line, from 1.
    """
    offset = 0
    for number, line in enumerate(lines, first):
        start, size = offset, len(line)
        offset += size
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if not line.strip():
                continue
            hint = _hint(line) or "mend or remove the line"
            bad("lines that are not valid JSON", UsageError(f"{path}:{number}: not valid JSON ({error}); {hint}"))
            continue
        if not isinstance(row, dict):
            what = f"a JSON object is expected, not {type(row).__name__}"
            bad("lines that are no JSON object", UsageError(f"{path}:{number}: {what}"))
            continue
        yield number, start, size, row


def _hint(line: bytes) -> str:
    """The remedy of the commonest faults."""
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "the file is UTF-16: save it as UTF-8"
    if line.startswith(b"\x1f\x8b"):
        return "the file is compressed: gunzip it"
    if any(word in line for word in (b"NaN", b"Infinity")):
        return "JSON has no NaN or Infinity: write null, or leave the row out"
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start} of the line is not UTF-8: save the file as UTF-8"
    return ""


def read_rows(
    path: str | os.PathLike[str],
    model: type[Row],
    made_by: str = "",
    limit: int = 0,
    unique: str = "id",
    dropped: Counter[str] | None = None,
) -> list[Row]:
    """All rows of a JSON-lines file at once; see `iter_rows`."""
    return list(iter_rows(path, model, made_by, limit, unique, dropped))


class RowFile(Generic[Row]):
    """The rows of a file, checked at once and read again each time they are gone through; memory holds none.

    Takes what `iter_rows` takes and raises what it raises.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: type[Row],
        made_by: str = "",
        limit: int = 0,
        dropped: Counter[str] | None = None,
    ) -> None:
        self._rows = functools.partial(iter_rows, path, model, made_by, limit)
        self._count = sum(1 for _ in self._rows(dropped=dropped))
        self._dropped = dropped

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Row]:
        # What was left out has been told and counted.
        return self._rows(dropped=None if self._dropped is None else Counter(self._dropped))


def iter_rows(
    path: str | os.PathLike[str],
    model: type[Row],
    made_by: str = "",
    limit: int = 0,
    unique: str = "id",
    dropped: Counter[str] | None = None,
) -> Iterator[Row]:
    """Read a JSON-lines file as rows of ``model``, checking every field at the border.

    Args:
        path: the file.
        model: the pydantic row.
        made_by: the command that makes the file, told when it is missing.
        limit: read only the first rows (0: all).
        unique: the field that no two rows may share.
        dropped: counts unusable rows by what is wrong with them and leaves them out; None refuses them.

    Raises:
        UsageError: as `read_jsonl`, and for a wrong field (``path:line: field``), a repeated
            ``unique`` field, or a file without rows.
    """
    seen: dict[str, int] = {}

    def bad(kind: str, error: UsageError) -> None:
        if dropped is None:
            raise error from None
        if not dropped[kind]:
            print(f"left out, the first of its kind: {printable(str(error))}", file=sys.stderr)
        dropped[kind] += 1

    for number, _, _, raw in read_with_offsets(path, made_by, bad):
        if limit and len(seen) == limit:
            break
        try:
            row = parse_row(raw, model, f"{path}:{number}")
        except UsageError as error:
            bad("rows with a wrong field", error)
            continue
        key = getattr(row, unique)
        if key in seen:
            place = f"{path}:{number}: {unique} {key!r} stands on line {seen[key]} too; it must be unique"
            bad(f"rows with a repeated {unique}", UsageError(place))
            continue
        seen[key] = number
        yield row
    if not seen:
        raise UsageError(f"{path} has no rows" + (f"; run: {made_by}" if made_by else ""))


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
    """Open a file for writing that takes its name only when whole: written aside, synced, renamed.

    What a killed process has left aside is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_torn(path)
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


def remove_torn(path: Path) -> None:
    """Remove what processes that were killed while they wrote ``path`` have left aside."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if not _is_running(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)


def lock_path(folder: Path) -> Path:
    """The file to lock for work in a folder."""
    return folder.with_name(f"{folder.name}.lock")


def locked(path: Path) -> FileIO:
    """Open a file, unbuffered and for appending, that no other run may write; made with its folder if missing.

    Raises:
        UsageError: another run has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def require_space(folder: Path, size: float, what: str) -> None:
    """Refuse work whose files will not fit on the disk.

    Args:
        folder: where they will lie; it need not exist yet.
        size: bytes, estimated from below.
        what: the files, for the message.

    Raises:
        UsageError: there is less space than that.
    """
    free = free_space(folder)
    if free < size:
        raise UsageError(f"{what} will take about {size / 1e9:.2f} GB, but {folder} has {free / 1e9:.2f} GB left")


def free_space(folder: Path) -> int:
    """Return the free bytes of the disk on which a folder lies, or will lie."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def reserve(path: Path) -> None:
    """Claim the blocks of a file that will be written through a memory map, where a full disk would be a SIGBUS.

    Raises:
        OSError: no space left.
    """
    with open(path, "r+b") as handle:
        os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)


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
