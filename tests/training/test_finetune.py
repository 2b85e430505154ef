import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from conftest import ROOT, SUBJECTS, write_jsonl
from huggingface_hub import ModelCard

from utils.config import UsageError, load_config
from utils.training.finetune import MODULE, STARTER, environment


def groups(count, negatives=6):
    rng = np.random.default_rng(0)
    return [
        {
            "query": f"where is the {SUBJECTS[i % 10]}",
            "pos": [f"here is the {SUBJECTS[i % 10]} " * 3],
            "neg": [" ".join(rng.choice(SUBJECTS, 6)) for _ in range(negatives)],
        }
        for i in range(count)
    ]


@pytest.fixture
def finetune(run_script, start_script, tmp_path, tiny_reranker):
    def run(*flags, rows=None, start=False, checks=False, shell=False):
        if rows is not None:
            write_jsonl(tmp_path / "lines.jsonl", rows)
        base = [
            "--train_data", "lines.jsonl", "--base_model", tiny_reranker, "--output_dir", "checkpoints/new",
            "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1", "--logging_steps", "1",
        ]  # fmt: skip
        if checks:  # it ends before a training starts, and may so run in this process
            return run_script("utils/training/finetune.py", *base, *flags, cwd=tmp_path)
        # What run_finetune.sh calls; forked, unless a test is about the shell script.
        words = ["run_finetune.sh"] if shell else ["-m", "utils.training.finetune"]
        found = start_script if start else run_script
        return found(*words, *base, *flags, cwd=tmp_path, HF_HOME=str(tmp_path / "hf"))

    return run


def losses(result):
    found = [line for line in result.stdout.replace("}", "}\n").splitlines() if "'loss'" in line]
    return [float(line.split("'loss': ")[1].split(",")[0].strip("'")) for line in found]


@pytest.mark.slow
def test_training_ends_in_a_folder_that_every_library_reads_as_its_card_says(finetune, tmp_path, monkeypatch):
    result = finetune("--num_train_epochs", "2", "--learning_rate", "1e-3", rows=groups(9), shell=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "this processor cannot train in fp16; training in fp32" in result.stdout
    assert len(losses(result)) == 4  # 9 lines: two batches of 4 a pass, the odd one left out
    folder = tmp_path / "checkpoints/new"
    assert not (tmp_path / "checkpoints/new.unfinished").exists()
    manifest = json.loads((tmp_path / "checkpoints/new.manifest.json").read_text())
    assert manifest["rows"] == 9
    assert manifest["settings"]["query_max_len"] + manifest["settings"]["passage_max_len"] == 512
    assert [row["loss"] for row in manifest["facts"]["losses"]] == pytest.approx(losses(result), rel=1e-3)
    assert [row["step"] for row in manifest["facts"]["losses"]] == [1, 2, 3, 4]
    assert (
        f"groups of 7 passages; {manifest['facts']['pairs per second']:.0f} pairs/s" in result.stdout.splitlines()[-1]
    )
    assert not list(folder.glob(".*"))

    card = (folder / "README.md").read_text()
    assert ModelCard.load(folder / "README.md").data.pipeline_tag == "text-ranking"
    monkeypatch.chdir(tmp_path)  # the card names the folder as the command did
    for row in groups(4):
        passages, scores = [*row["pos"], *row["neg"]], []
        for block in re.findall(r"```python\n(.+?)```", card, re.DOTALL)[1:]:
            names = {"question": row["query"], "passages": passages}
            exec(block, names)
            scores.append(names.get("scores"))
        np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)
        np.testing.assert_allclose(scores[2], scores[0], atol=1e-3)
        ranked = [passages.index(doc["contents"]) for doc in names["ranked"][0]]
        np.testing.assert_allclose(names["ranked_scores"][0], [scores[0][i] for i in ranked], atol=1e-3)
        assert ranked == np.argsort(scores[0])[::-1][:2].tolist()

    (folder / ".made_with").touch()  # as a kill just after the manifest leaves it
    again = finetune("--num_train_epochs", "2", "--learning_rate", "1e-3")
    assert "is finished (9 rows)" in again.stdout
    assert not (folder / ".made_with").exists()


def test_a_loss_that_stays_at_guessing_is_told():
    from utils.training.finetune import in_words

    def said(last):
        facts = {"losses": [{"loss": 1.95}, {"loss": last}], "pairs per second": 12.3}
        return in_words(facts, SimpleNamespace(train_group_size=7))

    assert said(1.2) == "loss 1.950 at first, 1.200 at last; groups of 7 passages; 12 pairs/s"
    assert "Guessing has a loss of ln(7) = 1.946: the groups have taught nothing" in said(1.94)


@pytest.mark.parametrize(
    ("name", "told"),
    [("wandbb", "none of none, tensorboard, wandb, trackio"), ("trackio", "run: pip install trackio")],
)
def test_a_tracker_that_is_not_there_is_told_before_any_work(name, told):
    from utils.training.finetune import check_tracker

    check_tracker("none")
    with pytest.raises(UsageError, match=told):
        check_tracker(name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_decoder_and_an_encoder_become_rerankers(finetune, tmp_path, tiny_decoders, tiny_encoder, kind):
    """The decoder's tokenizer has no pad token: its end token pads in training, and then in scoring."""
    from utils.rag.rerankers import LengthSortedReranker

    base = tiny_decoders["Llama"] if kind == "decoder" else tiny_encoder
    result = finetune("--base_model", base, "--num_train_epochs", "1", rows=groups(8))
    assert result.returncode == 0, result.stderr[-3000:]
    assert ("has no head for one score; training begins with a random one" in result.stderr) == (kind == "encoder")
    folder = tmp_path / "checkpoints/new"
    if kind == "decoder":
        assert json.loads((folder / "config.json").read_text())["pad_token_id"] == 102
        assert json.loads((folder / "tokenizer_config.json").read_text())["pad_token"] == "[SEP]"
    args = {"rerank_model_path": str(folder), "rerank_max_length": 64, "use_fp16": False, "trust_remote_code": []}
    one, many = (
        LengthSortedReranker(SimpleNamespace(**args, rerank_batch_size=size)).score(["which"], [["a", "b " * 9, "c"]])
        for size in (1, 3)
    )
    np.testing.assert_allclose(one, many, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_through_torchrun(finetune, tmp_path):
    flags = ["--per_device_train_batch_size", "2", "--nproc_per_node", "2", "--num_train_epochs", "1"]
    result = finetune(*flags, rows=groups(8))
    assert result.returncode == 0, result.stderr[-3000:]
    assert "torch.distributed.run --nproc_per_node 2 --standalone" in result.stdout
    assert len(losses(result)) == 2
    assert (tmp_path / "checkpoints/new/model.safetensors").exists()


@pytest.mark.parametrize(("yours", "seen"), [(None, "0"), ("", ""), ("2,3", "2"), ("GPU-8f2e", "GPU-8f2e")])
def test_one_process_sees_one_gpu_and_torchrun_all(monkeypatch, yours, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if yours is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", yours)
    assert environment([sys.executable, "-m", MODULE])["CUDA_VISIBLE_DEVICES"] == seen
    assert environment([sys.executable, "-m", STARTER, "-m", MODULE]).get("CUDA_VISIBLE_DEVICES") == yours


@pytest.mark.slow
@pytest.mark.long
def test_the_same_global_batch_gives_the_same_losses_on_processes_and_nodes(finetune, tmp_path, tiny_reranker):
    """Without dropout, which each process draws for itself; each node is a command of its own."""
    model = shutil.copytree(tiny_reranker, tmp_path / "dry")
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    rows = groups(48)

    def flags(name, processes):
        words = ["--base_model", model, "--output_dir", f"checkpoints/{name}", "--logging_steps", "1"]
        return [*words, "--num_train_epochs", "2", "--per_device_train_batch_size", str(4 // processes)]

    found = {"one": finetune(*flags("one", 1), rows=rows)}
    found["two processes"] = finetune(*flags("two", 2), "--nproc_per_node", "2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [*flags("nodes", 2), "--nnodes", "2", "--master", f"127.0.0.1:{port}"]
    second = finetune(*nodes, "--node_rank", "1", start=True)
    found["two nodes"] = finetune(*nodes, "--node_rank", "0")
    assert second.wait(60) == 0
    for result in found.values():
        assert result.returncode == 0, result.stderr[-3000:]
    curves = {name: losses(result) for name, result in found.items()}
    assert len(curves["one"]) == 24
    assert len(set(curves["one"])) > 12
    np.testing.assert_allclose(curves["two processes"], curves["one"], atol=2e-4)
    np.testing.assert_allclose(curves["two nodes"], curves["one"], atol=2e-4)
    assert json.loads((tmp_path / "checkpoints/nodes.manifest.json").read_text())["settings"]["nnodes"] == 2
    assert not (tmp_path / "checkpoints/nodes.unfinished").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--nnodes", "2"], "--nnodes needs --master HOST:PORT"),
        (["--nnodes", "2", "--master", "host"], "--nnodes needs --master HOST:PORT"),
        (["--node_rank", "1"], "--node_rank 1 must be below --nnodes 1"),
    ],
)
def test_nodes_that_cannot_meet_are_told(finetune, flags, said):
    result = finetune(*flags, rows=groups(48), checks=True)
    assert result.returncode == 2
    assert said in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_killed_training_ends_with_the_same_bytes(finetune, tmp_path, processes):
    """Nine negatives of which six are drawn, dropout, two epochs: everything random must come back."""
    flags = ["--checkpoint_steps", "5", "--num_train_epochs", "2", "--learning_rate", "1e-3"]
    flags += ["--per_device_train_batch_size", str(4 // processes), "--nproc_per_node", str(processes)]
    whole = finetune(*flags, "--output_dir", "checkpoints/whole", rows=groups(80, negatives=9))
    assert whole.returncode == 0, whole.stderr[-3000:]
    unfinished = tmp_path / "checkpoints/new.unfinished"
    for step in (5, 25):  # in the first epoch and in the second
        process = finetune(*flags, start=True)
        while not (unfinished / f"checkpoint-{step}/complete").exists():
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "checkpoints/new").exists()
    resumed = finetune(*flags)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "going on from checkpoints/new.unfinished/checkpoint-" in resumed.stdout
    assert 1 <= len(losses(resumed)) <= 15
    first, second = (tmp_path / f"checkpoints/{name}" for name in ("whole", "new"))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}
    assert not list(second.glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["before the model has its name", "before the manifest is written"])
def test_a_kill_after_the_training_leaves_the_same_model(finetune, tmp_path, killed):
    first = finetune(rows=groups(8))
    assert first.returncode == 0, first.stderr[-3000:]
    output, manifest = tmp_path / "checkpoints/new", tmp_path / "checkpoints/new.manifest.json"
    weights, key = (output / "model.safetensors").read_bytes(), json.loads(manifest.read_text())["key"]
    manifest.unlink()
    (output / ".made_with").write_text(key)
    (output / "checkpoint-2").mkdir()
    if killed == "before the model has its name":
        output.rename(tmp_path / "checkpoints/new.unfinished")
    again = finetune()
    assert again.returncode == 0, again.stderr[-3000:]
    if killed == "before the manifest is written":
        assert losses(again) == []
    assert (output / "model.safetensors").read_bytes() == weights
    assert manifest.exists()
    assert not [*output.glob(".*"), *output.glob("checkpoint-*")]


@pytest.mark.slow
def test_what_other_settings_left_is_not_gone_on_with(finetune, tmp_path):
    unfinished = tmp_path / "checkpoints/new.unfinished"
    (unfinished / "checkpoint-3").mkdir(parents=True)
    (unfinished / "checkpoint-3/complete").touch()
    (unfinished / ".made_with").write_text("another key")
    result = finetune(rows=groups(8))
    assert result.returncode == 0, result.stderr[-3000:]
    assert "going on from" not in result.stdout


def test_the_manifest_of_an_earlier_model_does_not_cover_the_next(tmp_path):
    """Between the two renames of a training with other settings, a kill must leave what the next call understands."""
    from utils.training.finetune import put_in_place

    unfinished, output, manifest = (tmp_path / name for name in ("m.unfinished", "m", "m.manifest.json"))
    for folder, text in ((unfinished, "new"), (output, "old")):
        folder.mkdir()
        (folder / "model.safetensors").write_text(text)
    (unfinished / ".made_with").write_text("key")
    manifest.write_text("{}")
    put_in_place(unfinished, output, manifest)
    assert (output / "model.safetensors").read_text() == "new"
    assert (output / ".made_with").exists()
    assert not manifest.exists()


WORKER = """
import os, subprocess, sys, time
worker = "import os; from utils.training.train_reranker import end_with; end_with(int(os.environ['PARENT']))"
child = subprocess.Popen([sys.executable, "-c", worker], env=os.environ | {"PARENT": str(os.getpid())})
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_training_ends_with_a_parent_that_nobody_buries(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", WORKER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    time.sleep(1)
    parent.kill()  # and it is not waited for: a zombie
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running()
    assert parent.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_torchrun_and_its_workers_end_with_a_killed_parent(finetune, tmp_path):
    flags = ["--nproc_per_node", "2", "--per_device_train_batch_size", "2", "--num_train_epochs", "500"]
    parent = finetune(*flags, "--checkpoint_steps", "5", rows=groups(8), start=True, shell=True)
    while not list((tmp_path / "checkpoints/new.unfinished").glob("checkpoint-*/complete")):
        assert parent.poll() is None
        time.sleep(0.1)
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 3  # torchrun and two workers
    parent.kill()  # alone, and it is not waited for
    _, left = psutil.wait_procs(family, timeout=60)
    assert left == []
    assert parent.wait() == -signal.SIGKILL


def test_only_whole_checkpoints_are_gone_on_from(tmp_path):
    from utils.training.finetune import checkpoint_to_resume

    assert checkpoint_to_resume(tmp_path) is None
    for step, whole in ((5, True), (20, True), (100, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}/complete").touch()
    assert checkpoint_to_resume(tmp_path) == str(tmp_path / "checkpoint-20")


def test_two_trainings_into_one_folder_are_refused(finetune, tmp_path):
    from utils.store.files import locked

    (tmp_path / "checkpoints").mkdir()
    with locked(tmp_path / "checkpoints/new.unfinished"):
        result = finetune(rows=groups(4), checks=True)
    assert (result.returncode, "is being written by another run" in result.stderr) == (2, True)


def test_the_pair_limit_is_the_sum_and_reaches_the_tokeniser(tiny_reranker, tokenizer, tmp_path):
    """FlagEmbedding accepts --max_len and ignores it: pinned, because the paper's 512 depends on it."""
    from FlagEmbedding.abc.finetune.reranker import AbsRerankerDataArguments, AbsRerankerTrainDataset

    row = {"query": "which river " * 10, "pos": ["glacier " * 900], "neg": ["harbour " * 900]}
    path = write_jsonl(tmp_path / "long.jsonl", [row])
    arguments = {"train_data": [str(path)], "train_group_size": 2, "cache_path": str(tmp_path / "cache")}
    default = AbsRerankerTrainDataset(AbsRerankerDataArguments(**arguments, max_len=512), tokenizer)
    assert {len(pair["input_ids"]) for pair in default[0][0]} == {160}
    pair = {key: load_config()["finetune"][key] for key in ("query_max_len", "passage_max_len")}
    ours = AbsRerankerTrainDataset(AbsRerankerDataArguments(**arguments, **pair), tokenizer)
    assert {len(pair["input_ids"]) for pair in ours[0][0]} == {512}


BAD = {
    "missing file": (None, [], "lines.jsonl is missing; run: python score_cache_to_dataset.py"),
    "no negatives": ([*groups(4), groups(1)[0] | {"neg": []}], [], "lines.jsonl:5: field 'neg' is an empty list"),
    "no positives": ([groups(1)[0] | {"pos": []}], [], "lines.jsonl:1: field 'pos' is an empty list"),
    "field of another type": ([groups(1)[0] | {"pos": "text"}], [], "lines.jsonl:1: field 'pos'"),
    "no query": ([{"pos": ["a"], "neg": ["b"]}], [], "lines.jsonl:1: field 'query'"),
    "too few lines": (groups(3), [], "3 lines, fewer than one batch of 4"),
    "too few for two processes": (groups(7), ["--nproc_per_node", "2"], "fewer than one batch of 8"),
    "pair too long": (groups(4), ["--passage_max_len", "497"], "= 513 tokens, but"),
    "no such model": (groups(4), ["--base_model", "nobody/nothing"], "no local folder and could not be fetched"),
    "unknown precision": (groups(4), ["--precision", "int8"], "none of fp16, bf16, fp32"),
    "unread ending": (groups(4), ["--train_data", "lines.txt"], "name ends in .jsonl"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_told_before_a_model_loads(finetune, tmp_path, case):
    rows, flags, message = BAD[case]
    if case == "unread ending":
        write_jsonl(tmp_path / "lines.txt", rows)
    result = finetune(*flags, rows=rows, checks=True)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "checkpoints/new").exists()


def test_a_folder_of_somebody_elses_is_left_alone(finetune, tmp_path):
    (tmp_path / "checkpoints/new").mkdir(parents=True)
    (tmp_path / "checkpoints/new/precious").write_text("x")
    result = finetune(rows=groups(4))
    assert (result.returncode, "is not empty and was not made by this script" in result.stderr) == (2, True)
    assert (tmp_path / "checkpoints/new/precious").read_text() == "x"


def test_a_training_that_filled_the_disk_ends_with_a_plain_word(tmp_path, disk, monkeypatch, capsys):
    from utils.training import finetune

    def fill(command, **_):
        disk(7)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(finetune.subprocess, "run", fill)
    assert finetune.train(["python"], tmp_path / "new.unfinished") == 1
    said = capsys.readouterr().err
    assert "training ended with exit code 1 (0.0 GB free on the disk); the same command goes on" in said
