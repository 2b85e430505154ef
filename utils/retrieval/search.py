"""Search a Flat index file exactly, block by block, however large it is: on the CPU, on GPUs or on a cluster."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from utils.config import UsageError
from utils.devices import gpus
from utils.ray_engine import MakeWorker, MapParts

Found = tuple[torch.Tensor, torch.Tensor]  # scores and row numbers, each of shape (queries, topk)
FoundArrays = tuple[NDArray[np.float32], NDArray[np.int64]]
MOST_SCORES = 1 << 26  # of a block with all queries: 256 MiB
MOST_ROWS = 1 << 16  # of a block
GPU_SHARE = 0.7  # of a GPU's memory for vectors that stay there; the encoder and a block's scores need the rest


def stored_type(index: Any) -> torch.dtype | None:
    """Return the type of a faiss index's vectors, None if it compresses them or does not take inner products."""
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return None
    if isinstance(index, faiss.IndexFlat):
        return torch.float32
    is_fp16 = isinstance(index, faiss.IndexScalarQuantizer) and index.sq.qtype == faiss.ScalarQuantizer.QT_fp16
    return torch.float16 if is_fp16 else None


class BlockIndex:
    """The vectors of an index file, which a search reads once, whatever the number of queries.

    Memory holds two blocks of vectors and one block's scores, in fp32; with ``keep``, and on GPUs if they fit, all
    vectors stay. ``devices``, torch's names, get the blocks in turn. ``rows`` restricts the search to a range. faiss's
    memory map is ten times slower if the file is larger than memory.
    """

    def __init__(
        self, path: str | Path, devices: Sequence[str] = ("cpu",), keep: bool = False, rows: range | None = None
    ) -> None:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        dtype = stored_type(index)
        if dtype is None:
            raise UsageError(f"{path} is no Flat index with inner product; build_index.py makes one")
        self.ntotal, self.d = index.ntotal, index.d
        self._path, self._dtype, self._devices = path, dtype, devices
        self._rows = range(self.ntotal) if rows is None else rows
        width = self.d * dtype.itemsize
        # Both types of file end with the vectors.
        self._offset = os.path.getsize(path) - (self.ntotal - self._rows.start) * width
        share = len(self._rows) * width / len(devices)
        self._kept: list[tuple[int, torch.Tensor]] = []
        if keep or all(d != "cpu" and share < GPU_SHARE * torch.cuda.mem_get_info(d)[0] for d in devices):
            self._kept = [(start, block.clone()) for start, block in self._read(MOST_ROWS)]

    def search(self, queries: NDArray[np.float32], topk: int) -> FoundArrays:
        """Return inner products and row numbers, best first and of equal scores the earlier row first.

        As in faiss, row -1 stands where the index has fewer than ``topk`` rows.
        """
        asked = {device: torch.from_numpy(queries).to(device) for device in self._devices}
        best: dict[str, Found] = {}  # per device, so that no device waits for another
        with torch.inference_mode():
            for start, block in self._blocks(max(1, min(MOST_ROWS, MOST_SCORES // max(1, len(queries))))):
                device = str(block.device)
                scores = asked[device] @ block.float().T
                columns = best_columns(scores, topk)
                found = scores.gather(1, columns), columns + self._rows.start + start
                best[device] = merged(best[device], found, topk) if device in best else found
            return merged_arrays(best.values(), len(queries), topk)

    def _blocks(self, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        if not self._kept:
            yield from self._read(size)
        for start, block in self._kept:
            yield from zip(range(start, start + len(block), size), block.split(size), strict=True)

    def _read(self, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the first row and the vectors of each block; while one is in use, a thread reads the next."""
        # Two buffers in turn: the system would clear fresh ones each time.
        shape, on_gpu = (min(size, len(self._rows)), self.d), self._devices[0] != "cpu"
        buffers = [torch.empty(shape, dtype=self._dtype, pin_memory=on_gpu) for _ in range(2)]

        def fill(number: int) -> torch.Tensor:
            block = buffers[number % 2][: max(0, len(self._rows) - number * size)]
            file.seek(self._offset + number * size * self.d * self._dtype.itemsize)
            if file.readinto(block.numpy().data) != block.nbytes:
                raise UsageError(f"{self._path} has become shorter while it was searched")
            return block

        with open(self._path, "rb") as file, ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(fill, 0)
            for number, start in enumerate(range(0, len(self._rows), size)):
                block = ahead.result()
                ahead = reader.submit(fill, number + 1)  # after the last block an empty one
                yield start, block.to(self._devices[number % len(self._devices)])


def best_columns(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the columns of each row's ``count`` highest scores, in any order; of equal scores the first columns."""
    width = min(count, scores.shape[1])
    values, columns = scores.topk(min(width + 1, scores.shape[1]), dim=1)
    least, columns = values[:, width - 1 : width], columns[:, :width]
    # Of several scores that equal the last one, topk takes any. Such rows are chosen again.
    tied = (values[:, width:] == least).any(dim=1)
    if tied.any():
        scores, least = scores[tied], least[tied]
        above, equal = scores > least, scores == least
        chosen = above | (equal & (equal.cumsum(dim=1) <= width - above.sum(dim=1, keepdim=True)))
        columns[tied] = chosen.nonzero()[:, 1].reshape(-1, width)
    return columns


def merged(known: Found, new: Found, topk: int) -> Found:
    """Return the best ``topk`` of both, best first, of equal scores the earlier row first."""
    values, rows = (torch.cat(pair, dim=1) for pair in zip(known, new, strict=True))
    rows, order = rows.sort(dim=1)
    values, best = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values[:, :topk], rows.gather(1, best[:, :topk])


def merged_arrays(results: Iterable[Found | FoundArrays], queries: int, topk: int) -> FoundArrays:
    """Return the best ``topk`` of all results, each merged as it comes; row -1 fills what is missing."""
    best: Found = torch.full((queries, topk), torch.finfo(torch.float32).min), torch.full((queries, topk), -1)
    for scores, rows in results:
        best = merged(best, (torch.as_tensor(scores, device="cpu"), torch.as_tensor(rows, device="cpu")), topk)
    return best[0].numpy(), best[1].numpy()


class ClusterIndex:
    """An index file that a cluster's workers search in ranges of ``range_size`` rows; all read it under this path.

    ``start`` starts the workers, given the function that makes one; ``on_gpu`` searches on their GPUs.
    """

    def __init__(self, path: str, start: Callable[[MakeWorker], MapParts], range_size: int, on_gpu: bool) -> None:
        whole = BlockIndex(path)
        self.ntotal, self.d = whole.ntotal, whole.d
        self._path, self._start, self._range_size, self._on_gpu = path, start, range_size, on_gpu

    def search(self, queries: NDArray[np.float32], topk: int) -> FoundArrays:
        """Search like `BlockIndex`."""
        search_ranges = self._start(functools.partial(search_worker, self._path, queries, topk, self._on_gpu))
        every = range(self.ntotal)
        ranges = (every[start : start + self._range_size] for start in every[:: self._range_size])
        return merged_arrays((found for _, found in search_ranges(ranges)), len(queries), topk)


def search_worker(path: str, queries: NDArray[np.float32], topk: int, on_gpu: bool) -> Callable[[range], FoundArrays]:
    """Return a cluster worker's function that searches one range of an index's rows."""
    devices = gpus() if on_gpu else ["cpu"]
    return lambda rows: BlockIndex(path, devices, rows=rows).search(queries, topk)
