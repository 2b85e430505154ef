"""The texts of retrieved passages, each kept once beside the file that names them by id."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.config import UsageError
from utils.files import LineIndex, parse_row
from utils.rows import Passage


def passages_path(docs: str | os.PathLike[str]) -> Path:
    """``train_docs_20000.jsonl`` -> ``train_docs_20000.passages.jsonl``, itself a FlashRAG corpus."""
    return Path(docs).with_suffix(".passages.jsonl")


class PassageTexts:
    """Passage texts by id, read from disk one at a time; those that repeat another's text are known without reading.

    Args:
        path: JSON lines ``{id, contents}``.
        made_by: the command that makes the file.
    """

    def __init__(self, path: str | os.PathLike[str], made_by: str = "") -> None:
        made_by = made_by or "python dataset_generation.py --dataset NAME --phase get_docs"
        self._twins: dict[str, str] = {}
        first: dict[int, str] = {}

        def name_of(row: dict[str, Any]) -> str:
            name = str(row["id"])
            known = first.setdefault(hash(str(row["contents"])), name)
            if known is not name:
                self._twins[name] = known
            return name

        self._index = LineIndex(path, name_of, made_by)

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def original(self, passage_id: str) -> str:
        """The first passage of the file with the same text."""
        twin = self._twins.get(passage_id)
        return passage_id if twin is None or self[twin] != self[passage_id] else twin

    def __getitem__(self, passage_id: str) -> str:
        """The passage's ``contents``.

        Raises:
            UsageError: no passage has this id.
        """
        try:
            text = self._index.row(passage_id)["contents"]
        except KeyError:
            raise UsageError(
                f"{self._index.path} has no passage with id {passage_id!r}; make it again with get_docs"
            ) from None
        if isinstance(text, str) and not text.isspace() and text:
            return text
        where, raw = self._index[passage_id]
        return parse_row(raw, Passage, where).contents  # tells what is wrong
