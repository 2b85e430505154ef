import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config import UsageError
from utils.store.files import atomic
from utils.store.journal import Journal
from utils.store.jsonlines import LineIndex, read_jsonl, read_rows, write_lines
from utils.store.manifest import WHOLE_FILE_LIMIT, Phase, command_line, digest, fingerprint
from utils.store.rows import Question

GOOD = {"id": "1", "question": "q", "golden_answers": ["a"]}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), records=st.lists(st.text(max_size=20), max_size=6))
def test_a_journal_cut_at_any_byte_loses_at_most_one_record(tmp_path_factory, data, records):
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    with Journal(path, "settings") as journal:
        for i, text in enumerate(records):
            journal.append(f"k{i}", {"text": text})
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = max(0, whole[:cut].count(b"\n") - 1)
    with Journal(path, "settings") as journal:
        assert list(journal) == [f"k{i}" for i in range(kept)]
        for i, text in enumerate(records[kept:], kept):
            journal.append(f"k{i}", {"text": text})
    assert path.read_bytes() == whole


def test_a_journal_of_other_settings_is_begun_anew_and_that_is_said(tmp_path, capsys):
    with Journal(tmp_path / "j", {"topk": 5}) as journal:
        journal.append("a", {"x": 1})
    with Journal(tmp_path / "j", {"topk": 6}) as journal:
        assert dict(journal) == {}
    assert "begun anew" in capsys.readouterr().err


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


def test_bom_crlf_and_blank_lines_are_read(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + json.dumps(GOOD).encode()
        + b"\r\n\r\n"
        + b'{"id": 2, "question": "r", '
        + b'"golden_answers": 7}'
    )
    rows = read_rows(path, Question)
    assert [(row.id, row.golden_answers) for row in rows] == [("1", ["a"]), ("2", ["7"])]
    index = LineIndex(path)
    assert index["1"] == (f"{path}:1", GOOD)
    assert index["2"][0] == f"{path}:3"


BAD_LINES = {
    "cut line": (b'{"id": "1", "question"', "in.jsonl:1: not valid JSON"),
    "array": (b"[1, 2]\n", "in.jsonl:1: a JSON object is expected, not list"),
    "invalid utf-8": (b'{"id": "\xff"}\n', "in.jsonl:1: not valid JSON"),
    "nan": (b'{"id": NaN}\n', "in.jsonl:1: not valid JSON"),
    "no answers": (
        json.dumps(GOOD | {"golden_answers": []}).encode(),
        "in.jsonl:1: field 'golden_answers': Value should have at least 1",
    ),
    "null answer": (json.dumps(GOOD | {"golden_answers": [None]}).encode(), "field 'golden_answers.0'"),
    "blank answer": (json.dumps(GOOD | {"golden_answers": [" "]}).encode(), "field 'golden_answers.0'"),
    "boolean id": (json.dumps(GOOD | {"id": True}).encode(), "field 'id'"),
    "empty file": (b"\n\n", "in.jsonl has no rows"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_with_its_place(tmp_path, case):
    content, message = BAD_LINES[case]
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_rows(tmp_path / "in.jsonl", Question)
    assert message in str(error.value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "in.jsonl"
    path.write_bytes(content)
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    if lines:  # random bytes are hardly ever a JSON object
        with pytest.raises(UsageError, match=re.escape(f"{path}:")):
            list(read_jsonl(path))
    else:
        assert list(read_jsonl(path)) == []


def test_limit_and_missing_file(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", [GOOD | {"id": i} for i in range(5)])
    assert len(read_rows(path, Question, limit=3)) == 3
    with pytest.raises(UsageError, match="nothing.jsonl is missing; run: the command"):
        read_rows(tmp_path / "nothing.jsonl", Question, "the command")


def test_a_phase_is_done_only_for_the_same_inputs_and_settings(tmp_path, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    source.write_text("1")
    output.write_text("result")
    assert not Phase(output, [source], {"k": 1}).is_done(overwrite=False)
    Phase(output, [source], {"k": 1}).finish(3, {"bad rows": 2, "none": 0})
    assert "3 rows" in capsys.readouterr().out
    assert Phase(output, [source], {"k": 1}).is_done(overwrite=False)
    assert not Phase(output, [source], {"k": 1}).is_done(overwrite=True)
    assert not Phase(output, [source], {"k": 2}).is_done(overwrite=False)
    assert "made with other k" in capsys.readouterr().err
    source.write_text("2")
    assert not Phase(output, [source], {"k": 1}).is_done(overwrite=False)
    manifest = json.loads((tmp_path / "out.manifest.json").read_text())
    assert manifest["dropped"] == {"bad rows": 2}
    assert {"command", "settings", "inputs", "output_sha256", "versions", "seconds"} <= manifest.keys()


def test_secrets_stay_out_of_manifests(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", "--api_key", "canary1", "--api_key=canary2", "--model", "m"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert command_line() == "python x.py --model m"
    output = tmp_path / "out"
    output.write_text("x")
    Phase(output, [], {"api_key": "canary3", "k": 1}).finish(1)
    assert "canary" not in (tmp_path / "out.manifest.json").read_text()


def test_fingerprints_follow_content(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_text("1")
    before = fingerprint(tmp_path / "d")
    (tmp_path / "d/a").write_text("2")
    assert fingerprint(tmp_path / "d") != before
    assert fingerprint("org/model") == "name:org/model"
    big = tmp_path / "big"
    with open(big, "wb") as handle:
        handle.truncate(WHOLE_FILE_LIMIT + 5)
    sparse = fingerprint(big)
    with open(big, "r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"x")
    assert fingerprint(big) != sparse


def test_digest_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"b": [2, 1], "a": 1})


def test_atomic_makes_folders(tmp_path):
    with atomic(tmp_path / "a/b/c") as handle:
        handle.write(b"x")
    assert (tmp_path / "a/b/c").read_bytes() == b"x"
