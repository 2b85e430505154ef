"""Plans: which commands an experiment's tables need, in which order, each once."""

import functools
import re

import pytest
from conftest import ROOT

from utils.config import UsageError, docs_path, load_config, phase_arguments
from utils.tables.experiment import Experiment, label, read_experiment
from utils.tables.plan import Plan

NAMES = sorted({path.stem for path in (ROOT / "experiments").glob("*.yaml")} - {"paper_values"})
ALL = ["closed_book", "retriever", "base", "retrieval_only", "rationale_only", "radio", "oracle"]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def help_of(run_script):
    return functools.cache(lambda script: run_script(script, "--help", cwd=ROOT).stdout)


def experiment(**changes):
    fields = {
        "title": "t",
        "tasks": {
            "nq": {"config": "profiles/nq.yaml"},
            "mmlu": {"config": "profiles/mmlu.yaml", "reranker_task": "nq"},
        },
        "generators": {"a": {"framework": "hf"}, "b": {"framework": "openai"}},
        "rerankers": {"small": {}, "large": {"base_model": "BAAI/bge-reranker-large"}},
        "tables": {"main": {"caption": "c", "tasks": ["nq"], "conditions": ALL, "metrics": ["em"]}},
    }
    return Experiment.model_validate(fields | changes)


def commands(found):
    plan = Plan(found)
    return list(map(" ".join, plan.commands(plan.runs(found.tables.values()))))


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_is_sound_and_its_commands_have_flags_that_exist(name, help_of):
    found = read_experiment(ROOT / f"experiments/{name}.yaml")
    plan = Plan(found)
    made = plan.commands(plan.runs(found.tables.values()))
    assert len(made) == len(set(made)) > 5
    flags = {}
    for command in made:
        script = next(word for word in command if word.endswith((".py", ".sh")))
        flags.setdefault(script, set()).update(re.findall(r"--(\w+)", " ".join(command)))
    assert set(flags) >= {"dataset_generation.py", "score_cache_to_dataset.py", "run_finetune.sh"}
    assert set(flags) & {"llm_generation.py", "import_rationales.py"}
    for script, used in flags.items():
        shown = help_of(script)
        assert [flag for flag in used if not re.search(rf"--{flag}\b(?!_)", shown)] == [], script
    for run in plan.runs(found.tables.values()):
        phase_arguments(None, ["retrieval", "rag"], argv=plan.rag_command(run)[2:])


def test_shared_commands_stand_once_and_before_what_needs_them():
    found = commands(experiment())
    assert len(found) == len(set(found))
    assert sum("llm_generation.py" in command for command in found) == 1
    assert sum("get_docs" in command for command in found) == 1
    assert sum("run_finetune.sh" in command for command in found) == 3
    assert sum("run_rag.py" in command for command in found) == len(ALL)
    first_rag = next(i for i, command in enumerate(found) if "run_rag.py" in command)
    assert all("run_rag.py" in command for command in found[first_rag:])
    order = ["llm_generation", "get_docs", "method reason", "method retrieval", "score_cache_to", "run_finetune"]
    places = [next(i for i, command in enumerate(found) if part in command) for part in order]
    assert places == sorted(places)


def test_the_papers_weight_has_the_published_names_and_others_stand_beside_it():
    found = commands(experiment())
    tuned = [command for command in found if "run_finetune.sh" in command]
    assert sorted(tuned) == [
        "sh run_finetune.sh --config profiles/nq.yaml",
        "sh run_finetune.sh --config profiles/nq.yaml --train_data "
        "dataset/nq/reason+retrieval/FinetuneDataset_w0.jsonl --output_dir checkpoints/nq_radio_w0",
        "sh run_finetune.sh --config profiles/nq.yaml --train_data "
        "dataset/nq/reason+retrieval/FinetuneDataset_w1.jsonl --output_dir checkpoints/nq_radio_w1",
    ]
    (radio,) = [command for command in found if "small.w0.5" in command]
    assert "--rerank_model_path checkpoints/nq_radio --rerank_model_name small_w0.5" in radio
    (base,) = [command for command in found if ".base" in command]
    assert "--rerank_model_path BAAI/bge-reranker-base" in base


def test_names_of_the_same_weight_are_one_run():
    plan = Plan(
        experiment(tables={"sweep": table(conditions=["w0", "w0.5", "w1", "radio", "retrieval_only"], baseline="w0")})
    )
    assert [run.condition for run in plan.runs(plan.experiment.tables.values())] == ["w0", "w0.5", "w1"]
    labels = [plan.label(run) for run in plan.runs(plan.experiment.tables.values())]
    assert labels == [label(name) for name in ("retrieval_only", "radio", "rationale_only")]
    assert label("w0.25") == "fused, rationale weight 0.25"


def table(**fields):
    return {"caption": "c", "tasks": ["nq"], "conditions": ["base", "radio"], "metrics": ["em"]} | fields


def test_transfer_uses_every_generator_and_trains_every_reranker():
    tables = {
        "generators": table(generators=["a", "b"], conditions=["retriever", "radio"]),
        "rerankers": table(rerankers=["small", "large"]),
    }
    found = commands(experiment(tables=tables))
    assert sum("run_finetune.sh" in command for command in found) == 2
    (large,) = [c for c in found if "run_finetune.sh" in c and "large" in c]
    assert "--base_model BAAI/bge-reranker-large --output_dir checkpoints/nq_radio_large" in large
    names = [match[1] for c in found if (match := re.search(r"--run_name (\S+)", c))]
    assert names == [
        "nq.a.retriever", "nq.a.small.w0.5", "nq.b.retriever", "nq.b.small.w0.5",
        "nq.a.small.base", "nq.a.large.base", "nq.a.large.w0.5",
    ]  # fmt: skip


def test_a_task_can_take_the_reranker_of_another_and_letters_are_graded_by_category():
    found = commands(experiment(tables={"mmlu": table(tasks=["mmlu"], conditions=["radio"], metrics=["STEM"])}))
    assert all("profiles/nq.yaml" in command for command in found if "llm_generation" in command)
    assert "--config profiles/mmlu.yaml" in found[-2]
    assert "--rerank_model_path checkpoints/nq_radio" in found[-2]
    assert found[-1] == "python mmlu_evaluation.py --run output/mmlu.a.small.w0.5"


def test_a_reranker_with_settings_of_its_own_never_takes_the_profiles_folder():
    own = {"large": {"base_model": "BAAI/bge-reranker-large"}, "same": {"base_model": "BAAI/bge-reranker-base"}}
    plan = Plan(experiment(rerankers=own, tables={"t": table(rerankers=["large", "same"])}))
    places = [str(plan.training(plan.run("nq", "a", name, "radio")).checkpoint) for name in own]
    assert places == ["checkpoints/nq_radio_large", "checkpoints/nq_radio"]
    found = commands(plan.experiment)
    assert any("--base_model BAAI/bge-reranker-large --output_dir checkpoints/nq_radio_large" in c for c in found)


def test_values_reach_the_scripts_as_they_were_written():
    flags = {"stop": ["\n", "Q:"], "quantization": "4bit", "max_tokens": 9, "use_fp16": False}
    plan = Plan(experiment(generators={"a": flags}, tables={"t": table()}))
    words = plan.rag_command(plan.run("nq", "a", "small", "radio"))
    args = phase_arguments(None, ["retrieval", "rag"], argv=words[2:])
    assert {key: getattr(args, key) for key in flags} == flags


def test_only_commands_without_an_address_are_given_one():
    own = {"a": {"framework": "openai", "openai_model": "m", "base_url": "http://m/v1"}, "b": {"framework": "openai"}}
    own |= {"c": {"framework": "hf"}}
    tables = {"t": table(generators=list(own), conditions=["retriever", "radio"], baseline="radio")}
    plan = Plan(experiment(generators=own, tables=tables), "http://u")
    made = list(map(" ".join, plan.commands(plan.runs(plan.experiment.tables.values()))))
    given = [command for command in made if command.endswith(" --base_url http://u")]
    assert [command for command in made if "http://u" in command] == given
    assert ["llm_generation" in command or "--run_name nq.b." in command for command in made] == [
        command in given for command in made
    ]
    assert len(given) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": {"t": table(tasks=["no"])}}, "table 't': task 'no' is not under 'tasks'"),
        ({"tables": {"t": table(conditions=["w2"])}}, "condition 'w2'"),
        ({"tables": {"t": table(generators=["z"])}}, "table 't': generator 'z' is not under 'generators'"),
        (
            {"tasks": {"nq": {"config": "profiles/nq.yaml", "reranker_task": "x"}}},
            "reranker_task of 'nq': task 'x' is not under 'tasks'",
        ),
        ({"tasks": {"nq": {"config": "profiles/nq.yaml", "flag": {}}}}, "'tasks.nq.flag'"),
        ({"tables": {}}, "'tables'"),
        ({"tables": {"t": table(baseline="oracle")}}, "baseline 'oracle' must be one of its conditions"),
        ({"generators": {"llama:8b": {}}}, "'generators.llama:8b.[key]': String should match"),
        ({"generators": {"a": {"stop": None}}}, "'generators.a.stop.str': Input should be a valid string"),
        ({"generators": {n: {"framework": "openai", "openai_model": "m", "base_url": n} for n in "ab"}}, "elsewhere"),
    ],
)  # fmt: skip
def test_mistakes_are_told(changes, message, tmp_path):
    import yaml

    base = experiment().model_dump(exclude_none=True)
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(base | changes))
    with pytest.raises(UsageError, match=re.escape(message)):
        read_experiment(path)


def test_a_missing_experiment_is_told():
    with pytest.raises(UsageError, match="none.yaml is missing"):
        read_experiment(ROOT / "experiments/none.yaml")


def test_the_papers_profiles_have_their_own_training_data():
    plan = Plan(read_experiment(ROOT / "experiments/paper.yaml"))
    assert load_config("profiles/mmlu.yaml")["common"]["dataset"] == "mmlu"
    training = plan.training(plan.run("mmlu", "llama-3.1-8b", "bge-base", "radio"))
    assert str(training.checkpoint) == "checkpoints/mmlu_radio"
    assert str(docs_path(training.settings)) == "dataset/mmlu/train_docs_20000.jsonl"


# ---------------------------------------------------------------- conditions beyond the ablation, sources, seeds


def commands_of(conditions, **parts):
    found = experiment(tables={"t": table(conditions=["base", *conditions])}, **parts)
    plan = Plan(found)
    return list(map(" ".join, plan.commands(plan.runs(found.tables.values()))))


def test_each_condition_gives_the_flags_of_its_training():
    made = commands_of(["answer_only", "supervised", "radio@none"])
    fuse = [words.partition("profiles/nq.yaml ")[2] for words in made if words.startswith("python score_cache")]
    folder = "dataset/nq/{}+retrieval/FinetuneDataset_{}.jsonl".format
    assert fuse == [
        f"--reason_weight 1 --rationale none --output {folder('answer_only', 'w1')}",
        f"--reason_weight 0 --supervised True --output {folder('reason', 'supervised')}",
        "--rationale none",
    ]
    tuned = [words for words in made if "run_finetune" in words]
    published = folder("answer_only", "for_flagembedding")
    assert any(f"--train_data {published} --output_dir checkpoints/nq_radio_w0.5_none" in words for words in tuned)
    assert len({words.partition("--output_dir ")[2].split()[0] for words in tuned}) == 3


def test_rationales_are_asked_for_imported_or_left_out():
    tasks = {"nq": {"config": f"{ROOT}/profiles/nq.yaml", "imported": {"large": ["a.jsonl", "b.jsonl"]}}}
    made = [words for words in commands_of(["radio", "radio@large", "radio@none"], tasks=tasks)]
    first = [words for words in made if "rationales.py" in words or "llm_generation.py" in words]
    assert [words.replace(f"{ROOT}/", "") for words in first] == [
        "python llm_generation.py --config profiles/nq.yaml",
        "python import_rationales.py --config profiles/nq.yaml --source a.jsonl b.jsonl --rationale large",
    ]
    scored = [words.partition("--method reason")[2] for words in made if "--method reason" in words]
    assert scored == ["", " --rationale large", " --rationale none"]


def test_each_seed_trains_its_own_reranker_on_the_same_lines():
    made = commands_of(["radio", "w1"], seeds=[42, 43])
    tuned = [words.partition("profiles/nq.yaml ")[2] for words in made if "run_finetune" in words]
    assert [words.rpartition("--output_dir ")[2] for words in tuned] == [
        "", "checkpoints/nq_radio_w0.5_s43 --seed 43",
        "checkpoints/nq_radio_w1", "checkpoints/nq_radio_w1_s43 --seed 43",
    ]  # fmt: skip
    assert sum("score_cache" in words for words in made) == 2
    assert sum("run_rag" in words for words in made) == 5  # base once


@pytest.mark.parametrize("name", ["radio@", "base@none", "w2", "oracle@none"])
def test_conditions_that_mean_nothing_are_refused(name):
    with pytest.raises(ValueError, match="is none of closed_book"):
        experiment(tables={"t": table(conditions=["base", name])})
