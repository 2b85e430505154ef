"""Where a result comes from: command, code, libraries, machine."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from utils.config import SECRET_FLAGS

ROOT = Path(__file__).parents[2]
REPORTED_PACKAGES = (
    "torch",
    "transformers",
    "flashrag-dev",
    "FlagEmbedding",
    "faiss-cpu",
    "faiss-gpu",
    "openai",
    "vllm",
)


def command_line() -> str:
    """The command as typed, the key's value left out."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    words, hide = ["-m", module.name] if module else [Path(sys.argv[0]).name], False
    for word in sys.argv[1:]:
        name, equals, _ = word.partition("=")
        secret = name in SECRET_FLAGS
        words.append("***" if hide else f"{name}=***" if secret and equals else word)
        hide = secret and not equals
    return shlex.join(["python", *words])


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide results."""
    found = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str:
    """The checkout's commit, marked if files differ from it; ``unknown`` outside a Git checkout."""
    if not (ROOT / ".git").exists():
        return "unknown"
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def machine() -> str:
    """Processor, usable cores, memory, and GPUs if the phase has used torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    parts = [_processor(), f"{cores} cores", f"{memory:.0f} GiB"]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(parts)


def _processor() -> str:
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()
