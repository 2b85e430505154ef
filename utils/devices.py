"""Choose where models run and in which precision, and load them."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from utils.config import UsageError

Item = TypeVar("Item")
# Other frameworks' weights, and Llama's second copy in Meta's format.
UNUSED_FILES = ["*.onnx", "onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.gguf", "original/*"]
PROBE = "the a 4 , и 水 و ก"  # a tokenizer of any language knows a word, a letter or a figure of it


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
    except Exception as error:  # each reader of a model's files raises kinds of its own
        if isinstance(error, ValueError) and not trust and "trust_remote_code" in str(error):
            fault = f"{path} brings its own Python code, which would run with your rights"
            raise UsageError(f"{fault}. If you trust it: --trust_remote_code NAME, as the model is given") from None
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise UsageError(f"{path} cannot be loaded by {auto.__name__} ({cause})") from error


def load_tokenizer(path: str, trust: bool, **options: Any) -> Any:
    """Load a tokenizer and refuse one that knows no word; where it has no pad token, its end token serves."""
    from transformers import AutoTokenizer

    tokenizer = pretrained(AutoTokenizer, path, trust, **options)
    known = set[int]()
    with contextlib.suppress(Exception):  # such as "WordPiece error: Missing [UNK] token from the vocabulary"
        known = set(tokenizer(PROBE, add_special_tokens=False)["input_ids"]) - set(tokenizer.all_special_ids)
    if not tokenizer.decode(sorted(known)).strip():  # transformers makes an empty one where it finds no files
        files = "are tokenizer files (tokenizer.json, vocab.txt, ...) missing in the folder?"
        raise UsageError(f"{path}: its tokenizer knows no word: {files}")
    set_pad_token(tokenizer)
    return tokenizer


def set_pad_token(tokenizer: Any, words: int = sys.maxsize) -> None:
    """Let the end token pad where a tokenizer has no pad token, or one beyond the ``words`` that the model knows."""
    for token in (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token):
        if token is not None and tokenizer.convert_tokens_to_ids(token) < words:
            tokenizer.pad_token = token
            return
    raise UsageError(f"{tokenizer.name_or_path}: its tokenizer has neither a pad token nor an end token")


def known_words(model: Any) -> int:
    """Return how many words a model knows."""
    return getattr(model.config.get_text_config(), "vocab_size", None) or sys.maxsize


def pad_classifier(tokenizer: Any, model: Any) -> None:
    """Make a classifier and its tokenizer pad alike: a decoder's score is read from a row's last token before it."""
    set_pad_token(tokenizer, known_words(model))
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def load_model(auto: Any, path: str, trust: bool, tokenizer: Any, optional: str = "", **options: Any) -> Any:
    """Load all of a model, for evaluation: what its files lack would be random numbers, others in each run.

    Weights whose name begins with ``optional``, if that is given, may be missing.
    """
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # such sizes are then reported
    model, report = pretrained(auto, path, trust, **options)
    missing = sorted(name for name in report["missing_keys"] if not (optional and name.startswith(optional)))
    faults = [f"{name} is missing" for name in missing]
    faults += [f"{name} is {list(found)}, not {list(size)}" for name, found, size in sorted(report["mismatched_keys"])]
    if faults := faults + list(map(str, report["error_msgs"])):
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UsageError(f"{path} is no whole {type(model).__name__}: {'; '.join(faults[:3])}{more}")
    if tokenizer.vocab_size > known_words(model):
        fault = f"its tokenizer has {tokenizer.vocab_size} words, but the model knows {known_words(model)}"
        raise UsageError(f"{path}: {fault}: are the tokenizer files another model's?")
    set_pad_token(tokenizer, known_words(model))
    return model.eval()


def has_score_head(path: str, trust: bool) -> bool | None:
    """Return whether a model's configuration names a head for one score, None if it does not tell.

    A head with another number of labels is refused.
    """
    from transformers import AutoConfig

    config = pretrained(AutoConfig, path, trust)
    if any(name.endswith("ForSequenceClassification") for name in config.architectures or []):
        if config.num_labels != 1:
            raise UsageError(f"{path} has {config.num_labels} labels; one is needed, the score of a pair")
        return True
    own_code = getattr(config, "auto_map", None) or {}
    return None if not config.architectures or "AutoModelForSequenceClassification" in own_code else False


def check_classifier(path: str, trust: bool) -> None:
    """Refuse, by its configuration alone, a model that is no sequence classifier with one label."""
    if has_score_head(path, trust) is False:
        raise UsageError(f"{path} has no head for one score: an encoder becomes a reranker by run_finetune.sh")


def load_classifier(path: str, trust: bool) -> tuple[Any, Any]:
    """Load the tokenizer and the model of a sequence classifier with one label."""
    from transformers import AutoModelForSequenceClassification

    check_classifier(path, trust)
    tokenizer = load_tokenizer(path, trust)
    model = load_model(AutoModelForSequenceClassification, path, trust, tokenizer, num_labels=1)
    pad_classifier(tokenizer, model)
    return tokenizer, model


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


def model_file(name: str, file: str) -> Path | None:
    """Return a small file of a model given by folder or hub id, None where it has none."""
    if os.path.isdir(name):
        path = Path(name, file)
        return path if path.exists() else None
    return _hub_file(name, file)


@functools.cache
def _hub_file(name: str, file: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except RemoteEntryNotFoundError:
        return None
    except Exception as error:  # see `local_model`, which refuses a model that cannot be fetched either
        print(f"note: the hub cannot be asked whether {name} has {file} ({type(error).__name__})", file=sys.stderr)
        return None


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
