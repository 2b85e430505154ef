"""Lines of other people's files: read as they are, or named by place and field."""

import bz2
import gzip
import json
import lzma
import re
from collections import Counter

import pytest
from conftest import questions, write_jsonl
from conftest import read_jsonl as written
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config import UsageError
from utils.store.jsonlines import LineIndex, read_jsonl, read_rows
from utils.store.rows import Passage, Question

GOOD = {"id": "1", "question": "q", "golden_answers": ["a"]}


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


BAD = [b'{"id": "x", "question"\n', b"[1]\n", b'{"id": "y", "question": "q"}\n', b'{"id": "z\xff"}\n', b'{"id": NaN}\n']


def test_bad_rows_are_left_out_and_counted_if_the_user_says_so(run_script, llm_server, tmp_path):
    path = write_jsonl(tmp_path / "dataset/own/train.jsonl", [*questions(4), questions(2)[1]])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n" + b"".join(BAD))
    flags = ["llm_generation.py", "--dataset", "own", "--base_url", llm_server().base_url]
    refused = run_script(*flags, cwd=tmp_path)
    assert (refused.returncode, "train.jsonl:5: id 'q1' is on line 2 too" in refused.stderr) == (2, True)
    result = run_script(*flags, "--skip_bad_rows", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for place in (
        "train.jsonl:5: id",
        "train.jsonl:7: not valid JSON",
        "train.jsonl:8: a JSON object",
        "train.jsonl:9: field",
    ):
        assert place in result.stderr
    output = tmp_path / "dataset/own/reason/train_with_reason.jsonl"
    assert [row["id"] for row in written(output)] == ["q0", "q1", "q2", "q3"]
    assert json.loads(output.with_name(f"{output.name}.manifest.json").read_text())["dropped"] == {
        "rows with a repeated id": 1,
        "lines that are not valid JSON": 3,
        "lines that are no JSON object": 1,
        "rows with a wrong field": 1,
    }


def test_numbers_as_answers_are_taken_as_they_are_written(tmp_path):
    row = Question.model_validate({"id": 7, "question": "q", "golden_answers": [1969, 3.5, "x"]})
    assert (row.id, row.golden_answers) == ("7", ["1969", "3.5", "x"])


def test_a_line_of_many_megabytes_is_read(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", [{"id": "1", "contents": "x" * 30_000_000}, {"id": "2", "contents": "y"}])
    assert [len(row.contents) for row in read_rows(path, Passage)] == [30_000_000, 1]


def test_byte_order_marks_are_no_part_of_a_row(tmp_path):
    """Twice at the beginning, and at the head of each file that was joined by ``cat``."""
    bom, row = b"\xef\xbb\xbf", b'{"id": %d, "contents": "x"}\n'
    (tmp_path / "in.jsonl").write_bytes(bom + bom + row % 1 + bom + row % 2 + bom + b"\n" + row % 3)
    assert [row.id for row in read_rows(tmp_path / "in.jsonl", Passage)] == ["1", "2", "3"]
    assert LineIndex(tmp_path / "in.jsonl")["2"][1]["contents"] == "x"


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (gzip.compress(b'{"id": 1}\n', mtime=0), "gunzip it"),
        (bz2.compress(b'{"id": 1}\n'), "unpack it"),
        (lzma.compress(b'{"id": 1}\n'), "unpack it"),
        ('{"id": 1}\n'.encode("utf-16"), "save it as UTF-8"),
        (b"PAR1\x15\x04", "Parquet"),
        (b'[{"id": 1}, {"id": 2}]\n', "one JSON array; make it JSON lines"),
        (b'\n[\n{"id": 1},\n{"id": 2}\n]\n', "one JSON array; make it JSON lines"),
        (b'\xef\xbb\xbf[{"id": 1},\r\n{"id": 2}]\r\n', "one JSON array; make it JSON lines"),
        (b'{\n  "id": 1\n}\n{\n  "id": 2\n}\n', "several lines; make it JSON lines"),
    ],
)
def test_a_file_in_another_format_is_refused_even_where_bad_rows_are_left_out(tmp_path, content, remedy):
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    for dropped in (None, Counter()):
        with pytest.raises(UsageError, match=rf"in.jsonl:\d: .*{remedy}"):
            read_rows(path, Question, dropped=dropped)


@pytest.mark.parametrize(
    ("content", "remedy"),
    [("id".encode("utf-16"), "UTF-16: save it as UTF-8"), (b"\x1f\x8b\x08\x00", "gunzip"),
     (b'{"id": NaN}', "write null"), (b'{"id": "\xe4"}', "byte 8 of the line is not UTF-8")],
)  # fmt: skip
def test_the_commonest_faults_come_with_their_remedy(tmp_path, content, remedy):
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match=remedy):
        list(read_jsonl(tmp_path / "in.jsonl"))
