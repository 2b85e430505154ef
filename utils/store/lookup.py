"""Rows of a JSON-lines file by key, left on disk."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

from utils.config import UsageError
from utils.store.files import read_with_offsets


class LineIndex:
    """Rows of a JSON-lines file by key; memory holds the key and three integers a row, the rows stay on disk.

    Args:
        path: the file.
        key: gives a row's key; a KeyError is told as a missing field.
        made_by: the command that makes the file, told when it is missing.
        seen: gets every row as it is read the first time.

    Raises:
        UsageError: as `utils.store.files.read_jsonl`, and for a key that stands twice or a file without rows.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        key: Callable[[dict[str, Any]], str],
        made_by: str = "",
        seen: Callable[[dict[str, Any]], object] | None = None,
    ) -> None:
        self.path = path
        self._places: dict[str, int] = {}
        self._numbers, self._starts, self._sizes = array("Q"), array("Q"), array("Q")
        add_place, add_number = self._places.setdefault, self._numbers.append
        add_start, add_size = self._starts.append, self._sizes.append
        for number, start, size, row in read_with_offsets(path, made_by):
            try:
                name = key(row)
            except KeyError as error:
                raise UsageError(f"{path}:{number}: field {error} is missing") from None
            if not isinstance(name, str):
                raise UsageError(f"{path}:{number}: a text is expected that names the line, not {name!r:.80}")
            place = len(self._places)
            if (first := add_place(name, place)) != place:
                raise UsageError(f"{path}:{number}: {name[:80]!r} stands on line {self._numbers[first]} too")
            add_number(number)
            add_start(start)
            add_size(size)
            if seen:
                seen(row)
        if not self._places:
            raise UsageError(f"{path} has no rows" + (f"; run: {made_by}" if made_by else ""))
        self._file = open(path, "rb", buffering=0)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, key: str) -> tuple[str, dict[str, Any]]:
        """``("path:line", row)`` of a key; KeyError if there is none."""
        place = self._places[key]
        return self.where(place), self.read(place)

    def places(self, keys: Iterable[str]) -> list[int]:
        """How many rows stand before each key's; KeyError if there is none."""
        return list(map(self._places.__getitem__, keys))

    def read(self, place: int) -> dict[str, Any]:
        """The row at a place."""
        line = os.pread(self._file.fileno(), self._sizes[place], self._starts[place])
        return orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))

    def where(self, place: int) -> str:
        """``path:line`` of a place."""
        return f"{self.path}:{self._numbers[place]}"
