"""Embeddings in files, each written whole: a kill costs the file in work."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.ray_engine import Run
from utils.store.files import atomic

MADE_WITH = "made_with"


@dataclass(frozen=True)
class EmbeddingFile:
    """A ``.npy`` file to be made.

    Attributes:
        path: the file.
        parts: what workers encode together, with the number of rows each gives; the file has them in order.
    """

    path: Path
    parts: Sequence[tuple[int, Any]]

    @property
    def rows(self) -> int:
        """Rows of the whole file."""
        return sum(rows for rows, _ in self.parts)


def encode_files(files: Sequence[EmbeddingFile], run: Run, desc: str, unit: str) -> None:
    """Make the files that are not there yet.

    Args:
        files: all that this process is to make.
        run: parts -> their rows.
        desc: of the progress bar.
        unit: what a row is of.
    """
    missing = [file for file in files if not file.path.exists()]
    places = [(file, place) for file in missing for place in range(len(file.parts))]
    found: dict[Path, dict[int, Any]] = {}  # of files of which some parts are done
    total, left = (sum(file.rows for file in some) for some in (files, missing))
    with tqdm(total=total, initial=total - left, desc=desc, unit=unit, smoothing=0.05) as bar:
        for number, rows in run(part for file in missing for _, part in file.parts):
            file, place = places[number]
            parts = found.setdefault(file.path, {})
            parts[place] = rows
            bar.update(len(rows))
            if len(parts) == len(file.parts):
                with atomic(file.path) as handle:
                    np.save(handle, np.concatenate([parts[i] for i in range(len(parts))]))
                del found[file.path]


def prepare_folder(folder: Path, made_with: str) -> None:
    """Keep the files that an earlier call with the same inputs and settings left, remove another's."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / MADE_WITH
    if mark.exists() and mark.read_text() == made_with:
        return
    if any(folder.glob("*.npy")):
        shutil.rmtree(folder)
        folder.mkdir()
    with atomic(mark) as handle:
        handle.write(made_with.encode())
