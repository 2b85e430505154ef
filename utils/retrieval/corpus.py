"""A corpus on disk: read and checked whole before the work begins, then read by row number."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from tqdm import tqdm

from utils.config import UsageError
from utils.store.files import require_file
from utils.store.jsonlines import (
    NO_ROW,
    REPEATED_ID,
    WRONG_FIELD,
    OnFault,
    PathLike,
    parse_line,
    parse_row,
    read_with_offsets,
    refuse,
    without_bom,
)
from utils.store.rows import Passage, Text


class TextPassage(Passage):
    """A line of a corpus that calls its contents ``text``, as FlashRAG takes it."""

    contents: Text = Field(validation_alias="text")


@dataclass(frozen=True, eq=False)
class Corpus:
    """The sound rows of a corpus, or some of them: 8 bytes of memory each. Iteration reads them from the file.

    Row i of the whole corpus is row i of its index.
    """

    path: PathLike
    model: type[Passage]
    offsets: NDArray[np.int64]  # of the rows' lines

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[Any]) -> Corpus:
        return replace(self, offsets=self.offsets[rows])

    def __iter__(self) -> Iterator[Passage]:
        with open(self.path, "rb") as file:
            for offset in self.offsets:
                file.seek(offset)
                try:
                    yield self.model.model_validate(parse_line(file.readline()))
                except (ValueError, TypeError):
                    raise UsageError(f"{self.path} was changed while it was read; run the same command again") from None

    def split(self, size: int) -> list[Corpus]:
        """Divide the rows into parts of ``size``; the last one may be smaller."""
        return [self[start : start + size] for start in range(0, len(self), size)]


def open_checked(path: PathLike) -> Corpus:
    """Return the rows of a corpus whose every line `read_corpus` found sound before; they are only counted."""
    offsets, offset = array("q"), 0
    with open(path, "rb") as lines:
        for line in lines:
            if without_bom(line).strip():
                offsets.append(offset)
            offset += len(line)
        lines.seek(offsets[0])
        return Corpus(path, _model_of(parse_line(lines.readline())), np.asarray(offsets))


def _model_of(first: dict[str, Any]) -> type[Passage]:
    """Return the model of a corpus by its first row: all rows have the same fields."""
    return TextPassage if "text" in first and "contents" not in first else Passage


def read_corpus(path: PathLike, on_fault: OnFault = refuse) -> Corpus:
    """Check all lines of a corpus, and return its sound rows; of several with one id, the first.

    wiki18 takes about four minutes and 0.7 GB of memory. A fault told here would otherwise end hours of encoding. Once
    an index was built, `open_checked` does without.
    """
    require_file(path, "corpus", "give --corpus_path (JSON lines {id, contents})")
    offsets, lines, hashes = array("q"), array("q"), array("q")
    model: type[Passage] | None = None
    for number, offset, _, raw in tqdm(read_with_offsets(path, on_fault=on_fault), desc="check corpus", unit="row"):
        model = model or _model_of(raw)
        try:
            passage = parse_row(raw, model, f"{path}:{number}")
        except UsageError as error:
            on_fault(WRONG_FIELD, error)
            continue
        offsets.append(offset)
        lines.append(number)
        hashes.append(hash(passage.id))
    corpus = Corpus(path, model or Passage, np.asarray(offsets))
    repeated: list[int] = []
    for row, first, name in _repeated(corpus, hashes):
        fault = f"{path}:{lines[row]}: id {name!r} is on line {lines[first]} too; it must be unique"
        on_fault(REPEATED_ID, UsageError(fault))
        repeated.append(row)
    if len(corpus) == len(repeated):
        on_fault(NO_ROW, UsageError(f"{path}:1: the file has no sound row; {{id, contents}} is needed"))
    return replace(corpus, offsets=np.delete(corpus.offsets, repeated)) if repeated else corpus


def _repeated(corpus: Corpus, hashes: array[int]) -> Iterator[tuple[int, int, str]]:
    """Yield each row whose id an earlier row has, that row, and the id, given the hashes of all ids."""
    ordered = np.sort(hashes)
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    rows = np.fromiter((value in twice for value in hashes), bool, len(hashes)).nonzero()[0]
    first: dict[str, int] = {}
    for row, passage in zip(rows.tolist(), corpus[rows], strict=True):  # different ids may have one hash
        if first.setdefault(passage.id, row) != row:
            yield row, first[passage.id], passage.id
