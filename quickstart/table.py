"""Print the result table of a profile's runs.

    python -m quickstart.table --profile quickstart

reads   output/PROFILE/PROFILE_{none,base,radio}/metrics.json and the same of PROFILE_mmlu
writes  output/PROFILE/results.md, which is also printed
"""

from __future__ import annotations

import argparse
from pathlib import Path

import orjson

from utils.config import UsageError, run_main
from utils.files import atomic
from utils.intervals import Interval

CONDITIONS = {
    "none": "no reranker (retriever's order)",
    "base": "base reranker",
    "radio": "base reranker fine-tuned on RADIO's data",
}
NOTE = (
    "Tiny models on a small corpus that was chosen around the questions: this shows that the method runs and that "
    "its numbers can be followed, not the paper's result. Mean and 95 % bootstrap interval over questions."
)


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="quickstart", help="whose runs [quickstart]")
    profile = parser.parse_args().profile
    folder = Path("output") / profile
    nq = {name: read_metrics(folder / f"{profile}_{name}") for name in CONDITIONS}
    mmlu = {name: read_metrics(folder / f"{profile}_mmlu_{name}") for name in CONDITIONS}
    count = next(iter(nq["none"].values())).n
    mmlu_count = next(iter(mmlu["none"].values())).n
    columns = list(nq["none"])
    lines = [
        f"| NQ-open, n = {count} | {' | '.join(columns)} | MMLU EM, n = {mmlu_count} |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, label in CONDITIONS.items():
        cells = [cell(nq[name][column]) for column in columns] + [cell(mmlu[name]["em"])]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    text = "\n".join([*lines, "", NOTE, ""])
    with atomic(folder / "results.md") as handle:
        handle.write(text.encode())
    print(f"\n{text}")


def read_metrics(run: Path) -> dict[str, Interval]:
    """A run's metrics.

    Raises:
        UsageError: the run was not made.
    """
    try:
        raw = orjson.loads((run / "metrics.json").read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{run}/metrics.json is missing; run: bash reproduce.sh") from None
    return {name: Interval(**values) for name, values in raw.items()}


def cell(found: Interval) -> str:
    """``.123 [.1, .2]``, leading zeros left out."""
    if found.low is None or found.high is None:
        return f"{found.mean:.3f}".lstrip("0")
    low, mean, high = (f"{value:.3f}".removeprefix("0") for value in (found.low, found.mean, found.high))
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    run_main(main)
