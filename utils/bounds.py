"""What settings may be, told before the work starts: numbers, the key, addresses, templates."""

from __future__ import annotations

import math
import string
import urllib.parse
from collections.abc import Collection, Iterator, Mapping
from typing import Any

SMALLEST = 1e-9  # stands for "more than nothing"
# Least and most of every number, whichever sections have it.
BOUNDS: dict[str, tuple[float, float]] = (
    dict.fromkeys(
        [
            "concurrency", "max_tokens", "max_input_tokens", "retrieval_batch_size", "retrieval_query_max_length",
            "index_max_length", "index_batch_size", "index_shard_size", "docs_topk", "scorer_max_length",
            "scorer_batch_size", "fusion_topk", "per_device_train_batch_size", "gradient_accumulation_steps",
            "query_max_len", "passage_max_len", "logging_steps", "checkpoint_steps", "nproc_per_node", "nnodes",
            "ray_worker_cpus", "ray_index_rows",
            "rerank_topk", "rerank_max_length", "rerank_batch_size", "generator_batch_size",
        ],
        (1, math.inf),
    )
    | dict.fromkeys(
        [
            "train_questions", "test_sample_num", "max_retries", "max_cost", "temperature", "retrieval_topk",
            "weight_decay", "warmup_steps", "max_grad_norm", "dataloader_num_workers", "node_rank",
        ],
        (0, math.inf),
    )
    | dict.fromkeys(["max_failures", "reason_weight"], (0, 1))
    | dict.fromkeys(["timeout", "batch_poll", "learning_rate", "num_train_epochs"], (SMALLEST, math.inf))
    | dict.fromkeys(["top_p", "gpu_memory_utilization"], (SMALLEST, 1))
    | {"max_steps": (-1, math.inf)}
    | {"train_group_size": (2, math.inf), "seed": (0, 2**32 - 1)}
)  # fmt: skip
# Of every template in the prompts section; rationale_system is sent as it is.
FIELDS = {
    "rationale_user": ("question", "answers"),
    "rationale_completion": ("question", "answers"),
    "rag_system": ("reference",),
    "rag_user": ("question",),
    "rag_completion": ("reference", "question"),
    "rag_system_closed_book": ("reference",),
    "rag_completion_closed_book": ("reference", "question"),
}


def faults(settings: Mapping[str, Any], prompts: Mapping[str, str | None]) -> Iterator[str]:
    """What is wrong with resolved settings, a message each; none of them shows a secret."""
    for name, (least, most) in BOUNDS.items():
        if name in settings and not _within(settings[name], least, most):
            yield f"--{name} must be {_range(least, most)}, not {settings[name]!r}"
    key, urls = settings.get("api_key"), settings.get("base_url") or []
    if key is not None and not (str(key).isascii() and str(key).isprintable() and " " not in str(key)):
        yield "the API key holds a character that no key has; was a blank, a line break or a quotation mark copied too?"
    for url in urls if isinstance(urls, list) else [urls]:
        if not _is_address(str(url)):
            yield f"--base_url {url!r} is no address such as http://127.0.0.1:8000/v1"
    for name, text in prompts.items():
        if name.endswith("_user") and not (text or "").strip():
            yield f"prompts.{name} must not be blank"
        if name in FIELDS and (fault := template_fault(text or "", FIELDS[name])):
            yield f"prompts.{name}: {fault}"


def template_fault(text: str, fields: Collection[str]) -> str:
    """Why `str.format` cannot fill a template with these fields; empty if it can."""
    allowed = " and ".join(f"{{{field}}}" for field in fields)
    try:
        found = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        return f"{error}; {allowed} are filled in, other braces are written twice"
    unknown = sorted(found - set(fields))
    return f"{{{unknown[0]}}} is not known; {allowed} are filled in, other braces are written twice" if unknown else ""


def _within(value: Any, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and least <= value <= most


def _range(least: float, most: float) -> str:
    low = "more than 0" if least == SMALLEST else f"at least {least:g}"
    return low if most == math.inf else f"{low} and at most {most:g}"


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isascii()
    except ValueError:
        return False
