"""MMLU runs, scored."""

import hashlib
import itertools
import json
import subprocess
import sys

import pytest
from conftest import ROOT, read_jsonl
from mmlu_helpers import CHOICES, fails, run, write_csv

from utils.config import UsageError
from utils.mmlu.scores import Graded, grade, score, table
from utils.rag.metrics import RESAMPLES
from utils.store.jsonlines import read_run


def graded(subject, right, wrong, unparsable=0):
    rows = [Graded(subject, True, True)] * right + [Graded(subject, True, False)] * wrong
    return rows + [Graded(subject, False, False)] * unparsable


def test_score_by_hand():
    rows = graded("anatomy", 3, 1) + graded("virology", 1, 2, 1) + graded("college_physics", 0, 1, 1)
    scores = score(rows, seed=1)
    stem, other = scores["categories"]["STEM"], scores["categories"]["Other"]
    assert (stem["em"], stem["correct"], stem["n"], stem["unparsable"]) == (3 / 6, 3, 6, 1)
    assert (other["em"], other["correct"], other["n"], other["unparsable"]) == (1 / 4, 1, 4, 1)
    assert scores["categories"]["Humanities"] == {"em": None, "correct": 0, "n": 0, "unparsable": 0, "interval": None}
    assert (scores["overall"]["em"], scores["overall"]["n"], scores["overall"]["unparsable"]) == (4 / 10, 10, 2)
    assert scores["macro"] == {"em": (3 / 4 + 1 / 4 + 0) / 3, "subjects": 3}
    assert list(scores["subjects"]) == ["anatomy", "college_physics", "virology"]
    assert scores["subjects"]["anatomy"] == {"category": "STEM", "em": 3 / 4, "correct": 3, "n": 4, "unparsable": 0}
    assert scores["bootstrap"] == {"seed": 1, "resamples": RESAMPLES}
    text = table(scores)
    assert [line.split()[0] for line in text.splitlines()[1:]] == [
        "STEM",
        "Humanities",
        "Social",
        "Other",
        "Overall",
        "Subjects",
    ]
    assert "4/10" in text
    assert "33.33  mean of 3 subjects" in text


def answered(number, gold, pred, subject="anatomy"):
    return {
        "id": f"test_{number}",
        "question": "Q?\nA. 1\nB. 2\nC. 3\nD. 4",
        "golden_answers": [gold],
        "metadata": {"subject": subject, "choices": ["1", "2", "3", "4"]},
        "output": {"retrieval_result": [{"id": "1", "contents": "x"}], "prompt": "p", "pred": pred},
    }


def save(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "intermediate_data.json").write_text(json.dumps(rows, indent=4, ensure_ascii=False), encoding="utf-8")
    return folder


def test_evaluation_main_path(tmp_path):
    rows = [
        answered(0, "B", "The answer is (B)."),
        answered(1, "A", "a"),
        answered(2, "A", "A dog"),  # prose: unparsable
        answered(3, "C", "D", "virology"),
        answered(4, "C", "**C**", "high_school_us_history"),
        answered(5, "D", "", "marketing"),
    ]
    folder = save(tmp_path / "mmlu_run", rows)
    code, out, err = run("mmlu_evaluation.py", "--run", folder, "--seed", 7)
    assert code == 0, err
    assert out == (folder / "mmlu_score.txt").read_text()
    assert "n = 6, seed 7" in out
    scores = json.loads((folder / "mmlu_score.json").read_text())
    assert {c: (s["correct"], s["n"], s["unparsable"]) for c, s in scores["categories"].items()} == {
        "STEM": (2, 3, 1),
        "Humanities": (1, 1, 0),
        "Social Sciences": (0, 0, 0),
        "Other": (0, 2, 1),
    }
    assert (scores["overall"]["em"], scores["overall"]["unparsable"]) == (0.5, 2)
    assert scores["macro"] == {"em": pytest.approx((2 / 3 + 0 + 1 + 0) / 4), "subjects": 4}
    low, high = scores["overall"]["interval"]
    assert 0 <= low < 0.5 < high <= 1
    assert scores["categories"]["Humanities"]["interval"] is None
    assert scores["bootstrap"]["seed"] == 7
    digest = hashlib.sha256((folder / "intermediate_data.json").read_bytes()).hexdigest()
    assert scores["intermediate_data_sha256"] == digest
    assert sorted(path.name for path in folder.iterdir()) == [
        "intermediate_data.json",
        "mmlu_score.json",
        "mmlu_score.txt",
    ]


def test_evaluation_reads_what_flashrag_saves(tmp_path):
    # FlashRAG's Dataset.save writes json.dump(rows, indent=4); the fields come from Item.to_dict.
    source = tmp_path / "source"
    write_csv(source / "test/virology_test.csv", [["Q?", *CHOICES, "D"]])
    code, _, err = run("mmlu_preprocess.py", "--source", source, "--data_dir", tmp_path)
    assert code == 0, err
    rows = [{**row, "output": {"pred": "D. two\nlines"}} for row in read_jsonl(tmp_path / "mmlu/test.jsonl")]
    path = save(tmp_path / "run", rows) / "intermediate_data.json"
    assert grade(read_run(path, "m"), path, "m") == [Graded("virology", True, True)]


def test_a_missing_run_says_what_to_run(tmp_path):
    err = fails("mmlu_evaluation.py", "--run", tmp_path / "mmlu_x")
    assert "mmlu_x/intermediate_data.json is missing" in err
    assert "python run_rag.py --config profiles/mmlu.yaml --run_name mmlu_x" in err


def without(row, *path):
    target = row
    for key in path[:-1]:
        target = target[key]
    del target[path[-1]]
    return row


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (without(answered(1, "A", "A"), "output", "pred"), "row 2 (id test_1): field 'output.pred'"),
        (without(answered(1, "A", "A"), "output"), "row 2 (id test_1): field 'output.pred'"),
        (answered(1, "A", None), "row 2 (id test_1): field 'output.pred'"),
        (without(answered(1, "A", "A"), "metadata"), "row 2 (id test_1): field 'metadata.subject'"),
        (answered(1, "A", "A", None), "row 2 (id test_1): field 'metadata.subject'"),
        (
            answered(1, "A", "A", "alchemy"),
            "row 2 (id test_1): field 'metadata.subject': unknown MMLU subject 'alchemy'",
        ),
        (answered(1, "Paris", "A"), "row 2 (id test_1): field 'golden_answers.0'"),
        (answered(1, 1, "A"), "row 2 (id test_1): field 'golden_answers.0'"),
        ("text", "row 2: field 'row'"),
    ],
)
def test_bad_rows_are_named(tmp_path, bad, message):
    with pytest.raises(UsageError) as error:
        grade([answered(0, "A", "A"), bad], tmp_path / "intermediate_data.json", "python run_rag.py")
    assert message in str(error.value)


def test_a_bad_run_is_not_scored(tmp_path):
    folder = save(tmp_path / "r", [without(answered(3, "A", "A"), "output", "pred")])
    err = fails("mmlu_evaluation.py", "--run", folder)
    assert "field 'output.pred'" in err
    assert "python run_rag.py --config profiles/mmlu.yaml --run_name r" in err
    assert not (folder / "mmlu_score.json").exists()


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '[{"id": "test_0", "que'])
def test_files_that_are_no_run(tmp_path, text):
    path = tmp_path / "intermediate_data.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"intermediate_data\.json .*; run: MADE BY"):
        read_run(path, "MADE BY")


def test_help_is_quick_and_importing_does_nothing():
    heavy = "{'numpy', 'scipy', 'pandas', 'pyarrow', 'torch', 'flashrag'}"
    for script, how in itertools.product(["mmlu_preprocess", "mmlu_evaluation"], ["import", "help"]):
        call = f"import sys\nimport {script}\n"
        if how == "help":
            call += f"sys.argv = ['{script}.py', '--help']\ntry:\n    {script}.main()\nexcept SystemExit:\n    pass\n"
        call += f"sys.exit(str({heavy} & set(sys.modules) or '') or 0)"
        done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert ("usage:" in done.stdout) == (how == "help")
