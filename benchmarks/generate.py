"""Local generation against FlashRAG's hf generator: same model, same prompts, greedy.

python benchmarks/generate.py --prompts 24
python benchmarks/generate.py --device cuda --prompts 512
"""

import sys
import tempfile
from types import SimpleNamespace

from common import DATA_HINT, ROOT, arguments, passages, questions, save, side_by_side

NEW = 16


def main() -> None:
    args = arguments(__doc__, prompts=24)
    from flashrag.generator.generator import HFCausalLMGenerator

    from utils.local_generators import HFGenerator

    model = ROOT / "indexes/models/smollm2-135m"
    if not model.exists():
        sys.exit(f"{model} is missing; {DATA_HINT} with python -m quickstart.models --all")
    texts = passages(6 * args.prompts)
    # As RAG's: one to five passages before a question, so that lengths differ.
    prompts = [
        "\n".join(texts[6 * i : 6 * i + 1 + i % 5]) + f"\nQuestion: {question}\nAnswer:"
        for i, question in enumerate(questions(args.prompts))
    ]
    config = {
        "generator_model": "smollm2-135m", "generator_model_path": str(model), "generator_max_input_len": 4096,
        "generator_batch_size": 8, "device": args.device, "gpu_num": int(args.device == "cuda"),
        "generation_params": {"max_tokens": NEW, "do_sample": False},
    }  # fmt: skip
    theirs = HFCausalLMGenerator(config)
    kept: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = SimpleNamespace(
            framework="hf", model_path=str(model), generator_batch_size=8, max_tokens=NEW, stop=[], quantization="none",
            save_dir=folder, trust_remote_code=[], max_input_tokens=4096,
        )  # fmt: skip
        ours = HFGenerator(settings)

        def run(way: str, function: object) -> None:
            kept[way] = function(prompts)

        ways = {"FlashRAG": lambda: run("theirs", theirs.generate), "ours": lambda: run("ours", ours._answer)}
        measured = side_by_side(ways, args.repeats)
    same = sum(a.strip() == b.strip() for a, b in zip(kept["theirs"], kept["ours"], strict=True)) / args.prompts
    save(__file__, {"device": args.device, "n": args.prompts, **measured, "equal answers": same})


if __name__ == "__main__":
    main()
