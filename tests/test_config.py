"""Settings that cannot work are told before anything starts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_here

from utils.config import (
    BASIC_CONFIG,
    BOUNDS,
    UsageError,
    _comments,
    _within,
    load_config,
    phase_arguments,
    rationale_dir,
    read_yaml,
    template_fault,
    training_lines_path,
)

SCRIPTS = [
    "llm_generation.py", "dataset_generation.py", "score_cache_to_dataset.py", "run_rag.py", "mmlu_preprocess.py",
    "mmlu_evaluation.py", "utils/training/finetune.py", "quickstart/build_data.py", "quickstart/models.py",
    "quickstart/server.py", "paper_tables.py", "report.py",
]  # fmt: skip
PUBLISHED = {
    "llm_generation.py": "api_key base_url dataset model max_tokens",
    "dataset_generation.py": "dataset phase method model_path retriever_path gpu_id device",
    "run_rag.py": "rerank_model_path rerank_model_name dataset framework openai_model model_path retriever_path gpu_id "
    "max_tokens device api_key base_url",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_and_imports_no_heavy_library(script):
    command = [sys.executable, "-m", script.removesuffix(".py").replace("/", ".")]
    result = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout) > 200
    # Its seconds are measured by benchmarks/startup.py: a test of them would test how busy the machine is.
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", *command[1:], "--help"], cwd=ROOT, capture_output=True, text=True
    ).stderr
    assert not re.search(r"\|\s+(torch|faiss|transformers|flashrag|FlagEmbedding|datasets|pandas|openai)\n", loaded)


@pytest.mark.parametrize("script", PUBLISHED)
def test_published_flags_are_accepted(script, run_script, tmp_path):
    shown = run_script(script, "--help", cwd=tmp_path).stdout
    for flag in PUBLISHED[script].split():
        assert f"--{flag} " in shown, flag


def test_every_setting_is_explained_on_its_line():
    comments = _comments()
    for section, values in read_yaml(BASIC_CONFIG).items():
        if section not in ("prompts", "prices"):  # texts, and the user's own models
            assert [key for key in values if not comments.get((section, key))] == [], section


def test_the_papers_values():
    config = load_config()
    assert config["common"]["train_questions"] == 20000
    assert config["get_docs"]["docs_topk"] == 50
    beyond = {"supervised": False}
    assert config["fusion"] == {"reason_weight": 0.5, "fusion_topk": 20, "sampling": "shift"} | beyond
    assert config["common"]["rationale"] == "reason"
    finetune = config["finetune"]
    assert finetune["base_model"] == "BAAI/bge-reranker-base"
    assert finetune["query_max_len"] + finetune["passage_max_len"] == 512
    wanted = {
        "learning_rate": 6e-5, "num_train_epochs": 2.0, "per_device_train_batch_size": 16, "precision": "fp16",
        "gradient_accumulation_steps": 4, "train_group_size": 7, "weight_decay": 0.01, "logging_steps": 100,
    }  # fmt: skip
    assert wanted.items() <= finetune.items()
    rag = config["rag"]
    assert (rag["retrieval_topk"], rag["rerank_topk"], rag["max_tokens"]) == (20, 5, 512)
    assert "Llama-3.1-8B-Instruct" in rag["model_path"]


@pytest.mark.parametrize("profile", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_profiles_load(profile):
    config = load_config(str(profile))
    assert config.keys() == yaml.safe_load(BASIC_CONFIG.read_text()).keys()


def test_precedence_is_file_profile_flag_and_environment_for_the_key(tmp_path, monkeypatch):
    profile = tmp_path / "p.yaml"
    profile.write_text("rationale: {model: from-profile, temperature: 5e-1, api_key: from-file}\n")
    parse = lambda *flags: phase_arguments("", ["rationale"], ["--config", str(profile), *flags])  # noqa: E731
    assert (parse().model, parse().temperature, parse().top_p) == ("from-profile", 0.5, 1.0)
    assert parse("--model", "from-flag").model == "from-flag"
    assert parse().api_key == "from-file"
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    assert parse().api_key == "from-environment"
    assert parse("--api_key=from-flag").api_key == "from-flag"
    with pytest.raises(SystemExit):
        parse("--help")


def test_extends_lays_a_profile_over_another(tmp_path):
    (tmp_path / "base.yaml").write_text("common: {dataset: one, seed: 1}\n")
    (tmp_path / "over.yaml").write_text("extends: base.yaml\ncommon: {seed: 2}\n")
    common = load_config(str(tmp_path / "over.yaml"))["common"]
    assert (common["dataset"], common["seed"]) == ("one", 2)


def test_the_llm_section_is_for_both_scripts_and_their_own_sections_override_it(tmp_path):
    (tmp_path / "base.yaml").write_text("rag: {timeout: 9.0, base_url: http://a/v1}\nllm: {base_url: http://b/v1}\n")
    (tmp_path / "over.yaml").write_text("extends: base.yaml\nllm: {timeout: 7}\nrationale: {concurrency: 3}\n")

    def found(section, profile, *keys):
        args = phase_arguments("", [section], ["--config", str(tmp_path / profile)] if profile else [])
        return [getattr(args, key) for key in keys]

    keys = ("base_url", "timeout", "concurrency", "max_tokens", "max_retries")
    assert found("rationale", None, *keys) == [None, 30.0, 64, 1000, 3]
    assert found("rag", None, *keys) == [None, 60.0, 16, 512, 3]
    assert found("rationale", "base.yaml", "base_url", "timeout") == ["http://b/v1", 30.0]
    assert found("rag", "base.yaml", "base_url", "timeout") == ["http://a/v1", 9.0]
    assert found("rationale", "over.yaml", "base_url", "timeout", "concurrency") == ["http://b/v1", 7.0, 3]
    assert found("rag", "over.yaml", "base_url", "timeout", "concurrency") == ["http://a/v1", 7.0, 16]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rationals: {}", "unknown section 'rationals'; utils/basic_config.yaml lists"),
        ("rag: {rerank_topks: 3}", "unknown key 'rag.rerank_topks'; utils/basic_config.yaml lists"),
        ("rag: {rerank_topk: many}", "rag.rerank_topk must be int, not 'many'"),
        ("common: {use_fp16: 1}", "common.use_fp16 must be bool"),
        ("llm: {timeouts: 1}", "unknown key 'llm.timeouts'; utils/basic_config.yaml lists"),
        ("rationale: {max_retries: many}", "rationale.max_retries must be int, not 'many'"),
        ("- a list", "must be a mapping"),
        ("rag: [", "p.yaml:1:7: not valid YAML"),
        ("common: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_bad_profile_is_told(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UsageError) as error:
        load_config(str(tmp_path / "p.yaml"))
    assert message in str(error.value)


def test_a_key_in_a_profile_is_not_shown_by_help(tmp_path, run_script):
    (tmp_path / "p.yaml").write_text("rationale: {api_key: canary}\n")
    result = run_script("llm_generation.py", "--config", "p.yaml", "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "canary" not in result.stdout


def test_an_unknown_flag_or_missing_profile_is_told(run_script, tmp_path):
    assert "unrecognized arguments: --datasett" in run_script("llm_generation.py", "--datasett=nq", cwd=tmp_path).stderr
    result = run_script("llm_generation.py", "--config", "profiles/none.yaml", cwd=tmp_path)
    assert (result.returncode, "profiles/none.yaml is missing" in result.stderr) == (2, True)


def test_every_number_has_bounds_and_keeps_them():
    numbers = {
        (section, key): value
        for section, settings in read_yaml(BASIC_CONFIG).items()
        for key, value in settings.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    bounds = {place: found for place, comment in _comments().items() if (found := BOUNDS.match(comment))}
    assert numbers.keys() == bounds.keys()
    assert [place for place, value in numbers.items() if not _within(value, *bounds[place].groups())] == []


@pytest.mark.parametrize("ends", ["[0..1]", "(0..1]", "[0..]", "(0..]", "[-1..]"])
def test_bounds_are_read_as_the_yaml_explains_them(ends):
    found = BOUNDS.match(f"{ends} a number").groups()
    fitting = {value for value in (-2, -1, 0, 1e-9, 0.5, 1, 1.1) if _within(value, *found)}
    assert (
        fitting
        == {
            "[0..1]": {0, 1e-9, 0.5, 1},
            "(0..1]": {1e-9, 0.5, 1},
            "[0..]": {0, 1e-9, 0.5, 1, 1.1},
            "(0..]": {1e-9, 0.5, 1, 1.1},
            "[-1..]": {-1, 0, 1e-9, 0.5, 1, 1.1},
        }[ends]
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--concurrency", "0"], "--concurrency must be at least 1, not 0"),
        (["--max_retries", "-1"], "--max_retries must be at least 0, not -1"),
        (["--timeout", "0"], "--timeout must be more than 0, not 0.0"),
        (["--timeout", "nan"], "--timeout must be more than 0, not nan"),
        (["--timeout", "inf"], "--timeout must be more than 0, not inf"),
        (["--max_failures", "1.5"], "--max_failures must be at least 0 and at most 1, not 1.5"),
        (["--base_url", "localhost:8000"], "--base_url 'localhost:8000' is no address such as"),
        (["--api_key", "secr\u00e9t-k\u00e9y"], "the API key holds a character that no key has"),
        (["--api_key", "secret key"], "the API key holds a character that no key has"),
    ],
)
def test_values_that_cannot_work(flags, said):
    with pytest.raises(UsageError) as caught:
        phase_arguments("", ["rationale"], flags)
    assert said in str(caught.value)
    assert "secr" not in str(caught.value)


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("rationale: {concurrency: null}", "--concurrency must be at least 1, not None"),
        (
            "prompts: {rationale_user: 'as {json}'}",
            "prompts.rationale_user: KeyError('json'); {question} and {answers} are filled in",
        ),
        ("prompts: {rationale_user: 'a { b'}", "other braces are written twice"),
        ("prompts: {rationale_user: '{} {question}'}", "IndexError"),
        ("prompts: {rag_user: null}", "prompts.rag_user must not be blank"),
        ("rationale: {base_url: 8000}", "--base_url 8000 is no address"),
    ],
)
def test_profiles_that_cannot_work(tmp_path, yaml, said):
    (tmp_path / "p.yaml").write_text(yaml)
    with pytest.raises(UsageError) as caught:
        phase_arguments("", ["rationale"], ["--config", str(tmp_path / "p.yaml")])
    assert said in str(caught.value)


def test_a_key_of_digits_is_text(tmp_path):
    (tmp_path / "p.yaml").write_text("rationale: {api_key: 12345678}")
    assert phase_arguments("", ["rationale"], ["--config", str(tmp_path / "p.yaml")]).api_key == "12345678"


def test_a_prompt_that_is_sent_as_it_is_may_hold_braces(tmp_path):
    (tmp_path / "p.yaml").write_text("prompts: {rationale_system: 'answer as {json}'}")
    assert phase_arguments("", ["rationale"], ["--config", str(tmp_path / "p.yaml")]).prompts["rationale_system"]


def test_templates_take_their_fields_and_doubled_braces():
    assert template_fault("{question} {{json}} {answers!r:>9}", ["question", "answers"]) == ""


def test_a_yaml_fault_is_placed_without_showing_the_line(tmp_path):
    for text, place in (
        ("a: !canary x", ":1:4"),
        ("a: *canary", ":1:4"),
        ("rationale:\n  api_key: 'canary-1\n  model: x: y", ":3:"),
        ("a: b: canary-1", ":1:5"),
    ):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(UsageError) as caught:
            read_yaml(tmp_path / "p.yaml")
        assert "canary" not in str(caught.value)
        assert f"p.yaml{place}" in str(caught.value)
        assert "not valid YAML" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "stops"), [("[/INST]", ["[/INST]"]), ('["a", "[b"]', ["a", "[b"]), ("\n", ["\n"]), ("[1]", ["[1]"])]
)
def test_a_list_is_given_as_json_or_as_one_string(text, stops):
    assert phase_arguments("", ["rationale"], ["--stop", text]).stop == stops


def test_a_value_that_is_called_like_the_key_is_no_key(tmp_path, monkeypatch):
    """A dataset may be called api_key; the process must not start itself again without its name."""
    monkeypatch.setattr(sys, "orig_argv", ["python", "llm_generation.py", "--dataset", "api_key", "--dry_run"])
    result = run_here(["llm_generation.py", "--dataset", "api_key", "--dry_run"], tmp_path, {})
    assert "dataset/api_key/train.jsonl is missing" in result.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--request", '{"messages": []}'], "--request: 'messages' is decided by other settings"),
        (["--request", '{"stream": true}'], "--request: 'stream' is decided by other settings"),
        (["--request", '{"top_k": NaN}'], "--request: its fields and values must be what JSON has"),
    ],
)
def test_changes_to_requests_that_cannot_work(flags, said):
    with pytest.raises(UsageError, match=said):
        phase_arguments("", ["rationale"], flags)


def test_the_request_setting_is_a_mapping_in_the_yaml_and_on_the_command_line(tmp_path, capsys):
    profile = tmp_path / "p.yaml"
    profile.write_text("llm: {request: {n: null, top_k: 3}}\nrag: {request: {seed: null}}\n")
    flags = ["--config", str(profile)]
    assert phase_arguments("", ["rationale"], flags).request == {"n": None, "top_k": 3}
    assert phase_arguments("", ["rag"], flags).request == {"seed": None}
    assert phase_arguments("", ["rag"], [*flags, "--request", '{"a": {"b": [1]}}']).request == {"a": {"b": [1]}}
    assert phase_arguments("", ["rag"], []).request == {}
    profile.write_text("llm: {request: {1: 2}}\n")
    with pytest.raises(UsageError, match="must be what JSON has"):
        phase_arguments("", ["rag"], flags)
    for text in ("n", "[1]", "{n: null}"):
        with pytest.raises(SystemExit):
            phase_arguments("", ["rag"], ["--request", text])
        assert "is no JSON object such as" in capsys.readouterr().err


# ---------------------------------------------------------------- where rationales and their scores stand


@pytest.mark.parametrize(("name", "folder"), [("reason", "reason"), ("large", "large"), ("none", "answer_only")])
def test_each_source_of_rationales_has_a_folder_of_its_own(name, folder):
    args = phase_arguments(None, ["fusion"], argv=["--rationale", name])
    assert rationale_dir(args) == Path("dataset/nq") / folder
    lines = f"dataset/nq/{folder}+retrieval/FinetuneDataset_for_flagembedding.jsonl"
    assert training_lines_path(args) == Path(lines)


@pytest.mark.parametrize("name", ["retrieval", "answer_only", "../x", "a/b", ".."])
def test_names_that_would_mix_sources_are_refused(name):
    with pytest.raises(UsageError, match="give a folder's name"):
        rationale_dir(phase_arguments(None, ["fusion"], argv=["--rationale", name]))


def test_without_rationales_none_are_written():
    from utils.llm.rationales import rationales_path

    with pytest.raises(UsageError, match="name a folder for them"):
        rationales_path(phase_arguments(None, ["rationale"], argv=["--rationale", "none"]))
