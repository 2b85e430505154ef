"""Scripts with a folder where a file is expected, or a file in a folder's place: a message, no traceback."""

import shutil

import pytest
from conftest import questions, write_jsonl

OWN = ["--dataset", "own"]
SCORES = ["dataset_generation.py", *OWN, "--phase=generate_dataset"]
RUN = ["run_rag.py", *OWN, "--framework=none"]
# Words of the command; the folder, or the file (behind "file:"), that stands in the way; what is said.
CASES = {
    "questions": (["llm_generation.py", *OWN], "dataset/own/train.jsonl", "Is a directory"),
    "rationales": (
        ["llm_generation.py", *OWN],
        "dataset/own/reason/train_with_reason.jsonl",
        "is a folder, but a file",
    ),
    "corpus": (["build_index.py"], "corpus.jsonl", "corpus corpus.jsonl is a folder"),
    "index": (["dataset_generation.py", *OWN, "--phase=get_docs"], "own.index", "index own.index is a folder"),
    "candidates": ([*SCORES, "--method=retrieval"], "dataset/own/train_docs_20000.jsonl", "Is a directory"),
    "scores": ([*SCORES, "--method=reason"], "dataset/own/reason/score_cache.jsonl", "is a folder, but a file"),
    "above the scores": ([*SCORES, "--method=reason"], "file:dataset/own/reason", "reason is a file, but a folder"),
    "published": (["import_rationales.py", *OWN, "--source", "mine.jsonl"], "mine.jsonl", "mine.jsonl is missing"),
    "fusion": (["score_cache_to_dataset.py", *OWN], "dataset/own/reason/score_cache.jsonl", "Is a directory"),
    "run": ([*RUN, "--run_name=mine"], "output/mine/intermediate_data.json", "is a folder, but a file"),
    "runs": ([*RUN, "--run_name=mine"], "file:output/mine", "mine is a file, but a folder"),
    "all runs": ([*RUN, "--run_name=mine"], "file:output", "output is a file, but a folder"),
    "answers": (["mmlu_evaluation.py", "--run", "mine"], "mine/intermediate_data.json", "Is a directory"),
    "a file as run": (["mmlu_evaluation.py", "--run", "mine"], "file:mine", "Not a directory"),
    "lines": (["run_finetune.sh", "--train_data", "mine.jsonl"], "mine.jsonl", "Is a directory"),
    "checkpoint": (["run_finetune.sh", "--output_dir", "mine"], "file:mine", "mine is a file, but a folder"),
    "tables": (["paper_tables.py", "--profile", "x"], "experiments/x.yaml", "Is a directory"),
    "report": (["report.py", "--profile", "x"], "file:experiments", "Not a directory"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_stands_in_the_way_is_named(run_script, tmp_path, case):
    words, name, message = CASES[case]
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"dataset/own/{split}.jsonl", questions(2))
    for path in ("corpus.jsonl", "own.index", "lines.jsonl"):
        (tmp_path / path).write_text("{}")
    path = tmp_path / name.removeprefix("file:")
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x") if name.startswith("file:") else path.mkdir()
    flags = []
    if words[0] in ("build_index.py", "dataset_generation.py", "run_rag.py"):
        flags = ["--corpus_path=corpus.jsonl", "--index_path=own.index", "--retriever_path=nobody/nothing"]
    result = run_script(*words, *flags, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
