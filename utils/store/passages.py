"""The texts of retrieved passages, each kept once beside the file that names them by id."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.config import UsageError
from utils.store.files import parse_row
from utils.store.lookup import LineIndex
from utils.store.rows import Passage

UNUSABLE = 0  # the mark of contents that are no text


def passages_path(docs: str | os.PathLike[str]) -> Path:
    """``train_docs_20000.jsonl`` -> ``train_docs_20000.passages.jsonl``, itself a FlashRAG corpus."""
    return Path(docs).with_suffix(".passages.jsonl")


class PassageTexts:
    """Passage texts by id, read from disk one at a time.

    Args:
        path: JSON lines ``{id, contents}``.
        made_by: the command that makes the file.
    """

    def __init__(self, path: str | os.PathLike[str], made_by: str = "") -> None:
        made_by = made_by or "python dataset_generation.py --dataset NAME --phase get_docs"
        self._marks = array("q")
        self._index = LineIndex(
            path, lambda row: str(row["id"]), made_by, seen=lambda row: self._marks.append(_mark(row.get("contents")))
        )

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def all_differ(self, passage_ids: Sequence[str]) -> bool:
        """Whether these passages have texts, no two equal; False also where it takes a reading to know.

        Raises:
            UsageError: no passage has one of the ids.
        """
        marks = {self._marks[place] for place in self._places(passage_ids)}
        return len(marks) == len(passage_ids) and UNUSABLE not in marks

    def __getitem__(self, passage_id: str) -> str:
        """The passage's ``contents``.

        Raises:
            UsageError: no passage has this id.
        """
        (place,) = self._places([passage_id])
        raw = self._index.read(place)
        if self._marks[place] == UNUSABLE:
            return parse_row(raw, Passage, self._index.where(place)).contents
        return raw["contents"]

    def _places(self, passage_ids: Sequence[str]) -> list[int]:
        try:
            return self._index.places(passage_ids)
        except KeyError as error:
            raise UsageError(
                f"{self._index.path} has no passage with id {error}; make it again with get_docs"
            ) from None


def _mark(contents: Any) -> int:
    """A number that two passages of equal text share, and others hardly ever."""
    return hash(contents) if isinstance(contents, str) and contents and not contents.isspace() else UNUSABLE
