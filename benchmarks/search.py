"""Compare Flat search with faiss: on one thread as FlashRAG uses it, on all cores, in fp16, and beyond memory.

python benchmarks/search.py --vectors 200000
python benchmarks/search.py --vectors 2000000 --limit 1500     (an index of 3 GB under 1.5 GB of memory)
python benchmarks/search.py --device cuda --vectors 21015324 --dimension 768 --queries 4096     (wiki18's size, 32 GB)

The limit is set by a memory cgroup where this user may make one; it then includes the file's cached pages. Elsewhere it
is set by RLIMIT_DATA, which includes what the process allocates but not the pages of a mapped file. The recall of fp16
is measured on the quickstart's passages and questions, encoded by MiniLM.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA_HINT, ROOT, arguments, memory_group, minilm, questions, save, side_by_side

DIMENSION, TOPK = 384, 50
PATIENCE = 30  # seconds for a search under a memory limit, start-up included

LIMITED = """
import json, os, resource, sys, time
path, queries, way, limit, group = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
import faiss, numpy
from utils.retrieval.search import BlockIndex
if group:
    open(group + "/cgroup.procs", "w").write(str(os.getpid()))
else:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
def read():
    return int(open("/proc/self/io").read().split("read_bytes: ")[1].split()[0])
index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC) if way == "faiss" else BlockIndex(path)
before, started = read(), time.perf_counter()
index.search(numpy.load(queries), 50)
print(json.dumps({"seconds": time.perf_counter() - started, "times read": (read() - before) / os.path.getsize(path)}))
"""


def make(path: Path, vectors: int, dimension: int = DIMENSION, storage: str = "fp32") -> Path:
    """Write an index of random unit vectors, block by block; the vectors are the same in fp32 and fp16."""
    from utils.retrieval.index import STORAGE, index_header

    chance = np.random.default_rng(0)
    with open(path, "wb") as out:
        out.write(index_header(dimension, vectors, storage))
        for start in range(0, vectors, 100_000):
            rows = chance.standard_normal((min(100_000, vectors - start), dimension), dtype=np.float32)
            out.write((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(STORAGE[storage]).data)
    return path


def recall() -> dict[str, float]:
    """Return the share of the 50 nearest passages in fp32 that are among the 50 nearest in fp16, on real embeddings."""
    import faiss

    from utils.retrieval.encoder import TextEncoder
    from utils.retrieval.index import join_shards
    from utils.retrieval.search import BlockIndex

    path = ROOT / "indexes/quickstart/minilm_Flat.index"
    if not path.exists():
        sys.exit(f"{path} is missing; {DATA_HINT}, then python build_index.py --config profiles/quickstart.yaml")
    index = faiss.read_index(str(path))
    asked = TextEncoder(minilm(), 128).encode(questions(500))
    with tempfile.TemporaryDirectory() as name:
        np.save(f"{name}/rows.npy", index.reconstruct_n(0, index.ntotal))
        join_shards([Path(f"{name}/rows.npy")], index.d, Path(name) / "fp16.index", "fp16")
        half = BlockIndex(Path(name) / "fp16.index").search(asked, TOPK)[1]
    whole = index.search(asked, TOPK)[1]
    kept = [len(np.intersect1d(a, b)) for a, b in zip(whole, half, strict=True)]
    return {"passages": index.ntotal, "questions": len(asked), "recall@50": sum(kept) / half.size}


def limited(path: Path, way: str, queries: Path, limit: int) -> dict[str, object]:
    """Search under a memory limit of so many bytes, with nothing of the file in memory at the start."""
    os.sync()
    with open(path, "rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    about: dict[str, object] = {"index MiB": path.stat().st_size / 2**20}
    with memory_group(limit) as group:
        about["limit by"] = "cgroup" if group else "RLIMIT_DATA"
        words = [sys.executable, "-c", LIMITED, str(path), str(queries), way, str(limit), str(group or "")]
        try:
            found = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return about | {"seconds": f"over {PATIENCE}"}
    return about | json.loads(found.stdout)


def on_cpu(args: argparse.Namespace, folder: Path, queries: np.ndarray) -> dict[str, object]:
    """Compare our search with faiss on one thread (as FlashRAG uses it) and on all cores, in fp32 and fp16."""
    import faiss

    from utils.retrieval.search import BlockIndex

    cores = len(os.sched_getaffinity(0))
    paths = {storage: make(folder / storage, args.vectors, args.dimension, storage) for storage in ("fp32", "fp16")}
    result: dict[str, object] = {}
    if args.limit:  # before the other ways: pages that this process has mapped would stay in memory
        np.save(folder / "queries.npy", queries)
        kinds = {"mapped by faiss": ("fp32", "faiss"), "fp32": ("fp32", "ours"), "fp16": ("fp16", "ours")}
        found = {
            kind: limited(paths[storage], way, folder / "queries.npy", args.limit << 20)
            for kind, (storage, way) in kinds.items()
        }
        result["beyond memory"] = {"limit MiB": args.limit, **found}
    faisss = {storage: faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC) for storage, path in paths.items()}
    own = {storage: BlockIndex(path) for storage, path in paths.items()}
    rows: dict[str, np.ndarray] = {}

    def search(way: str, index: Any, threads: int = cores, batch: int = args.queries) -> None:
        faiss.omp_set_num_threads(threads)
        rows[way] = np.concatenate(
            [index.search(queries[i : i + batch], TOPK)[1] for i in range(0, args.queries, batch)]
        )

    ways = {
        "faiss, one thread": lambda: search("faiss", faisss["fp32"], threads=1, batch=256),
        "faiss, all cores": lambda: search("cores", faisss["fp32"]),
        "faiss, all cores, fp16": lambda: search("faiss fp16", faisss["fp16"]),
        "ours, fp16": lambda: search("ours fp16", own["fp16"]),
        "ours": lambda: search("ours", own["fp32"]),
    }
    result |= side_by_side(ways, args.repeats)
    result["share of equal rows"] = float((rows["faiss"] == rows["ours"]).mean())
    size = paths["fp32"].stat().st_size
    result["GFLOP/s"] = 2e-9 * args.vectors * args.dimension * args.queries / result["seconds"]["ours"]["median"]
    result["fp16"] = {
        "bytes, share of fp32's": paths["fp16"].stat().st_size / size,
        "share of rows equal to faiss's fp16": float((rows["faiss fp16"] == rows["ours fp16"]).mean()),
        **recall(),
    }
    return result


def on_gpu(args: argparse.Namespace, folder: Path, queries: np.ndarray) -> dict[str, object]:
    """Compare an fp16 index that stays on the GPU with the same index passed through it in blocks from the disk."""
    import utils.retrieval.search
    from utils.retrieval.search import BlockIndex

    path = make(folder / "fp16", args.vectors, args.dimension, "fp16")
    rows: dict[str, np.ndarray] = {}

    def search(way: str, index: BlockIndex) -> None:
        rows[way] = index.search(queries, TOPK)[1]

    kept = BlockIndex(path, ["cuda:0"])
    utils.retrieval.search.GPU_SHARE = 0.0
    streamed = BlockIndex(path, ["cuda:0"])
    ways = {"in blocks": lambda: search("in blocks", streamed), "on the GPU": lambda: search("on the GPU", kept)}
    result = side_by_side(ways, args.repeats)
    median = {way: found["median"] for way, found in result["seconds"].items()}
    return result | {
        "share of equal rows": float((rows["in blocks"] == rows["on the GPU"]).mean()),
        "queries/s": {way: args.queries / seconds for way, seconds in median.items()},
        "GB/s": {way: 2e-9 * args.vectors * args.dimension / seconds for way, seconds in median.items()},
    }


def main() -> None:
    args = arguments(__doc__, vectors=200_000, dimension=DIMENSION, queries=256, limit=0)
    queries = np.random.default_rng(1).standard_normal((args.queries, args.dimension), dtype=np.float32)
    with tempfile.TemporaryDirectory() as name:
        found = (on_gpu if args.device == "cuda" else on_cpu)(args, Path(name), queries)
    sizes = {"n": args.vectors, "dimension": args.dimension, "queries": args.queries}
    save(__file__, {"device": args.device, **sizes, **found})


if __name__ == "__main__":
    main()
