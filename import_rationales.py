"""Take rationales that were published instead of asking an LLM, and start at scoring.

    python import_rationales.py --dataset nq --source published/nq.jsonl
    python import_rationales.py --dataset nq --source part-0.parquet part-1.parquet

reads   --source FILE...: JSON lines, a JSON array, or Parquet with the fields question, golden_answers
        and reason, which the published scripts write (the authors' dataset on the hub is Jia-py/RADIO)
        DATA_DIR/DATASET/train.jsonl
writes  DATA_DIR/DATASET/reason/train_with_reason.jsonl, the file that llm_generation.py would write

Rows are matched to questions by text, blanks and case aside. What did not match is counted, and it is
an error if nothing did.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from utils.config import UsageError, dataset_dir, phase_arguments, run_main

SOURCE = {"required": True, "nargs": "+", "type": Path, "metavar": "FILE", "help": "published rationales"}


def main() -> None:
    """Parse the command line, match, and write."""
    args = phase_arguments(__doc__, [], extra=[("--source", SOURCE)])

    from utils.llm.published import match_rationales
    from utils.store.jsonlines import read_rows, write_lines
    from utils.store.manifest import Phase
    from utils.store.rows import Question

    folder = dataset_dir(args)
    counts: Counter[str] = Counter()
    dropped = counts if args.skip_bad_rows else None
    made_by = "see README, 'Your own data'"
    questions = read_rows(folder / "train.jsonl", Question, made_by, args.train_questions, dropped=dropped)
    output = folder / "reason/train_with_reason.jsonl"
    phase = Phase(output, [folder / "train.jsonl", *args.source], {"train_questions": args.train_questions})
    if phase.is_done(args.overwrite):
        return
    rows = match_rationales(questions, args.source, counts)
    if not rows:
        raise UsageError(f"none of {len(questions)} questions of {folder / 'train.jsonl'} has a row in --source")
    write_lines(output, rows)
    differing = counts.pop("questions with other answers than published", 0)
    phase.finish(len(rows), counts, facts={"questions with other answers than published": differing})


if __name__ == "__main__":
    run_main(main)
