"""Compare rationale scoring with the published way, which encodes each question and its passages in separate calls.

    python benchmarks/scoring.py                        (BGE-M3's layout, MiniLM's size, random weights)
    python benchmarks/scoring.py --device cuda --questions 400     (BGE-M3's own size, half precision)

Both ways use FlagEmbedding's BGEM3FlagModel on the quickstart's real candidates; some passages are candidates of two
questions.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import DATA_HINT, ROOT, arguments, save, side_by_side

BATCH = 64


def candidates(count: int) -> tuple[list[str], list[list[str]]]:
    """Return questions and the texts of their 50 candidates."""
    path = ROOT / "dataset/quickstart_nq/train_docs_all.jsonl"
    if not path.exists():
        sys.exit(f"{path} is missing; {DATA_HINT}, then run get_docs")
    texts = {row["id"]: row["contents"] for row in map(json.loads, open(path.with_suffix(".passages.jsonl")))}
    rows = [json.loads(line) for line in open(path)]
    rows = [rows[i % len(rows)] for i in range(count)]
    queries = [f"{row['question']}. {row['golden_answers']}. It is so because of what is known." for row in rows]
    return queries, [[texts[pid] for pid in row["passage_ids"]] for row in rows]


def bge_m3(folder: Path, device: str) -> Path:
    """Make a model in BGE-M3's layout with random weights: BGE-M3's size on a GPU, MiniLM-L6's size on a CPU."""
    import torch
    import transformers
    from common import minilm

    hidden, layers, heads, inner = (1024, 24, 16, 4096) if device == "cuda" else (384, 6, 12, 1536)
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm(), model_max_length=8192)
    config = transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=inner, max_position_embeddings=8194, pad_token_id=0,
    )  # fmt: skip
    transformers.XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.save(torch.nn.Linear(hidden, hidden).state_dict(), folder / "colbert_linear.pt")
    torch.save(torch.nn.Linear(hidden, 1).state_dict(), folder / "sparse_linear.pt")
    return folder


def main() -> None:
    args = arguments(__doc__, questions=8)
    from utils.retrieval.encoder import BgeM3Encoder

    with tempfile.TemporaryDirectory() as name:
        path = str(bge_m3(Path(name), args.device))
        plain = BgeM3Encoder(path, 8192, half=True)
        # As for the paper's 20,000 questions, where compiling with OpenVINO is worth its three seconds.
        encoder = BgeM3Encoder(path, 8192, half=True, texts=20_000)
        queries, passages = candidates(args.questions)
        found: dict[str, np.ndarray] = {}

        def published() -> None:
            rows = []
            for query, texts in zip(queries, passages, strict=True):
                rows.append(plain.encode(texts, BATCH) @ plain.encode([query], BATCH)[0])
            found["published"] = np.stack(rows)

        def ours() -> None:
            distinct = list(dict.fromkeys(text for texts in passages for text in texts))
            place = {text: i for i, text in enumerate(distinct)}
            rows, vectors = encoder.encode(distinct, BATCH), encoder.encode(queries, BATCH)
            scores = [rows[[place[t] for t in texts]] @ v for texts, v in zip(passages, vectors, strict=True)]
            found["ours"] = np.stack(scores)

        measured = side_by_side({"published": published, "ours": ours}, args.repeats, warm_up=False)
    result = {
        "device": args.device,
        "n": args.questions * 50,
        "distinct passages": len({text for texts in passages for text in texts}),
        **measured,
        "largest cosine difference": float(abs(found["published"] - found["ours"]).max()),
    }
    save(__file__, result)


if __name__ == "__main__":
    main()
