"""The whole method as a newcomer runs it, on the smoke profile, in a fresh copy of the tree."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, read_jsonl

PHASES = [
    "quickstart.models", "mmlu_preprocess.py", "quickstart.build_data", "build_index.py",
    "run_finetune.sh", "quickstart.server", "llm_generation.py", "import_rationales.py", "--phase get_docs",
    "--method reason", "--method retrieval", "score_cache_to_dataset.py", "paper_tables.py", "report.py",
]  # fmt: skip


def reproduce(folder, *flags):
    environment = os.environ | {"PYTHON": sys.executable}
    environment.pop("OPENAI_API_KEY", None)
    return subprocess.run(
        ["bash", "reproduce.sh", "--profile", "smoke", *flags],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=1400,
    )  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone")
    for name in ("utils", "quickstart", "profiles", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.sh"), *ROOT.glob("requirements*.txt")):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def first(copy):
    result = reproduce(copy)
    assert result.returncode == 0, result.stderr[-4000:]
    return result


def test_dry_run_prints_every_phase_and_makes_nothing(copy):
    before = sorted(path.name for path in copy.iterdir())
    result = reproduce(copy, "--dry_run")
    assert result.returncode == 0, result.stderr
    assert [phase for phase in PHASES if phase not in result.stdout] == []
    assert sorted(path.name for path in copy.iterdir()) == before


def test_an_unknown_profile_is_told(copy):
    result = subprocess.run(["bash", "reproduce.sh", "--profile", "huge"], cwd=copy, capture_output=True, text=True)
    assert (result.returncode, "--profile huge" in result.stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.long
def test_one_command_goes_from_questions_to_the_table(first, copy):
    table = (copy / "output/smoke/tables/main.md").read_text()
    assert table in first.stdout
    for label in ("retriever's order |", "base reranker |", "RADIO: both, fused |"):
        assert f"| {label}" in table
    assert "(nq: n = 4, mmlu: n = 2)" in table
    for column in ("nq recall@1", "nq mrr", "nq em", "nq f1", "nq contains", "mmlu em"):
        assert column in table
    assert "| - |" not in table
    asked, imported = (
        read_jsonl(copy / f"dataset/smoke/quickstart_nq/{source}/train_with_reason.jsonl")
        for source in ("smollm2", "reason")
    )
    assert len(asked) >= 2
    assert len(imported) == 12
    assert all(len(row["reason"].split()) > 2 for row in [*asked, *imported])
    assert "quickstart_nq, training questions: " in first.stdout
    assert (copy / "output/smoke/report.html").exists()
    groups = read_jsonl(copy / "dataset/smoke/quickstart_nq/reason+retrieval/FinetuneDataset_for_flagembedding.jsonl")
    assert all(len(row["pos"]) == 1 and len(row["neg"]) == 6 for row in groups)
    radio, base = (copy / f"checkpoints/smoke_{name}/model.safetensors" for name in ("radio", "base"))
    assert radio.read_bytes() != base.read_bytes()


@pytest.mark.slow
@pytest.mark.long
def test_one_command_makes_every_table_and_the_report(first, copy):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "paper_tables.py", "--profile", "smoke", "--run"]
    result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=1400)
    assert result.returncode == 0, result.stderr[-4000:]
    for name in ("main", "ablation", "weights", "generators", "rerankers", "mmlu"):
        for suffix in ("md", "tex", "csv"):
            assert (copy / f"output/smoke/tables/{name}.{suffix}").stat().st_size > 100
    cells = list(csv.DictReader((copy / "output/smoke/tables/ablation.csv").open()))
    assert {cell["condition"] for cell in cells if cell["mean"]} == {
        "closed_book", "retriever", "base", "retrieval_only", "rationale_only", "radio", "oracle",
    }  # fmt: skip
    made = subprocess.run([sys.executable, "report.py", "--profile", "smoke"], cwd=copy, capture_output=True, text=True)
    assert "16 runs, 6 tables" in made.stdout, made.stderr


@pytest.mark.slow
@pytest.mark.long
def test_the_server_ends_with_the_script(first, copy):
    assert not (copy / "output/smoke/server.url").exists()


@pytest.mark.slow
@pytest.mark.long
def test_a_second_run_repeats_nothing(first, copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.manifest.json")}
    result = reproduce(copy)
    assert result.returncode == 0, result.stderr[-4000:]
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.manifest.json")} == before
    assert result.stdout.count("is finished") >= 16


@pytest.mark.slow
@pytest.mark.long
def test_a_changed_question_makes_only_what_depends_on_it_again(first, copy):
    path = copy / "dataset/smoke/quickstart_nq/train.jsonl"
    content = path.read_text()
    try:
        path.write_text(content.replace('"question":"', '"question":"please tell me ', 1))
        command = [sys.executable, "dataset_generation.py", "--config", "profiles/smoke.yaml"]
        refused = subprocess.run(
            [*command, "--phase", "generate_dataset", "--method", "retrieval"], cwd=copy, capture_output=True, text=True
        )
        assert "is finished" in refused.stdout  # its own input, train_docs, has not changed
        made = subprocess.run([*command, "--phase", "get_docs"], cwd=copy, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        assert "was made with other questions" in made.stderr
        again = subprocess.run(
            [*command, "--phase", "generate_dataset", "--method", "reason"], cwd=copy, capture_output=True, text=True
        )
        assert again.returncode == 2
        assert "another text there" in again.stderr
    finally:
        path.write_text(content)
