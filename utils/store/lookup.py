"""Rows of a JSON-lines file by key, and the texts of passages by id; the rows stay on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from utils.config import UsageError
from utils.store.jsonlines import BOM, parse_row, read_with_offsets
from utils.store.rows import Passage


class LineIndex:
    """Rows of a JSON-lines file by key, which ``key`` gives; memory holds the key and three integers per row."""

    def __init__(self, path: str | os.PathLike[str], key: Callable[[dict[str, Any]], str], made_by: str = "") -> None:
        self.path = path
        self._lines: dict[str, tuple[int, int, int]] = {}  # number, offset, size
        for number, offset, size, row in read_with_offsets(path, made_by):
            try:
                name = key(row)
            except KeyError as error:
                raise UsageError(f"{path}:{number}: field {error} is missing") from None
            if not isinstance(name, str):
                raise UsageError(f"{path}:{number}: a text is expected that names the line, not {name!r:.80}")
            if name in self._lines:
                raise UsageError(f"{path}:{number}: {name[:80]!r} is on line {self._lines[name][0]} too")
            self._lines[name] = number, offset, size
        if not self._lines:
            raise UsageError(f"{path} has no rows" + (f"; run: {made_by}" if made_by else ""))
        self._file = open(path, "rb", buffering=0)

    def __contains__(self, key: str) -> bool:
        return key in self._lines

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __getitem__(self, key: str) -> tuple[str, dict[str, Any]]:
        """Return ``("path:line", row)`` of a key."""
        number, offset, size = self._lines[key]
        # pread moves no shared file position, so threads and forked processes can read at the same time.
        line = os.pread(self._file.fileno(), size, offset)
        return f"{self.path}:{number}", orjson.loads(line.removeprefix(BOM))


def passages_path(docs: str | os.PathLike[str]) -> Path:
    """Return the path of the passage texts that lie beside a candidates file."""
    return Path(docs).with_suffix(".passages.jsonl")


class PassageTexts:
    """The texts of a corpus by passage id, read from the file when they are asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        made_by = "python dataset_generation.py --dataset NAME --phase get_docs"
        self._rows = LineIndex(path, lambda row: str(row["id"]), made_by)

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
