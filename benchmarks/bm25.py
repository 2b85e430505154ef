"""Measure what BM25 takes as the corpus grows: memory and time of building and of search, and the size of the index.

python benchmarks/bm25.py        (writes results/bm25.json)

The corpora repeat the embedded passages, with a word of its own in each, as a larger Wikipedia brings new words.
"""

import json
import sys
import tempfile
from pathlib import Path

from common import arguments, passages, run_measured, save

SIZES = (20_000, 60_000, 180_000)


def measure(count: int, questions: int) -> dict[str, float]:
    """Build an index over so many passages, and retrieve for so many questions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = passages(count)
        with open(folder / "corpus.jsonl", "w") as out:
            for i, text in enumerate(texts):
                out.write(json.dumps({"id": str(i), "contents": f"{text} word{i // 10}"}) + "\n")
        (folder / "data/own").mkdir(parents=True)
        with open(folder / "data/own/train.jsonl", "w") as out:
            for i, text in enumerate(texts[:questions]):
                row = {"id": str(i), "question": " ".join(text.split()[3:12]), "golden_answers": ["x"]}
                out.write(json.dumps(row) + "\n")
        words = ["--retrieval_method", "bm25", "--corpus_path", f"{name}/corpus.jsonl", "--index_path", f"{name}/bm25"]
        built, building, _ = run_measured([sys.executable, "build_index.py", *words])
        get_docs = ["dataset_generation.py", "--phase", "get_docs", "--data_dir", f"{name}/data", "--dataset", "own"]
        found, searching, _ = run_measured([sys.executable, *get_docs, *words])
        size = sum(path.stat().st_size for path in (folder / "bm25").iterdir())
    return {"build s": built, "build MiB": building, "index MiB": size / 2**20, "get_docs s": found, "MiB": searching}


def main() -> None:
    args = arguments(__doc__, questions=500)
    found = {str(count): measure(count, args.questions) for count in SIZES}
    save(__file__, {"n": SIZES[-1], "questions": args.questions, "sizes": found})


if __name__ == "__main__":
    main()
