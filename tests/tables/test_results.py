"""Tables out of runs written by hand, against counting, exact tests and the definitions."""

import csv
import itertools
import json
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import yaml
from conftest import ROOT
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

import paper_tables as script
from utils.classes import outcome_settings
from utils.config import phase_arguments, run_main
from utils.rag.metrics import bootstrap, holm, paired_difference
from utils.store.manifest import Phase, manifest_path
from utils.tables.chain import chain
from utils.tables.experiment import Experiment, PaperValues, read_model
from utils.tables.formats import CSV_COLUMNS, csv_rows, latex, markdown, write_cards
from utils.tables.plan import Plan, Run
from utils.tables.results import MANIFEST, RAG_SECTIONS, Results

SCORES = {  # run -> EM of ten questions
    "nq.g.retriever": [0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    "nq.g.r.base": [0, 0, 0, 0, 0, 0, 0, 0, 1, 1],
    "nq.g.r.w0.5": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    "nq.h.r.base": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0],
    "nq.h.r.w0.5": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    "mmlu.g.r.base": [1, 0, 1, 0, 1, 0, 1, 0, 1, 0],
    "mmlu.g.r.w0.5": [1, 1, 1, 0, 1, 1, 1, 0, 1, 1],
}
SUBJECTS = ["anatomy", "world religions"] * 4 + ["sociology", "nutrition"]
EXPERIMENT = {
    "title": "by hand",
    "tasks": {"nq": {"config": "nq.yaml"}, "mmlu": {"config": "mmlu.yaml", "reranker_task": "nq"}},
    "generators": {"g": {}, "h": {}},
    "rerankers": {"r": {}},
    "tables": {
        "main": {"caption": "Main 100 %", "tasks": ["nq"], "generators": ["g", "h"],
                 "conditions": ["retriever", "base", "radio"], "metrics": ["em", "f1"]},
        "mmlu": {"caption": "By category", "tasks": ["mmlu"], "conditions": ["base", "radio"],
                 "metrics": ["STEM", "Humanities", "Social Sciences", "em"]},
    },
}  # fmt: skip
MADE = {"key": "k", "rows": 10, "command": "python run_rag.py", "settings": {}, "inputs": {}, "output_sha256": "x"}


def made_with(plan, run, **changes):
    """Write the manifest that run_rag.py would have left."""
    args = phase_arguments(None, RAG_SECTIONS, argv=plan.rag_command(run)[2:])
    inputs = {str(args.rerank_model_path): "reranker-1"}
    manifest = MADE | {"settings": outcome_settings(args) | changes, "inputs": inputs}
    (plan.folder(run) / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nq.yaml").write_text("common: {dataset: nq}\n")
    (tmp_path / "mmlu.yaml").write_text("common: {dataset: mmlu}\nrag: {answer_type: letter}\n")
    for name, scores in SCORES.items():
        run = tmp_path / "output" / name
        run.mkdir(parents=True)
        rows = [
            {
                "id": f"q{i}",
                "question": f"question {i}",
                "golden_answers": ["x"],
                "metadata": {"subject": SUBJECTS[i]} if name.startswith("mmlu") else None,
                "output": {"pred": "x", "metric_score": {"em": float(score)}},
            }
            for i, score in enumerate(scores)
        ]
        (run / "intermediate_data.json").write_text(json.dumps(rows))
    plan = Plan(Experiment.model_validate(EXPERIMENT))
    for run in plan.runs(plan.experiment.tables.values()):
        if run.name in SCORES:
            made_with(plan, run)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/own.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return tmp_path


@pytest.fixture
def results(folder):
    return Results(Plan(Experiment.model_validate(EXPERIMENT)), seed=42)


def cells(table):
    return {(cell.run.name, cell.metric): cell for cell in table.cells}


def test_cells_are_the_runs_means_with_their_intervals(results):
    table = results.fill("main", results.plan.experiment.tables["main"])
    assert [metric for _, metric in table.columns] == ["em"]  # no run has F1
    for name, cell in ((name, cell) for (name, _), cell in cells(table).items() if name in SCORES):
        assert cell.found == bootstrap([float(x) for x in SCORES[name]], 42)
    assert cells(table)["nq.h.retriever", "em"].found is None
    assert [row.labels for row in table.rows][:2] == [("g", "retriever's order"), ("g", "base reranker")]


def test_differences_are_paired_within_the_generator_and_corrected_over_the_table(results):
    found = cells(results.fill("main", results.plan.experiment.tables["main"]))
    radio, retriever, other = (found[name, "em"] for name in ("nq.g.r.w0.5", "nq.g.retriever", "nq.h.r.w0.5"))
    assert radio.difference.mean == pytest.approx(0.8)
    assert radio.p_raw == pytest.approx(2 / 2**8)  # eight questions differ, all one way: exact
    assert (retriever.p_raw, other.p_raw) == (1.0, 1.0)
    assert other.difference.mean == pytest.approx(0.1)
    assert radio.p == pytest.approx(3 * 2 / 2**8)
    assert radio.significant
    assert not retriever.significant
    assert found["nq.g.r.base", "em"].difference is None


def test_runs_of_other_settings_or_another_reranker_are_left_out_and_said(results, folder, capsys):
    plan = results.plan
    table = plan.experiment.tables["main"]
    radio = plan.run("nq", "g", "r", "radio")
    made_with(plan, radio, rerank_topk=3)
    assert cells(results.fill("main", table))["nq.g.r.w0.5", "em"].found is None
    assert "output/nq.g.r.w0.5 was made with other rerank_topk: left out" in capsys.readouterr().out
    made_with(plan, radio)
    assert Results(plan, 42).of(radio) is not None
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/nq_radio.manifest.json").write_text(json.dumps(MADE | {"output_sha256": "reranker-2"}))
    assert Results(plan, 42).of(radio) is None
    assert "was made with other reranker" in capsys.readouterr().out
    assert Results(plan, 42).of(plan.run("nq", "g", "r", "base")) is not None


def test_categories_count_their_own_questions(results):
    found = cells(results.fill("mmlu", results.plan.experiment.tables["mmlu"]))
    stem, humanities, social = (found["mmlu.g.r.w0.5", name] for name in ("STEM", "Humanities", "Social Sciences"))
    assert (stem.found.mean, stem.found.n) == (1.0, 4)
    assert (humanities.found.mean, humanities.found.n) == (0.5, 4)
    assert (social.found.n, social.p_raw) == (1, 1.0)
    assert found["mmlu.g.r.base", "Humanities"].found.mean == 0.0


def test_markdown_latex_and_csv_show_the_same(results):
    table = results.fill("main", results.plan.experiment.tables["main"])
    text = markdown(table)
    assert "**Main 100 % (n = 10)**" in text
    assert "| g | RADIO: both, fused | 1.000* |" in text
    assert "| h | retriever's order | - |" in text
    assert "| h | base reranker | .900 [.700, 1.000] |" in text
    assert table.dropped == [("nq", "f1")]
    tex = latex(table)
    assert r"g & RADIO: both, fused & 100.0$^*$ \\" in tex
    assert r"Main 100 \%" in tex
    assert tex.count(r"\\") == 1 + len(table.rows)
    rows = csv_rows(table, results.plan)
    assert len(rows) == 6
    assert all(len(row) == len(CSV_COLUMNS) for row in rows)


def exact_p(differences):
    flips = itertools.product([1, -1], repeat=len(differences))
    observed = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips]
    return sum(found >= observed - 1e-12 for found in sums) / len(sums)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=8))
def test_the_permutation_test_agrees_with_enumeration(pairs):
    ours, theirs = zip(*pairs, strict=True)
    _, p = paired_difference(ours, theirs, seed=1)
    assert p == pytest.approx(exact_p([a - b for a, b in pairs]))


def test_under_the_null_hypothesis_p_is_rarely_small():
    rng = np.random.default_rng(3)
    small = 0
    for trial in range(60):
        ours, theirs = rng.integers(0, 2, (2, 40)).astype(float)
        small += paired_difference(ours.tolist(), theirs.tolist(), trial)[1] < 0.05
    assert small <= 9


def test_the_sampled_test_agrees_with_the_exact_one_and_ignores_ties():
    rng = np.random.default_rng(5)
    ours, theirs = rng.integers(0, 2, (2, 24)).astype(float)
    differing = [a - b for a, b in zip(ours, theirs, strict=True) if a != b]
    assert len(differing) <= 13
    _, exact = paired_difference(ours, theirs, seed=1)
    assert exact == pytest.approx(exact_p(differing))
    graded = np.round(rng.normal(0.4, 1, 16), 1)  # 16 that differ: signs are sampled
    _, sampled = paired_difference(graded, np.zeros(16), seed=1)
    assert sampled == pytest.approx(exact_p(graded.tolist()), abs=0.015)
    assert paired_difference([1.0] * 5000 + [0.0] * 6000, [0.0] * 11000, seed=1)[1] == pytest.approx(2e-4)


@settings(deadline=None)  # the first call loads statsmodels
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_its_definition(p_values):
    order = np.argsort(p_values, kind="stable")
    expected, running = np.empty(len(p_values)), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        expected[i] = running
    with mock.patch("gc.collect"):  # statsmodels calls it each time, half a second with all that is loaded here
        assert holm(p_values) == pytest.approx(expected.tolist())


@pytest.fixture
def paper_tables(folder, monkeypatch, capsys):
    """The script, in this process: scipy and statsmodels need not load for every call."""

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["paper_tables.py", "--profile", "own", *flags])
        with pytest.raises(SystemExit) as ended:
            run_main(script.main)
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code or 0, stdout=out, stderr=err)

    return run


def paper_values(*values, tolerance=1.0):
    experiment = EXPERIMENT | {"paper_values": "values.yaml"}
    with open("experiments/own.yaml", "w") as handle:
        yaml.safe_dump(experiment, handle)
    with open("experiments/values.yaml", "w") as handle:
        yaml.safe_dump({"tolerance": tolerance, "values": list(values)}, handle)


def test_the_script_lists_what_is_missing_and_writes_what_there_is(folder, paper_tables):
    result = paper_tables()
    assert result.returncode == 0, result.stderr
    assert "# 7 of 8 runs are finished" in result.stdout
    assert "python run_rag.py --config nq.yaml --run_name nq.h.retriever" in result.stdout
    assert "run_finetune.sh" not in result.stdout
    for name in ("main", "mmlu"):
        for suffix in ("md", "tex", "csv"):
            assert (folder / f"output/tables/{name}.{suffix}").exists()
    rows = list(csv.DictReader((folder / "output/tables/main.csv").open()))
    (radio,) = [
        row for row in rows if row["generator"] == "g" and row["condition"] == "radio" and row["metric"] == "em"
    ]
    assert (float(radio["mean"]), int(radio["n"]), float(radio["difference"])) == (1.0, 10, 0.8)
    (folder / "output/tables/all.md").write_text("all of them")
    only = paper_tables("--tables", "mmlu")
    assert (folder / "output/tables/all.md").read_text() == "all of them"
    assert "By category" in only.stdout
    assert "Main" not in only.stdout
    assert paper_tables("--tables", "none").returncode == 2


def test_a_run_whose_answers_are_gone_is_still_to_be_made(folder, paper_tables):
    (folder / "output/nq.g.r.base/intermediate_data.json").unlink()
    result = paper_tables()
    assert (result.returncode, "--run_name nq.g.r.base" in result.stdout) == (0, True), result.stderr


@pytest.mark.parametrize(
    ("name", "message"), [("intermediate_data.json", "not valid JSON"), (MANIFEST, "is damaged; remove it")]
)
def test_a_damaged_run_is_told_by_name(folder, paper_tables, name, message):
    (folder / "output/nq.g.r.base" / name).write_text('[{"id": ')
    result = paper_tables()
    assert (result.returncode, f"nq.g.r.base/{name} " in result.stderr, message in result.stderr) == (2, True, True)


PLACE = {"task": "nq", "generator": "g", "reranker": "r"}


@pytest.mark.parametrize(
    ("values", "code", "said"),
    [
        (
            [PLACE | {"value": 99.5, "source": "s"}],
            0,
            "agrees: nq g r radio em, percent: 99.5 in the paper (s), 100.00",
        ),
        ([PLACE | {"value": 98.5, "source": "s"}], 1, "MISS"),
        ([PLACE | {"value": 98.5, "source": "s", "tolerance": 2}], 0, "1 of 1 paper values agree"),
        (
            [PLACE | {"value": 400, "source": "s", "relative_to": "base"}],
            0,
            "gain over base in percent: 400 in the paper",
        ),
        ([PLACE | {"value": 1, "source": "s", "generator": "h", "condition": "retriever"}], 1, "nothing measured"),
        ([{"value": 8.72, "source": "s", "remark": "no dataset"}], 1, "not compared: em 8.72 (s): no dataset"),
        ([PLACE | {"value": 1, "source": "s", "task": "trivia"}], 2, "'trivia' is not under 'tasks'"),
        ([PLACE | {"value": 1}], 2, "source"),
        ([PLACE | {"value": 1, "source": "s", "condition": "Radio"}], 2, "condition 'Radio' is none of"),
    ],
)
def test_check_compares_with_the_papers_values(paper_tables, values, code, said):
    paper_values(*values)
    result = paper_tables("--check")
    assert result.returncode == code, result.stdout + result.stderr
    assert said in result.stdout + result.stderr


def test_the_papers_values_stand_beside_the_measured_ones(folder, paper_tables):
    paper_values(
        PLACE | {"value": 99.5, "source": "Table 2 | NQ"},
        PLACE | {"value": 12, "source": "Table 2", "generator": "h", "condition": "retriever"},
    )
    shown = paper_tables().stdout
    assert "| g | RADIO: both, fused | 1.000*; paper: 99.5 (Table 2 &#124; NQ) |" in shown
    assert "| h | retriever's order | -; paper: 12 (Table 2) |" in shown
    assert r"paper: 99.5 (Table 2 | NQ)" in (folder / "output/tables/main.tex").read_text()
    rows = list(csv.DictReader((folder / "output/tables/main.csv").open()))
    assert [row["paper_value"] for row in rows if row["paper_value"]] == ["99.5 (Table 2 | NQ)", "12 (Table 2)"]


def test_the_repositorys_paper_values_are_those_of_the_summary_and_placed_nowhere():
    file = read_model(ROOT / "experiments/paper_values.yaml", PaperValues)
    assert {value.value for value in file.values} == {8.72, 2.74, 1.61}
    assert all("summary" in value.source and value.remark for value in file.values)
    assert all(None in (value.task, value.generator, value.reranker) for value in file.values)


def test_a_failing_command_ends_the_run_with_its_name(folder, paper_tables):
    experiment = EXPERIMENT | {"prepare": ["false"]}
    (folder / "experiments/own.yaml").write_text(yaml.safe_dump(experiment))
    result = paper_tables("--run")
    assert result.returncode == 2
    assert "+ false" in result.stdout
    assert "exit code 1" in result.stderr


# ---------------------------------------------------------------- seeds, words, the chain

SEEDED = {
    "nq.g.retriever": [0.5, 0.5, 0.0, 1.0],
    "nq.g.r.base": [0.5, 0.5, 0.0, 1.0],
    "nq.g.r.w0.5": [1.0, 1.0, 0.5, 1.0],
    "nq.g.r.w0.5_s43": [1.0, 0.5, 0.5, 1.0],
    "nq.g.r.w0.5_s44": [1.0, 0.0, 0.5, 1.0],
}


@pytest.fixture
def seeded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nq.yaml").write_text("common: {dataset: nq}\n")
    table = {"caption": "Seeds", "tasks": ["nq"], "conditions": ["retriever", "base", "radio"], "metrics": ["mrr"]}
    parts = {"tasks": {"nq": {"config": "nq.yaml"}}, "tables": {"main": table}, "seeds": [42, 43, 44]}
    plan = Plan(Experiment.model_validate(EXPERIMENT | parts))
    for run in plan.runs(plan.experiment.tables.values()):
        rows = [{"id": f"q{i}", "output": {"metric_score": {"mrr": score}}} for i, score in enumerate(SEEDED[run.name])]
        plan.folder(run).mkdir(parents=True)
        (plan.folder(run) / "intermediate_data.json").write_text(json.dumps([QUESTION | row for row in rows]))
        made_with(plan, run)
    return Results(plan, seed=42)


QUESTION = {"question": "q", "golden_answers": ["x"]}


def test_a_question_counts_with_the_mean_of_its_seeds(seeded):
    table = seeded.fill("main", seeded.plan.experiment.tables["main"])
    base, radio = table.cells[1:]
    assert (base.spread, len(base.runs), len(radio.runs)) == (None, 1, 3)
    assert radio.found == bootstrap([1.0, 0.5, 0.5, 1.0], 42)
    assert radio.spread == pytest.approx(0.125)  # of .875, .750, .625
    assert (radio.difference, radio.p_raw) == paired_difference([1.0, 0.5, 0.5, 1.0], [0.5, 0.5, 0.0, 1.0], 42)
    text = markdown(table)
    assert "| RADIO: both, fused | .750 ± .125 [" in text
    assert "Fine-tuned with 3 seeds" in text
    [row] = [row for row in csv_rows(table, seeded.plan) if row[4] == "radio"]
    assert row[CSV_COLUMNS.index("seeds")] == 3


def test_a_cell_without_one_of_its_seeds_is_empty_and_its_commands_are_listed(seeded, capsys):
    plan = seeded.plan
    lost = plan.run("nq", "g", "r", "radio", 44)
    (plan.folder(lost) / "intermediate_data.json").unlink()
    results = Results(plan, 42)
    assert results.fill("main", plan.experiment.tables["main"]).cells[2].found is None
    script.list_missing(results, plan.runs(plan.experiment.tables.values()), [], None)
    said = capsys.readouterr().out
    assert "4 of 5 runs are finished" in said
    assert "run_finetune.sh --config nq.yaml --output_dir checkpoints/nq_radio_w0.5_s44 --seed 44" in said
    assert "_s43" not in said


def test_each_seeds_reranker_gets_a_card_with_its_own_numbers(seeded, tmp_path):
    plan = seeded.plan
    runs = [run for run in plan.runs(plan.experiment.tables.values()) if run.is_tuned]
    filled = [seeded.fill(*named) for named in plan.experiment.tables.items()]
    (tmp_path / "lines.jsonl").write_text("{}")
    for run in runs:
        folder = plan.training(run).checkpoint
        folder.mkdir(parents=True)
        lengths = {"query_max_len": 8, "passage_max_len": 8, "train_group_size": 4}
        Phase(folder, ["lines.jsonl", "hub/base"], lengths, folder=True).finish(1)
    write_cards(filled, seeded)
    for run in runs:
        card = ModelCard.load(plan.training(run).checkpoint / "README.md")
        assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [
            ("mrr", pytest.approx(np.mean(SEEDED[run.name]), abs=1e-4))
        ]
    assert len(runs) == 3


def test_a_card_has_the_test_questions_of_all_tables_whatever_was_asked_for(folder, paper_tables):
    made = MADE | {"inputs": {"lines.jsonl": "x", "hub/base": "name:hub/base"}, "output_sha256": "reranker-1"}
    made |= {"settings": {"query_max_len": 8, "passage_max_len": 8, "train_group_size": 4}}
    made |= {"seconds": 1, "machine": "m", "versions": {}, "commit": "c"}
    checkpoint = Plan(Experiment.model_validate(EXPERIMENT)).training(Run("nq", "g", "r", "w0.5")).checkpoint
    checkpoint.mkdir(parents=True)
    manifest_path(checkpoint).write_text(json.dumps(made))
    paper_tables("--tables", "mmlu")
    card = (checkpoint / "README.md").read_text()
    found = {(r.dataset_type, r.metric_type) for r in ModelCard.load(checkpoint / "README.md").data.eval_results}
    assert {("nq", "em"), ("mmlu", "em"), ("mmlu", "STEM")} <= found
    paper_tables("--split", "dev")
    assert (checkpoint / "README.md").read_text() == card


def test_a_table_ends_with_what_it_means(results):
    main = results.plan.experiment.tables["main"]
    [first, second] = results.fill("main", main).meanings
    assert first.startswith("nq, g, r: RADIO against base reranker, em +0.800 [")
    assert first.endswith("(n = 10): RADIO is better.")
    assert second.endswith("no difference that this test can tell from chance.")
    assert first in markdown(results.fill("main", main))


def test_the_chain_follows_the_answers_through_training_and_test(seeded):
    lines = seeded.plan.training(seeded.plan.run("nq", "g", "r", "radio")).lines
    tables = seeded.plan.experiment.tables.values()
    [only] = chain(seeded, tables)
    assert only == (
        "nq, r, test questions: 75% have an answer in their candidates; "
        "MRR: retriever 0.500, base reranker 0.500, RADIO 0.750"
    )
    facts = {"mrr retrieval": 0.4, "mrr rationale": 0.6, "mrr fused": 0.55, "candidate lists with an answer": 0.9}
    facts |= {"first retrieval": 0.2, "first rationale": 0.5, "first fused": 0.4}
    facts |= {"positives": 10, "positives with an answer": 5, "negatives": 60, "negatives with an answer": 6}
    lines.parent.mkdir(parents=True)
    lines.with_name(f"{lines.name}.manifest.json").write_text(json.dumps(MADE | {"facts": facts}))
    assert chain(seeded, tables)[0] == (
        "dataset/nq, training questions: 90% have an answer in their candidates; MRR by retrieval score 0.400 (20% in "
        "first place), by rationale score 0.600 (50% in first place), by fused score 0.550 (40% in first place); an "
        "answer is in 50% of the positives and 10% of the negatives"
    )


def test_another_split_has_runs_and_a_caption_of_its_own(seeded):
    plan = Plan(seeded.plan.experiment.model_copy(update={"split": "dev"}))
    run = plan.run("nq", "g", "r", "radio")
    assert str(plan.folder(run)) == "output/nq.g.r.w0.5.dev"
    words = plan.rag_command(run)
    assert words[words.index("--split") + 1] == "dev"
    assert words[words.index("--run_name") + 1] == "nq.g.r.w0.5.dev"
    table = Results(plan, 42).fill("main", plan.experiment.tables["main"])
    assert (table.caption, table.cells[0].found) == ("Seeds; dev questions", None)  # the test runs do not count
