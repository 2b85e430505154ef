"""Keys, code, paths and control characters that come from outside."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import yaml
from conftest import ROOT, questions, write_jsonl

CANARY = "sk-canary-5b1f0e"
ESCAPE = "\x1b]0;owned\x07\x1b[2J"


def commands(url, folder, retrieval_args, reranker):
    retrieval = [
        "--retriever_path", retrieval_args.retriever_path, "--index_path", folder / "own.index",
        "--corpus_path", retrieval_args.corpus_path,
    ]  # fmt: skip
    scoring = ["--scorer", "encoder", "--model_path", retrieval_args.retriever_path]
    return [
        ["build_index.py", *retrieval],
        ["llm_generation.py", "--base_url", url],
        ["dataset_generation.py", "--phase=get_docs", *retrieval],
        ["dataset_generation.py", "--phase=generate_dataset", "--method=reason", *retrieval, *scoring],
        ["dataset_generation.py", "--phase=generate_dataset", "--method=retrieval", *retrieval],
        ["score_cache_to_dataset.py"],
        ["run_rag.py", "--framework=openai", "--base_url", url, "--rerank_model_path", reranker, *retrieval],
        ["llm_generation.py", "--base_url", url + "/refused", "--max_retries", "0", "--overwrite", "--model", "other"],
        ["run_rag.py", "--framework=openai", "--base_url", "http://127.0.0.1:9", "--max_retries", "0", *retrieval],
    ]


def title_of(process):
    """A running process's title, once it has had the time to start itself again without the flag."""
    deadline, title = time.monotonic() + 10, CANARY
    while CANARY in title and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        title = Path(f"/proc/{process.pid}/cmdline").read_text()
    return title if process.poll() is None else ""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["flag", "environment", "yaml"])
def test_a_key_appears_nowhere(llm_server, tmp_path, retrieval_args, tiny_reranker, way):
    """Every file, every word and every process title of the whole pipeline, two failing phases included."""
    home = tmp_path / "home"
    home.mkdir()
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"dataset/own/{split}.jsonl", questions(8))
    profile = tmp_path.parent / f"{tmp_path.name}.yaml"
    key = {"api_key": CANARY} if way == "yaml" else {}
    profile.write_text(yaml.safe_dump({"common": {"dataset": "own"}, "rationale": key, "rag": key}))
    server = llm_server(0.05, "--echo_key")
    environment = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(home), "FLASHRAG_LOG": "debug", "OPENAI_LOG": "debug"}
    environment |= {"OPENAI_API_KEY": CANARY} if way == "environment" else {}
    said, codes = "", []
    for script, *flags in commands(server.base_url, tmp_path, retrieval_args, tiny_reranker):
        asks = script in ("llm_generation.py", "run_rag.py")
        flags += ["--api_key", CANARY] if way == "flag" and asks else []
        words = [script, "--config", profile, *flags]
        if CANARY in flags:  # only such a process has the key in its title at first
            process = subprocess.Popen(
                [sys.executable, ROOT / script, *words[1:]], cwd=tmp_path, env=environment,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            said += title_of(process) + process.communicate()[0]
        else:
            process = forked.run(words, tmp_path, environment)
            said += process.stdout + process.stderr
        codes.append(process.returncode)
    assert codes == [0] * 7 + [2, 2], said
    assert server.stats()["keys"] == [f"Bearer {CANARY}"]
    assert "refuses" in said
    assert CANARY not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [str(path) for path in files if CANARY.encode() in path.read_bytes()] == []


def with_own_code(folder: Path, target: Path, marker: Path, auto: str) -> Path:
    """A copy of a model that transformers can load only by running the Python file in it."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "own.OwnConfig", auto: "own.OwnModel"}}
    (target / "config.json").write_text(json.dumps(config))
    base = "BertModel" if auto == "AutoModel" else "BertForSequenceClassification"
    (target / "own.py").write_text(
        f"from transformers import BertConfig, {base}\n"
        f"open({str(marker)!r}, 'w').write('ran')\n"
        "class OwnConfig(BertConfig):\n    model_type = 'homemade'\n"
        f"class OwnModel({base}):\n    config_class = OwnConfig\n"
    )
    return target


def test_a_models_own_code_runs_only_if_it_is_named(
    run_script, tmp_path, monkeypatch, retrieval_args, tiny_encoder, tiny_reranker
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "marker"
    encoder = with_own_code(tiny_encoder, tmp_path / "encoder", marker, "AutoModel")
    reranker = with_own_code(tiny_reranker, tmp_path / "reranker", marker, "AutoModelForSequenceClassification")
    write_jsonl(tmp_path / "dataset/own/test.jsonl", questions(2))
    group = {"query": "q", "pos": ["p"], "neg": ["n"] * 6}
    write_jsonl(tmp_path / "lines.jsonl", [group] * 16)
    corpus = ["--corpus_path", retrieval_args.corpus_path]
    index = ["build_index.py", *corpus, "--retriever_path", encoder, "--index_path", tmp_path / "own.index"]
    finetune = ["run_finetune.sh", "--train_data", "lines.jsonl", "--base_model", reranker]
    rag = [
        "run_rag.py", "--dataset", "own", "--framework", "none", *corpus, "--index_path", retrieval_args.index_path,
        "--retriever_path", retrieval_args.retriever_path, "--rerank_model_path", reranker,
    ]  # fmt: skip
    hf = ["run_rag.py", "--dataset", "own", "--retrieval_topk", "0", "--framework", "hf", "--model_path", reranker]
    for words in (index, finetune, rag, hf):
        result = run_script(*words, cwd=tmp_path)
        assert (result.returncode, "brings its own Python code" in result.stderr) == (2, True), result.stderr[-2000:]
        assert not marker.exists()
    for words, model in ((index, encoder), (rag, reranker)):
        result = run_script(*words, "--trust_remote_code", model, cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-2000:]
        assert marker.exists()


class Trojan:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


def test_pickled_weights_run_no_code(run_script, tmp_path, retrieval_args, tiny_encoder):
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"embeddings": Trojan(tmp_path / "marker")}))
    flags = ["--corpus_path", retrieval_args.corpus_path, "--index_path", tmp_path / "own.index"]
    result = run_script("build_index.py", *flags, "--retriever_path", folder, cwd=tmp_path)
    assert result.returncode != 0
    assert not (tmp_path / "marker").exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert (tmp_path / "marker").exists(), "the trojan itself works"


def test_yaml_makes_no_objects(run_script, tmp_path):
    (tmp_path / "p.yaml").write_text(f"common: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    result = run_script("llm_generation.py", "--config", "p.yaml", cwd=tmp_path)
    assert (result.returncode, "not valid YAML" in result.stderr) == (2, True)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc", "..", ".", ""])
def test_names_stay_below_their_folders(run_script, tmp_path, name):
    for script, flag in (("llm_generation.py", "--dataset"), ("run_rag.py", "--dataset"), ("run_rag.py", "--split")):
        result = run_script(script, flag, name, cwd=tmp_path)
        assert (result.returncode, "must be a plain name" in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize("name", ["../../up", "/tmp/x", "..", "a\nb", ".hidden"])
def test_any_name_of_a_model_or_run_is_one_file_name(name):
    from utils.store.files import file_name

    found = file_name(name)
    assert Path(found).name == found
    assert not found.startswith(".")


def test_text_from_outside_does_not_steer_the_terminal(run_script, llm_server, tmp_path):
    rows = [row | {"golden_answers": [f"[status 400] {ESCAPE}"]} for row in questions(1)]
    write_jsonl(tmp_path / "dataset/own/train.jsonl", rows)
    flags = ["llm_generation.py", "--dataset", "own", "--base_url", llm_server().base_url]
    results = [run_script(*flags, cwd=tmp_path)]
    for bad in ({"id": ESCAPE}, {"id": "1", "question": "q", "golden_answers": {ESCAPE: 1}}):
        write_jsonl(tmp_path / "dataset/own/train.jsonl", [bad])
        results += [run_script(*flags, cwd=tmp_path), run_script(*flags, "--skip_bad_rows", cwd=tmp_path)]
    write_jsonl(tmp_path / "dataset/own/train.jsonl", [row | {"id": ESCAPE} for row in [*questions(1), *questions(1)]])
    results.append(run_script(*flags, cwd=tmp_path))
    for result in results:
        assert result.returncode in (1, 2)
        assert "\x1b" not in result.stdout + result.stderr
        assert "\x07" not in result.stdout + result.stderr
