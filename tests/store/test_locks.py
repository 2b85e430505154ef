"""One run at a time on a file or folder, whatever became of the runs before it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from utils.config import UsageError
from utils.store.files import locked
from utils.store.journal import Journal

HOLD = """
import os, sys, time
from pathlib import Path
from utils.store.files import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:  # a worker of the run, which may outlive it
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has the lock of ``work``, and the number of its child."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "work"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    os.kill(child, signal.SIGKILL)


def test_another_run_is_refused_at_once_until_it_is_killed(holder, tmp_path):
    started = time.monotonic()
    with pytest.raises(UsageError, match="work is being written by another run"), locked(tmp_path / "work"):
        pass
    assert time.monotonic() - started < 1
    holder.kill()
    holder.wait()
    with locked(tmp_path / "work"):
        assert os.listdir(tmp_path) == ["work.lock"]
    assert os.listdir(tmp_path) == []


RACE = """
import os, sys
from pathlib import Path
from utils.config import UsageError
from utils.store.files import locked
got = 0
while got < 200:
    try:
        with locked(Path(sys.argv[1])):
            os.close(os.open(sys.argv[2], os.O_CREAT | os.O_EXCL))  # fails if another run is inside
            os.unlink(sys.argv[2])
            got += 1
    except UsageError:
        pass
"""


def test_runs_that_remove_the_lock_file_never_share_the_lock(tmp_path):
    words = [sys.executable, "-c", RACE, tmp_path / "work", tmp_path / "inside"]
    runs = [subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for run in runs:
        _, said = run.communicate(timeout=60)
        assert run.returncode == 0, said
    assert os.listdir(tmp_path) == []


def test_a_journal_is_one_runs_and_leaves_no_lock_behind(tmp_path):
    path = tmp_path / "new/j.jsonl"
    with Journal(path) as journal:
        journal.append("a", {"x": 1})
        with pytest.raises(UsageError, match=r"j\.jsonl is being written by another run"):
            Journal(path)
    assert os.listdir(path.parent) == ["j.jsonl"]
    path.write_text("no journal\n")
    with pytest.raises(UsageError, match="no journal"):
        Journal(path)
    assert os.listdir(path.parent) == ["j.jsonl"]
    path.unlink()
    with Journal(path) as journal:
        journal.delete()
    assert os.listdir(path.parent) == []
