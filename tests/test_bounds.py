"""Settings that cannot work are told before anything starts."""

import sys

import pytest
from conftest import run_here

from utils.config import (
    BASIC_CONFIG,
    BOUNDS,
    UsageError,
    _comments,
    _within,
    phase_arguments,
    read_yaml,
    template_fault,
)


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


def test_a_folder_in_the_place_of_a_file_is_told(run_script, tmp_path):
    (tmp_path / "dataset/own/train.jsonl").mkdir(parents=True)
    result = run_script("llm_generation.py", "--dataset", "own", cwd=tmp_path)
    assert (result.returncode, "Is a directory: 'dataset/own/train.jsonl'" in result.stderr) == (2, True)
    assert "Traceback" not in result.stderr
