"""Exact search of a Flat index file block by block, on the CPU or on GPUs, however large the file is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from utils.config import UsageError

Found = tuple[torch.Tensor, torch.Tensor]
MOST_SCORES = 1 << 26  # of a block with all queries: 256 MiB
MOST_ROWS = 1 << 16  # of a block
SHARE_OF_GPU = 0.7  # for vectors that stay there; the encoder and a block's scores take the rest


def stored_type(index: Any) -> torch.dtype | None:
    """How a faiss index stores its vectors, if it holds them as they are and compares by inner product."""
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return None
    if isinstance(index, faiss.IndexFlat):
        return torch.float32
    if isinstance(index, faiss.IndexScalarQuantizer) and index.sq.qtype == faiss.ScalarQuantizer.QT_fp16:
        return torch.float16
    return None


class BlockIndex:
    """The vectors of an index file, of which a search reads each once, whatever the number of queries.

    Memory holds two blocks and the scores of one; faiss's memory map of a file beyond memory is read ten times
    slower. On GPUs the vectors stay if they fit there, else the blocks pass through. Scores are computed in fp32.
    Of equal scores the earlier row comes first.

    Args:
        path: a file of which `stored_type` knows the type.
        devices: torch's names; blocks go to them in turn.
        keep: hold the vectors in memory.
        rows: of the file that are searched; None: all.

    Raises:
        UsageError: an index of another type.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        devices: Sequence[str] = ("cpu",),
        keep: bool = False,
        rows: range | None = None,
    ) -> None:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        dtype = stored_type(index)
        if dtype is None:
            raise UsageError(f"{path} is no Flat index with inner product; build_index.py makes one")
        self.ntotal, self.d = index.ntotal, index.d
        self._path, self._dtype, self._devices = path, dtype, devices
        self._rows = range(self.ntotal) if rows is None else rows
        width = self.d * dtype.itemsize
        # Both kinds of file end with the vectors.
        self._offset = os.path.getsize(path) - (self.ntotal - self._rows.start) * width
        size = len(self._rows) * width
        self._kept: list[tuple[int, torch.Tensor]] = []
        if keep or all(_gpu_takes(device, size / len(devices)) for device in devices):
            self._kept = [(start, block.clone()) for start, block in self._read(MOST_ROWS)]

    def search(self, queries: NDArray[np.float32], topk: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As faiss's: inner products and row numbers of shape ``(queries, topk)``, best first.

        Row -1 stands where the index has fewer rows.

        Args:
            queries: shape ``(queries, dimension)``.
            topk: rows a query.
        """
        there = {device: torch.from_numpy(queries).to(device) for device in self._devices}
        best = {device: nothing(len(queries), topk, device) for device in self._devices}
        size = max(1, min(MOST_ROWS, MOST_SCORES // max(1, len(queries))))
        with torch.inference_mode():
            for start, block in self._blocks(size):
                device = str(block.device)
                scores = there[device] @ block.float().T
                columns = best_columns(scores, topk)
                found = scores.gather(1, columns), columns + self._rows.start + start
                best[device] = merged(best[device], found, topk)
            found = nothing(len(queries), topk)
            for values, rows in best.values():
                found = merged(found, (values.cpu(), rows.cpu()), topk)
        return found[0].numpy(), found[1].numpy()

    def _blocks(self, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        """First row and vectors of blocks of at most ``size`` rows, each on its device."""
        if not self._kept:
            yield from self._read(size)
        for start, block in self._kept:
            for first in range(0, len(block), size):
                yield start + first, block[first : first + size]

    def _read(self, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks from the file, of which the next is read while one is worked on."""
        gpu = self._devices[0] != "cpu"
        # Two buffers in turn: fresh ones would be cleared by the system each time.
        buffers = [
            torch.empty((min(size, len(self._rows)), self.d), dtype=self._dtype, pin_memory=gpu) for _ in range(2)
        ]

        def fill(number: int) -> torch.Tensor:
            block = buffers[number % 2][: len(self._rows) - number * size]
            file.seek(self._offset + number * size * self.d * self._dtype.itemsize)
            if file.readinto(block.numpy().data) != block.nbytes:
                raise UsageError(f"{self._path} has become shorter while it was searched")
            return block

        with open(self._path, "rb") as file, ThreadPoolExecutor(1) as reader:
            count = -(-len(self._rows) // size)
            ahead = reader.submit(fill, 0)
            for number in range(count):
                block = ahead.result()
                if number + 1 < count:
                    ahead = reader.submit(fill, number + 1)
                yield number * size, block.to(self._devices[number % len(self._devices)])


def best_columns(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Columns of each row's ``count`` highest scores, in any order; of equal scores the first columns.

    Args:
        scores: shape ``(rows, columns)``.
        count: columns a row, or as many as there are.
    """
    width = min(count, scores.shape[1])
    values, columns = scores.topk(min(width + 1, scores.shape[1]), dim=1)
    least, columns = values[:, width - 1 : width], columns[:, :width]
    # topk takes any of the scores that equal the last one; where it had a choice, it is made again.
    torn = (values[:, width:] == least).any(dim=1)
    if torn.any():
        scores, least = scores[torn], least[torn]
        above, equal = scores > least, scores == least
        chosen = above | (equal & (equal.cumsum(dim=1) <= width - above.sum(dim=1, keepdim=True)))
        columns[torn] = chosen.nonzero()[:, 1].reshape(-1, width)
    return columns


def nothing(queries: int, topk: int, device: str = "cpu") -> Found:
    """What a search has found before it has seen a vector: row -1 in every place."""
    shape = (queries, topk)
    return torch.full(shape, torch.finfo(torch.float32).min, device=device), torch.full(shape, -1, device=device)


def merged(known: Found, new: Found, topk: int) -> Found:
    """The best ``topk`` of both, best first, of equal scores the earlier row first."""
    values, rows = (torch.cat(pair, dim=1) for pair in zip(known, new, strict=True))
    rows, order = rows.sort(dim=1)
    values, best = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values[:, :topk], rows.gather(1, best[:, :topk])


def _gpu_takes(device: str, size: float) -> bool:
    return device != "cpu" and size < SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0]
