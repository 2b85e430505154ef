"""Fuse rationale and retrieval scores and sample the reranker's training groups.

    python score_cache_to_dataset.py
    python score_cache_to_dataset.py --dataset nq --reason_weight 0.25 --sampling iteration

reads   DATA_DIR/DATASET/reason/score_cache.jsonl and DATA_DIR/DATASET/retrieval/score_cache.jsonl
writes  DATA_DIR/DATASET/reason+retrieval/FinetuneDataset_for_flagembedding.jsonl

For each question both score lists are min-max normalised over its passages and fused, weight times
rationale plus the rest times retrieval; the best --fusion_topk are kept and sampled into lines
{query, pos, neg}. --rationale NAME reads NAME/score_cache.jsonl and writes below NAME+retrieval; for none that is
answer_only. Caches in the published format ({query, content: [[passage, score], ...]}) are
read as well. Questions that cannot give a whole group are left out and counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.config import dataset_dir, docs_path, phase_arguments, rationale_dir, run_main, training_lines_path

EXTRA: list[tuple[str, dict[str, Any]]] = [
    ("--reason_cache", {"help": "rationale scores [DATA_DIR/DATASET/reason/score_cache.jsonl]"}),
    ("--retrieval_cache", {"help": "retrieval scores [DATA_DIR/DATASET/retrieval/score_cache.jsonl]"}),
    ("--passages", {"help": "texts of the passage ids in the caches [DATA_DIR/DATASET/train_docs_N.passages.jsonl]"}),
    ("--output", {"help": "[DATA_DIR/DATASET/reason+retrieval/FinetuneDataset_for_flagembedding.jsonl]"}),
]


def main() -> None:
    """Parse the command line and write the training file."""
    args = phase_arguments(__doc__, ["fusion"], extra=EXTRA)

    from utils.store.jsonlines import passages_path
    from utils.training.groups import write_training_file

    write_training_file(
        reason_cache=Path(args.reason_cache or rationale_dir(args) / "score_cache.jsonl"),
        retrieval_cache=Path(args.retrieval_cache or dataset_dir(args) / "retrieval/score_cache.jsonl"),
        docs=docs_path(args),
        passages=Path(args.passages or passages_path(docs_path(args))),
        output=Path(args.output or training_lines_path(args)),
        weight=args.reason_weight,
        args=args,
    )


if __name__ == "__main__":
    run_main(main)
