"""Flat search against FlashRAG's retriever, which faiss runs on one thread, and by memory map under a memory limit.

python benchmarks/search.py --vectors 200000
python benchmarks/search.py --vectors 2000000 --limit 1500     (an index of 3 GB under 1.5 GB of memory)
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import ROOT, arguments, save, side_by_side

DIMENSION, TOPK = 384, 50

LIMITED = """
import resource, sys, time
limit = int(sys.argv[3]) << 20
import faiss, numpy
index = faiss.read_index(sys.argv[1], faiss.IO_FLAG_MMAP_IFC)
queries = numpy.load(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
started = time.perf_counter()
index.search(queries, 50)
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def make(path: Path, vectors: int) -> None:
    """An index of random unit vectors, written a block at a time."""
    sys.path.insert(0, str(ROOT))
    from utils.index import join_shards

    chance = np.random.default_rng(0)
    paths = []
    for start in range(0, vectors, 100_000):
        rows = chance.standard_normal((min(100_000, vectors - start), DIMENSION), dtype=np.float32)
        paths.append(path.with_name(f"{start}.npy"))
        np.save(paths[-1], rows / np.linalg.norm(rows, axis=1, keepdims=True))
    join_shards(paths, DIMENSION, path)
    for shard in paths:
        shard.unlink()


def main() -> None:
    args = arguments(__doc__, vectors=200_000, queries=256, limit=0)
    import faiss

    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "flat.index"
        make(path, args.vectors)
        queries = np.random.default_rng(1).standard_normal((args.queries, DIMENSION), dtype=np.float32)
        np.save(Path(name) / "queries.npy", queries)
        mapped = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        found: dict[str, np.ndarray] = {}

        def search(way: str, threads: int, batch: int) -> None:
            faiss.omp_set_num_threads(threads)
            found[way] = np.concatenate(
                [mapped.search(queries[i : i + batch], TOPK)[1] for i in range(0, args.queries, batch)]
            )

        ways = {
            "one thread, a query at a time": lambda: search("single", 1, 1),
            "one thread, batched": lambda: search("batched", 1, args.queries),
            "ours": lambda: search("ours", cores, args.queries),
        }
        result = {"n": args.vectors, **side_by_side(ways, args.repeats)}
        result["equal"] = bool((found["single"] == found["ours"]).mean() > 0.999)
        result["GB/s"] = args.vectors * DIMENSION * 4 / result["seconds"]["ours"]["median"] / 1e9
        if args.limit:
            command = [sys.executable, "-c", LIMITED, str(path), f"{name}/queries.npy", str(args.limit)]
            seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            size = path.stat().st_size / 2**20
            result["limited"] = {
                "index MiB": size,
                "limit MiB": args.limit,
                "seconds": float(seconds),
                "peak MiB": float(peak),
            }
    save(__file__, result)


if __name__ == "__main__":
    main()
