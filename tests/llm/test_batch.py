"""The Batch API against a server that has one: submit, wait, die at any step, and lose or pay nothing twice."""

import dataclasses
import json
import time

import pytest
from conftest import questions, read_jsonl, write_jsonl

import utils.llm.batch
from utils.config import UsageError
from utils.llm.batch import Batches, open_keys
from utils.llm.client import ask_all
from utils.llm.cost import Budget, Outcome, forecast
from utils.llm.types import Server, request
from utils.store.journal import Journal

STATE = "dataset/own/reason/requests.journal.batches.json"
OUTPUT = "dataset/own/reason/train_with_reason.jsonl"


def flags_of(url):
    return ["--dataset", "own", "--base_url", url, "--batch", "--batch_poll", "0.1"]


@pytest.fixture
def ask(run_script, tmp_path):
    def run(url, *flags, rows=None):
        if rows is not None:
            write_jsonl(tmp_path / "dataset/own/train.jsonl", rows)
        return run_script("llm_generation.py", *flags_of(url), *flags, cwd=tmp_path)

    return run


def test_a_batch_gives_the_file_that_live_requests_give(ask, run_script, llm_server, tmp_path):
    server = llm_server()
    batch = ask(server.base_url, rows=questions(20))
    assert batch.returncode == 0, batch.stderr
    assert server.stats()["batches"] == 1
    by_batch = (tmp_path / OUTPUT).read_bytes()
    assert json.loads((tmp_path / STATE).read_text()) == {}
    facts = json.loads((tmp_path / f"{OUTPUT}.manifest.json").read_text())["facts"]
    (tmp_path / "dataset/own/reason/requests.journal.jsonl").unlink()
    live = run_script("llm_generation.py", *flags_of(server.base_url)[:4], "--overwrite", cwd=tmp_path)
    assert live.returncode == 0
    assert (tmp_path / OUTPUT).read_bytes() == by_batch
    full = json.loads((tmp_path / f"{OUTPUT}.manifest.json").read_text())["facts"]
    assert facts == full | {"cost": pytest.approx(full["cost"] / 2)}


def test_what_fails_in_a_batch_is_told_and_asked_again(ask, llm_server, tmp_path):
    rows = questions(6)
    for row, mark in zip(rows, ("[status 400]", "[expires]", "[cut]", "[empty]"), strict=False):
        row["golden_answers"] = [mark]
    server = llm_server()
    result = ask(server.base_url, rows=rows)
    assert result.returncode == 1
    failures = {row["id"]: row["failure"] for row in read_jsonl(tmp_path / "dataset/own/reason/failures.jsonl")}
    said = {"q0": "scripted", "q1": "batch_expired", "q2": "cut off at max_tokens", "q3": "empty answer"}
    assert failures.keys() == said.keys()
    assert all(words in failures[name] for name, words in said.items())
    again = ask(server.base_url, "--max_failures", "0.7")
    assert again.returncode == 0
    assert server.stats()["batches"] == 2
    assert len(read_jsonl(tmp_path / OUTPUT)) == 2


def test_a_batch_that_fails_as_a_whole_is_told_and_submitted_again(ask, llm_server, tmp_path):
    server = llm_server()
    for count in (1, 2):
        rows = [row | {"golden_answers": ["[batch fails]"]} for row in questions(2)]
        result = ask(server.base_url, rows=rows)
        assert (result.returncode, "failed: ['too many tokens']" in result.stderr) == (2, True)
        assert server.stats()["batches"] == count


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of the program's own runs after it."""


STEPS = ["files.create", "batches.create", "batches.retrieve", "files.content"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_end_between_any_two_steps_costs_nothing(llm_server, tmp_path, monkeypatch, step, when):
    """The call that ends the program is made, or not; what it brought is never written down."""
    fake = llm_server(batch_seconds=0)
    server = Server(fake.base_url, None, 5.0, 0, 4, batch=True, batch_poll=0.01)
    requests = [request("m", f"prompt {i}", max_tokens=5) for i in range(10)]
    monkeypatch.setattr(utils.llm.batch, "MOST_REQUESTS", 4)  # three batches
    first = Batches.__init__
    calls = 0

    def rigged(self, *args):
        first(self, *args)
        part, method = step.split(".")
        client = self._once if step == "batches.create" else self._client
        real = getattr(getattr(client, part), method)

        def end(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls != 2:
                return real(*args, **kwargs)
            if when == "after":
                real(*args, **kwargs)
            raise KilledError

        monkeypatch.setattr(getattr(client, part), method, end)

    monkeypatch.setattr(Batches, "__init__", rigged)
    with Journal(tmp_path / "j.jsonl") as journal, pytest.raises(KilledError):
        ask_all(requests, server, journal, "ask")
    monkeypatch.setattr(Batches, "__init__", first)
    with Journal(tmp_path / "j.jsonl") as journal:
        outcome = ask_all(requests, server, journal, "ask")
        assert (outcome.answered, outcome.failures) == (10, {})
        assert all(item.key in journal for item in requests)
    assert set(fake.stats()["seen"].values()) == {1}
    assert fake.stats()["batches"] == 3


@pytest.mark.slow
def test_sigkill_while_batches_run_costs_nothing(llm_server, run_script, start_script, tmp_path):
    server = llm_server(batch_seconds=6)
    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(50))
    command = ["llm_generation.py", *flags_of(server.base_url)]
    for pause in (0.1, 0.5, 1.0):
        process = start_script(*command, cwd=tmp_path)
        while not (tmp_path / STATE).exists():
            time.sleep(0.01)
        time.sleep(pause)
        process.kill()
        process.wait()
    assert run_script(*command, cwd=tmp_path).returncode == 0
    assert len(read_jsonl(tmp_path / OUTPUT)) == 50
    assert server.stats()["batches"] == 1


def test_answers_to_rows_that_changed_meanwhile_are_kept_for_later(llm_server, tmp_path):
    fake = llm_server(batch_seconds=0)
    server = Server(fake.base_url, None, 5.0, 0, 4, batch=True, batch_poll=0.01)
    old, new = ([request("m", f"{kind} {i}", max_tokens=5) for i in range(3)] for kind in ("old", "new"))
    with Journal(tmp_path / "j.jsonl") as journal:
        batches = Batches(server, Outcome(journal, Budget(), set()))
        batches._submit(old)
        outcome = ask_all(new, server, journal, "ask")
        assert all(item.key in journal for item in [*new, *old])
        assert (outcome.asked, outcome.unasked, outcome.failures) == (3, 0, {})


def test_a_limit_keeps_back_what_could_pass_it(llm_server, tmp_path):
    fake = llm_server(batch_seconds=0)
    server = Server(fake.base_url, None, 5.0, 0, 4, batch=True, batch_poll=0.01)
    requests = [request("m", f"prompt {i}", max_tokens=1_000_000) for i in range(10)]
    budget = Budget((0.0, 2.0), 3.5)  # a dollar each at most, as a batch
    with Journal(tmp_path / "j.jsonl") as journal:
        outcome = ask_all(requests, server, journal, "ask", budget=budget)
    assert (outcome.answered, outcome.unasked) == (3, 7)
    assert "--max_cost 3.5" in outcome.stopped


def test_a_lost_key_is_refused_before_anything_is_sent(tmp_path):
    server = Server(None, None, 5.0, 0, 4, batch=True)
    with Journal(tmp_path / "j.jsonl") as journal, pytest.raises(UsageError, match="no API key"):
        ask_all([request("m", "x", max_tokens=1)], server, journal, "ask")


@pytest.fixture
def by_batch(llm_server):
    """Start a server whose batches are answered at once; gives it and its settings."""

    def start(**options):
        fake = llm_server(**{"batch_seconds": 0} | options)
        return fake, Server(fake.base_url, None, 5.0, 2, 4, batch=True, batch_poll=0.01)

    return start


def ask_once(requests, server, path, budget=None):
    with Journal(path) as journal:
        outcome = ask_all(requests, server, journal, "ask", budget=budget)
        return outcome, [journal.get(item.key, {}).get("text") for item in requests]


def left_open(requests, server, path, monkeypatch):
    """Submit, and end before the answers are fetched."""

    def end(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "_wait", end)
        with pytest.raises(KilledError):
            ask_once(requests, server, path)


def test_a_batch_that_the_server_does_not_know_is_not_forgotten(by_batch, tmp_path, monkeypatch):
    _, other = by_batch()
    fake, server = by_batch()
    requests = [request("m", f"prompt {i}", max_tokens=5) for i in range(3)]
    left_open(requests, server, tmp_path / "j.jsonl", monkeypatch)
    state = (tmp_path / "j.batches.json").read_text()
    with pytest.raises(UsageError, match="knows no batch batch_0: is it at another server"):
        ask_once(requests, other, tmp_path / "j.jsonl")
    (tmp_path / "j.batches.json").write_text(state.replace("batch_0", "batch_77"))
    with pytest.raises(UsageError, match="knows no batch batch_77: is it at another server"):
        ask_once(requests, server, tmp_path / "j.jsonl")
    assert "batch_77" in (tmp_path / "j.batches.json").read_text()
    (tmp_path / "j.batches.json").write_text(state)
    assert ask_once(requests, server, tmp_path / "j.jsonl")[0].answered == 3
    assert fake.stats()["batches"] == 1


def test_a_live_call_does_not_pay_again_for_what_is_in_a_batch(by_batch, tmp_path, monkeypatch):
    fake, server = by_batch()
    path = tmp_path / "j.jsonl"
    requests = [request("m", f"prompt {i}", max_tokens=5) for i in range(3)]
    left_open(requests, server, path, monkeypatch)
    live = dataclasses.replace(server, batch=False)
    with pytest.raises(UsageError, match="3 of the requests are in batches that are still open"):
        ask_once(requests, live, path)
    more = [*requests, request("m", "another", max_tokens=5)]
    told = forecast(more, path, open_keys(path), live, Budget())
    assert told.startswith("4 rows: 0 answered already, 1 to ask, 3 in open batches")
    assert ask_once(more[3:], live, path)[0].answered == 1
    assert ask_once(more, server, path)[0].answered == 4
    assert open_keys(path) == set()
    assert set(fake.stats()["seen"].values()) == {1}


def test_a_limit_holds_over_all_calls(by_batch, tmp_path, monkeypatch):
    _, server = by_batch()
    path = tmp_path / "j.jsonl"
    requests = [request("m", f"prompt {i}", max_tokens=1_000_000) for i in range(10)]
    left_open(requests[:3], server, path, monkeypatch)
    outcome, _ = ask_once(requests, server, path, Budget((0.0, 2.0), 4.5))  # a dollar each at most, as a batch
    assert (outcome.answered, outcome.unasked) == (4, 6)


def test_a_creation_whose_reply_is_lost_is_not_repeated(by_batch, tmp_path):
    fake, server = by_batch(lost_replies=1)
    requests = [request("m", f"prompt {i}", max_tokens=5) for i in range(3)]
    with pytest.raises(UsageError, match=r"the Batch API of http\S+ fails \(APIConnectionError.*goes on where it was"):
        ask_once(requests, server, tmp_path / "j.jsonl")
    assert ask_once(requests, server, tmp_path / "j.jsonl")[0].answered == 3
    assert fake.stats()["batches"] == 1


@pytest.mark.parametrize("mark", ["[answers gone]", "[torn line]"])
def test_results_that_are_gone_or_damaged_fail_their_requests_alone(by_batch, tmp_path, monkeypatch, mark):
    fake, server = by_batch()
    monkeypatch.setattr(utils.llm.batch, "MOST_REQUESTS", 1)
    requests = [request("m", text, max_tokens=5) for text in (f'"{mark}', "sound")]
    outcome, texts = ask_once(requests, server, tmp_path / "j.jsonl")
    assert list(outcome.failures.values()) == ["batch_0 ended as completed, and the server has no answer of it"]
    assert (texts[0], texts[1]) == (None, "because of sound")
    assert open_keys(tmp_path / "j.jsonl") == set()
    assert fake.stats()["batches"] == 2


def test_batches_of_other_calls_are_not_waited_for(llm_server, tmp_path, monkeypatch):
    fake = llm_server(batch_seconds=3)
    server = Server(fake.base_url, None, 5.0, 2, 4, batch=True, batch_poll=0.05)
    path = tmp_path / "j.jsonl"
    left_open([request("m", "slow", max_tokens=5)], server, path, monkeypatch)
    live = request("m", "live", max_tokens=5)
    assert ask_once([live], dataclasses.replace(server, batch=False), path)[0].answered == 1
    left_open([request("m", "second", max_tokens=5)], server, path, monkeypatch)
    time.sleep(3)
    left_open([request("m", "third", max_tokens=5)], server, path, monkeypatch)
    outcome, _ = ask_once([request("m", "slow", max_tokens=5), live], server, path)
    assert outcome.answered == 2
    assert len(open_keys(path)) == 1


def test_a_kill_between_the_last_answer_and_the_batchs_removal_leaves_no_open_batch(by_batch, tmp_path, monkeypatch):
    fake, server = by_batch()
    requests = [request("m", f"prompt {i}", max_tokens=5) for i in range(3)]
    left_open(requests, server, tmp_path / "j.jsonl", monkeypatch)
    state = (tmp_path / "j.batches.json").read_text()
    answers = ask_once(requests, server, tmp_path / "j.jsonl")[1]
    assert open_keys(tmp_path / "j.jsonl") == set()
    (tmp_path / "j.batches.json").write_text(state)  # as the kill leaves it
    assert ask_once(requests, server, tmp_path / "j.jsonl")[1] == answers
    assert open_keys(tmp_path / "j.jsonl") == set()
    assert fake.stats()["batches"] == 1


def sized(count):
    return [request("m", f"prompt {i:03}".ljust(40), max_tokens=5) for i in range(count)]  # 10 tokens each


def test_requests_go_in_parts_that_fit_and_wait_for_open_ones(by_batch, tmp_path):
    fake, server = by_batch(batch_seconds=0.2, enqueued=35)
    server = dataclasses.replace(server, batch_tokens=30)
    outcome, texts = ask_once(sized(10), server, tmp_path / "j.jsonl")
    assert (outcome.answered, outcome.failures) == (10, {})
    assert texts[9].startswith("because of prompt 009")
    assert [len(part) for part in fake.stats()["submitted"]] == [3, 3, 3, 1]
    assert set(fake.stats()["seen"].values()) == {1}
    assert json.loads((tmp_path / "j.batches.json").read_text()) == {}


@pytest.mark.parametrize("flags", [[], ["--refuse_at_once"]])
@pytest.mark.parametrize("kept", [0, 90])
def test_a_batch_beyond_the_accounts_limit_goes_on_in_smaller_parts(llm_server, tmp_path, capsys, flags, kept):
    fake = llm_server(0.0, *flags, batch_seconds=0.1, enqueued=45)
    server = Server(fake.base_url, None, 5.0, 2, 4, batch=True, batch_poll=0.01, batch_tokens=kept)
    outcome, _ = ask_once(sized(10), server, tmp_path / "j.jsonl")
    assert (outcome.answered, outcome.failures) == (10, {})
    submitted = fake.stats()["submitted"]
    assert len(submitted) == len({tuple(part) for part in submitted})
    assert max(map(len, submitted[2:])) <= 4
    said = capsys.readouterr().err
    assert "Enqueued token limit reached" in said
    assert "its requests go on in parts of at most" in said
    assert "--batch_tokens" in said


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_kill_does_not_make_a_refused_batch_be_submitted_again(by_batch, tmp_path, monkeypatch, times):
    fake, server = by_batch(batch_seconds=0.1, enqueued=25)
    real, calls = Batches._submit_what_fits, 0

    def end(self):
        nonlocal calls
        calls += 1
        if calls > times:
            raise KilledError
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "_submit_what_fits", end)
        with pytest.raises(KilledError):
            ask_once(sized(10), server, tmp_path / "j.jsonl")
    assert ask_once(sized(10), server, tmp_path / "j.jsonl")[0].answered == 10
    submitted = fake.stats()["submitted"]
    assert len(submitted) == len({tuple(part) for part in submitted})
    assert set(fake.stats()["seen"].values()) == {1}


def test_one_request_beyond_the_accounts_limit_is_told(by_batch, tmp_path):
    fake, server = by_batch(enqueued=5)
    with pytest.raises(UsageError, match="Enqueued token limit reached.*It held one request, which --batch_tokens"):
        ask_once(sized(4), server, tmp_path / "j.jsonl")
    assert [len(part) for part in fake.stats()["submitted"]] == [4, 2, 1]
