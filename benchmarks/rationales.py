"""Compare rationale requests with the ideal rate (concurrency / mean latency), and their memory with 64 processes.

    python benchmarks/rationales.py
    python benchmarks/rationales.py --memory_rows 100000     (takes three minutes more)

llm_generation.py asks a server whose answers take log-normal time, 0.5 s on average. The time is measured from the
first request to the last answer, including the slow start and the wait for the last answers. The published script's
way is a pool of 64 processes, each with its own openai client.
"""

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from common import ROOT, arguments, save

LATENCY = 0.5
POOL = """
import multiprocessing, os, sys
def ask(question):
    global client
    if "client" not in globals():
        from openai import OpenAI
        client = OpenAI(api_key="none", base_url=sys.argv[1])
    found = client.chat.completions.create(model="m", messages=[{"role": "user", "content": question}])
    return found.choices[0].message.content
if __name__ == "__main__":
    with multiprocessing.Pool(64) as pool:
        pool.map(ask, [f"question {i}" for i in range(640)])
"""


def tree_memory(process: subprocess.Popen) -> float:
    """Return the peak MiB of a process and its children together; shared pages are counted once (PSS)."""
    most = 0.0
    while process.poll() is None:
        total = 0.0
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()
                if int(status.parent.name) == process.pid or int(fields[1]) == process.pid:
                    rollup = (status.parent / "smaps_rollup").read_text()
                    total += (
                        next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1024
                    )
            except (OSError, StopIteration):
                continue
        most = max(most, total)
        time.sleep(0.25)
    return most


def start_server() -> tuple[subprocess.Popen, str]:
    """Start the server; return its process, which the caller must kill, and its address."""
    words = [sys.executable, Path(__file__).with_name("latency_server.py"), str(LATENCY)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    return server, f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"


def run(url: str, rows: int, concurrency: int) -> tuple[float, float]:
    """Ask for rationales; return the seconds from the first request to the last answer, and the peak MiB."""
    with tempfile.TemporaryDirectory() as name:
        train = Path(name) / "dataset/own/train.jsonl"
        train.parent.mkdir(parents=True)
        with open(train, "w") as out:
            for i in range(rows):
                out.write(
                    json.dumps({"id": i, "question": f"what is number {i} and why", "golden_answers": [f"{i}"]}) + "\n"
                )
        words = ["--dataset", "own", "--train_questions", "0", "--base_url", url, "--concurrency", str(concurrency)]
        command = [sys.executable, str(ROOT / "llm_generation.py"), *words]
        process = subprocess.Popen(command, cwd=name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peak = tree_memory(process)
        with urllib.request.urlopen(url) as reply:
            return float(reply.read()), peak


def main() -> None:
    args = arguments(__doc__, rounds=60, memory_rows=0)
    server, url = start_server()
    result: dict = {"rounds": args.rounds, "reached": {}, "requests/s": {}, "peak MiB": {}}
    try:
        for concurrency in (16, 64, 256):
            rows = concurrency * args.rounds
            seconds, peak = run(url, rows, concurrency)
            result["requests/s"][str(concurrency)] = rows / seconds
            result["reached"][str(concurrency)] = rows / seconds / (concurrency / LATENCY)
            result["peak MiB"][f"{rows} rows, {concurrency} in flight"] = peak
        for rows in (1000, args.memory_rows) if args.memory_rows else ():
            result["peak MiB"][f"{rows} rows, 256 in flight"] = run(url, rows, 256)[1]
        pool = subprocess.Popen([sys.executable, "-c", POOL, url], stdout=subprocess.DEVNULL)
        result["peak MiB"]["pool of 64 processes, 640 rows"] = tree_memory(pool)
    finally:
        server.kill()
    save(__file__, result)


if __name__ == "__main__":
    main()
