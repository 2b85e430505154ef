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

from utils.config import phase_arguments, run_main
from utils.devices import select_devices

EXTRA = [("--dry_run", {"action": "store_true", "help": "print rows, tokens, cost and time, and ask nothing"})]


def main() -> None:
    """Parse the command line, run the pipeline, print the metrics."""
    args = phase_arguments(__doc__, ["retrieval", "rag", "engine"], extra=EXTRA)
    select_devices(args)
    from utils.classes import run_rag  # only now: its libraries would slow down --help, and CUDA is chosen

    print(run_rag(args))


if __name__ == "__main__":
    run_main(main)
