"""Where models run and in which precision."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from utils.config import UsageError

Item = TypeVar("Item")

# Other frameworks' weights, and Llama's second copy in Meta's format.
UNUSED_FILES = ["*.onnx", "onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.gguf", "original/*"]

if TYPE_CHECKING:
    import torch


def select_devices(args: argparse.Namespace) -> None:
    """Apply ``--gpu_id`` and ``--device``. Call before torch is imported: CUDA reads the variable once."""
    if args.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {args.device!r} is none of auto, cpu, cuda; a single GPU is chosen by --gpu_id")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif args.gpu_id is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(args.gpu_id)
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--device cuda: torch sees no GPU (a CPU build of torch, no driver, or a wrong --gpu_id)")


def torch_device() -> str:
    """``cuda`` or ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def gpus() -> list[str]:
    """Torch's name of every GPU.

    Raises:
        UsageError: there is none.
    """
    import torch

    if not torch.cuda.is_available():
        raise UsageError("--faiss_gpu: torch sees no GPU (a CPU build of torch, no driver, or --device cpu)")
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def half_precision() -> torch.dtype | None:
    """fp16 on a GPU. None on a CPU: bf16's eight bits move scores more than neighbours differ."""
    import torch

    return torch.float16 if torch.cuda.is_available() else None


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for it; without them bf16 is slower than fp32."""
    import torch

    return torch.cpu._is_avx512_bf16_supported()


def autocast(half: torch.dtype | None) -> Any:
    """Context that computes in ``half``; nothing for None."""
    import torch

    return contextlib.nullcontext() if half is None else torch.autocast(torch_device(), dtype=half)


def in_batches(
    items: Sequence[Item],
    room: int,
    work: Callable[[Sequence[Item]], None],
    need: Callable[[Item], int] = lambda _: 1,
) -> int:
    """Do ``work`` on consecutive slices; a slice that does not fit into memory is halved, and that is said.

    Args:
        items: all of them, what needs most first: a slice is padded to its first item, so it takes none that
            needs less than three quarters of it.
        room: of a slice at the start, in the unit of ``need``; one item at least is taken.
        work: may be called again with a part of what it failed on.
        need: of an item, by default 1, so that ``room`` is the number of items.

    Returns:
        The room that worked, for the caller's next call.

    Raises:
        UsageError: not even one item fits.
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
        # Only here is the exception gone, and with its frames the tensors of the failed batch.
        torch.cuda.empty_cache()
    return room


def usable_cores() -> int:
    """Cores this process may use, which containers and OMP_NUM_THREADS set below the machine's number."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(there, int(wanted)) if wanted.isdecimal() and int(wanted) else there


def pretrained(auto: Any, path: str, trust: bool, **options: Any) -> Any:
    """Load a model, tokenizer or configuration; code that comes with it runs only if ``trust`` says so.

    Raises:
        UsageError: it cannot be loaded without its own code.
    """
    try:
        return auto.from_pretrained(path, trust_remote_code=trust, **options)
    except ValueError as error:
        if trust or "trust_remote_code" not in str(error):
            raise
        raise UsageError(
            f"{path} brings its own Python code, which would run with your rights. If you trust it: "
            "--trust_remote_code NAME, with the name or path as it is given"
        ) from None


def longest_input(tokenizer: Any, config: Any) -> int:
    """Most tokens that a model has positions for."""
    positions = getattr(config, "max_position_embeddings", None) or sys.maxsize
    if "roberta" in config.model_type or config.model_type == "camembert":
        positions -= config.pad_token_id + 1  # RoBERTa's positions begin behind the padding's
    return min(tokenizer.model_max_length, positions)


def fitting_length(wanted: int, tokenizer: Any, config: Any) -> int:
    """``wanted`` tokens or as many as the model takes, which is said if it is fewer."""
    most = longest_input(tokenizer, config)
    if wanted > most:
        print(f"note: {config.name_or_path} takes {most} tokens; texts are cut there, not at {wanted}", file=sys.stderr)
    return min(wanted, most)


def model_dimension(name: str) -> int:
    """The length of an encoder's vectors, by its configuration alone.

    Raises:
        UsageError: no model of this name, or one whose configuration does not tell.
    """
    with open(os.path.join(local_model(name), "config.json"), "rb") as file:
        found = json.load(file).get("hidden_size")
    if not isinstance(found, int):
        raise UsageError(f"{name}: its config.json has no hidden_size: an encoder is expected")
    return found


def local_model(name: str) -> str:
    """Folder of a model given by folder or hub id.

    Raises:
        UsageError: neither a folder with a config.json nor a hub id that can be had.
    """
    if os.path.isdir(name):
        if not os.path.exists(os.path.join(name, "config.json")):
            raise UsageError(f"{name} has no config.json: a Hugging Face model folder is expected")
        return name
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, ignore_patterns=UNUSED_FILES)
    except Exception as error:  # the hub's client raises many kinds; all of them mean the same here
        raise UsageError(f"model {name!r} is no local folder and could not be fetched from the hub: {error}") from None
