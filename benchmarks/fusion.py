"""Compare fusion and sampling with the published script's nested loops, from the caches on disk to the training file.

    python benchmarks/fusion.py --questions 20000

The published way reads both caches into memory. It finds each passage of one cache by comparing its text with every
passage of the other.
"""

import json
import os
import random
import sys
import tempfile
from pathlib import Path

from common import ROOT, arguments, run_measured, save, side_by_side

TOPK = 50


def make(folder: Path, count: int) -> None:
    """Write caches in both formats, with random scores over texts of 100 words."""
    chance = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    with (
        open(folder / "p_reason.jsonl", "w") as p_reason, open(folder / "p_retrieval.jsonl", "w") as p_retrieval,
        open(folder / "reason.jsonl", "w") as reason, open(folder / "retrieval.jsonl", "w") as retrieval,
        open(folder / "passages.jsonl", "w") as passages,
    ):  # fmt: skip
        pool = [" ".join(chance.choices(words, k=100)) for _ in range(min(count * TOPK, 200_000))]
        for i, text in enumerate(pool):
            passages.write(json.dumps({"id": f"p{i}", "contents": text}) + "\n")
        for number in range(count):
            chosen = chance.sample(range(len(pool)), TOPK)
            for own, published in ((reason, p_reason), (retrieval, p_retrieval)):
                scored = sorted(((chance.random(), i) for i in chosen), reverse=True)
                query = f"question number {number}"
                ids, scores = [f"p{i}" for _, i in scored], [score for score, _ in scored]
                own.write(json.dumps({"id": str(number), "query": query, "passage_ids": ids, "scores": scores}) + "\n")
                published.write(json.dumps({"query": query, "content": [[pool[i], s] for s, i in scored]}) + "\n")


def nested_loops(folder: Path) -> None:
    """Fuse and sample as the published script does, leaving out its division by zero."""
    reason = [json.loads(line) for line in open(folder / "p_reason.jsonl")]
    retrieval = [json.loads(line) for line in open(folder / "p_retrieval.jsonl")]
    rows = []
    for ours, theirs in zip(reason, retrieval, strict=True):
        merged = []
        lows = [min(score for _, score in row["content"]) for row in (ours, theirs)]
        highs = [max(score for _, score in row["content"]) for row in (ours, theirs)]
        for passage, score in ours["content"]:
            for other, known in theirs["content"]:
                if passage == other:
                    first = (score - lows[0]) / (highs[0] - lows[0])
                    merged.append((passage, 0.5 * first + 0.5 * (known - lows[1]) / (highs[1] - lows[1])))
        merged.sort(key=lambda pair: pair[1], reverse=True)
        ranked = [passage for passage, _ in merged][:20]
        rows.append({"query": ours["query"], "pos": [ranked[0]], "neg": [ranked[k] for k in (3, 4, 6, 9, 13, 18)]})
    with open(folder / "published.jsonl", "w") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")


def ours(folder: Path) -> None:
    """Fuse and sample the same scores as score_cache_to_dataset.py does."""
    from utils.config import phase_arguments
    from utils.training.groups import write_training_file

    write_training_file(
        reason_cache=folder / "reason.jsonl", retrieval_cache=folder / "retrieval.jsonl", docs=folder / "none",
        passages=folder / "passages.jsonl", output=folder / "ours.jsonl", weight=0.5,
        args=phase_arguments(None, ["fusion"], argv=["--overwrite"]),
    )  # fmt: skip


def main() -> None:
    args = arguments(__doc__, questions=20_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, args.questions)
        os.sync()  # else the first way that writes would wait until the 2 GB made here are on the disk
        ways = {"nested loops": lambda: nested_loops(folder), "ours": lambda: ours(folder)}
        measured = side_by_side(ways, args.repeats, warm_up=False)
        same = [json.loads(line) for line in open(folder / "published.jsonl")] == [
            json.loads(line) for line in open(folder / "ours.jsonl")
        ]
        own, published = ((folder / f"{kind}reason.jsonl").stat().st_size for kind in ("", "p_"))
    peaks = {}
    for count in (args.questions // 10, args.questions):
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), count)
            for way in ("nested_loops", "ours"):
                code = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(ROOT)!r}]; import fusion; "
                code += f"fusion.{way}(fusion.Path({name!r}))"
                peaks[f"{way}, {count} questions"] = run_measured([sys.executable, "-c", code])[1]
    save(__file__, {"n": args.questions, **measured, "equal files": same, "peak MiB": peaks,
                    "cache bytes": {"published": published, "ours": own, "ratio": published / own}})  # fmt: skip


if __name__ == "__main__":
    main()
