"""Score a run on MMLU: exact match by category, with counts and intervals.

    python mmlu_evaluation.py --run output/RUN

reads   RUN/intermediate_data.json: a JSON array of rows {id, golden_answers: ["B"],
        metadata: {subject}, output: {pred}}, as run_rag.py leaves it
writes  RUN/mmlu_score.json (EM of categories, subjects and all; between 0 and 1) and
        RUN/mmlu_score.txt (the table that is printed, in percent)

A prediction is right if the letter read from it is the gold letter. One that marks no letter, or
several, is counted as wrong and as unparsable. The categories are STEM (which includes anatomy),
Humanities, Social Sciences and Other; micro is the mean over questions, macro over subjects.
Intervals are 95 % percentile bootstrap over questions, 10,000 resamples, seeded by --seed.
"""

from __future__ import annotations

from pathlib import Path

from utils.config import phase_arguments, run_main
from utils.mmlu.scores import evaluate

RUN = {"required": True, "metavar": "DIR", "help": "folder of a run, with its intermediate_data.json"}


def main() -> None:
    """Parse the command line, score the run, print the table."""
    args = phase_arguments(__doc__, [], extra=[("--run", RUN)])
    print(evaluate(Path(args.run), args.seed), end="")


if __name__ == "__main__":
    run_main(main)
