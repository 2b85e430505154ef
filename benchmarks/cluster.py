"""Measure corpus encoding on a Ray cluster: its overhead, one worker against two, memory as the corpus grows.

python benchmarks/cluster.py        (pip install -r requirements/scale.txt)

The encoder is MiniLM-L6 at 256 tokens. To measure memory it is one layer of random weights, and the corpus rows have a
long extra field, so that a corpus larger than the memory limit is read in minutes.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from common import ROOT, arguments, memory_group, minilm, passages, run_measured, save, side_by_side

SHARD = 500  # passages that a worker takes at a time
IN_GROUP = """
import os, sys
open(sys.argv[1], "w").write(str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


def command(corpus: Path, index: Path, model: str, *flags: str, shard: int = SHARD) -> list[str]:
    return [
        sys.executable, str(ROOT / "build_index.py"), "--retrieval_method", "minilm", "--retriever_path", model,
        "--corpus_path", str(corpus), "--index_path", str(index), "--index_max_length", "256", "--index_batch_size",
        "32", "--index_shard_size", str(shard), "--overwrite", *flags,
    ]  # fmt: skip


@contextlib.contextmanager
def cluster(cores: int) -> Iterator[str]:
    """Start a cluster of one node and give its address."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": cores, "include_dashboard": False})
    try:
        yield found.address
    finally:
        found.shutdown()


def overhead(folder: Path, sizes: list[int], repeats: int) -> dict[str, object]:
    """Return the seconds without Ray and with one worker on the same cores, which includes starting Ray."""
    result = {}
    for size in sizes:
        corpus = folder / f"{size}.jsonl"
        rows = (json.dumps({"id": str(i), "contents": text}) for i, text in enumerate(passages(size)))
        corpus.write_text("".join(row + "\n" for row in rows))
        plain, ray = folder / f"{size}.index", folder / f"{size}.ray.index"
        ways = {
            "plain": lambda c=corpus, i=plain: run_measured(command(c, i, minilm())),
            "ray": lambda c=corpus, i=ray: run_measured(
                command(c, i, minilm(), "--engine", "ray", "--ray_worker_cpus", "2")
            ),
        }
        result[str(size)] = side_by_side(ways, repeats, warm_up=False) | {
            "equal files": plain.read_bytes() == ray.read_bytes()
        }
    return result


def scaling(folder: Path, size: int) -> dict[str, float]:
    """Return the seconds with one and with two workers of one core each, on a cluster that is already running."""
    seconds = {}
    for workers in (1, 2):
        with cluster(workers) as address:
            flags = ["--engine", "ray", "--ray_address", address]
            words = command(folder / f"{size}.jsonl", folder / "scaling.index", minilm(), *flags)
            seconds[f"{workers} of one core"] = run_measured(words)[0]
    return seconds


def tiny(folder: Path) -> str:
    """Make an encoder of one layer and return its folder."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=30_522, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(folder / "tiny")
    transformers.AutoTokenizer.from_pretrained(minilm()).save_pretrained(folder / "tiny")
    return str(folder / "tiny")


def memory(folder: Path, rows: int, limit: int) -> dict[str, object]:
    """Return the peak memory of all processes together, for two corpora, one of them larger than the limit."""
    model, about = tiny(folder), {}
    for count in (rows // 10, rows):
        corpus = folder / "long.jsonl"
        with open(corpus, "w") as out:
            for i, text in enumerate(passages(count)):
                out.write(json.dumps({"id": str(i), "contents": text[:300], "page": text * 100}) + "\n")
        words = command(corpus, folder / "long.index", model, "--engine", "ray", "--ray_worker_cpus", "1", shard=SHARD)
        with memory_group(limit) as group:
            if group is None:
                sys.exit("a memory cgroup cannot be made here")
            started = time.perf_counter()
            held = [sys.executable, "-c", IN_GROUP, str(group / "cgroup.procs"), *words]
            process = subprocess.Popen(held, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            peaks = [0.0]
            watch = threading.Thread(target=watched, args=(group, process, peaks))
            watch.start()
            said = process.communicate()[1]
            watch.join()
            if process.returncode:
                sys.exit(f"{held} ended with {process.returncode}: {said[-2000:]}")
            seconds = time.perf_counter() - started
            emptied(group)
        about[f"{count} passages"] = {
            "corpus MiB": corpus.stat().st_size / 2**20, "peak MiB": max(peaks), "seconds": seconds
        }  # fmt: skip
    return {"limit MiB": limit / 2**20, **about}


def watched(group: Path, process: subprocess.Popen, peaks: list[float]) -> None:
    """Append the memory of the group's processes to ``peaks`` while they run; shared memory is counted once (PSS)."""
    import psutil

    while process.poll() is None:
        total = 0
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(psutil.Error, OSError):
                total += psutil.Process(int(pid)).memory_full_info().pss
        peaks.append(total / 2**20)
        time.sleep(0.5)


def emptied(group: Path) -> None:
    """Wait until Ray's last processes have ended: a cgroup with processes cannot be removed."""
    for _ in range(100):
        if not (group / "cgroup.procs").read_text().split():
            return
        time.sleep(0.1)


def main() -> None:
    args = arguments(__doc__, passages=500, rows=60_000, limit=3000)
    sizes = [args.passages, 3 * args.passages, 9 * args.passages]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {
            "overhead": overhead(folder, sizes, args.repeats),
            "workers": scaling(folder, sizes[-1]),
            "memory": memory(folder, args.rows, args.limit << 20),
        }
    save(__file__, {"device": args.device, "n": sizes[-1], **found})


if __name__ == "__main__":
    main()
