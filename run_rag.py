"""Answer questions with retrieved and reranked passages, and measure the answers.

    python run_rag.py --rerank_model_path=checkpoints/nq_radio --dataset=nq
    python run_rag.py --rerank_model_path=checkpoints/nq_radio --framework=openai --openai_model=gpt-4o-mini
    python run_rag.py --dataset=nq                                       (no reranker: the retriever's order)
    python run_rag.py --dataset=nq --retrieval_topk=0                    (closed book: no retrieval)
    python run_rag.py --dataset=nq --rerank_model_name=oracle            (passages with an answer first)
    python run_rag.py --dataset=nq --framework=none                      (ranking quality alone, no LLM)
    python run_rag.py --dataset=nq --framework=openai --dry_run          (tokens, cost and time of the answers)

reads   DATA_DIR/DATASET/SPLIT.jsonl, the index and its corpus, the reranker, the generator
writes  SAVE_DIR/RUN/intermediate_data.json   questions, passages, answers and scores, FlashRAG's layout
        SAVE_DIR/RUN/metric_score.txt         EM, F1, contains; answer recall, MRR and nDCG of the candidates
        SAVE_DIR/RUN/metrics.json             the same with n and 95 % bootstrap intervals
        SAVE_DIR/RUN/{retrieval,rerank}.trec  each stage's ranking; qrels.trec: relevance by answer matching
        SAVE_DIR/stages/, SAVE_DIR/answers/   retrieval, reranking and API answers, shared between runs

Retrieves --retrieval_topk passages, reranks them, puts the best --rerank_topk into the prompt and
generates greedily. Each stage is kept, so that a stopped run goes on where it was and another
reranker or generator repeats nothing that it does not change.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from utils.config import UsageError, dataset_dir, phase_arguments, run_main
from utils.devices import select_devices

EXTRA = [("--dry_run", {"action": "store_true", "help": "print rows, tokens, cost and time, and ask nothing"})]


def main() -> None:
    """Parse the command line and run the pipeline."""
    args = phase_arguments(__doc__, ["retrieval", "rag", "engine"], extra=EXTRA)
    if args.answer_type not in ("text", "letter"):
        raise UsageError(f"--answer_type {args.answer_type!r} is neither text nor letter")
    select_devices(args)

    from utils.classes import NO_RETRIEVAL, RagPipeline, generator_name, outcome_settings, reranker_name
    from utils.rag.generators import LOCAL_FRAMEWORKS
    from utils.store.files import file_name
    from utils.store.jsonlines import read_rows
    from utils.store.manifest import Phase
    from utils.store.rows import Question

    source = dataset_dir(args) / f"{args.split}.jsonl"
    if not source.exists() and (splits := sorted(path.stem for path in source.parent.glob("*.jsonl"))):
        raise UsageError(f"{source} is missing; choose another --split (there are: {', '.join(splits)})")
    dropped = Counter[str]() if args.skip_bad_rows else None
    questions = read_rows(source, Question, limit=args.test_sample_num, dropped=dropped)

    generator = generator_name(args)
    ranker = NO_RETRIEVAL if args.retrieval_topk == 0 else reranker_name(args)
    name = args.run_name or f"{args.dataset}_{args.split}_{ranker}_{generator}"
    output = Path(args.save_dir) / file_name(name)
    inputs = [source]
    if args.retrieval_topk:
        inputs += [args.index_path, args.corpus_path, args.retriever_path]
        inputs += [args.rerank_model_path] if args.rerank_model_path else []
    if args.framework in LOCAL_FRAMEWORKS:
        inputs.append(args.model_path)
    phase = Phase(output / "intermediate_data.json", inputs, outcome_settings(args))
    summary = output / "metric_score.txt"
    if phase.is_done(args.overwrite) and summary.exists():
        print(summary.read_text(), end="")
        return
    pipeline = RagPipeline(questions, args)
    if args.dry_run:
        print(pipeline.forecast())
        return
    metrics = pipeline.run(output)
    for metric, found in metrics.items():
        print(f"{metric:10} {found}")
    phase.finish(len(questions), dropped, facts=pipeline.facts, reranker=ranker, generator=generator)


if __name__ == "__main__":
    run_main(main)
