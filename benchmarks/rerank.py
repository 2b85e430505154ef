"""Compare reranking with FlashRAG's CrossReranker: same model, same pairs.

python benchmarks/rerank.py --questions 40          (the quickstart's base reranker, made by bash reproduce.sh)
python benchmarks/rerank.py --device cuda --questions 2000     (bge-reranker-base's size, random weights)
"""

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from common import ROOT, arguments, passages, questions, save, shaped, side_by_side

TOPK = 20


def main() -> None:
    args = arguments(__doc__, questions=40)
    import torch

    import utils.retrieval.retrievers  # noqa: F401  # isort: skip (it keeps torch's threads from FlashRAG's import)
    from flashrag.retriever.reranker import CrossReranker

    from utils.method import descending
    from utils.rag.rerankers import LengthSortedReranker

    cores = torch.get_num_threads()

    with tempfile.TemporaryDirectory() as name:
        model = shaped("reranker", Path(name)) if args.device == "cuda" else ROOT / "checkpoints/quickstart_base"
        if not model.exists():
            sys.exit(f"{model} is missing; make it first: bash reproduce.sh")
        settings = {
            "rerank_model_name": "bench", "rerank_model_path": str(model), "rerank_topk": TOPK,
            "rerank_max_length": 512,
            "rerank_batch_size": 64, "use_fp16": True, "device": args.device, "trust_remote_code": [],
        }  # fmt: skip
        theirs, ours = CrossReranker(settings), LengthSortedReranker(SimpleNamespace(**settings), pairs=20_000)
        texts = passages(args.questions * TOPK)
        docs = [[{"contents": text} for text in texts[i :: args.questions]] for i in range(args.questions)]
        asked = [f"{i} {text}" for i, text in enumerate(questions(args.questions))]
        kept: dict[str, list] = {}

        def rank_theirs(threads: int) -> None:
            torch.set_num_threads(threads)
            kept["theirs"] = theirs.rerank(asked, docs, topk=TOPK)[0]

        def rank_ours() -> None:
            torch.set_num_threads(cores)
            scores = ours.score(asked, [[doc["contents"] for doc in found] for found in docs])
            kept["ours"] = [[row[i] for i in descending(found)] for row, found in zip(docs, scores, strict=True)]

        ways = {
            "FlashRAG": lambda: rank_theirs(1),  # one thread: what its import sets on a CPU
            "FlashRAG with all threads": lambda: rank_theirs(cores),
            "ours": rank_ours,
        }
        measured = side_by_side(ways, args.repeats)
    same = [
        len({d["contents"] for d in a[:5]} & {d["contents"] for d in b[:5]}) / 5
        for a, b in zip(kept["theirs"], kept["ours"], strict=True)
    ]
    pairs = args.questions * TOPK
    rate = {way: pairs / found["median"] for way, found in measured["seconds"].items()}
    save(
        __file__,
        {"device": args.device, "n": pairs, **measured, "pairs/s": rate, "top-5 overlap": sum(same) / len(same)},
    )


if __name__ == "__main__":
    main()
