"""Compare local generation with FlashRAG's hf generator: same model, same prompts, greedy.

python benchmarks/generate.py --prompts 32          (SmolLM2-135M-Instruct)
python benchmarks/generate.py --device cuda --prompts 512

The prompts are those of RAG: five of the quickstart's passages before a question. An answer ends where the model ends
it, or after 32 tokens. The answers of two ways can differ where two tokens are nearly as likely, as they do between
batch sizes.
"""

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from common import DATA_HINT, ROOT, arguments, passages, questions, save, side_by_side

NEW, BATCH = 32, 8


def prompts(model: Path, count: int) -> list[str]:
    """Return prompts as text, in the model's chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = passages(5 * count)
    asked = (
        "Answer with a few words.\n" + "\n".join(texts[5 * i : 5 * i + 5]) + f"\nQuestion: {question}"
        for i, question in enumerate(questions(count))
    )
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in asked
    ]


def main() -> None:
    args = arguments(__doc__, prompts=32)
    import torch

    from utils.rag.generators import HFGenerator

    cores = torch.get_num_threads()
    from flashrag.generator.generator import HFCausalLMGenerator

    model = ROOT / "indexes/models/smollm2-135m"
    if not model.exists():
        sys.exit(f"{model} is missing; {DATA_HINT} with python -m quickstart.models --all")
    asked = prompts(model, args.prompts)
    theirs = HFCausalLMGenerator(
        {
            "generator_model": "smollm2-135m", "generator_model_path": str(model), "generator_max_input_len": 4096,
            "generator_batch_size": BATCH, "device": args.device, "gpu_num": int(args.device == "cuda"),
            "generation_params": {"max_tokens": NEW, "do_sample": False},
        }
    )  # fmt: skip
    kept: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ours = HFGenerator(
            SimpleNamespace(
                framework="hf", model_path=str(model), generator_batch_size=BATCH, max_tokens=NEW, stop=[],
                quantization="none", save_dir=folder, trust_remote_code=[], max_input_tokens=4096,
            )
        )  # fmt: skip

        def run(way: str, generate: object, threads: int) -> None:
            torch.set_num_threads(threads)
            kept[way] = [answer.strip() for answer in generate(asked)]

        ways = {
            # One thread is what importing FlashRAG's retriever sets on a CPU.
            "FlashRAG": lambda: run("theirs", theirs.generate, 1),
            "FlashRAG with all threads": lambda: run("theirs", theirs.generate, cores),
            "ours": lambda: run("ours", ours._answer, cores),
        }
        measured = side_by_side(ways, args.repeats)
    same = sum(a == b for a, b in zip(kept["theirs"], kept["ours"], strict=True)) / args.prompts
    rate = {way: args.prompts / found["median"] for way, found in measured["seconds"].items()}
    save(
        __file__,
        {"device": args.device, "n": args.prompts, **measured, "prompts/s": rate, "share of equal answers": same},
    )


if __name__ == "__main__":
    main()
