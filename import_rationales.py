"""Import published rationales in place of asking an LLM; then go on with get_docs.

    python import_rationales.py --dataset nq --source published/nq.jsonl
    python import_rationales.py --dataset nq --source part-0.parquet part-1.parquet

reads   --source FILE...: JSON lines, a JSON array, or Parquet with the fields question, golden_answers
        and reason, which the published scripts write (the authors' dataset on the hub is Jia-py/RADIO)
        DATA_DIR/DATASET/train.jsonl
writes  DATA_DIR/DATASET/reason/train_with_reason.jsonl, the file that llm_generation.py would write,
        and README.md beside it, their card for the Hugging Face hub

Rows are matched to questions by text, whatever their case and blanks. What did not match is counted; if
nothing did, that is an error.
"""

from __future__ import annotations

from pathlib import Path

from utils.config import phase_arguments, run_main
from utils.llm.rationales import import_rationales

SOURCE = {"required": True, "nargs": "+", "type": Path, "metavar": "FILE", "help": "published rationales"}


def main() -> None:
    """Parse the command line and match."""
    import_rationales(phase_arguments(__doc__, [], extra=[("--source", SOURCE)]))


if __name__ == "__main__":
    run_main(main)
