"""Compare corpus encoding with FlashRAG's index builder: same model, same machine, same index.

    python benchmarks/index.py
    python benchmarks/index.py --device cuda --passages 200000

Each way is a process of its own, and its start-up is measured too. The encoder is MiniLM-L6 at 256 tokens.
"""

import json
import sys
import tempfile
from pathlib import Path

from common import ROOT, arguments, minilm, passages, run_measured, save, side_by_side


def main() -> None:
    args = arguments(__doc__, passages=5200)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus.jsonl"
        rows = (json.dumps({"id": str(i), "contents": text}) for i, text in enumerate(passages(args.passages)))
        corpus.write_text("".join(row + "\n" for row in rows))
        batch = "512" if args.device == "cuda" else "32"
        theirs = [
            sys.executable, "-m", "flashrag.retriever.index_builder", "--retrieval_method", "minilm", "--model_path",
            minilm(), "--corpus_path", str(corpus), "--save_dir", f"{folder}/theirs/", "--max_length", "256",
            "--batch_size", batch, "--pooling_method", "mean", "--faiss_type", "Flat",
        ]  # fmt: skip
        ours = [
            sys.executable, str(ROOT / "build_index.py"), "--retrieval_method", "minilm", "--retriever_path", minilm(),
            "--corpus_path", str(corpus), "--index_path", f"{folder}/ours.index", "--index_max_length", "256",
            "--index_batch_size", batch, "--overwrite",
        ]  # fmt: skip
        peaks: dict[str, float] = {}

        def run(way: str, command: list[str]) -> None:
            peaks[way] = run_measured(command)[1]

        ways = {"FlashRAG": lambda: run("FlashRAG", theirs), "ours": lambda: run("ours", ours)}
        measured = side_by_side(ways, args.repeats, warm_up=False)
        import faiss

        first, second = (faiss.read_index(str(folder / path)) for path in ("theirs/minilm_Flat.index", "ours.index"))
        gap = abs(first.reconstruct_n(0, first.ntotal) - second.reconstruct_n(0, second.ntotal)).max()
    rate = {way: args.passages / found["median"] for way, found in measured["seconds"].items()}
    save(__file__, {"device": args.device, "n": args.passages, **measured, "passages/s": rate, "peak MiB": peaks,
                    "largest difference of a vector's number": float(gap)})  # fmt: skip


if __name__ == "__main__":
    main()
