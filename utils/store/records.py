"""Rows of files that others made: JSON lines, one JSON array, or Parquet; and of runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from utils.config import UsageError
from utils.store.files import read_jsonl


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(place, row)`` of a ``.parquet`` file, or of JSON in either layout under any other name.

    Raises:
        UsageError: missing or damaged file, or a row that is no object; the message has its place.
    """
    if not path.is_file():
        raise UsageError(f"{path} is missing")
    return read_parquet(path) if path.suffix == ".parquet" else read_json(path)


def read_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(place, row)`` of JSON lines, or of a file that is one JSON array."""
    with open(path, "rb") as handle:
        array = handle.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    if not array:
        yield from ((f"{path}:{number}", row) for number, row in read_jsonl(path))
        return
    try:
        rows = orjson.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path}: not valid JSON ({error})") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UsageError(f"{path}, row {number}: a JSON object is expected, not {type(row).__name__}")
        yield f"{path}, row {number}", row


def read_run(path: Path, made_by: str) -> list[Any]:
    """The rows of a run's ``intermediate_data.json``, unchecked.

    Raises:
        UsageError: the file is missing, cut off, or has no rows; the message names ``made_by``.
    """
    try:
        rows = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; run: {made_by}") from None
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path} is not valid JSON ({error}); run: {made_by} --overwrite") from None
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{path} must be a JSON array with at least one row; run: {made_by} --overwrite")
    return rows


def read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(place, row)`` of a Parquet file, a batch in memory at a time."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(4096):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path}: not a whole Parquet file ({error}); download it again") from None
