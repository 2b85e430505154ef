"""The metric that anyone can load: FlashRAG's numbers, through Hugging Face's evaluate."""

import doctest
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.rag.metrics import text_metrics

PATH = ROOT / "utils/rag/open_qa/open_qa.py"
# Words that FlashRAG's normalisation treats apart, and any text that can stand in a JSON file.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.lists(
    st.sampled_from(["the", "The", "a", "yes", "no", "noanswer", "Rome", "rome,", "U.S.", "1969", "é", "İ", "\0", " "]),
    max_size=5,
).map(" ".join)


@pytest.fixture(scope="module")
def metric():
    import evaluate

    return evaluate.load(str(PATH), keep_in_memory=True)


@settings(deadline=None)
@given(data=st.lists(st.tuples(TEXTS, st.lists(TEXTS, max_size=4)), min_size=1, max_size=6))
def test_the_values_are_those_of_flashrags_metric_classes(metric, data):
    from flashrag.evaluator.metrics import ExactMatch, F1_Score, Sub_ExactMatch, normalize_answer

    config = {"dataset_name": "own", "metric_setting": {}}
    em, f1, contains = ExactMatch(config), F1_Score(config), Sub_ExactMatch(config)
    expected = {"em": [], "f1": [], "contains": []}
    for prediction, answers in data:
        usable = [answer for answer in answers if normalize_answer(answer)]
        words = prediction.lower().split()  # our one departure: see docs/deviations.md
        same = bool(words) and any(a.lower().split() == words for a in answers if a not in usable)
        expected["em"].append(same or em.calculate_em(prediction, usable))
        expected["f1"].append(1.0 if same else f1.token_level_scores(prediction, usable)["f1"])
        expected["contains"].append(same or contains.calculate_sub_em(prediction, usable))
    predictions, references = map(list, zip(*data, strict=True))
    assert metric.compute(predictions=predictions, references=references, per_question=True) == expected
    means = metric.compute(predictions=predictions, references=references)
    assert means == {name: pytest.approx(sum(values) / len(data)) for name, values in expected.items()}


def test_its_usage_is_as_it_says(metric, monkeypatch):
    monkeypatch.chdir(ROOT)
    module = sys.modules[type(metric).__module__]
    assert doctest.testmod(module) == (0, 5)
    assert "per_question" in metric.compute.__doc__


@pytest.mark.parametrize("answer", ["A", "The The", "%", "+", "an", "..."])
def test_an_answer_that_normalises_to_nothing_is_right_where_the_text_is_the_same(answer):
    predictions = [answer, f" {answer.lower()}\n", f"{answer} x", "", "other", "the"]
    found = text_metrics(predictions, [[answer]] * len(predictions))
    assert found == {name: [1, 1, 0, 0, 0, 0] for name in ("em", "f1", "contains")}
    assert text_metrics([answer, "Rome"], [[answer, "Rome"]] * 2)["em"] == [1, 1]


def test_answers_that_normalise_to_nothing_are_contained_in_nothing():
    assert text_metrics(["anything", ""], [["The"], ["a", "!"]]) == {"em": [0, 0], "f1": [0, 0], "contains": [0, 0]}


ELSEWHERE = """
import sys, evaluate
metric = evaluate.load(sys.argv[1])
print(metric.compute(predictions=["in Rome"], references=[["Rome"]])["contains"])
"""


def test_anyone_can_load_it_by_path_and_several_at_once(tmp_path):
    """From another folder, without this repository on the path, with an empty cache and no network."""
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", ELSEWHERE, str(PATH)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    assert [run.communicate()[0].strip() for run in runs] == [b"1.0", b"1.0"]
