import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, questions, read_jsonl, write_jsonl


def reasons(tmp_path):
    return {row["id"]: row["reason"] for row in read_jsonl(tmp_path / "dataset/own/reason/train_with_reason.jsonl")}


def test_rationales_come_in_the_order_of_the_questions(ask, llm_server, tmp_path):
    server = llm_server(0.02)
    result = ask(server.base_url, "--concurrency", "8", rows=questions(20))
    assert result.returncode == 0, result.stderr
    rows = read_jsonl(tmp_path / "dataset/own/reason/train_with_reason.jsonl")
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(20)]
    assert all(set(row) == {"id", "question", "golden_answers", "reason"} for row in rows)
    stats = server.stats()
    assert 2 <= stats["most_open"] <= 8
    assert set(stats["seen"].values()) == {1}


def test_the_request_is_the_papers(llm_server, tmp_path):
    from types import SimpleNamespace

    from utils.config import load_config
    from utils.llm.rationales import rationale_request
    from utils.store.rows import Question

    config = load_config()
    args = SimpleNamespace(**config["rationale"], **config["common"], prompts=config["prompts"])
    row = Question(id="1", question="who wrote it", golden_answers=["A", "B"])
    payload = rationale_request(row, args).payload
    assert [message["role"] for message in payload["messages"]] == ["system", "user"]
    assert payload["messages"][1]["content"] == "Question: who wrote it\nGround-truth answer: A; B\nRationale:"
    wanted = {"model": "gpt-4o-mini", "temperature": 0.2, "top_p": 1.0, "n": 1, "seed": 42, "max_tokens": 1000}
    assert wanted.items() <= payload.items()
    assert (args.timeout, args.max_retries, args.train_questions) == (30.0, 3, 20000)


def test_a_second_call_asks_only_what_is_missing_or_changed(ask, llm_server, tmp_path):
    server = llm_server()
    assert ask(server.base_url, rows=questions(10)).returncode == 0
    rows = questions(12)
    rows[3]["golden_answers"] = ["another answer"]
    rows.reverse()
    result = ask(server.base_url, rows=rows)
    assert result.returncode == 0
    assert "asked 3 of 12" in result.stdout
    assert list(reasons(tmp_path)) == [row["id"] for row in rows]
    again = ask(server.base_url)
    assert "is finished (12 rows)" in again.stdout
    assert sum(server.stats()["seen"].values()) == 13


def test_failures_cost_no_other_answer_and_are_listed(ask, llm_server, tmp_path):
    server = llm_server()
    rows = questions(8)
    for i, fault in enumerate(["[status 400]", "[empty]", "[cut]", "[filter]"]):
        rows[i]["golden_answers"] = [fault]
    result = ask(server.base_url, "--max_retries", "1", rows=rows)
    assert result.returncode == 1
    assert "4 of 8 questions have no rationale" in result.stderr
    assert not (tmp_path / "dataset/own/reason/train_with_reason.jsonl").exists()
    failures = {r["id"]: r["failure"] for r in read_jsonl(tmp_path / "dataset/own/reason/failures.jsonl")}
    assert list(failures) == ["q0", "q1", "q2", "q3"]
    for failure, reason in zip(failures.values(), ["400", "empty answer", "cut off", "content filter"], strict=True):
        assert reason in failure
    before = sum(server.stats()["seen"].values())
    tolerated = ask(server.base_url, "--max_retries", "0", "--max_failures", "0.5")
    assert tolerated.returncode == 0
    assert list(reasons(tmp_path)) == ["q4", "q5", "q6", "q7"]
    assert "4 questions without a rationale" in tolerated.stdout
    assert sum(server.stats()["seen"].values()) == before + 4


def test_passing_faults_are_retried(ask, llm_server, tmp_path):
    rows = questions(4)
    for i, status in enumerate([500, 429, 503]):
        rows[i]["golden_answers"] = [f"[status {status}] [times 1]"]
    result = ask(llm_server().base_url, rows=rows)
    assert result.returncode == 0, result.stderr
    assert len(reasons(tmp_path)) == 4


def test_a_refused_key_stops_at_once_with_a_clear_error(ask, llm_server):
    server = llm_server()
    rows = questions(200)
    for row in rows:
        row["golden_answers"] = ["[status 401]"]
    result = ask(server.base_url, "--api_key=canary-key-1234", "--concurrency", "4", rows=rows)
    assert result.returncode == 2
    assert "401" in result.stderr
    assert "canary-key-1234" not in result.stderr + result.stdout
    assert sum(server.stats()["seen"].values()) < 20


def test_no_key_and_no_server_is_told(run_script, tmp_path):
    write_jsonl(tmp_path / "dataset/nq/train.jsonl", questions(1))
    result = run_script("llm_generation.py", cwd=tmp_path)
    assert (result.returncode, "OPENAI_API_KEY" in result.stderr) == (2, True)


def test_the_key_is_sent_and_kept_nowhere(ask, llm_server, tmp_path):
    server = llm_server()
    for how in ({"flags": ["--api_key", "canary-flag-77"]}, {"env": {"OPENAI_API_KEY": "canary-env-77"}}):
        result = ask(server.base_url, *how.get("flags", []), "--overwrite", rows=questions(2), **how.get("env", {}))
        assert result.returncode == 0, result.stderr
        assert "canary" not in result.stdout + result.stderr
        for path in tmp_path.rglob("*.jsonl*"):
            assert b"canary" not in path.read_bytes(), path
        (tmp_path / "dataset/own/reason/requests.journal.jsonl").unlink()
    assert server.stats()["keys"] == ["Bearer canary-env-77", "Bearer canary-flag-77"]


def test_sigkill_costs_only_what_was_in_flight(llm_server, run_script, start_script, tmp_path):
    server = llm_server(0.05)
    rows = questions(60)
    write_jsonl(tmp_path / "dataset/own/train.jsonl", rows)
    command = ["llm_generation.py", "--dataset", "own", "--base_url", server.base_url]
    command += ["--concurrency", "4"]
    journal = tmp_path / "dataset/own/reason/requests.journal.jsonl"
    kills = 0
    while kills < 3:
        process = start_script(*command, cwd=tmp_path)
        lines = len(journal.read_bytes().splitlines()) if journal.exists() else 0
        while process.poll() is None:
            if journal.exists() and len(journal.read_bytes().splitlines()) >= lines + 10:
                process.kill()
                process.wait()
                kills += 1
                break
            time.sleep(0.01)
    assert run_script(*command, cwd=tmp_path).returncode == 0
    assert list(reasons(tmp_path)) == [row["id"] for row in rows]
    assert sum(server.stats()["seen"].values()) <= 60 + 3 * 4
    manifest = tmp_path / "dataset/own/reason/train_with_reason.jsonl.manifest.json"
    assert json.loads(manifest.read_text())["rows"] == 60


def test_ctrl_c_ends_it_at_once(llm_server, tmp_path):
    server = llm_server(20.0)
    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(4))
    command = [sys.executable, ROOT / "llm_generation.py", "--dataset", "own", "--base_url", server.base_url]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    while len(server.stats()["seen"]) < 4:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=5)
    assert process.returncode == 130
    assert "run the same command again to go on" in said
    assert "Traceback" not in said


def test_a_server_that_is_killed_costs_no_answer_and_the_next_call_goes_on(ask, llm_server, tmp_path):
    dies = llm_server(0.05)

    def kill():
        while sum(dies.stats()["seen"].values()) < 20:
            time.sleep(0.02)
        dies.process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    result = ask(dies.base_url, "--concurrency", "16", "--max_retries", "0", rows=questions(300))
    killer.join()
    assert result.returncode == 1
    assert "questions were not asked: the last 20 requests all failed" in result.stderr
    kept = len((tmp_path / "dataset/own/reason/requests.journal.jsonl").read_bytes().splitlines()) - 1
    assert kept > 0
    other = llm_server()
    assert ask(other.base_url).returncode == 0
    assert len(reasons(tmp_path)) == 300
    assert sum(other.stats()["seen"].values()) == 300 - kept


def test_two_runs_of_one_output_are_refused(ask, llm_server, start_script, tmp_path):
    server = llm_server(0.5)
    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(8))
    first = start_script("llm_generation.py", "--dataset", "own", "--base_url", server.base_url, cwd=tmp_path)
    while not server.stats()["seen"]:
        time.sleep(0.02)
    second = ask(server.base_url)
    assert second.returncode == 2
    assert "is being written by another run" in second.stderr
    assert first.wait(30) == 0
    assert "is finished" in ask(server.base_url).stdout


def test_an_input_that_changes_meanwhile_counts_for_the_next_call(ask, llm_server, tmp_path, monkeypatch):
    import utils.llm.client

    real = utils.llm.client.Window.ask

    def meddled(self, *args):
        real(self, *args)
        write_jsonl(tmp_path / "dataset/own/train.jsonl", [row | {"golden_answers": ["x"]} for row in questions(4)])

    monkeypatch.setattr(utils.llm.client.Window, "ask", meddled)
    result = ask(llm_server().base_url, rows=questions(4))
    assert result.returncode == 0, result.stderr
    output = tmp_path / "dataset/own/reason/train_with_reason.jsonl"
    assert [row["golden_answers"] for row in read_jsonl(output)] == [row["golden_answers"] for row in questions(4)]
    monkeypatch.undo()
    result = ask(llm_server().base_url)
    assert (result.returncode, "made with other" in result.stderr) == (0, True)
    assert [row["golden_answers"] for row in read_jsonl(output)] == [["x"]] * 4


def test_a_busy_server_is_asked_less_at_once_and_loses_nothing(ask, llm_server, tmp_path):
    server = llm_server(0.05, busy=4)
    result = ask(server.base_url, "--concurrency", "32", rows=questions(120))
    assert result.returncode == 0, result.stderr
    assert len(reasons(tmp_path)) == 120
    # Thirty-two at once would be refused about 28 times a round.
    assert 0 < server.stats()["busy"] < 120


@pytest.mark.slow
def test_the_window_grows_to_the_limit_and_no_further(ask, llm_server):
    server = llm_server(0.1)
    assert ask(server.base_url, "--concurrency", "24", rows=questions(150)).returncode == 0
    assert 20 <= server.stats()["most_open"] <= 24


def profile(tmp_path, **prices):
    path = tmp_path / "priced.yaml"
    path.write_text(json.dumps({"prices": prices}))
    return ["--config", path]


def test_a_run_stops_at_its_cost_and_goes_on_with_more(ask, llm_server, tmp_path):
    server = llm_server(0.01)
    own = [*profile(tmp_path, mine=[0, 1_000_000]), "--model", "mine", "--concurrency", "2"]  # five dollars an answer
    stopped = ask(server.base_url, *own, "--max_cost", "50", rows=questions(40))
    assert stopped.returncode == 1
    assert "of --max_cost 50" in stopped.stderr
    asked = sum(server.stats()["seen"].values())
    assert 10 <= asked <= 11
    assert ask(server.base_url, *own, "--max_cost", "50").returncode == 1
    assert sum(server.stats()["seen"].values()) == asked
    done = ask(server.base_url, *own, "--max_cost", "500")
    assert done.returncode == 0, done.stderr
    assert "$200.0000" in done.stdout
    manifest = json.loads((tmp_path / "dataset/own/reason/train_with_reason.jsonl.manifest.json").read_text())
    assert manifest["facts"]["cost"] == 200
    assert manifest["facts"]["completion_tokens"] == 200


def test_unusable_answers_are_paid_for_in_later_calls_too(ask, llm_server, tmp_path):
    server = llm_server()
    own = [*profile(tmp_path, mine=[0, 1_000_000]), "--model", "mine", "--max_retries", "1"]  # five dollars an answer
    rows = questions(4)
    rows[0]["golden_answers"], rows[1]["golden_answers"] = ["[cut]"], ["[empty]"]
    assert "$25.0000" in ask(server.base_url, *own, rows=rows).stdout
    again = ask(server.base_url, *own, "--max_cost", "25")
    assert "2 questions were not asked: the answers have cost $25.0000" in again.stderr
    assert "$40.0000" in ask(server.base_url, *own, "--max_cost", "90", "--max_failures", "0.5").stdout


def test_a_limit_that_cannot_be_held_stops_the_run(ask, llm_server, tmp_path):
    own = [*profile(tmp_path, mine=[1, 1]), "--model", "mine", "--concurrency", "2"]
    rows = [row | {"golden_answers": [f"[no usage] {i}"]} for i, row in enumerate(questions(40))]
    server = llm_server(0.01)
    stopped = ask(server.base_url, *own, "--max_cost", "50", rows=rows)
    assert stopped.returncode == 1
    assert "--max_cost cannot be held: the server does not count the tokens" in stopped.stderr
    assert sum(server.stats()["seen"].values()) < 5
    free = ask(server.base_url, *own)
    assert (free.returncode, "$0.0000 and 40 answers of unknown cost" in free.stdout) == (0, True)


def test_a_limit_without_a_price_is_refused_and_an_unknown_price_said(ask, llm_server, tmp_path):
    server = llm_server()
    refused = ask(server.base_url, "--model", "unheard-of", "--max_cost", "1", rows=questions(2))
    assert (refused.returncode, "prices section" in refused.stderr) == (2, True)
    assert "cost unknown" in ask(server.base_url, "--model", "unheard-of").stdout
    wrong = ask(server.base_url, *profile(tmp_path, mine="cheap"), "--model", "mine", "--overwrite")
    assert "must be [prompt, completion] dollars" in wrong.stderr


def test_a_dry_run_asks_nothing_and_tells_what_is_left(ask, llm_server, tmp_path):
    server = llm_server(0.05)
    own = [*profile(tmp_path, mine=[1, 2]), "--model", "mine"]
    blank = ask(server.base_url, *own, "--dry_run", rows=questions(10))
    assert blank.returncode == 0, blank.stderr
    assert "10 rows: 0 answered already, 10 to ask" in blank.stdout
    assert "10,000 out (at most, if a token has four characters)" in blank.stdout
    assert "time: not known before the first answers" in blank.stdout
    assert server.stats()["seen"] == {}
    assert not (tmp_path / "dataset/own/reason").exists()
    assert ask(server.base_url, *own).returncode == 0
    more = ask(server.base_url, *own, "--dry_run", rows=questions(1010))
    assert "1010 rows: 10 answered already, 1000 to ask" in more.stdout
    assert "5,000 out (about, by 10 answers)" in more.stdout
    assert re.search(r"time: \d+\.\d minutes, 64 at once", more.stdout)
    assert sum(server.stats()["seen"].values()) == 10


def marked(*marks):
    return [row | {"golden_answers": [mark]} for row, mark in zip(questions(len(marks)), marks, strict=True)]


def test_thoughts_reach_no_rationale(ask, llm_server, tmp_path):
    server = llm_server()
    assert ask(server.base_url, rows=marked("[thinks]", "[parts]", "plain")).returncode == 0
    found = reasons(tmp_path)
    assert (found["q0"], found["q1"]) == ("thought out", "in parts")
    assert "thinking" not in json.dumps(found)


@pytest.mark.parametrize("flags", [[], ["--batch", "--batch_poll", "0.1"]], ids=["live", "batch"])
def test_an_answer_cut_off_in_thoughts_names_the_setting_and_is_asked_once(ask, llm_server, tmp_path, flags):
    server = llm_server()
    rows = marked("[only thoughts]", "[open thoughts]", "[stopped thoughts]", "plain")
    assert ask(server.base_url, *flags, rows=rows).returncode == 1
    failures = {r["id"]: r["failure"] for r in read_jsonl(tmp_path / "dataset/own/reason/failures.jsonl")}
    assert list(failures) == ["q0", "q1", "q2"]
    for said in failures.values():
        assert "cut off at max_tokens while reasoning" in said
        assert "--max_tokens is too small" in said
    assert set(server.stats()["seen"].values()) == {1}


@pytest.mark.parametrize("flags", [[], ["--batch", "--batch_poll", "0.1"]], ids=["live", "batch"])
def test_fields_that_a_server_refuses_are_left_out_by_one_setting_that_its_error_names(
    ask, llm_server, tmp_path, flags
):
    server = llm_server(refuses="max_tokens n seed")
    assert ask(server.base_url, *flags, rows=questions(3)).returncode == 1
    for row in read_jsonl(tmp_path / "dataset/own/reason/failures.jsonl"):
        assert "'max_tokens'" in row["failure"]
        assert """--request '{"max_tokens": null}'""" in row["failure"]
    assert all("n" not in body and body["seed"] == 42 for body in server.stats()["bodies"])
    own = {"max_tokens": None, "max_completion_tokens": 77, "seed": None, "service_tier": {"a": [1]}}
    changed = ask(server.base_url, *flags, "--request", json.dumps(own))
    assert changed.returncode == 0, changed.stderr
    for body in server.stats()["bodies"][-3:]:
        assert body.keys() == {
            "model", "messages", "temperature", "top_p", "max_completion_tokens", "service_tier"
        }  # fmt: skip
        assert (body["max_completion_tokens"], body["service_tier"]) == (77, {"a": [1]})
    manifest = json.loads((tmp_path / "dataset/own/reason/train_with_reason.jsonl.manifest.json").read_text())
    assert manifest["settings"]["request"] == own
    told = ask(server.base_url, "--request", '{"max_completion_tokens": 99, "max_tokens": null}', "--dry_run")
    assert "made with other request" in told.stderr
    assert "3 rows: 0 answered already, 3 to ask" in told.stdout
    assert " 297 out (at most" in told.stdout


def test_a_blank_system_prompt_sends_no_system_message(ask, llm_server, tmp_path):
    server = llm_server()
    for text in ("' '", "null"):
        (tmp_path / "p.yaml").write_text(f"prompts: {{rationale_system: {text}}}\n")
        assert ask(server.base_url, "--config", "p.yaml", "--overwrite", rows=questions(2)).returncode == 0
    bodies = server.stats()["bodies"]
    assert [[message["role"] for message in body["messages"]] for body in bodies] == [["user"]] * 2
