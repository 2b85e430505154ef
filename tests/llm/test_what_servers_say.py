"""Servers as people have them: what they say in place of an answer reaches the user, and silence is heeded."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT, questions, write_jsonl

from utils.config import UsageError
from utils.llm.client import PATIENCE, ask_all
from utils.llm.faults import words
from utils.llm.types import Server, request
from utils.store.journal import Journal

ANSWER = {"choices": [{"message": {"content": "since it is so"}, "finish_reason": "stop"}], "error": None}


@pytest.fixture
def loopback():
    """Start a server whose replies ``reply(times, prompt)`` gives: (status, body), and headers if any; None hangs up.

    ``times`` is the number of requests so far.
    """
    started = []

    def start(reply):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append(body["messages"][-1]["content"])
                status, said, *more = reply(len(asked), asked[-1])
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **dict(*more)}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        class Loopback(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_):
                """Clients that do not wait hang up."""

        server = Loopback(("127.0.0.1", 0), Handler)
        started.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.asked, server.url = asked, f"http://127.0.0.1:{server.server_port}/v1"
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def ask_of(url, path, count=1, key="none", **settings):
    settings = {"timeout": 5.0, "max_retries": 0, "concurrency": 4} | settings
    prompts = [[{"role": "user", "content": f"prompt {i}"}] for i in range(count)]
    requests = [request("m", prompt, max_tokens=5) for prompt in prompts]
    with Journal(path / "j.jsonl") as journal:
        return ask_all(requests, Server(url, key, **settings), journal, "ask")


HTML = (
    b"<!DOCTYPE html><html><head><style>p {}</style><title>502 Bad Gateway</title></head><p>nginx &amp; co</p></html>"
)
ERRORS = [
    ({"error": {"message": "no such model", "code": "x"}}, "no such model"),
    ({"error": "model 'x' not found"}, "model 'x' not found"),
    ({"detail": "Not Found"}, "Not Found"),
    (
        {
            "detail": [
                {"loc": ["body", "n"], "msg": "must be 1", "input": {"message": 3}},
                {"loc": ["body"], "msg": "no"},
            ]
        },
        "body.n: must be 1; body: no",
    ),
    ({"message": {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]}}, "body.seed: Extra inputs"),
    ([{"error": {"code": 400, "message": "Invalid value", "status": "INVALID_ARGUMENT"}}], "Invalid value"),
    ({"object": "error", "message": "context is 4096", "code": 400}, "context is 4096"),
    ({"statusCode": 400, "error": "Bad Request", "message": "Cannot POST"}, "Bad Request; Cannot POST"),
    (
        {"error": {"message": "Provider returned error", "metadata": {"raw": '{"error": {"message": "too long"}}'}}},
        "Provider returned error; too long",
    ),
    ({"errors": [{"code": 10000, "message": "Authentication error"}], "success": False}, "Authentication error"),
    ({"error": {"type": "invalid"}}, '{"error":{"type":"invalid"}}'),
    ("a JSON string", "a JSON string"),
    (b"plain\ntext", "plain text"),
    (HTML, "502 Bad Gateway nginx & co"),
    (b"", ""),
    (b"\xff\xfe", "\ufffd\ufffd"),
]


@pytest.mark.parametrize(("body", "said"), ERRORS)
def test_the_words_of_an_error_are_found_in_every_form(body, said):
    assert words(body if isinstance(body, bytes) else json.dumps(body).encode()) == said


@pytest.mark.parametrize(("body", "said"), [*ERRORS[:-2], (b"", "(an empty reply)")])
def test_the_reader_sees_status_and_words(loopback, tmp_path, body, said):
    outcome = ask_of(loopback(lambda *_: (400, body)).url, tmp_path)
    (failure,) = outcome.failures.values()
    assert failure.startswith(f"400 {said}")


def test_long_words_are_shortened_and_never_hold_the_key(loopback, tmp_path):
    outcome = ask_of(loopback(lambda *_: (400, {"detail": "bad key-123456 " * 100})).url, tmp_path, key="key-123456")
    (failure,) = outcome.failures.values()
    assert failure.startswith("400 bad *** bad ***")
    assert len(failure) <= 310


@pytest.mark.parametrize("body", [body for body, _ in ERRORS if isinstance(body, dict) and "code" not in body])
def test_an_error_with_status_200_is_told_and_asked_again(loopback, tmp_path, body):
    server = loopback(lambda times, _: (200, body) if times <= 2 else (200, ANSWER))
    assert (
        ask_of(server.url, tmp_path, max_retries=0).failures.popitem()[1] == f"an error with status 200: {words(body)}"
    )
    assert ask_of(server.url, tmp_path, max_retries=1).answered == 1


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ({"error": {"code": 502, "message": "upstream"}}, "502 (sent with status 200) upstream"),
        ({"error": {"code": "429", "message": "slow down"}}, "429 (sent with status 200) slow down"),
        ({"choices": [], "status": 503, "msg": "busy"}, "503 (sent with status 200) busy"),
        ({"choices": [{"error": {"code": 500, "message": "lost"}, "message": {"content": ""}}]}, "500 (sent"),
        ({"choices": [{"finish_reason": "error", "message": {"content": "half an"}}]}, "an error with status 200: {"),
        ([{"error": {"code": 503, "message": "in a list"}}], "503 (sent with status 200) in a list"),
        (HTML, "not valid JSON: 502 Bad Gateway nginx & co"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("accept_any", [False, True])
def test_a_passing_error_with_status_200_is_no_answer(loopback, tmp_path, body, failure, accept_any):
    server = loopback(lambda times, _: (200, body) if times == 1 else (200, ANSWER))
    requests = [request("m", [{"role": "user", "content": "x"}], max_tokens=5)]
    with Journal(tmp_path / "j.jsonl") as journal:
        outcome = ask_all(requests, Server(server.url, "none", 5.0, 1, 4), journal, "ask", accept_any)
    assert (outcome.answered, journal.path.read_text().count("since it is so")) == (1, 1)
    stays = loopback(lambda *_: (200, body))
    outcome = ask_of(stays.url, tmp_path / "..", max_retries=0) if not failure.startswith("429") else None
    assert outcome is None or next(iter(outcome.failures.values())).startswith(failure)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (402, {"error": {"message": "Insufficient Balance", "code": "invalid_request_error"}}),
        (200, {"error": {"message": "Insufficient Balance", "code": 402}}),
        (200, [{"error": {"message": "Insufficient Balance", "code": "402"}}]),
        (429, {"error": {"message": "Insufficient Balance", "code": "insufficient_quota"}}),
        (200, {"error": {"message": "Insufficient Balance", "type": "insufficient_quota"}}),
        (401, {"detail": "Insufficient Balance"}),
        (200, {"error": {"message": "Insufficient Balance", "code": 401}}),
    ],
)
def test_no_money_and_a_refused_key_stop_at_the_first(loopback, tmp_path, status, body):
    server = loopback(lambda *_: (status, body))
    with pytest.raises(UsageError, match="refuses: .*Insufficient Balance"):
        ask_of(server.url, tmp_path, 50, max_retries=3, concurrency=1)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("", "; most servers want /v1 at the end of --base_url http://127.0.0.1:"),
        ("/api/", "; most servers want /v1"),
        ("/v1/chat/completions", "; --base_url ends before /chat/completions"),
        ("/v1", None), ("/v1/", None), ("/v1beta/openai", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [404, 405])
def test_a_wrong_address_is_told(loopback, tmp_path, path, hint, status):
    server = loopback(lambda *_: (status, {"detail": "Not Found"}))
    with pytest.raises(UsageError, match=f"refuses: {status} Not Found") as caught:
        ask_of(server.url.removesuffix("/v1") + path, tmp_path, 9)
    assert hint in str(caught.value) if hint else "--base_url" not in str(caught.value)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def failure_of(url, tmp_path):
    (failure,) = ask_of(url, tmp_path).failures.values()
    return failure


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def test_a_lost_connection_names_address_and_cause(loopback, tmp_path, monkeypatch):
    url = f"http://127.0.0.1:{free_port()}/v1"
    said = failure_of(url, tmp_path)
    assert said == f"APIConnectionError: no answer from {url}/chat/completions: Connection refused"
    assert "nowhere.invalid" in (said := failure_of("http://nowhere.invalid/v1", tmp_path))
    assert "nam" in said.partition("completions: ")[2].lower(), said  # the resolver's words differ by system
    plain = loopback(lambda *_: (200, ANSWER)).url
    said = failure_of(plain.replace("http:", "https:"), tmp_path)
    assert ": TLS: " in said
    assert said.endswith("is it http, not https?")

    proxy = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("HTTP_PROXY", proxy)
    said = failure_of("http://model.invalid/v1", tmp_path)
    assert "http://model.invalid/v1/chat/completions (through the proxy of HTTP_PROXY; NO_PROXY leaves" in said
    assert said.endswith("Connection refused")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "proxy" not in failure_of(url, tmp_path)


def test_a_proxys_page_names_the_proxy(loopback, tmp_path, monkeypatch):
    proxy = loopback(lambda *_: (403, b"<html><body>Access denied by policy</body></html>"))
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
    with pytest.raises(UsageError, match=r"403 Access denied by policy \(through the proxy of http_proxy; NO_PROXY"):
        ask_of("http://10.1.2.3:8000/v1", tmp_path, 3)


def one_slot(seconds):
    """Answer one request after the other, also those whose client is gone, as servers without a queue limit do."""
    slot = threading.Lock()

    def reply(*_):
        with slot:
            time.sleep(seconds)
        return 200, ANSWER

    return reply


@pytest.mark.parametrize(
    ("seconds", "timeout", "count", "retries"),
    [(0.1, 0.6, 60, 3), (0.1, 0.6, 60, 0), pytest.param(0.5, 3.0, 60, 3, marks=pytest.mark.slow), (0.2, 0.5, 30, 3)],
)
def test_silence_of_a_busy_server_loses_nothing(loopback, tmp_path, seconds, timeout, count, retries):
    server = loopback(one_slot(seconds))
    outcome = ask_of(server.url, tmp_path, count, timeout=timeout, max_retries=retries, concurrency=64)
    assert (outcome.answered, outcome.failures, outcome.stopped) == (count, {}, "")
    assert len(server.asked) < 3 * count


def test_a_gateways_time_out_is_silence_too(loopback, tmp_path):
    lock, waiting = threading.Lock(), threading.Semaphore(3)

    def reply(*_):
        if not waiting.acquire(blocking=False):
            return 504, HTML
        with lock:
            time.sleep(0.05)
        waiting.release()
        return 200, ANSWER

    outcome = ask_of(loopback(reply).url, tmp_path, 40, max_retries=3, concurrency=16)
    assert (outcome.answered, outcome.failures) == (40, {})


@pytest.mark.parametrize("count", [200, 3])
def test_a_server_that_hangs_is_given_up(loopback, tmp_path, count):
    server = loopback(lambda *_: time.sleep(30))
    outcome = ask_of(server.url, tmp_path, count, timeout=0.3, max_retries=3, concurrency=64)
    assert outcome.answered == 0
    assert len(server.asked) == (PATIENCE if count == 200 else 3 * 4)
    said = outcome.stopped or next(iter(outcome.failures.values()))
    assert "nothing came in 0.3 s (--timeout)" in said


def test_questions_that_are_slow_by_themselves_fail_alone(loopback, tmp_path):
    def reply(_, prompt):
        time.sleep(5 if prompt in ("prompt 7", "prompt 20") else 0.01)
        return 200, ANSWER

    outcome = ask_of(loopback(reply).url, tmp_path, 120, timeout=0.4, max_retries=1, concurrency=16)
    assert (outcome.answered, outcome.unasked) == (118, 0)
    assert all("nothing came in 0.4 s (--timeout)" in said for said in outcome.failures.values())


LIMIT = {"error": {"message": "rate limit per day", "code": "rate_limit_exceeded"}}


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_beyond_the_setting_ends_the_run_which_goes_on_later(loopback, tmp_path, status):
    waits = loopback(lambda times, _: (200, ANSWER) if times <= 3 else (status, LIMIT, {"Retry-After": "432"}))
    outcome = ask_of(waits.url, tmp_path, 40, concurrency=1, max_retries=3, longest_wait=60.0)
    assert (outcome.answered, outcome.unasked, outcome.failures, len(waits.asked)) == (3, 37, {}, 4)
    assert "the server asks to wait 432 s: rate limit per day; that is longer than --longest_wait 60" in outcome.rest
    assert outcome.rest.endswith("the answers so far are kept, and the same command goes on")
    well = loopback(lambda *_: (200, ANSWER))
    assert ask_of(well.url, tmp_path, 40).answered == 40
    assert len(well.asked) == 37


def test_a_wait_within_the_setting_is_told_once_and_kept(loopback, tmp_path, capsys):
    server = loopback(lambda times, _: (429, LIMIT, {"Retry-After": "6"}) if times <= 4 else (200, ANSWER))
    started = time.monotonic()
    assert ask_of(server.url, tmp_path, 8, concurrency=4, max_retries=0).answered == 8
    assert 6 <= time.monotonic() - started < 20
    assert capsys.readouterr().err.count("the server asks to wait 6 s: rate limit per day") == 1


def test_ctrl_c_ends_a_long_wait_at_once(loopback, tmp_path):
    server = loopback(lambda *_: (429, LIMIT, {"Retry-After": "432"}))
    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(30))
    command = [sys.executable, ROOT / "llm_generation.py", "--dataset", "own", "--base_url", server.url]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    while "asks to wait" not in (said := process.stderr.readline()):
        assert process.poll() is None
    assert "the server asks to wait 432 s: rate limit per day" in said
    time.sleep(0.5)
    assert len(server.asked) <= 8
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=5)[1]
    assert process.returncode == 130
    assert "asks to wait" not in said


def test_advice_names_what_helps(loopback, run_script, tmp_path):
    def ask(reply, *flags):
        url, words = loopback(reply).url, ["--dataset", "own", "--max_retries", "0", "--concurrency", "1"]
        return run_script("llm_generation.py", *words, "--base_url", url, *flags, cwd=tmp_path)

    output = tmp_path / "dataset/own/reason/train_with_reason.jsonl"
    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(10))
    refused = 400, {"detail": "temperature is not supported"}
    for flags in ([], ["--max_failures", "1"]):
        result = ask(lambda *_: refused, *flags)
        assert result.returncode == 1
        assert result.stderr.endswith(
            "10 of 10 questions have no rationale; run the same command to ask only these again\n"
        )
        assert re.search(r"failed: 400 temperature is not supported; --request .* \(10 times\); ", result.stdout)
        assert not output.exists()
    result = ask(lambda times, _: (200, ANSWER) if times > 4 else (400, {"detail": f"request {times}"}))
    assert "failed: 400 request 1 (4 times); " in result.stdout
    assert "4 of 10 questions have no rationale" in result.stderr
    assert "--max_failures 0.4" in result.stderr
    assert "--max_cost" not in result.stderr
    result = ask(lambda *_: refused, "--max_failures", "0.4")
    assert (result.returncode, "6 rows" in result.stdout) == (0, True), result.stderr
