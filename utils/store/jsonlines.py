"""JSON lines between phases, read in order or by key; a fault is named by ``path:line: field``."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from utils.config import UsageError, printable
from utils.store.files import atomic
from utils.store.rows import Passage

Row = TypeVar("Row", bound=BaseModel)
PathLike = str | os.PathLike[str]
# Takes the kind of a fault and its error; either raises the error, or returns, and the line is left out.
OnFault = Callable[[str, UsageError], None]

BOM = b"\xef\xbb\xbf"
WRONG_FIELD = "rows with a wrong field"
REPEATED_ID = "rows with a repeated id"
# These two are refused even where bad lines are left out.
OTHER_FORMAT, NO_ROW = "files in another format", "files without a sound row"
OTHER_FORMATS = {  # what to do -> how such a file begins
    "the file is UTF-16: save it as UTF-8": (b"\xff\xfe", b"\xfe\xff"),
    "the file is compressed: gunzip it": (b"\x1f\x8b",),
    "the file is compressed: unpack it": (b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"),
    "the file is Parquet: write its rows as JSON lines": (b"PAR1",),
    "the file is one JSON array; make it JSON lines: jq -c .[] FILE": (b"[",),
    "its rows stand over several lines; make it JSON lines: jq -c . FILE": (b"{\n", b"{\r\n"),
}


def refuse(kind: str, error: UsageError) -> None:
    """Raise the error of a bad line."""
    raise error from None


def fault_handler(dropped: Counter[str] | None) -> OnFault:
    """Return what counts bad lines in ``dropped`` and tells the first of each kind; without a counter, `refuse`."""
    if dropped is None:
        return refuse

    def leave_out(kind: str, error: UsageError) -> None:
        if kind in (OTHER_FORMAT, NO_ROW):
            raise error
        if not dropped[kind]:
            print(f"left out, the first of its kind: {printable(str(error))}", file=sys.stderr)
        dropped[kind] += 1

    return leave_out


def read_jsonl(path: PathLike, made_by: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number, object)`` of a JSON-lines file; if it is missing, the error names ``made_by``."""
    for number, _, _, row in read_with_offsets(path, made_by):
        yield number, row


def read_with_offsets(
    path: PathLike, made_by: str = "", on_fault: OnFault = refuse
) -> Iterator[tuple[int, int, int, dict[str, Any]]]:
    """Yield ``(line number, offset in bytes, length in bytes, object)`` of each line that is not blank."""
    try:
        lines = open(path, "rb")
    except FileNotFoundError:
        raise UsageError(f"{path} is missing{_run(made_by)}") from None
    offset, opening = 0, True
    with lines:
        for number, line in enumerate(lines, 1):
            start, offset = offset, offset + len(line)
            text = without_bom(line)
            if not text or text.isspace():
                continue
            other, opening = _other_format(text) if opening else "", False
            try:
                row = parse_line(text)
            except orjson.JSONDecodeError as error:
                kind, fault = "lines that are not valid JSON", f"not valid JSON ({error}); {other or _remedy(text)}"
            except TypeError as error:
                kind, fault = "lines that are no JSON object", f"{error}; {other}".removesuffix("; ")
            else:
                yield number, start, len(line), row
                continue
            on_fault(OTHER_FORMAT if other else kind, UsageError(f"{path}:{number}: {fault}"))
            if other:
                return


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line; raise orjson's error, or a TypeError if it is another JSON value."""
    row = orjson.loads(text := without_bom(line))
    if not isinstance(row, dict):
        raise TypeError(f"a JSON object is expected, not {type(row).__name__}")
    answers = row.get("golden_answers", [])
    numbers = answers if isinstance(answers, list) else [answers]
    if isinstance(row.get("id"), float) or any(isinstance(number, float) for number in numbers):
        # The digits as they are written: 3.50, or an integer of more than 64 bits.
        digits = json.loads(text, parse_float=str, parse_int=str)
        row |= {name: digits[name] for name in ("id", "golden_answers") if name in digits}
    return row


def without_bom(line: bytes) -> bytes:
    """Return a line without byte order marks: files joined by ``cat`` have them at any line, or twice."""
    while line.startswith(BOM):
        line = line[len(BOM) :]
    return line


def _other_format(start: bytes) -> str:
    """Return what to do with a file that begins so, if it is of a known format that is not JSON lines."""
    return next((remedy for remedy, marks in OTHER_FORMATS.items() if start.lstrip().startswith(marks)), "")


def _remedy(line: bytes) -> str:
    if b"NaN" in line or b"Infinity" in line:
        return "JSON has no NaN or Infinity: write null, or remove the row"
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start} of the line is not UTF-8: save the file as UTF-8"
    return "correct or remove the line"


def checked_rows(path: PathLike, model: type[Row], made_by: str = "", on_fault: OnFault = refuse) -> Iterator[Row]:
    """Yield the lines of a file as rows of ``model``, no two of which have the same id."""
    first: dict[str, int] = {}
    for number, _, _, raw in read_with_offsets(path, made_by, on_fault):
        try:
            row = parse_row(raw, model, f"{path}:{number}")
        except UsageError as error:
            on_fault(WRONG_FIELD, error)
            continue
        key = str(raw["id"])
        if first.setdefault(key, number) == number:
            yield row
        else:
            fault = f"{path}:{number}: id {key!r} is on line {first[key]} too; it must be unique"
            on_fault(REPEATED_ID, UsageError(fault))


def read_rows(
    path: PathLike, model: type[Row], made_by: str = "", limit: int = 0, dropped: Counter[str] | None = None
) -> list[Row]:
    """Read the first ``limit`` rows (0: all) of a JSON-lines file; no two may have the same id.

    ``dropped`` counts unusable rows by fault, and they are left out; None refuses them. An error about a missing or
    empty file names the command ``made_by``.
    """
    found = checked_rows(path, model, made_by, fault_handler(dropped))
    rows = list(islice(found, limit or None))
    if not rows:
        raise UsageError(f"{path} has no rows{_run(made_by)}")
    return rows


def _run(made_by: str) -> str:
    return f"; run: {made_by}" if made_by else ""


def parse_row(raw: Mapping[str, Any], model: type[Row], where: str) -> Row:
    """Check one object against ``model``; the error names ``where`` and the field."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "row"
        raise UsageError(f"{where}: field '{field}': {first['msg']} (found {str(first['input'])[:80]!r})") from None


def dump_line(row: Any) -> bytes:
    """Return a row as one JSON line; NaN becomes null, which the reader refuses."""
    if isinstance(row, BaseModel):
        row = row.model_dump(exclude_none=True)
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def write_lines(path: PathLike, rows: Iterable[Any]) -> int:
    """Write rows as JSON lines, all or none, and return how many."""
    count = 0
    with atomic(path) as handle:
        for row in rows:
            handle.write(dump_line(row))
            count += 1
    return count


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(place, row)`` of a file from elsewhere: ``.parquet``, JSON lines, or one JSON array."""
    if not path.is_file():
        raise UsageError(f"{path} is missing")
    if path.suffix == ".parquet":
        rows = read_parquet(path)
    elif (content := without_bom(path.read_bytes())).lstrip().startswith(b"["):
        try:
            rows = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise UsageError(f"{path}: not valid JSON ({error})") from None
    else:
        yield from ((f"{path}:{number}", row) for number, row in read_jsonl(path))
        return
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UsageError(f"{path}, row {number}: a JSON object is expected, not {type(row).__name__}")
        yield f"{path}, row {number}", row


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """Read all rows of a Parquet file."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            return file.read().to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path}: not a whole Parquet file ({error}); download it again") from None


def read_run(path: Path, made_by: str) -> list[Any]:
    """Read the rows of a run's ``intermediate_data.json``, unchecked; errors tell the command ``made_by``."""
    try:
        rows = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; run: {made_by}") from None
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path} is not valid JSON ({error}); run: {made_by} --overwrite") from None
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{path} must be a JSON array with at least one row; run: {made_by} --overwrite")
    return rows


class LineIndex:
    """Rows of a JSON-lines file by id, or by query where they have none; memory holds the key and three integers each.

    A key leads to ``("path:line", row)``.
    """

    def __init__(self, path: PathLike, made_by: str = "") -> None:
        self.path = path
        self._lines: dict[str, tuple[int, int, int]] = {}  # number, offset, size
        for number, offset, size, row in read_with_offsets(path, made_by):
            key = row.get("id", row.get("query"))
            if not isinstance(key, (str, int, float)):
                raise UsageError(f"{path}:{number}: field 'id' or 'query' must name the line, not {key!r:.80}")
            if (key := str(key)) in self._lines:
                raise UsageError(f"{path}:{number}: {key[:80]!r} is on line {self._lines[key][0]} too")
            self._lines[key] = number, offset, size
        if not self._lines:
            raise UsageError(f"{path} has no rows{_run(made_by)}")
        self._file = open(path, "rb", buffering=0)

    def __contains__(self, key: str) -> bool:
        return key in self._lines

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __getitem__(self, key: str) -> tuple[str, dict[str, Any]]:
        number, offset, size = self._lines[key]
        # pread moves no shared file position, so threads and forked processes can read at the same time.
        line = os.pread(self._file.fileno(), size, offset)
        return f"{self.path}:{number}", parse_line(line)


def passages_path(docs: PathLike) -> Path:
    """Return the path of the passage texts that lie beside a candidates file."""
    return Path(docs).with_suffix(".passages.jsonl")


class PassageTexts:
    """The texts of a corpus by passage id, read from the file when they are asked for."""

    def __init__(self, path: PathLike) -> None:
        made_by = "python dataset_generation.py --dataset NAME --phase get_docs"
        self._rows = LineIndex(path, made_by)

    def __getitem__(self, passage_id: str) -> str:
        try:
            where, raw = self._rows[passage_id]
        except KeyError:
            path = self._rows.path
            raise UsageError(f"{path} has no passage with id {passage_id!r}; make it again with get_docs") from None
        contents = raw.get("contents")
        # A million texts are read per training set: only a faulty one goes through the model, which names the fault.
        if isinstance(contents, str) and contents.strip():
            return contents
        return parse_row(raw, Passage, where).contents
