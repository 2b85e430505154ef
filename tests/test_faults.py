"""Requests to a server that fails in every way: what can be had is had, and what cannot is told."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, questions, read_jsonl

from utils.config import UsageError
from utils.llm.cost import WASTE
from utils.llm.faults import retry_after
from utils.llm.types import Server, UnusableError, read_completion
from utils.ray_engine import one_by_one
from utils.store.journal import Journal, Records, resume

JOURNAL = "dataset/own/reason/requests.journal.jsonl"
OUTPUT = "dataset/own/reason/train_with_reason.jsonl"


def failures(tmp_path):
    return {row["id"]: row["failure"] for row in read_jsonl(tmp_path / "dataset/own/reason/failures.jsonl")}


def marked(mark, count=3):
    return [row | {"golden_answers": [f"{mark} {i}"]} for i, row in enumerate(questions(count))]


@pytest.mark.slow
def test_half_of_all_tries_fail_and_no_row_is_lost(ask, llm_server, tmp_path):
    assert ask(llm_server().base_url, rows=questions(300)).returncode == 0
    expected = (tmp_path / OUTPUT).read_bytes()
    server = llm_server(0.01, faults=0.5, hang=3)
    result = ask(server.base_url, "--timeout", "1", "--concurrency", "64", "--overwrite", "--model", "other")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / OUTPUT).read_bytes() == expected
    injected = server.stats()["injected"]
    assert len(injected) == 12, injected
    assert sum(injected.values()) > 100
    print(f"\n{sum(injected.values())} faults injected, 300 of 300 rows: {injected}")
    assert failures(tmp_path) == {}


@pytest.mark.parametrize(
    "kind", ["429", "500", "502", "503", "reset", "torn", "html", "garbage", "schema", "error", "blank"]
)
def test_a_fault_that_passes_costs_nothing(ask, llm_server, tmp_path, kind):
    server = llm_server()
    result = ask(server.base_url, rows=marked(f"[fault {kind}] [times 1]", 2))
    assert result.returncode == 0, result.stderr
    assert server.stats()["injected"] == {kind: 2}
    assert set(server.stats()["seen"].values()) == {2}
    with Records(tmp_path / JOURNAL) as records:
        assert [records[key]["attempts"] for key in records if not key.startswith(WASTE)] == [2, 2]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("schema", "no completion: field 'choices.0.message.content'"),
        ("html", "not valid JSON: please log in to the hotel's network"),
        ("error", "an error with status 200: upstream is gone"),
    ],
)
def test_a_fault_that_stays_is_told(ask, llm_server, tmp_path, kind, said):
    rows = [*questions(3), *(row | {"id": "bad" + row["id"]} for row in marked(f"[fault {kind}]", 1))]
    result = ask(llm_server().base_url, rows=rows)
    assert result.returncode == 1
    assert said in failures(tmp_path)["badq0"]
    assert len(read_jsonl(tmp_path / JOURNAL)) == 1 + 3


def test_a_dead_server_is_given_up_and_the_next_call_goes_on(ask, llm_server, tmp_path):
    server = llm_server()
    result = ask(server.base_url, "--max_retries", "0", rows=marked("[status 500]", 200))
    assert result.returncode == 1
    assert "questions were not asked: the last 20 requests all failed (500" in result.stderr
    assert 20 <= sum(server.stats()["seen"].values()) < 100
    assert ask(llm_server().base_url, rows=questions(200)).returncode == 0


def test_many_questions_that_fail_for_good_do_not_stand_before_the_rest(ask, llm_server, tmp_path):
    cut = [row | {"id": f"cut{row['id']}"} for row in marked("[cut]", 50)]
    server = llm_server()
    assert ask(server.base_url, rows=[*questions(5), *cut]).returncode == 1
    rows = [*cut, *questions(60)]
    assert ask(server.base_url, "--max_failures", "0.5", rows=rows).returncode == 0
    assert len(failures(tmp_path)) == 50
    assert len(read_jsonl(tmp_path / OUTPUT)) == 60


def test_a_server_that_stays_busy_leaves_the_rest_to_the_next_call(ask, llm_server, tmp_path):
    rows = [*questions(5), *(row | {"id": "busy" + row["id"]} for row in marked("[status 429]", 3))]
    result = ask(llm_server().base_url, "--max_retries", "0", "--max_failures", "0.9", rows=rows)
    assert result.returncode == 1
    assert "3 questions were not asked: the last 20 requests all failed (429" in result.stderr
    assert failures(tmp_path) == {}
    assert not (tmp_path / OUTPUT).exists()


def test_no_money_left_stops_at_once_and_keeps_what_was_in_flight(ask, llm_server, tmp_path):
    rows = [*questions(10), *marked("[status 429 insufficient_quota]", 50)]
    rows = [row | {"id": str(i)} for i, row in enumerate(rows)]
    server = llm_server()
    result = ask(server.base_url, "--max_retries", "0", rows=rows)
    assert result.returncode == 2
    assert "refuses: 429" in result.stderr
    assert len(read_jsonl(tmp_path / JOURNAL)) == 1 + 10
    assert sum(server.stats()["seen"].values()) < 40


def test_what_a_server_says_reaches_neither_the_key_nor_the_terminal(ask, llm_server, tmp_path):
    server = llm_server(0.0, "--echo_key")
    result = ask(server.base_url, "--max_retries", "0", rows=marked("[status 400]", 1), OPENAI_API_KEY="canary-key")
    assert result.returncode == 1
    assert "you sent Bearer ***" in failures(tmp_path)["q0"]
    assert "canary-key" not in result.stderr + result.stdout + json.dumps(failures(tmp_path))


@pytest.mark.parametrize(("key", "said"), [("none", "no one, none, 12"), ("canary-key", "no one, none, 12")])
def test_only_a_key_that_can_be_a_secret_is_taken_out_of_words(key, said):
    server = Server(None, key, 1.0, 0, 1)
    assert server.clean("no one, none, 12") == said
    assert server.clean("Bearer canary-key") == ("Bearer ***" if key == "canary-key" else "Bearer canary-key")


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("2", 2, 2), ("0.5", 0.5, 0.5), ("1e9", 1e9, 1e9), ("inf", 0, 0), ("nan", 0, 0), ("-3", 0, 0), ("soon", 0, 0),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0), ("Wed, 21 Oct 2099 07:28:00 GMT", 1e9, 1e10)],
)  # fmt: skip
def test_retry_after_in_all_its_forms(value, low, high):
    assert low <= retry_after({"retry-after": value}) <= high
    assert retry_after({}) == 0.0


@pytest.mark.parametrize(
    ("body", "retry"),
    [(b"", True), (b"[]", True), (b"{}", True), (b'{"choices": []}', True), (b'{"choices": null}', True),
     (b'{"choices": [{"text": "", "finish_reason": "stop"}]}', True),
     (b'{"choices": [{"message": null, "finish_reason": "content_filter"}]}', False),
     (b'{"choices": [{"text": "half", "finish_reason": "length"}]}', False)],
)  # fmt: skip
def test_bodies_that_are_no_answer(body, retry):
    with pytest.raises(UnusableError) as caught:
        read_completion(body, accept_any=False)
    assert caught.value.retry is retry


def test_a_reader_under_test_may_say_nothing_and_be_cut_off():
    body = b'{"choices": [{"text": "half", "finish_reason": "length"}], "usage": null}'
    assert read_completion(body, accept_any=True)["text"] == "half"
    assert read_completion(b'{"choices": [{"message": {"content": null}}]}', accept_any=True)["text"] == ""
    uncounted = b'{"choices": [{"text": "x"}], "usage": {"prompt_tokens": null, "completion_tokens": null}}'
    assert read_completion(uncounted, accept_any=True)["prompt_tokens"] == 0


def test_a_journal_torn_at_any_byte_loses_at_most_its_last_record(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        for i in range(3):
            journal.append(f"k{i}", {"text": f"ä line\nbreak {i}"})
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            kept = sum(end <= cut for end in ends[1:])
            assert list(journal) == [f"k{i}" for i in range(kept)]
            journal.append("new", {"text": "after"})
        with Journal(path) as journal:
            assert list(journal) == [f"k{i}" for i in range(kept)] + ["new"]


def test_a_kill_at_any_byte_leaves_whole_chunks(tmp_path):
    path = tmp_path / "j.jsonl"

    def work(chunk):
        seen.append(chunk)
        return [{"text": f"{i} of {chunk}"} for i in chunk]

    def run():
        seen.clear()
        with Journal(path) as journal:
            resume(journal, list(range(8)), str, 3, one_by_one(work), "test")
            return {key: journal[key] for key in journal}

    seen = []
    expected = run()
    assert seen == [[0, 1, 2], [3, 4, 5], [6, 7]]
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        assert run() == expected
        assert seen == [[0, 1, 2], [3, 4, 5], [6, 7]][sum(ends[i] <= cut for i in (3, 6, 8)) :]


def test_a_damaged_line_costs_that_record_alone(tmp_path, capsys):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        for i in range(4):
            journal.append(f"k{i}", {"text": "x"})
    lines = path.read_bytes().splitlines(keepends=True)
    for damage in (b"\0" * 20 + b"\n", b"[1]\n", b'{"key": 3}\n', b"\xff\xfe\n"):
        path.write_bytes(b"".join([*lines[:2], damage, *lines[3:]]))
        with Journal(path) as journal:
            assert list(journal) == ["k0", "k2", "k3"]
        assert "1 damaged lines skipped" in capsys.readouterr().err


def test_a_file_that_is_no_journal_is_not_emptied(tmp_path):
    path = tmp_path / "j.jsonl"
    for content in (b'{"id": 1}\n{"id": 2}\n', b"\0\0\n"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="no journal"):
            Journal(path)
        assert path.read_bytes() == content


FILL = """
import random, resource, signal, sys
from utils.store.journal import Journal, Records, resume
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # what is written beyond fails, as on a full disk
journal, chance = Journal(sys.argv[1]), random.Random(0)
for number in range(100):
    print(number, flush=True)
    journal.append(str(number), {"text": "x" * chance.randrange(60)})
"""


def test_a_full_disk_leaves_a_sound_journal(tmp_path):
    path = tmp_path / "j.jsonl"
    found = subprocess.run([sys.executable, "-c", FILL, path], cwd=ROOT, capture_output=True, text=True)
    assert "File too large" in found.stderr
    assert path.stat().st_size <= 1000
    failed = int(found.stdout.split()[-1])
    assert failed > 5
    with Journal(path) as again:
        assert list(again) == [str(i) for i in range(failed)]
