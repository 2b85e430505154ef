import json

import pytest
from conftest import questions, read_jsonl, write_jsonl


@pytest.fixture
def take(run_script, tmp_path):
    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(5))

    def run(*files):
        return run_script("import_rationales.py", "--dataset", "own", "--source", *files, cwd=tmp_path)

    return run


def published(row, **changes):
    return {
        "question": row["question"],
        "golden_answers": row["golden_answers"],
        "reason": f"since {row['id']}",
        **changes,
    }


def kept(tmp_path):
    return {row["id"]: row["reason"] for row in read_jsonl(tmp_path / "dataset/own/reason/train_with_reason.jsonl")}


def test_rows_are_matched_by_text_and_everything_else_is_counted(take, tmp_path):
    rows = [published(row) for row in questions(5)]
    rows[0]["question"] = f"  {rows[0]['question'].upper()} "
    rows[1]["reason"] = " "
    rows[2]["golden_answers"] = ["another"]
    rows += [
        published(questions(4)[3], reason="a second one"),
        published({"question": "a stranger", "golden_answers": ["x"], "id": "s"}),
    ]
    write_jsonl(tmp_path / "p.jsonl", rows[::-1])
    result = take("p.jsonl")
    assert result.returncode == 0, result.stderr
    assert list(kept(tmp_path)) == ["q0", "q2", "q3", "q4"]
    assert kept(tmp_path)["q3"] == "a second one"
    manifest = json.loads((tmp_path / "dataset/own/reason/train_with_reason.jsonl.manifest.json").read_text())
    assert manifest["dropped"] == {
        "questions without a published rationale": 1, "published rows for no question of ours": 1,
        "published rows without a rationale": 1, "repeated published rows": 1,
    }  # fmt: skip
    assert manifest["facts"] == {"questions with other answers than published": 1}
    assert "is finished (4 rows)" in take("p.jsonl").stdout


def test_arrays_and_parquet_are_read(take, tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [published(row, id=i) for i, row in enumerate(questions(5))]
    (tmp_path / "a.json").write_text(json.dumps(rows[:2], indent=1))
    parquet.write_table(pyarrow.Table.from_pylist(rows[2:]), tmp_path / "b.parquet")
    assert take("a.json", "b.parquet").returncode == 0
    assert kept(tmp_path) == {f"q{i}": f"since q{i}" for i in range(5)}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"question": "q", "answer": "a", "rationale": "r"}],
            "p.jsonl:1: field 'golden_answers': Field required (found \"{'question': 'q', 'answer'",
        ),
        ([published({"question": "a stranger", "golden_answers": ["x"], "id": "s"})], "none of 5 questions"),
        ([published(questions(1)[0], golden_answers=[None])], "p.jsonl:1: field 'golden_answers.0'"),
    ],
)
def test_what_cannot_be_used_is_told(take, tmp_path, rows, message):
    write_jsonl(tmp_path / "p.jsonl", rows)
    result = take("p.jsonl")
    assert result.returncode == 2
    assert message in result.stderr


def test_a_missing_file_is_told(take):
    result = take("nowhere.parquet")
    assert (result.returncode, result.stderr) == (2, "error: nowhere.parquet is missing\n")


def test_thoughts_in_published_rationales_are_left_out(take, tmp_path):
    first, second = (published(row) for row in questions(2))
    write_jsonl(
        tmp_path / "p.jsonl", [first | {"reason": "<think>hm</think>because"}, second | {"reason": "<think>hm"}]
    )
    result = take("p.jsonl")
    assert result.returncode == 0, result.stderr
    assert "1 published rows without a rationale" in result.stdout
    assert [row["reason"] for row in read_jsonl(tmp_path / "dataset/own/reason/train_with_reason.jsonl")] == ["because"]
