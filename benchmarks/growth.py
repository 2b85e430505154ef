"""Measure how the time of each phase grows with questions, passages or vectors, at three sizes, and plot it.

python benchmarks/growth.py        (writes results/growth.json and docs/growth.svg)
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import ROOT, arguments, minilm, passages, save


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def fusion_seconds(questions: int) -> float:
    """Time fusion and sampling of so many questions with 50 passages each."""
    import fusion

    with tempfile.TemporaryDirectory() as name:
        fusion.make(Path(name), questions)
        return seconds(lambda: fusion.ours(Path(name)))


def rationale_seconds(rows: int) -> float:
    """Time the rationale requests of so many questions: 64 in flight, a server that answers in 0.5 s."""
    import rationales

    server, url = rationales.start_server()
    try:
        return rationales.run(url, rows, 64)[0]
    finally:
        server.kill()


def index_seconds(count: int) -> float:
    """Time building an index of so many passages, including start-up."""
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus.jsonl"
        rows = (json.dumps({"id": str(i), "contents": text}) for i, text in enumerate(passages(count)))
        corpus.write_text("".join(row + "\n" for row in rows))
        words = ["--retrieval_method", "minilm", "--retriever_path", minilm(), "--corpus_path", str(corpus)]
        words += ["--index_path", f"{name}/flat.index", "--index_max_length", "256"]
        command = [sys.executable, str(ROOT / "build_index.py"), *words]
        return seconds(lambda: subprocess.run(command, check=True, capture_output=True))


def search_seconds(vectors: int) -> float:
    """Time 256 queries over a Flat index of so many vectors, read from its file."""
    import search

    from utils.retrieval.search import BlockIndex

    with tempfile.TemporaryDirectory() as name:
        path = search.make(Path(name) / "flat.index", vectors)
        index = BlockIndex(path)
        queries = np.random.default_rng(1).standard_normal((256, index.d), dtype=np.float32)
        index.search(queries, 50)
        return seconds(lambda: index.search(queries, 50))


GROWTH: dict[str, tuple[str, Callable[[int], float], tuple[int, int, int]]] = {
    "rationale requests": ("questions", rationale_seconds, (400, 1200, 3600)),
    "fusion": ("questions", fusion_seconds, (2000, 6000, 20_000)),
    "index": ("passages", index_seconds, (1000, 2000, 4000)),
    "Flat search": ("vectors", search_seconds, (50_000, 150_000, 450_000)),
}


def plot(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draw one panel per phase with logarithmic axes, where growth in proportion is a line of slope one."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(found), figsize=(3.2 * len(found), 3), layout="constrained")
    for panel, (name, curve) in zip(panels, found.items(), strict=True):
        panel.loglog(curve["sizes"], curve["seconds"], "o-")
        panel.set(title=name, xlabel=GROWTH[name][0], ylabel="seconds")
        panel.grid(visible=True, alpha=0.3)
    figure.savefig(path)


def main() -> None:
    arguments(__doc__)
    found = {
        name: {"sizes": list(sizes), "seconds": [measure(size) for size in sizes]}
        for name, (_, measure, sizes) in GROWTH.items()
    }
    plot(found, ROOT / "docs/growth.svg")
    save(__file__, {"n": 3, "growth": found})


if __name__ == "__main__":
    main()
