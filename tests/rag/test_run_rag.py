import json
import shutil
from importlib.util import find_spec

import pytest
from conftest import questions, read_jsonl, without_tokenizer, write_jsonl

from utils.retrieval.answers import has_answer


@pytest.fixture
def rag(run_script, tmp_path, retrieval_args, llm_server):
    server = llm_server()
    write_jsonl(tmp_path / "dataset/own/test.jsonl", questions(6))

    def run(*flags, url=server.base_url):
        base = [
            "run_rag.py", "--dataset", "own", "--framework=openai", "--openai_model=gpt-4o-mini", "--base_url", url,
            "--retriever_path", retrieval_args.retriever_path, "--index_path", retrieval_args.index_path,
            "--corpus_path", retrieval_args.corpus_path, "--retrieval_batch_size", "2",
        ]  # fmt: skip
        return run_script(*base, *flags, cwd=tmp_path, OPENAI_API_KEY="canary-key")

    run.server = server
    return run


def test_a_run_leaves_answers_scores_and_rankings(rag, tmp_path, tiny_reranker):
    result = rag(f"--rerank_model_path={tiny_reranker}", "--rerank_model_name", "tiny")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "output/own_test_tiny_gpt-4o-mini"
    rows = json.loads((folder / "intermediate_data.json").read_text())
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(6)]
    for row, question in zip(rows, questions(6), strict=True):
        assert row["output"]["pred"].endswith(f"{question['question'][-20:]}\nAnswer:")
        assert len(row["output"]["retrieval_result"]) == 5
        assert row["golden_answers"] == question["golden_answers"]
    printed = dict(line.split(": ") for line in (folder / "metric_score.txt").read_text().splitlines())
    assert list(printed) == ["recall@1", "recall@5", "recall@20", "mrr", "ndcg@10", "em", "f1", "contains"]
    metrics = json.loads((folder / "metrics.json").read_text())
    for name, found in metrics.items():
        per_question = [row["output"]["metric_score"][name] for row in rows]
        assert found["mean"] == pytest.approx(sum(per_question) / 6) == pytest.approx(float(printed[name]))
        assert found["n"] == 6
    for path in (tmp_path / "output").rglob("*"):
        assert path.is_dir() or b"canary-key" not in path.read_bytes(), path


def test_ranking_metrics_agree_with_counting_by_hand(rag, tmp_path):
    assert rag().returncode == 0
    folder = tmp_path / "output/own_test_none_gpt-4o-mini"
    rows = json.loads((folder / "intermediate_data.json").read_text())
    (stage,) = [path for path in (tmp_path / "output/stages").glob("retrieve_*.jsonl") if "passages" not in path.name]
    (store,) = (tmp_path / "output/stages").glob("retrieve_*.passages.jsonl")
    texts = {row["id"]: row["contents"] for row in read_jsonl(store)}
    for row, candidates in zip(rows, read_jsonl(stage), strict=True):
        hits = [has_answer(row["golden_answers"], texts[pid]) for pid in candidates["passage_ids"]]
        first = hits.index(True) + 1 if any(hits) else None
        scores = row["output"]["metric_score"]
        assert scores["mrr"] == pytest.approx(1 / first if first else 0)
        for k in (1, 5, 20):
            assert scores[f"recall@{k}"] == float(bool(first and first <= k))
    assert 0 < sum(row["output"]["metric_score"]["recall@20"] for row in rows) < 6
    lines = (folder / "retrieval.trec").read_text().splitlines()
    assert len(lines) == 6 * 20
    assert lines[0].split()[0] == "q0"
    assert not (folder / "rerank.trec").exists()


@pytest.mark.slow
def test_trec_files_give_an_evaluator_the_reported_values(rag, tmp_path, tiny_reranker):
    import ir_measures

    assert rag(f"--rerank_model_path={tiny_reranker}", "--framework=none").returncode == 0
    folder = tmp_path / "output/own_test_BASE_none".replace("BASE", tiny_reranker.name)
    qrels = list(ir_measures.read_trec_qrels(str(folder / "qrels.trec")))
    reported = json.loads((folder / "metrics.json").read_text())
    assert "em" not in reported
    measures = {"mrr": ir_measures.RR, "ndcg@10": ir_measures.nDCG @ 10, "recall@5": ir_measures.Success @ 5}
    run = list(ir_measures.read_trec_run(str(folder / "rerank.trec")))
    found = ir_measures.calc_aggregate(measures.values(), qrels, run)
    for name, measure in measures.items():
        assert reported[name]["mean"] == pytest.approx(found[measure]), name
    before = list(ir_measures.read_trec_run(str(folder / "retrieval.trec")))
    assert {(line.query_id, line.doc_id) for line in before} == {(line.query_id, line.doc_id) for line in run}
    rows = json.loads((folder / "intermediate_data.json").read_text())
    assert all("pred" not in row["output"] and len(row["output"]["retrieval_result"]) == 5 for row in rows)


@pytest.mark.slow
def test_the_oracle_puts_answers_first_and_is_never_beaten(rag, tmp_path):
    assert rag("--framework=none").returncode == 0
    assert rag("--framework=none", "--rerank_model_name=oracle").returncode == 0
    plain, oracle = (
        json.loads((tmp_path / f"output/own_test_{name}_none/metrics.json").read_text()) for name in ("none", "oracle")
    )
    assert oracle["recall@1"] == oracle["recall@20"] == plain["recall@20"]
    assert oracle["mrr"]["mean"] == oracle["recall@20"]["mean"] > plain["mrr"]["mean"]
    assert oracle["ndcg@10"]["mean"] == oracle["mrr"]["mean"]
    rows = (tmp_path / "output/own_test_oracle_none/rerank.trec").read_text().splitlines()
    assert len(rows) == 6 * 20


@pytest.mark.slow
def test_another_reranker_does_not_retrieve_again_and_a_finished_run_is_said(rag, tmp_path, tiny_reranker):
    assert "retrieve:" in rag().stderr
    second = rag(f"--rerank_model_path={tiny_reranker}")
    assert "retrieve:" not in second.stderr
    assert "rerank:" in second.stderr
    third = rag(f"--rerank_model_path={tiny_reranker}")
    assert "is finished (6 rows)" in third.stdout
    assert "em: " in third.stdout
    asked = sum(rag.server.stats()["seen"].values())
    other = rag(f"--rerank_model_path={tiny_reranker}", "--max_tokens", "9", "--run_name", "other")
    assert "rerank:" not in other.stderr
    assert sum(rag.server.stats()["seen"].values()) == asked + 6


def test_the_closed_book_baseline_needs_no_index(rag, tmp_path):
    result = rag("--retrieval_topk", "0", "--index_path", "nowhere", "--corpus_path", "nowhere")
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "output/own_test_closed-book_gpt-4o-mini/intermediate_data.json").read_text())
    assert all(row["output"]["retrieval_result"] == [] for row in rows)


def test_letters_are_graded_as_letters(rag, tmp_path, run_script):
    rows = [
        {"id": str(i), "question": f"Q?\nA. x\nB. y\nC. z\nD. The answer is {gold}", "golden_answers": [gold],
         "metadata": {"subject": "anatomy"}}
        for i, gold in enumerate("AAB")
    ]  # fmt: skip
    write_jsonl(tmp_path / "dataset/own/test.jsonl", rows)
    result = rag("--answer_type", "letter", "--retrieval_topk", "0", "--run_name", "letters")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "output/letters/metric_score.txt").read_text().startswith("em: ")
    graded = run_script("mmlu_evaluation.py", "--run", "output/letters", cwd=tmp_path)
    assert graded.returncode == 0, graded.stderr
    assert "STEM" in graded.stdout


@pytest.mark.slow
def test_other_weights_in_the_generators_folder_are_another_run(rag, tmp_path, tiny_llama):
    folder = shutil.copytree(tiny_llama, tmp_path / "llama")
    flags = ["--retrieval_topk", "0", "--framework=hf", "--model_path", folder, "--max_tokens", "3", "--run_name", "hf"]
    assert rag(*flags).returncode == 0
    assert "is finished" in rag(*flags).stdout
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64] + bytes(64))
    again = rag(*flags)
    assert again.returncode == 0, again.stderr
    assert "is finished" not in again.stdout
    assert f"was made with other {folder}" in again.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "dev"], "dataset/own/dev.jsonl is missing"),
        (["--dataset", "none"], "dataset/none/test.jsonl is missing"),
        (["--rerank_model_name", "bge-reranker"], "needs --rerank_model_path"),
        (["--rerank_model_path", "nobody/nothing"], "no local folder and could not be fetched"),
        (["--framework", "tgi"], "--framework 'tgi' is none of openai, hf, vllm, fschat, none"),
        (["--framework", "none", "--retrieval_topk", "0"], "--framework none measures rankings"),
        (["--rerank_model_name", "oracle", "--answer_type", "letter"], "a letter is in all of them"),
        (["--rerank_model_name", "oracle", "--rerank_model_path", "x"], "oracle goes without --rerank_model_path"),
        (["--answer_type", "number"], "neither text nor letter"),
        (["--device", "tpu"], "none of auto, cpu, cuda"),
        (["--device", "cuda"], "torch sees no GPU"),
    ],
)
def test_mistakes_are_told(rag, flags, message):
    import torch

    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = rag(*flags)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_server_that_is_not_there_is_told(rag):
    result = rag("--max_retries", "0", url="http://127.0.0.1:9/v1")
    assert result.returncode == 2
    assert "6 of 6 requests failed (APIConnectionError" in result.stderr


def test_answers_that_cannot_be_had_are_counted_if_that_is_allowed(rag, tmp_path):
    rows = questions(6)
    rows[1]["question"] = "[status 400] why"
    write_jsonl(tmp_path / "dataset/own/test.jsonl", rows)
    refused = rag("--max_failures", "0.1")
    assert (refused.returncode, "1 of 6 requests failed (400" in refused.stderr) == (2, True)
    allowed = rag("--max_failures", "0.2")
    assert allowed.returncode == 0, allowed.stderr
    assert "1 of 6 questions have no answer" in allowed.stdout
    folder = tmp_path / "output/own_test_none_gpt-4o-mini"
    found = json.loads((folder / "intermediate_data.json").read_text())
    assert [row["output"]["pred"] == "" for row in found] == [i == 1 for i in range(6)]
    assert found[1]["output"]["metric_score"]["em"] == 0
    manifest = json.loads((folder / "intermediate_data.json.manifest.json").read_text())
    assert manifest["facts"]["questions without an answer"] == 1


def test_a_lost_summary_is_written_again(rag, tmp_path):
    assert rag().returncode == 0
    summary = tmp_path / "output/own_test_none_gpt-4o-mini/metric_score.txt"
    text = summary.read_text()
    summary.unlink()
    again = rag()
    assert (again.returncode, summary.read_text()) == (0, text)


def test_a_dry_run_tells_the_price_of_the_answers_and_asks_nothing(rag, tmp_path):
    early = rag("--dry_run")
    assert (early.returncode, "run the same with --framework none" in early.stderr) == (2, True)
    assert rag("--framework", "none").returncode == 0
    before = rag("--dry_run")
    assert before.returncode == 0, before.stderr
    assert "6 rows: 0 answered already, 6 to ask" in before.stdout
    assert "cost: $" in before.stdout
    assert not rag.server.stats()["seen"]
    assert rag().returncode == 0
    assert rag("--test_sample_num", "4", "--dry_run").returncode == 2, "other questions, other rankings"
    (tmp_path / "output/own_test_none_gpt-4o-mini/intermediate_data.json").unlink()
    assert "6 rows: 6 answered already, 0 to ask" in rag("--dry_run").stdout
    assert "asks no server" not in before.stderr
    local = rag("--dry_run", "--framework", "hf")
    assert (local.returncode, "the others ask no server" in local.stderr) == (2, True)


def test_answers_of_reasoning_models_are_measured_without_their_thoughts_and_counted(rag, tmp_path):
    marks = ["[thinks]", "[parts]", "[only thoughts]", "[stopped thoughts]", "[empty]", "[cut]"]
    rows = [row | {"question": mark} for row, mark in zip(questions(6), marks, strict=True)]
    rows[0]["golden_answers"], rows[1]["golden_answers"] = ["Thought out"], ["in parts"]
    write_jsonl(tmp_path / "dataset/own/test.jsonl", rows)
    result = rag("--retrieval_topk", "0")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "output/own_test_closed-book_gpt-4o-mini"
    found = [row["output"] for row in json.loads((folder / "intermediate_data.json").read_text())]
    assert [output["pred"] for output in found[:5]] == ["thought out", "in parts", "", "", ""]
    assert [output["metric_score"]["em"] for output in found] == [1, 1, 0, 0, 0, 0]
    assert "of 6 answers, 3 are empty and 3 were cut off (--max_tokens)" in result.stdout
    facts = json.loads((folder / "intermediate_data.json.manifest.json").read_text())["facts"]
    assert (facts["empty answers"], facts["cut-off answers"]) == (3, 3)
    assert set(rag.server.stats()["seen"].values()) == {1}


def test_the_request_setting_is_part_of_a_run(rag, tmp_path):
    flags, manifest = (
        ["--retrieval_topk", "0", "--run_name", "r"],
        tmp_path / "output/r/intermediate_data.json.manifest.json",
    )
    assert rag(*flags).returncode == 0
    assert "request" not in json.loads(manifest.read_text())["settings"], (
        "so that runs of earlier versions stay finished"
    )
    assert "is finished" in rag(*flags, "--request", "{}").stdout
    changes = {"seed": None, "temperature": None, "chat_template_kwargs": {"enable_thinking": False}}
    changed = rag(*flags, "--request", json.dumps(changes))
    assert changed.returncode == 0, changed.stderr
    assert "made with other request" in changed.stderr
    assert rag.server.stats()["bodies"][-1].keys() == {"model", "messages", "max_tokens", "chat_template_kwargs"}
    assert json.loads(manifest.read_text())["settings"]["request"] == changes


def test_the_passages_may_stand_in_the_users_message(rag, tmp_path):
    (tmp_path / "p.yaml").write_text("prompts: {rag_system: '', rag_user: '{reference}Q: {question}'}\n")
    result = rag("--config", "p.yaml")
    assert result.returncode == 0, result.stderr
    for body in rag.server.stats()["bodies"]:
        (message,) = body["messages"]
        assert message["role"] == "user"
        assert message["content"].startswith("Doc 1(Title: ")
        assert "Q: where is the " in message["content"]


def test_prompts_without_a_place_for_passages_are_refused_before_any_work(rag, tmp_path):
    (tmp_path / "p.yaml").write_text("prompts: {rag_system: ''}\n")
    result = rag("--config", "p.yaml")
    assert result.returncode == 2
    assert "put {reference} into prompts.rag_system or prompts.rag_user" in result.stderr
    assert not (tmp_path / "output/stages").exists()
    assert rag("--config", "p.yaml", "--retrieval_topk", "0").returncode == 0


def test_models_that_cannot_work_are_told_before_the_retrieval(rag, tmp_path, tiny_encoder, tiny_reranker, tiny_llama):
    """By folder, configuration, tokenizer and library: the retrieval may take hours."""
    three = shutil.copytree(tiny_reranker, tmp_path / "three")
    config = json.loads((three / "config.json").read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(3)}
    (three / "config.json").write_text(json.dumps(config))
    wordless = without_tokenizer(tiny_reranker, tmp_path / "wordless")
    mute = without_tokenizer(tiny_llama, tmp_path / "mute")
    cases = {
        f"--rerank_model_path={three}": "three has 3 labels; one is needed",
        f"--rerank_model_path={tiny_encoder}": "has no head for one score",
        f"--rerank_model_path={tiny_llama}": "has no head for one score",
        "--rerank_model_path=checkpoints/forgotten": "'checkpoints/forgotten' is no local folder",
        f"--rerank_model_path={tmp_path / 'dataset'}": "has no config.json",
        f"--rerank_model_path={wordless}": "its tokenizer knows no word",
        "--framework=hf --model_path=models/forgotten": "'models/forgotten' is no local folder",
        f"--framework=vllm --model_path={mute}": "mute",
        "--framework=tgi": "--framework 'tgi' is none of openai, hf, vllm, fschat, none",
        f"--framework=fschat --quantization=4bit --model_path={tiny_llama}": "--quantization is for --framework hf",
    }
    if find_spec("vllm") is None:
        cases[f"--framework=vllm --model_path={tiny_llama}"] = "--framework vllm needs vLLM: pip install"
    for flags, message in cases.items():
        result = rag(*flags.split())
        assert (result.returncode, message in result.stderr) == (2, True), (flags, result.stderr)
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "output/stages").exists()


def test_a_decoder_reranks(rag, tmp_path, tiny_decoders):
    result = rag(f"--rerank_model_path={tiny_decoders['Llama']}", "--rerank_model_name=llama", "--framework=none")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "output/own_test_llama_none/rerank.trec").exists()
