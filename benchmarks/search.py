"""Flat search against FlashRAG's retriever, which faiss runs on one thread; in fp16; and of an index beyond memory.

python benchmarks/search.py --vectors 200000
python benchmarks/search.py --vectors 2000000 --limit 1500     (an index of 3 GB under 1.5 GB of memory)

The limit is a memory cgroup's where this user may make one, and then holds for the file's cached pages as well;
else RLIMIT_DATA's, which holds for what a process allocates, not for the pages of a mapped file. The recall of fp16
is taken on the quickstart's passages and questions, encoded by MiniLM.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import DATA_HINT, ROOT, arguments, minilm, questions, save, side_by_side

DIMENSION, TOPK = 384, 50

LIMITED = """
import json, os, resource, sys, time
path, queries, way, limit, group = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
import faiss, numpy
from utils.block_search import BlockIndex
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


def make(folder: Path, vectors: int) -> dict[str, Path]:
    """Indexes of the same random unit vectors in both storages, written a block at a time."""
    from utils.index import STORAGE, join_shards

    chance = np.random.default_rng(0)
    shards = []
    for start in range(0, vectors, 100_000):
        rows = chance.standard_normal((min(100_000, vectors - start), DIMENSION), dtype=np.float32)
        shards.append(folder / f"{start}.npy")
        np.save(shards[-1], rows / np.linalg.norm(rows, axis=1, keepdims=True))
    paths = {storage: folder / f"{storage}.index" for storage in STORAGE}
    for storage, path in paths.items():
        join_shards(shards, DIMENSION, path, storage)
    for shard in shards:
        shard.unlink()
    return paths


def recall() -> dict[str, float]:
    """Share of the 50 nearest passages in fp32 that are among the 50 nearest in fp16, on real embeddings."""
    import faiss

    from utils.block_search import BlockIndex
    from utils.encoder import TextEncoder
    from utils.index import join_shards

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


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path | None]:
    """A cgroup of so many bytes (version 1 or 2), or None where there can be none."""
    root = Path("/sys/fs/cgroup/memory")
    file = "memory.limit_in_bytes"
    if not root.exists():
        root, file = root.parent, "memory.max"
    group = root / f"flat-search-{os.getpid()}"
    try:
        group.mkdir()
        (group / file).write_text(str(limit))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def limited(path: Path, way: str, queries: Path, limit: int) -> dict[str, object]:
    """A search under a memory limit of so many bytes, of a file of which nothing is in memory at the start."""
    os.sync()
    with open(path, "rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with memory_group(limit) as group:
        words = [str(path), str(queries), way, str(limit), str(group or "")]
        found = subprocess.run(
            [sys.executable, "-c", LIMITED, *words], check=True, capture_output=True, text=True, cwd=ROOT
        )
    about = {"index MiB": path.stat().st_size / 2**20, "limit by": "cgroup" if group else "RLIMIT_DATA"}
    return about | json.loads(found.stdout)


def main() -> None:
    args = arguments(__doc__, vectors=200_000, queries=256, limit=0)
    import faiss

    from utils.block_search import BlockIndex

    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        paths = make(Path(name), args.vectors)
        queries = np.random.default_rng(1).standard_normal((args.queries, DIMENSION), dtype=np.float32)
        np.save(f"{name}/queries.npy", queries)
        beyond: dict[str, object] = {}
        if args.limit:  # first of all: pages of a file that this process has mapped would stay in memory
            kinds = {"mapped by faiss": ("fp32", "faiss"), "fp32": ("fp32", "ours"), "fp16": ("fp16", "ours")}
            beyond = {
                kind: limited(paths[storage], way, Path(name) / "queries.npy", args.limit << 20)
                for kind, (storage, way) in kinds.items()
            } | {"limit MiB": args.limit}
        faisss = {storage: faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC) for storage, path in paths.items()}
        own = {storage: BlockIndex(path) for storage, path in paths.items()}
        found: dict[str, np.ndarray] = {}

        def search(way: str, index: object, threads: int = cores, batch: int = args.queries) -> None:
            faiss.omp_set_num_threads(threads)
            found[way] = np.concatenate(
                [index.search(queries[i : i + batch], TOPK)[1] for i in range(0, args.queries, batch)]
            )

        ways = {
            "faiss, one thread": lambda: search("faiss", faisss["fp32"], threads=1, batch=256),
            "faiss, one thread, a query at a time": lambda: search("single", faisss["fp32"], threads=1, batch=1),
            "faiss, all cores": lambda: search("cores", faisss["fp32"]),
            "faiss, all cores, fp16": lambda: search("faiss fp16", faisss["fp16"]),
            "ours, fp16": lambda: search("ours fp16", own["fp16"]),
            "ours": lambda: search("ours", own["fp32"]),
        }
        result = {"n": args.vectors, **side_by_side(ways, args.repeats)}
        result["equal"] = bool((found["faiss"] == found["ours"]).mean() > 0.999)
        result["GB/s"] = args.vectors * DIMENSION * 4 / result["seconds"]["ours"]["median"] / 1e9
        result["fp16"] = {
            "bytes": {storage: path.stat().st_size for storage, path in paths.items()},
            "equal to faiss's fp16": float((found["faiss fp16"] == found["ours fp16"]).mean()),
            **recall(),
        }
        if beyond:
            result["beyond memory"] = beyond
    save(__file__, result)


if __name__ == "__main__":
    main()
