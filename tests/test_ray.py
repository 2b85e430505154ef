"""The same commands on a Ray cluster of three nodes in this machine, of which one dies in the middle."""

import contextlib
import os
import re
import subprocess
import sys
import time

import forked
import numpy as np
import psutil
import pytest
from conftest import ROOT, SUBJECTS, questions, read_jsonl, write_jsonl

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def cluster():
    """Three nodes: the head, which is the command's own and does no work, and two of one core."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 200 << 20}
    found = Cluster(initialize_head=True, head_node_args=memory | {"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        found.add_node(num_cpus=1, **memory)
    found.wait_for_nodes()
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def models(corpus, tiny_encoder, tiny_reranker, tmp_path_factory, run_script):
    """The models, and a corpus and its index that are large enough to be worked on for some seconds."""
    folder = tmp_path_factory.mktemp("large")
    copies = ((i, row["id"], row["contents"]) for i in range(300) for row in read_jsonl(corpus))
    rows = [{"id": f"{i}-{pid}", "contents": f"{text} {SUBJECTS[i % 7]} {i}"} for i, pid, text in copies]
    write_jsonl(folder / "corpus.jsonl", rows)
    found = {"corpus": folder / "corpus.jsonl", "encoder": tiny_encoder, "reranker": tiny_reranker}
    found["index"] = folder / "large.index"
    assert run_script(*commands(found)["build_index"], "--index_path", found["index"], cwd=folder).returncode == 0
    return found


def commands(models):
    retrieval = ["--retriever_path", models["encoder"], "--corpus_path", models["corpus"]]
    search = [*retrieval, "--index_path", models["index"]]
    return {
        "build_index": ["build_index.py", *retrieval, "--index_path", "own.index", "--index_shard_size", "500"],
        "get_docs": ["dataset_generation.py", "--dataset", "own", "--phase=get_docs", *search],
        "rationale scores": [
            "dataset_generation.py", "--dataset", "own", "--phase=generate_dataset", "--method=reason", "--scorer",
            "encoder", "--model_path", models["encoder"], "--scorer_batch_size", "2",
        ],
        "rankings": [
            "run_rag.py", "--dataset", "own", "--framework", "none", *search, "--rerank_model_path",
            models["reranker"], "--rerank_max_length", "64",
        ],
    }  # fmt: skip


OUTPUTS = {
    "build_index": ["own.index"],
    "get_docs": ["dataset/own/train_docs_20000.jsonl", "dataset/own/train_docs_20000.passages.jsonl"],
    "rationale scores": ["dataset/own/reason/score_cache.jsonl"],
    "rankings": ["output/stages"],
}


def start(words, folder, *flags):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, ROOT / words[0], *words[1:], *flags]
    pipe = subprocess.PIPE
    return subprocess.Popen([str(w) for w in words], cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def run_alone(words, folder):
    return forked.run(words, folder, os.environ | {"PYTHONPATH": str(ROOT)})


def run(words, folder, *flags):
    process = start(words, folder, *flags)
    said = process.communicate(timeout=900)
    return subprocess.CompletedProcess(words, process.returncode, *said)


@pytest.fixture
def folder(tmp_path):
    rows = questions(1200)
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"dataset/own/{split}.jsonl", rows)
    reasons = [row | {"reason": f"because of {row['question']}"} for row in rows]
    write_jsonl(tmp_path / "dataset/own/reason/train_with_reason.jsonl", reasons)
    return tmp_path


def read(folder, name):
    """What a phase has made: vectors as they are, rankings with scores to compare apart from their last bits."""
    if name == "build_index":
        return (folder / "own.index").read_bytes()
    found = {}
    for path in (folder / part for part in OUTPUTS[name]):
        for file in sorted(path.glob("rerank_*.jsonl")) if path.is_dir() else [path]:
            for row in read_jsonl(file):
                found[file.name, row["id"]] = row
    return found


def assert_same(found, expected):
    """The same passages in the same order; passages whose scores differ by less than 1e-5 may stand either way."""
    assert type(found) is type(expected)
    if isinstance(found, bytes):
        assert found == expected
        return
    assert found.keys() == expected.keys()
    for key, row in found.items():
        if "scores" not in row:
            assert row == expected[key]
            continue
        np.testing.assert_allclose(row["scores"], expected[key]["scores"], atol=1e-5)
        theirs = dict(zip(expected[key]["passage_ids"], expected[key]["scores"], strict=True))
        for pid, other, score in zip(row["passage_ids"], expected[key]["passage_ids"], row["scores"], strict=True):
            assert pid == other or abs(theirs[pid] - score) < 1e-5


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_node_that_dies_changes_nothing(name, models, cluster, folder):
    words = commands(models)[name]
    if name == "rationale scores":
        assert run_alone(commands(models)["get_docs"], folder).returncode == 0
    alone = run_alone(words, folder)
    assert alone.returncode == 0, alone.stderr
    expected = read(folder, name)
    assert expected
    flags = ["--engine", "ray", "--ray_address", cluster.address, "--ray_index_rows", "100"]
    if name == "rankings":  # the retrieval stays, so that the node dies while it reranks
        for path in (folder / "output").rglob("*"):
            if path.is_file() and not path.name.startswith("retrieve_"):
                path.unlink()
    else:
        flags.append("--overwrite")
    process = start(words, folder, *flags)
    victim, deadline = None, time.monotonic() + 600  # three nodes import torch at once, on two cores
    while victim is None:
        victim = next(filter(works, cluster.list_all_nodes()[1:]), None)
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "no worker on the node that is to die"
        time.sleep(0.01)
    cluster.remove_node(victim, allow_graceful=False)
    said = process.communicate(timeout=900)[1]
    assert process.returncode == 0, said[-3000:]
    assert_same(read(folder, name), expected)


def test_a_command_that_is_killed_goes_on_with_what_is_missing(models, cluster, folder):
    words = commands(models)["build_index"]
    flags = ["--engine", "ray", "--ray_address", cluster.address]
    process = start(words, folder, *flags)
    deadline = time.monotonic() + 600  # three nodes import torch at once, on two cores
    while not list(folder.glob("own.index.shards/*.npy")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=900)
    assert not (folder / "own.index").exists()
    again = run(words, folder, *flags)
    assert again.returncode == 0, again.stderr[-3000:]
    done, rows = map(int, re.search(r"(\d+)/(\d+) \[00:00<", again.stderr).groups())
    assert 500 <= done < rows == 18_000
    assert (folder / "own.index").read_bytes() == models["index"].read_bytes()


def works(node):
    """Whether a worker of the node is at a part of the work now."""
    for process in psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "_Worker)).submit" in " ".join(process.cmdline()):
                return True
    return False
