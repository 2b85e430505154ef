"""Measure ways side by side in one run, write medians and spreads to a JSON file: the parts all benchmarks share."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from utils.config import script_parser  # noqa: E402
from utils.store.manifest import commit, machine, versions  # noqa: E402

RESULTS = Path(__file__).with_name("results")
DATA_HINT = "make the data first: bash reproduce.sh --only_data"


def arguments(doc: str | None, **sizes: int) -> argparse.Namespace:
    """Parse ``--device``, ``--repeats`` and a flag for each size."""
    parser = script_parser(doc)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="turns in which each way is measured [3]")
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"[{default}]")
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return args


def side_by_side(ways: dict[str, Callable[[], Any]], repeats: int, warm_up: bool = True) -> dict[str, Any]:
    """Measure each way ``repeats`` times. The ways take turns, so that a slow minute of the machine meets all of them.

    Returns:
        ``seconds``: median, least and most of each way. ``ratio``: the seconds of each other way divided by those of
        the last way in the same turn; median, least and most over the turns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + warm_up):
        for name, way in ways.items():
            gc.collect()
            started = time.perf_counter()
            way()
            _synchronise()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    *others, last = seconds
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratio": {name: spread([a / b for a, b in zip(seconds[name], seconds[last], strict=True)]) for name in others},
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and most of the values, and their number."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "n": len(values)}


# A forked process counts the memory of its parent as its own, so the measured process is started by a small one.
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


def run_measured(command: list[str]) -> tuple[float, float, str]:
    """Run a process and return its seconds, peak MiB (the largest of it and its children) and standard output."""
    with tempfile.NamedTemporaryFile("r") as peak:
        words = [sys.executable, "-c", MEASURE, peak.name, *command]
        started = time.perf_counter()
        found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if found.returncode:
            sys.exit(f"{command} ended with {found.returncode}: {found.stderr[-2000:]}")
        return seconds, int(peak.read()) / 1024, found.stdout


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path | None]:
    """Make a cgroup (version 1 or 2) that is limited to so many bytes; give None where this user may not make one."""
    root = Path("/sys/fs/cgroup/memory")
    file = "memory.limit_in_bytes"
    if not root.exists():
        root, file = root.parent, "memory.max"
    group = root / f"benchmark-{os.getpid()}"
    try:
        group.mkdir()
        (group / file).write_text(str(limit))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def save(script: str, result: dict[str, Any]) -> None:
    """Print the result and write it to ``results/SCRIPT[_cuda].json``, with machine, commit and versions."""
    name = Path(script).stem + ("_cuda" if result.get("device") == "cuda" else "")
    record = {
        "benchmark": name,
        **result,
        "command": " ".join(["python", f"benchmarks/{Path(script).name}", *sys.argv[1:]]),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "commit": _measured_commit(),
        "versions": versions(),
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(_rounded(record), indent=2)
    print(text)
    (RESULTS / f"{name}.json").write_text(text + "\n")


def _measured_commit() -> str:
    """Return the commit, marked if files differ from it; files that the benchmarks write do not count."""
    words = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs/*.svg"]
    differs = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout
    return commit() if differs else commit().removesuffix("-dirty")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


def _synchronise() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def passages(count: int) -> list[str]:
    """Return texts of the quickstart's corpus; if there are too few, repeat them with a number in front."""
    path = ROOT / "indexes/quickstart/corpus.jsonl"
    if not path.exists():
        sys.exit(f"{path} is missing; {DATA_HINT}")
    texts = [json.loads(line)["contents"] for line in path.read_bytes().splitlines()]
    return [texts[i % len(texts)] if i < len(texts) else f"{i} {texts[i % len(texts)]}" for i in range(count)]


def questions(count: int) -> list[str]:
    """Return questions of the quickstart, repeated if there are too few."""
    path = ROOT / "dataset/quickstart_nq/train.jsonl"
    if not path.exists():
        sys.exit(f"{path} is missing; {DATA_HINT}")
    texts = [json.loads(line)["question"] for line in path.read_bytes().splitlines()]
    return [texts[i % len(texts)] for i in range(count)]


def minilm() -> str:
    """Return the folder of MiniLM-L6, the encoder and cross-encoder of the CPU benchmarks."""
    from quickstart.models import minilm_path

    return str(minilm_path())


def shaped(kind: str, folder: Path) -> Path:
    """Make a model with random weights, of the size of BGE-M3 (``encoder``) or bge-reranker-base (``reranker``).

    The sizes are those of the published configurations. The tokenizer is MiniLM's; all its ids are in the larger
    vocabulary.
    """
    import torch
    import transformers

    target = folder / kind
    if (target / "config.json").exists():
        return target
    sizes = {"encoder": (1024, 24, 16, 4096, 8194), "reranker": (768, 12, 12, 3072, 514)}
    hidden, layers, heads, inner, positions = sizes[kind]
    torch.manual_seed(0)
    config = transformers.XLMRobertaConfig(
        vocab_size=250_002, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=inner, max_position_embeddings=positions, type_vocab_size=1, num_labels=1,
        pad_token_id=0, bos_token_id=101, eos_token_id=102,
    )  # fmt: skip
    model: Any = (
        transformers.XLMRobertaModel(config)
        if kind == "encoder"
        else transformers.XLMRobertaForSequenceClassification(config)
    )
    model.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(minilm()).save_pretrained(target)
    return target
