"""Fine-tune a reranker with FlagEmbedding; run_finetune.sh runs this module.

    sh run_finetune.sh
    sh run_finetune.sh --dataset nq --base_model BAAI/bge-reranker-base --nproc_per_node 4
    sh run_finetune.sh --train_data my_lines.jsonl --output_dir checkpoints/mine --precision bf16
    sh run_finetune.sh --nnodes 2 --node_rank 0 --master first-node:29500     (and on the second --node_rank 1)

reads   --train_data, FlagEmbedding lines {query, pos: [...], neg: [...]}
writes  --output_dir, a Hugging Face folder with a model card, once training has ended well; until then
        OUTPUT_DIR.unfinished, with the last two checkpoints: the same command goes on from there
        OUTPUT_DIR.manifest.json, which also has the losses and the pairs per second

The training file, the settings and the base model are checked before the training starts. A question-passage pair has
at most --query_max_len + --passage_max_len tokens: FlagEmbedding accepts --max_len and ignores it. Several nodes use
the same folders on a shared file system; the node of rank 0 writes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from utils.config import UsageError, checkpoint_path, phase_arguments, run_main, settings_of, training_lines_path
from utils.devices import (
    cpu_has_bf16,
    has_score_head,
    load_classifier,
    load_model,
    load_tokenizer,
    local_model,
    longest_input,
    select_devices,
    torch_device,
)
from utils.store.cards import write_model_card
from utils.store.files import free_space, locked, sync_folder
from utils.store.jsonlines import parse_row, read_jsonl
from utils.store.manifest import CARD, Phase
from utils.store.rows import TrainingGroup

MODULE = "utils.training.train_reranker"
STARTER = "torch.distributed.run"
COMPLETE = "complete"  # this file in a checkpoint's folder says that the checkpoint is whole
MADE_WITH = ".made_with"  # this file in an unfinished folder names inputs and settings; fingerprints skip dot files
TRAINED = ".trained.json"  # this file holds losses and speed until they stand in the manifest
TRACKERS = ("tensorboard", "wandb", "trackio")
PARENT = "TRAINING_PID"  # environment variable: the process that training must not outlive
# Passed on under FlagEmbedding's and transformers' own names.
PASSED_ON = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "train_group_size", "query_max_len", "passage_max_len", "weight_decay", "warmup_steps", "lr_scheduler_type",
    "max_grad_norm", "logging_steps", "dataloader_num_workers", "seed",
)  # fmt: skip


def main() -> int:
    """Parse the command line and fine-tune; return the exit code."""
    args = phase_arguments(__doc__, ["finetune"])
    select_devices(args)
    return fine_tune(Path(args.train_data or training_lines_path(args)), checkpoint_path(args), args)


def fine_tune(train_data: Path, output: Path, args: argparse.Namespace) -> int:
    """Check, train, and give the model its name; return the exit code."""
    starter = launcher(args)
    check_tracker(args.report_to)
    settings = settings_of(args, *PASSED_ON, "precision", "nproc_per_node")
    if args.nnodes > 1:  # left out otherwise, so that manifests of earlier versions still match
        settings["nnodes"] = args.nnodes
    phase = Phase(output, [train_data, args.base_model], settings, folder=True)
    if phase.is_done(args.overwrite):
        (output / MADE_WITH).unlink(missing_ok=True)  # a kill came just after the manifest
        if not (output / CARD).exists():
            write_model_card(output, args)
        return 0
    has_manifest = phase.manifest.exists()
    is_trained = not has_manifest and _made_with(output) == phase.key  # a kill came just before the manifest
    if not (has_manifest or is_trained) and output.exists() and any(output.iterdir()):
        raise UsageError(f"{output} is not empty and was not made by this script; choose another --output_dir")
    groups = check_training_file(train_data, args)
    base_model = local_model(args.base_model)
    check_base_model(base_model, args)
    unfinished = output.with_name(f"{output.name}.unfinished")
    command = [*starter, *training_command(args, base_model, train_data, unfinished)]
    if args.node_rank:  # the node of rank 0 prepares the folder before any process starts, and finishes it
        return train(command, unfinished)
    with locked(unfinished):
        if not is_trained:
            prepare(unfinished, phase.key)
            if train(command, unfinished):
                return 1
            put_in_place(unfinished, output, phase.manifest)
        for checkpoint in output.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        trained = output / TRAINED
        facts = json.loads(trained.read_text()) if trained.exists() else {}
        phase.finish(groups, facts=facts)
        for path in (trained, output / MADE_WITH):
            path.unlink(missing_ok=True)
        write_model_card(output, args)
        if facts.get("losses"):
            print(in_words(facts, args))
    return 0


def check_tracker(name: str) -> None:
    """Refuse a tracker that is unknown or not installed, before any work."""
    if name not in ("none", *TRACKERS):
        raise UsageError(f"--report_to {name!r} is none of none, {', '.join(TRACKERS)}")
    if name != "none" and find_spec(name) is None:
        raise UsageError(f"--report_to {name}: it is not installed; run: pip install {name}")


def in_words(facts: dict[str, Any], args: argparse.Namespace) -> str:
    """Say what a training has done, and whether its loss is still that of guessing."""
    first, last = (facts["losses"][i]["loss"] for i in (0, -1))
    size, speed = args.train_group_size, facts["pairs per second"]
    told = f"loss {first:.3f} at first, {last:.3f} at last; groups of {size} passages; {speed:.0f} pairs/s"
    if last > 0.97 * math.log(size):
        told += (
            f". Guessing has a loss of ln({size}) = {math.log(size):.3f}: the groups have taught nothing. Try more of "
        )
        told += "them, more steps or a higher --learning_rate, and look at the positives"
    return told


def train(command: list[str], unfinished: Path) -> int:
    """Run the training and return its exit code."""
    print(" ".join(command), flush=True)
    code = subprocess.run(command, env=environment(command)).returncode
    if code:
        # torch and safetensors report a full disk in many ways, none of them plain.
        said = f"error: training ended with exit code {code} ({free_space(unfinished) / 1e9:.1f} GB free on the disk)"
        print(f"{said}; the same command goes on from the last checkpoint in {unfinished}", file=sys.stderr)
    return code


def environment(command: list[str]) -> dict[str, str]:
    """Return the training's environment, where one process sees one GPU.

    With several, transformers would wrap the model in ``DataParallel`` and make the batch as many times larger.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    alone = {} if STARTER in command else {"CUDA_VISIBLE_DEVICES": visible.split(",")[0]}
    return os.environ | {PARENT: str(os.getpid())} | alone


def put_in_place(unfinished: Path, output: Path, manifest: Path) -> None:
    """Give a trained model its name. An earlier model's manifest goes: it would describe the wrong model."""
    for path in filter(Path.is_file, unfinished.iterdir()):
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(output, ignore_errors=True)
    manifest.unlink(missing_ok=True)
    os.replace(unfinished, output)
    sync_folder(output.parent)


def _made_with(folder: Path) -> str | None:
    mark = folder / MADE_WITH
    return mark.read_text() if mark.exists() else None


def prepare(unfinished: Path, key: str) -> None:
    """Keep what an earlier call with the same inputs and settings left; remove what another left."""
    if _made_with(unfinished) == key:
        if checkpoint := checkpoint_to_resume(unfinished):
            print(f"going on from {checkpoint}")
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    (unfinished / MADE_WITH).write_text(key)


def checkpoint_to_resume(folder: Path) -> str | None:
    """Return the last whole checkpoint of an unfinished training; a kill during its writing leaves it without mark."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def check_training_file(path: Path, args: argparse.Namespace) -> int:
    """Read every line before a model loads; return the number of groups, at least one batch over all processes."""
    if path.suffix not in (".json", ".jsonl"):
        raise UsageError(f"{path}: FlagEmbedding reads training files whose name ends in .jsonl or .json, no others")
    groups = 0
    for number, raw in read_jsonl(path, "python score_cache_to_dataset.py --dataset NAME"):
        where = f"{path}:{number}"
        group = parse_row(raw, TrainingGroup, where)
        for field in ("pos", "neg"):
            if not getattr(group, field):
                raise UsageError(f"{where}: field '{field}' is an empty list; FlagEmbedding cannot draw from it")
        groups += 1
    batch = args.per_device_train_batch_size * args.nproc_per_node * args.nnodes
    if groups < batch:
        flags = "--per_device_train_batch_size, --nproc_per_node or --nnodes"
        raise UsageError(f"{path} has {groups} lines, fewer than one batch of {batch}; make more, or lower {flags}")
    return groups


def check_base_model(base_model: str, args: argparse.Namespace) -> None:
    """Load the model once before FlagEmbedding does, which would train a damaged one; refuse pairs too long for it."""
    from transformers import AutoModel

    trust = args.base_model in args.trust_remote_code
    if has_score_head(base_model, trust):
        tokenizer, model = load_classifier(base_model, trust)
    else:  # an encoder is a base too
        tokenizer = load_tokenizer(base_model, trust)
        model = load_model(AutoModel, base_model, trust, tokenizer, "pooler.")
        print(f"note: {args.base_model} has no head for one score; training begins with a random one", file=sys.stderr)
    pair, limit = args.query_max_len + args.passage_max_len, longest_input(tokenizer, model.config)
    if pair > limit:
        lengths = f"--query_max_len {args.query_max_len} + --passage_max_len {args.passage_max_len}"
        raise UsageError(f"{lengths} = {pair} tokens, but {base_model} takes {limit}")


def launcher(args: argparse.Namespace) -> list[str]:
    """Return the words that start a module here, by torchrun if there are several processes or nodes."""
    if not 0 <= args.node_rank < args.nnodes:
        raise UsageError(f"--node_rank {args.node_rank} must be below --nnodes {args.nnodes}; they count from 0")
    host, _, port = (args.master or "").rpartition(":")
    if args.nnodes > 1 and not (host and port.isdecimal()):
        raise UsageError("--nnodes needs --master HOST:PORT, an address of the node of rank 0 that all nodes reach")
    if args.nnodes * args.nproc_per_node == 1:
        return [sys.executable, "-m"]
    nodes = ["--standalone"]
    if args.nnodes > 1:
        nodes = ["--nnodes", str(args.nnodes), "--node_rank", str(args.node_rank)]
        nodes += ["--master_addr", host, "--master_port", port]
    return [sys.executable, "-m", STARTER, "--nproc_per_node", str(args.nproc_per_node), *nodes, "-m"]


def training_command(args: argparse.Namespace, base_model: str, train_data: Path, output: Path) -> list[str]:
    """Return the training module and FlagEmbedding's flags for these settings."""
    on_cpu, precision = torch_device() == "cpu", args.precision
    if precision not in ("fp16", "bf16", "fp32"):
        raise UsageError(f"--precision {precision!r} is none of fp16, bf16, fp32")
    if on_cpu and (precision == "fp16" or not cpu_has_bf16()):
        precision = "fp32"
    if precision != args.precision:
        print(f"this processor cannot train in {args.precision}; training in fp32")
    settings = {key: str(value) for key, value in settings_of(args, *PASSED_ON).items()}
    settings |= {
        "model_name_or_path": base_model,
        "train_data": str(train_data),
        "trust_remote_code": str(args.base_model in args.trust_remote_code),
        "output_dir": str(output),
        "save_strategy": "steps",
        "save_steps": str(args.checkpoint_steps),
        "save_total_limit": "2",
        "dataloader_drop_last": "True",  # a short last batch would crash or regroup in FlagEmbedding
        "report_to": args.report_to,
        "use_cpu": str(on_cpu),
        "fp16": str(precision == "fp16"),
        "bf16": str(precision == "bf16"),
    }
    return [MODULE, *(word for key, value in settings.items() for word in (f"--{key}", value))]


if __name__ == "__main__":
    run_main(main)
