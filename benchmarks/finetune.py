"""Compare fine-tuning with FlagEmbedding's command as published: same groups, same steps, same seed.

    python benchmarks/finetune.py --steps 6             (MiniLM-L6, 4 groups of 7 pairs per step)
    python benchmarks/finetune.py --device cuda --steps 50     (bge-reranker-base's size, 16 groups of 7 pairs)

Report trained pairs per second (without start-up), peak memory and both loss curves.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

from common import arguments, minilm, passages, questions, run_measured, save, shaped, spread

GROUP = 7


def main() -> None:
    args = arguments(__doc__, steps=6)
    from utils.devices import cpu_has_bf16

    groups = 16 if args.device == "cuda" else 4
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(shaped("reranker", folder)) if args.device == "cuda" else minilm()
        texts = passages(GROUP * groups * args.steps)
        lines = [
            {"query": question, "pos": [texts[GROUP * i]], "neg": texts[GROUP * i + 1 : GROUP * (i + 1)]}
            for i, question in enumerate(questions(groups * args.steps))
        ]
        (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        common = {
            "train_data": f"{folder}/lines.jsonl", "learning_rate": "6e-5", "num_train_epochs": "1",
            "per_device_train_batch_size": str(groups), "gradient_accumulation_steps": "1",
            "train_group_size": str(GROUP),
            "query_max_len": "16", "passage_max_len": "496", "weight_decay": "0.01", "logging_steps": "1", "seed": "42",
            "dataloader_drop_last": "True", "save_strategy": "no", "report_to": "none", "model_name_or_path": model,
        }  # fmt: skip
        common |= {"use_cpu": "True"} if args.device == "cpu" else {}
        flags = [word for key, value in common.items() for word in (f"--{key}", value)]
        theirs = [
            sys.executable, "-m", "FlagEmbedding.finetune.reranker.encoder_only.base", *flags, "--output_dir",
            f"{folder}/theirs", *(["--fp16", "True"] if args.device == "cuda" else []),
        ]  # fmt: skip
        # As run_finetune.sh decides: a processor without bf16 instructions imitates bf16, more than ten times slower.
        bf16 = args.device == "cuda" or cpu_has_bf16()
        ours = [
            sys.executable, "-m", "utils.training.train_reranker", *flags, "--output_dir", f"{folder}/ours",
            *(["--bf16", "True"] if bf16 else []),
        ]  # fmt: skip
        curves: dict[str, list[list[float]]] = {"FlagEmbedding": [], "ours": []}
        rates: dict[str, list[float]] = {"FlagEmbedding": [], "ours": []}
        peaks: dict[str, float] = {}
        for _ in range(args.repeats):
            for way, command in (("FlagEmbedding", theirs), ("ours", ours)):
                _, peaks[way], said = run_measured(command)
                curves[way].append([float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", said)])
                seconds = float(re.findall(r"'train_runtime': '?([\d.]+)", said)[0])
                rates[way].append(args.steps * groups * GROUP / seconds)
    ratios = [ours / theirs for theirs, ours in zip(*rates.values(), strict=True)]
    result = {
        "device": args.device,
        "precision": "bf16" if bf16 else "fp32",
        "n": args.steps * groups,
        "pairs/s": {way: spread(found) for way, found in rates.items()},
        "ratio": {"FlagEmbedding": spread(ratios)},
        "peak MiB": peaks,
        "loss": {way: found[0] for way, found in curves.items()},
    }
    save(__file__, result)


if __name__ == "__main__":
    main()
