"""Compare faiss's approximate indexes with the exact search: recall, time and bytes.

python benchmarks/approximate.py        (needs bash reproduce.sh --profile small --only_data)

The embeddings are real (MiniLM-L6), but few: a billion vectors need more lists and longer codes for the same recall.
"""

import json
import os
import sys
import tempfile

import numpy as np
from common import ROOT, arguments, minilm, save, spread

TOPK = 50
# faiss's name of each index, and the search settings to try.
INDEXES = {
    "SQ8": [""],
    "IVF600,Flat": ["nprobe=8", "nprobe=32", "nprobe=128"],
    "IVF600,SQ8": ["nprobe=32", "nprobe=128"],
    "OPQ48,IVF600,PQ48x8": ["nprobe=32", "nprobe=128"],
    "OPQ48,IVF600,PQ48x8,Refine(SQ8)": ["nprobe=128,k_factor_rf=4"],
    "HNSW32": ["efSearch=64", "efSearch=256"],
}


def main() -> None:
    args = arguments(__doc__, questions=500)
    path, asked = ROOT / "indexes/small/minilm_Flat.index", ROOT / "dataset/small/quickstart_nq/train.jsonl"
    if not path.exists() or not asked.exists():
        sys.exit(f"{path} or {asked} is missing; make them first: bash reproduce.sh --profile small --only_data")
    import faiss

    from utils.retrieval.encoder import TextEncoder

    exact = faiss.read_index(str(path))
    vectors = exact.reconstruct_n(0, exact.ntotal)
    texts = [json.loads(line)["question"] for line in asked.read_bytes().splitlines()[: args.questions]]
    queries = TextEncoder(minilm(), 128).encode(texts)
    nearest = exact.search(queries, TOPK)[1]
    found = {}
    for name, settings in INDEXES.items():
        metric = faiss.METRIC_INNER_PRODUCT
        index = faiss.index_factory(exact.d, name, metric)
        index.train(vectors)
        index.add(vectors)
        with tempfile.TemporaryDirectory() as folder:
            faiss.write_index(index, f"{folder}/index")
            size = os.path.getsize(f"{folder}/index") / exact.ntotal
        for setting in settings:
            faiss.ParameterSpace().set_index_parameters(index, setting)
            seconds, rows = timed(index, queries, args.repeats)
            recall = {
                f"recall@{k}": np.mean(
                    [len(np.intersect1d(a[:k], b[:k])) / k for a, b in zip(nearest, rows, strict=True)]
                )
                for k in (1, 5, 20, TOPK)
            }
            about = {key: float(value) for key, value in recall.items()}
            found[f"{name} {setting}".strip()] = about | {"bytes per vector": size, "ms per query": seconds}
    exact_seconds = timed(exact, queries, args.repeats)[0]
    sizes = {"n": exact.ntotal, "questions": len(queries), "dimension": exact.d}
    save(__file__, {**sizes, "exact: ms per query": exact_seconds, "indexes": found})


def timed(index, queries: np.ndarray, repeats: int) -> tuple[dict[str, float], np.ndarray]:
    """Return milliseconds per query, for all queries at once on all cores, and the rows found."""
    import time

    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        rows = index.search(queries, TOPK)[1]
        times.append(1000 * (time.perf_counter() - started) / len(queries))
    return spread(times), rows


if __name__ == "__main__":
    main()
