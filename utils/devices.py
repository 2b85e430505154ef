"""Choose where models run and in which precision, and load them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from utils.config import UsageError

Item = TypeVar("Item")
# Other frameworks' weights, and Llama's second copy in Meta's format.
UNUSED_FILES = ["*.onnx", "onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.gguf", "original/*"]


def select_devices(args: argparse.Namespace) -> None:
    """Apply ``--gpu_id`` and ``--device``; call before torch is imported, because CUDA reads the variable once."""
    if args.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {args.device!r} is none of auto, cpu, cuda; a single GPU is chosen by --gpu_id")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif args.gpu_id is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(args.gpu_id)
    if args.device == "cuda" and torch_device() != "cuda":
        raise UsageError("--device cuda: torch sees no GPU (a CPU build of torch, no driver, or a wrong --gpu_id)")


def torch_device() -> str:
    """Return ``cuda`` or ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def gpus() -> list[str]:
    """Return torch's name of every GPU; without one, raise a `UsageError`."""
    import torch

    if not torch.cuda.is_available():
        raise UsageError("--faiss_gpu: torch sees no GPU (a CPU build of torch, no driver, or --device cpu)")
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def half_precision() -> Any:
    """Return torch's fp16 on a GPU, None on a CPU: bf16 has so few bits that it would reorder neighbours."""
    import torch

    return torch.float16 if torch.cuda.is_available() else None


def cpu_has_bf16() -> bool:
    """Return whether the CPU has bf16 instructions; without them bf16 is slower than fp32."""
    import torch

    return torch.cpu._is_avx512_bf16_supported()


def autocast(half: Any) -> Any:
    """Return a context that computes in ``half``; None changes nothing."""
    import torch

    return contextlib.nullcontext() if half is None else torch.autocast(torch_device(), dtype=half)


def in_batches(
    items: Sequence[Item],
    room: int,
    work: Callable[[Sequence[Item]], None],
    need: Callable[[Item], int] = lambda _: 1,
) -> int:
    """Do ``work`` on consecutive batches, halve one that does not fit into GPU memory, and return the room that fits.

    Args:
        items: the largest first. Items shorter than 3/4 of a batch's first item start a new batch: less padding.
        room: size of a batch at the start, in the unit of ``need``; a batch has at least one item.
        work: called again with the items of a batch that did not fit.
        need: size of an item; by default 1, so that ``room`` counts items.
    """
    import torch

    start = 0
    while start < len(items):
        each = need(items[start])
        part = items[start : start + max(1, room // each)]
        part = part[: sum(4 * need(item) >= 3 * each for item in part)]
        try:
            work(part)
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise UsageError("out of GPU memory with one item at once; take a smaller model or length") from None
            room = len(part) // 2 * each
            print(f"out of GPU memory with {len(part)} at once; going on with {len(part) // 2}", file=sys.stderr)
        else:
            start += len(part)
            continue
        # Outside `except`, because the exception keeps the failed batch's tensors alive.
        torch.cuda.empty_cache()
    return room


def usable_cores() -> int:
    """Return how many cores this process may use: containers and OMP_NUM_THREADS may allow fewer than there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(limit)) if limit.isdecimal() and int(limit) else cores


def pretrained(auto: Any, path: str, trust: bool, **options: Any) -> Any:
    """Load a model, tokenizer or configuration; run code that comes with it only if ``trust`` says so."""
    try:
        return auto.from_pretrained(path, trust_remote_code=trust, **options)
    except ValueError as error:
        if trust or "trust_remote_code" not in str(error):
            raise
        fault = f"{path} brings its own Python code, which would run with your rights"
        raise UsageError(f"{fault}. If you trust it: --trust_remote_code NAME, as the model is given") from None


def longest_input(tokenizer: Any, config: Any) -> int:
    """Return the most tokens that a model and its tokenizer take."""
    positions = getattr(config, "max_position_embeddings", None) or sys.maxsize
    if "roberta" in config.model_type or config.model_type == "camembert":
        positions -= config.pad_token_id + 1  # RoBERTa counts positions from the padding's id on
    return min(tokenizer.model_max_length, positions)


def fitting_length(wanted: int, tokenizer: Any, config: Any) -> int:
    """Return ``wanted`` tokens, or as many as the model takes, and say if that is fewer."""
    most = longest_input(tokenizer, config)
    if wanted > most:
        print(f"note: {config.name_or_path} takes {most} tokens; texts are cut there, not at {wanted}", file=sys.stderr)
    return min(wanted, most)


def model_dimension(name: str) -> int:
    """Read the length of an encoder's vectors from its configuration."""
    with open(os.path.join(local_model(name), "config.json"), "rb") as file:
        found = json.load(file).get("hidden_size")
    if not isinstance(found, int):
        raise UsageError(f"{name}: its config.json has no hidden_size: an encoder is expected")
    return found


def local_model(name: str) -> str:
    """Return the folder of a model given by folder or hub id, fetched from the hub if need be."""
    if os.path.isdir(name):
        if not os.path.exists(os.path.join(name, "config.json")):
            raise UsageError(f"{name} has no config.json: a Hugging Face model folder is expected")
        return name
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, ignore_patterns=UNUSED_FILES)
    except Exception as error:  # the hub's client raises many kinds; all of them mean the same here
        raise UsageError(f"model {name!r} is no local folder and could not be fetched from the hub: {error}") from None
