"""Print the table of docs/performance.md out of results/*.json: ``python benchmarks/table.py``."""

import json
from pathlib import Path

RESULTS = Path(__file__).with_name("results")
# Result, its phase, and the ratio aimed at.
ROWS = [
    ("scoring", "rationale scoring", 3.0),
    ("fusion", "fusion and sampling", None),
    ("index", "corpus encoding", 2.0),
    ("search", "Flat search", None),
    ("rerank", "reranking", 2.0),
    ("finetune", "fine-tuning", 1.3),
    ("generate", "local generation", 1.5),
]


def main() -> None:
    print("| phase | against | times as fast | aimed at | n |\n|---|---|---|---|---|")
    for name, phase, aim in ROWS:
        for path in sorted(RESULTS.glob(f"{name}*.json")):
            found = json.loads(path.read_text())
            device = " (GPU)" if found.get("device") == "cuda" else ""
            for other, ratio in found["ratio"].items():
                spread = f"{ratio['median']:.1f} ({ratio['least']:.1f} to {ratio['most']:.1f})"
                print(f"| {phase}{device} | {other} | {spread} | {aim or '-'} | {found['n']} |")


if __name__ == "__main__":
    main()
