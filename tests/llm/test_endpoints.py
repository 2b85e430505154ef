"""Several servers behind one run: real HTTP processes, of which some are killed."""

import threading
import time

from conftest import questions, read_jsonl


def reasons(tmp_path):
    return {row["id"] for row in read_jsonl(tmp_path / "dataset/own/reason/train_with_reason.jsonl")}


def both(*servers):
    """A second flag after the first, which `ask` writes itself."""
    return [word for server in servers for word in ("--base_url", server.base_url)]


def test_two_servers_share_the_work_by_load_and_each_row_is_asked_once(ask, llm_server, tmp_path):
    quick, slow = llm_server(0.02), llm_server(0.2)
    result = ask(quick.base_url, *both(slow), "--concurrency", "16", rows=questions(200))
    assert result.returncode == 0, result.stderr
    assert len(reasons(tmp_path)) == 200
    by_quick, by_slow = (sum(server.stats()["seen"].values()) for server in (quick, slow))
    assert by_quick + by_slow == 200
    assert by_quick > 2 * by_slow > 0
    assert quick.stats()["most_open"] + slow.stats()["most_open"] <= 17


def test_a_server_that_is_killed_is_left_out_and_no_row_is_lost(ask, llm_server, tmp_path):
    stays, dies = llm_server(0.05), llm_server(0.05)

    def kill():
        while sum(dies.stats()["seen"].values()) < 20:
            time.sleep(0.02)
        dies.process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    flags = ["--concurrency", "16", "--max_retries", "0"]
    result = ask(stays.base_url, *both(dies), *flags, rows=questions(300))
    killer.join()
    assert result.returncode == 0, result.stderr
    assert len(reasons(tmp_path)) == 300
    assert f"{dies.base_url} is left out, its requests go to the others" in result.stderr
    assert "asked 300 of 300" in result.stdout
    # Nothing that was answered is asked again.
    assert sum(stays.stats()["seen"].values()) < 300


def test_all_servers_lost_is_told_and_the_next_call_goes_on(ask, llm_server, tmp_path):
    first, second = llm_server(), llm_server()
    for server in (first, second):
        server.process.kill()
        server.process.wait()
    flags = ["--concurrency", "4", "--max_retries", "0"]
    result = ask(first.base_url, *both(second), *flags, rows=questions(30))
    assert result.returncode == 1
    assert "no server is left that answers" in result.stdout + result.stderr
    third = llm_server()
    assert ask(third.base_url).returncode == 0
    assert len(reasons(tmp_path)) == 30


def test_a_request_that_every_server_fails_costs_none_of_them_its_place(ask, llm_server, tmp_path):
    first, second = llm_server(0.01), llm_server(0.01)
    rows = questions(60)
    rows[7]["question"] = "[status 500] who"
    flags = ["--concurrency", "4", "--max_retries", "0", "--max_failures", "0.05"]
    result = ask(first.base_url, *both(second), *flags, rows=rows)
    assert result.returncode == 0, result.stderr
    assert "left out" not in result.stderr
    assert len(reasons(tmp_path)) == 59
    assert "500" in (tmp_path / "dataset/own/reason/failures.jsonl").read_text()


def test_a_batch_goes_to_one_server(ask, llm_server):
    first, second = llm_server(), llm_server()
    result = ask(first.base_url, *both(second), "--batch", rows=questions(3))
    assert result.returncode == 2
    assert "give --base_url once" in result.stderr
