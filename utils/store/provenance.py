"""Where a result comes from: command, code, libraries, machine."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from utils.config import SECRET_FLAGS

ROOT = Path(__file__).parents[2]
REPORTED_PACKAGES = (
    "torch", "transformers", "flashrag-dev", "FlagEmbedding", "faiss-cpu", "faiss-gpu", "openai", "vllm",
)  # fmt: skip
# What the speed of models on a CPU depends on most, by the names of these flags in /proc/cpuinfo.
INSTRUCTION_SETS = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-bf16", "amx_tile": "AMX", "amx_bf16": "AMX-bf16",
}  # fmt: skip


def command_line() -> str:
    """Return the command as typed, without secrets."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    words, hide = ["-m", module.name] if module else [Path(sys.argv[0]).name], False
    for word in sys.argv[1:]:
        name, equals, _ = word.partition("=")
        secret = name in SECRET_FLAGS
        words.append("***" if hide else f"{name}=***" if secret and equals else word)
        hide = secret and not equals
    return shlex.join(["python", *words])


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide results."""
    found = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str:
    """Return the checkout's commit, marked if files differ from it; ``unknown`` outside a Git checkout."""
    if not (ROOT / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def machine() -> str:
    """Return processor, usable cores, memory, and the GPUs if the phase has used torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    parts = [processor(Path("/proc/cpuinfo")), f"{cores} cores", f"{memory:.0f} GiB"]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(parts)


def processor(cpuinfo: Path) -> str:
    """Return the processor's name, family and model number, and which of `INSTRUCTION_SETS` it has."""
    first = cpuinfo.read_text().partition("\n\n")[0] if cpuinfo.exists() else ""
    about = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    if "model name" not in about or "cpu family" not in about:  # not Linux, or not x86
        return about.get("model name") or platform.processor() or platform.machine()
    flags = about.get("flags", "").split()
    sets = [name for flag, name in INSTRUCTION_SETS.items() if flag in flags] or ["no AVX2"]
    return f"{about['model name']} (family {about['cpu family']} model {about['model']}; {', '.join(sets)})"
