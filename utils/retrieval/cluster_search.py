"""Exact search of one Flat index file by many workers, each of which reads a range of its rows."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray

from utils.devices import gpus
from utils.ray_engine import Engine
from utils.retrieval.search import BlockIndex, merged, nothing


class RangeSearch:
    """A worker: the best rows of a range for all queries.

    Args:
        path: the index file.
        queries: shape ``(queries, dimension)``.
        topk: rows a query.
        on_gpu: search on the worker's GPU.
    """

    def __init__(self, path: str, queries: NDArray[np.float32], topk: int, on_gpu: bool) -> None:
        self._path, self._queries, self._topk = path, queries, topk
        self._devices = gpus() if on_gpu else ["cpu"]

    def __call__(self, rows: range) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and row numbers, as `BlockIndex.search` gives them."""
        return BlockIndex(self._path, self._devices, rows=rows).search(self._queries, self._topk)


class ClusterIndex:
    """A Flat index that an engine's workers search, a range of rows at a time; the same rows as one search finds.

    Args:
        path: the index file, which all workers can read.
        engine: does the parts.
        rows_a_range: vectors that a worker reads at a time.
        on_gpu: search on the workers' GPUs.
    """

    def __init__(self, path: str, engine: Engine, rows_a_range: int, on_gpu: bool) -> None:
        whole = BlockIndex(path)
        self.ntotal, self.d = whole.ntotal, whole.d
        self._path, self._engine, self._rows_a_range, self._on_gpu = path, engine, rows_a_range, on_gpu

    def search(self, queries: NDArray[np.float32], topk: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As `BlockIndex.search`; what the ranges find is merged as it comes."""
        run = self._engine.start(functools.partial(RangeSearch, self._path, queries, topk, self._on_gpu))
        starts = range(0, self.ntotal, self._rows_a_range)
        ranges = (range(start, min(start + self._rows_a_range, self.ntotal)) for start in starts)
        best = nothing(len(queries), topk)
        for _, found in run(ranges):
            scores, rows = (torch.from_numpy(part) for part in found)
            best = merged(best, (scores, rows), topk)
        return best[0].numpy(), best[1].numpy()
