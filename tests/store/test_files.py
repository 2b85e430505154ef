"""Files written whole or not at all, by one run at a time, whatever became of the runs before it."""

import ctypes
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, questions, write_jsonl

from utils.config import UsageError
from utils.store.files import locked, require_space, write_file
from utils.store.jsonlines import write_lines


def test_a_file_is_written_with_its_folders(tmp_path):
    write_file(tmp_path / "a/b/c", "x")
    assert (tmp_path / "a/b/c").read_bytes() == b"x"


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.jsonl"
    write_lines(path, [{"a": 1}])

    def rows():
        yield {"a": 2}
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_lines(path, rows())
    assert path.read_text() == '{"a":1}\n'
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A real ENOSPC: the file size limit of a process of its own."""
    path = tmp_path / "out.jsonl"
    write_lines(path, [{"a": 1}])
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from utils.store.jsonlines import write_lines\n"
        f"write_lines({str(path)!r}, ({{'text': 'x' * 100}} for _ in range(1000)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, "File too large" in result.stderr) == (1, True)
    assert path.read_text() == '{"a":1}\n'
    assert os.listdir(tmp_path) == ["out.jsonl"]


def without_roots_override():
    """As any other user: Linux lets root write wherever it likes (CAP_DAC_OVERRIDE)."""
    ctypes.CDLL(None).prctl(24, 1)


def test_a_read_only_folder_leaves_the_old_output_and_a_plain_message(llm_server, tmp_path):
    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(2))
    folder = tmp_path / "dataset/own/reason"
    folder.mkdir()
    (folder / "train_with_reason.jsonl").write_text("old")
    folder.chmod(0o555)
    result = subprocess.run(
        [sys.executable, ROOT / "llm_generation.py", "--dataset", "own", "--base_url", llm_server().base_url],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, preexec_fn=without_roots_override,
        capture_output=True, text=True,
    )  # fmt: skip
    folder.chmod(0o755)
    assert result.returncode == 2, result.stderr
    assert "Permission denied" in result.stderr
    assert "Traceback" not in result.stderr
    assert (folder / "train_with_reason.jsonl").read_text() == "old"
    assert os.listdir(folder) == ["train_with_reason.jsonl"]


def test_what_a_killed_process_left_aside_is_removed(tmp_path):
    gone, other = tmp_path / ".out.999999999.part", tmp_path / ".other.999999999.part"
    here = tmp_path / f".out.{os.getppid()}.part"
    for path in (gone, other, here):
        path.write_text("half")
    write_lines(tmp_path / "out", [{"a": 1}])
    assert sorted(os.listdir(tmp_path)) == sorted([here.name, other.name, "out"])


def test_too_small_a_disk_is_told_before_the_work(tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    require_space(tmp_path / "not/yet", 1000, "a file")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 999))
    with pytest.raises(UsageError, match=r"a file will take about 2\.00 GB, but .* has 0\.00 GB left"):
        require_space(tmp_path / "not/yet", 2e9, "a file")


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
