"""The report's page and plots without a browser: any text stays text, the same data give the same bytes."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from conftest import write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from utils.config import UsageError
from utils.rag.metrics import Interval
from utils.store.manifest import Phase
from utils.tables.report.page import _roles, _script, _totals, data_uri, phases, render
from utils.tables.report.plots import recall, recall_by_rank, score_distributions, weight_sweep
from utils.tables.results import Cell, FilledTable, TableRow

HOSTILE = st.text(min_size=1, max_size=30) | st.sampled_from(
    ["</script>", "<!--", "<script>", "]]>", "'\"><img src=x onerror=1>", "{{ 7 * 7 }}", "{% raw %}", "&lt;", "\x00"]
)


def fields(text):
    interval = Interval(0.5, 0.4, 0.6, 50)
    totals = {"rows": 1, "dropped": {text: 1}, "seconds": 1.0, "tokens_in": 1, "tokens_out": 1, "cost": 0.5}
    output = {"output": text, "command": text, "rows": 1, "seconds": 1.0}
    cell = Cell(None, text, text, interval, interval, 0.01, 0.02, paper_value=text)
    table = FilledTable(text, text, "base", (text,), [(text, text)], [], [TableRow((text,), [cell])])
    return dict.fromkeys(("title", "subtitle", "explored", "machine", "versions"), text) | {
        "tables": [table],
        "plots": [{"caption": text, "svg": f"<svg>{text}</svg>"}],
        "chain": [text],
        "phases": [totals | {"script": text, "outputs": [output]}],
        "total": totals,
    }


class Elements(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.embedded, self._in_data = [], [], "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self._in_data = ("type", "application/json") in attrs

    def handle_data(self, data):
        if self._in_data:
            self.embedded += data


@given(HOSTILE)
def test_any_text_leaves_the_pages_elements_as_they_are_and_reaches_the_explorer_whole(text):
    plain, page = (Elements(render(fields(t), {"views": [{"p": t}]})) for t in ("plain", text))
    assert page.tags == plain.tags
    assert page.attributes == plain.attributes
    assert json.loads(page.embedded) == {"views": [{"p": text}]}


def test_the_policy_allows_the_pages_own_script_alone():
    page = render(fields("x"), {"views": []})
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in page


def table(*rows):
    return FilledTable("t", "c", "base", ("condition",), [("nq", "mrr"), ("nq", "em")], [], list(rows))


def row(condition, mean):
    cells = [Cell(None, condition, metric, Interval(mean, mean - 0.1, mean + 0.1, 50)) for metric in ("mrr", "em")]
    return TableRow((condition,), cells)


def test_a_sweep_is_drawn_from_three_weights_on_and_the_same_each_time():
    rows = [row(f"w{weight}", 0.2 + weight / 2) for weight in (0, 0.5, 1)]
    drawn = weight_sweep(table(*rows))
    assert drawn == weight_sweep(table(*rows))
    assert "weight of the rationale score" in drawn
    assert data_uri(drawn).startswith("data:image/svg+xml;base64,")
    assert weight_sweep(table(*rows[:2])) is None
    assert weight_sweep(table(*rows[:2], TableRow(("w1",), [Cell(None, "w1", "mrr")] * 2))) is None


def test_recall_counts_every_question_up_to_the_last_first_answer():
    assert recall([1, 1 / 2, 1 / 4, 1 / 49, 0]) == [0.2, 0.4, 0.4] + [0.6] * 45 + [0.8]
    assert recall([0, 0]) == []
    drawn = recall_by_rank({"base": [1, 1 / 150], "radio": [0, 0]})
    assert ">base</text>" in drawn
    assert recall_by_rank({"base": [0, 0]}) is recall_by_rank({}) is None


def test_score_distributions_need_candidates():
    passage = {"retrieval": 0.5, "rationale": 0.4, "answer": 1}
    assert "with an answer, n = 2" in score_distributions([{"passages": [passage, passage]}])
    assert score_distributions([]) is None


def test_a_question_with_several_training_lines_shows_every_role(tmp_path):
    groups = [
        {"query": "q", "pos": ["a"], "neg": ["b", "c"]},
        {"query": "q", "pos": ["b"], "neg": ["c"]},
        {"query": "other", "pos": ["c"], "neg": ["a"]},
    ]
    found = _roles(write_jsonl(tmp_path / "lines.jsonl", groups), {"q"})
    assert found == {("q", "a"): "positive", ("q", "b"): "positive, negative", ("q", "c"): "negative"}


def test_phases_that_are_not_finished_are_left_out_and_damaged_ones_told(tmp_path):
    for name in ("run/intermediate_data.json", "data/train.jsonl", "data/dev.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("[]")
        phase = Phase(path, [], {})
        phase.claim() if "dev" in name else phase.finish(3)
    plan = SimpleNamespace(
        training=lambda run: SimpleNamespace(
            settings=SimpleNamespace(data_dir=tmp_path, dataset="data"), checkpoint=tmp_path / "no"
        ),
        folder=lambda run: run.folder,
    )
    runs = [SimpleNamespace(is_tuned=True, folder=tmp_path / "run")]
    (found,) = phases(plan, runs)["phases"]
    assert {made["output"]: made["rows"] for made in found["outputs"]} == {
        str(tmp_path / "data/train.jsonl"): 3,
        str(tmp_path / "run/intermediate_data.json"): 3,
    }
    (tmp_path / "data/train.jsonl.manifest.json").write_text("{")
    with pytest.raises(UsageError, match=r"train\.jsonl\.manifest\.json is damaged"):
        phases(plan, runs)


def test_totals_count_time_once_and_everything_else_of_each_output():
    def made(started, seconds, **facts):
        row = {"rows": 5, "dropped": {"too long": 2}, "facts": facts}
        return row | {"started": f"2026-11-27T00:00:{started:02d}+00:00", "seconds": seconds}

    stage_within_run = [made(10, 20.5, prompt_tokens=7, completion_tokens=3, cost=0.25), made(12, 8)]
    found = _totals([made(40, 5, cost=None), *stage_within_run, made(50, 1.5, prompt_tokens=1)])
    assert found == {
        "rows": 20, "dropped": {"too long": 8}, "seconds": 27.0, "tokens_in": 8, "tokens_out": 3, "cost": 0.25,
    }  # fmt: skip
    assert _totals([made(30, 10.0), made(35, 10.0)])["seconds"] == 15.0
    assert _totals([*stage_within_run, made(1, 1, completion_tokens=1, cost=None)])["cost"] is None


def test_what_made_an_input_is_a_phase_too(tmp_path):
    index, run = tmp_path / "index", tmp_path / "run/intermediate_data.json"
    run.parent.mkdir()
    for path, inputs in ((index, ["BAAI/bge-m3"]), (run, [index])):
        path.write_text("[]")
        Phase(path, inputs, {}).finish(3)
    plan = SimpleNamespace(folder=lambda run: run.folder)
    (found,) = phases(plan, [SimpleNamespace(is_tuned=False, folder=run.parent)])["phases"]
    assert {made["output"] for made in found["outputs"]} == {str(index), str(run)}


@pytest.mark.parametrize(
    ("command", "script"),
    [
        ("python run_rag.py --config a.yaml", "run_rag.py"),
        ("python dataset_generation.py --config a.yaml --phase=get_docs", "dataset_generation.py get_docs"),
        ("python -m utils.training.finetune --config a.yaml", "run_finetune.sh"),
        ("python -m quickstart.build_data", "quickstart.build_data"),
    ],
)  # fmt: skip
def test_a_phase_is_called_by_the_script_that_people_run(command, script):
    assert _script(command) == script


def test_a_trainings_curves_come_from_its_manifest(tmp_path):
    from utils.tables.report.plots import losses_of, training_curves

    rows = [{"step": i, "epoch": i / 9, "loss": 2.0 / i, "learning_rate": 1e-4 / i} for i in (1, 2, 3)]
    made = {"key": "k", "rows": 9, "command": "c", "settings": {}, "inputs": {}, "output_sha256": "x"}
    (tmp_path / "nq_radio.manifest.json").write_text(json.dumps(made | {"facts": {"losses": rows}}))
    (tmp_path / "older.manifest.json").write_text(json.dumps(made))
    assert losses_of(tmp_path / "nq_radio") == rows
    assert losses_of(tmp_path / "older") == losses_of(tmp_path / "from the hub") == []
    drawn = training_curves({"nq_radio": rows, "older": []})
    assert "nq_radio" in drawn
    assert "learning rate" in drawn
    assert "older" not in drawn
    assert training_curves({"older": []}) is None
