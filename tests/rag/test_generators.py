import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from utils.config import UsageError, load_config
from utils.rag.generators import cut_at, make_generator
from utils.rag.prompts import RagPrompt, _cut_longest, format_reference, token_ids
from utils.store.files import file_name

PROMPTS = load_config()["prompts"]


def words(text):
    return len(text.split())


def test_the_prompt_is_the_papers_layout():
    messages = RagPrompt(PROMPTS, 4096, words).build("who?", ["Title one\ntext one", "Title two\ntext two"])
    assert [m["role"] for m in messages] == ["system", "user"]
    assert messages[0]["content"].endswith("Doc 1(Title: Title one) text one\nDoc 2(Title: Title two) text two\n")
    assert messages[1]["content"] == "Question: who?\nAnswer:"
    assert "  " not in messages[0]["content"] + messages[1]["content"]


def test_the_document_layout_is_flashrags():
    from flashrag.prompt import PromptTemplate

    passages = ["Title\ntext\nmore text", "only a title", "", "A\n"]
    config = {"framework": "openai", "generator_max_input_len": 100}
    theirs = PromptTemplate(config).format_reference([{"contents": text} for text in passages])
    assert format_reference(passages) == theirs


def test_closed_book_has_no_documents():
    messages = RagPrompt(PROMPTS, 4096, words).build("who?", [])
    assert "own knowledge" in messages[0]["content"]
    assert "Doc" not in messages[0]["content"]


def test_closed_book_completions_speak_of_no_documents():
    prompts = PROMPTS | {"rag_completion": "From the documents.\n{reference}Q: {question}"}
    assert RagPrompt(prompts, 4096, words).build("who?", []) == "From the documents.\nQ: who?"
    prompts["rag_completion_closed_book"] = "Q: {question}"
    assert RagPrompt(prompts, 4096, words).build("who?", []) == "Q: who?"
    assert RagPrompt(prompts, 4096, words).build("who?", ["T\nx"]).startswith("From the documents.\nDoc 1")


@pytest.mark.parametrize("name", ["quickstart", "smoke", "smoke_mmlu", "small", "small_bm25"])
def test_the_embedded_llms_prompts_differ_by_the_documents_alone(name):
    prompts = load_config(f"{ROOT}/profiles/{name}.yaml")["prompts"]
    with_documents = prompts["rag_completion"].replace("{reference}\n", "").replace(" from the documents", "")
    assert prompts["rag_completion_closed_book"].rstrip() == with_documents.rstrip()


def test_braces_in_passages_and_questions_are_text():
    prompts = PROMPTS | {"rag_completion": "{reference}\nQ: {question}"}
    assert (
        RagPrompt(prompts, 4096, words).build("a {b}?", ["T\n{x} {question}"]).endswith("{x} {question}\n\nQ: a {b}?")
    )


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=6),
    st.integers(60, 600),
    st.sampled_from([words, len, lambda text: len(text) // 3 + 1]),
)
def test_the_question_is_never_lost_and_the_prompt_fits_where_it_can(lengths, limit, count):
    question = "the one question that must stay whole"
    passages = [f"Title {i}\n" + "word " * length for i, length in enumerate(lengths)]
    prompt = RagPrompt(PROMPTS | {"rag_completion": "Read.\n{reference}Q: {question}"}, limit, count)
    built = prompt.build(question, passages)
    assert built.endswith(f"Q: {question}")
    bare = count(prompt._render(question, ["" for _ in passages]))
    assert count(built) <= max(limit, bare)
    assert prompt.trimmed == (count(prompt._render(question, passages)) > limit)


@given(st.lists(st.text(max_size=50), max_size=8), st.integers(0, 200))
def test_cutting_takes_from_the_longest_first(texts, budget):
    cut = _cut_longest(texts, budget)
    assert sum(map(len, cut)) <= max(budget, 0)
    limit = max(map(len, cut), default=0)
    if sum(map(len, texts)) > budget:
        assert all(c == t or len(c) >= limit - 1 for c, t in zip(cut, texts, strict=True))


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [("a\nb", ["\n"], "a"), ("a.b\n", ["\n", "."], "a"), ("abc", ["\n"], "abc"), ("abc", [], "abc")],
)
def test_answers_end_at_the_first_stop(text, stop, kept):
    assert cut_at(text, stop) == kept


def test_model_names_cannot_leave_the_folder():
    assert "/" not in file_name("../../etc/passwd")
    assert file_name("..") == "model"
    assert file_name("gpt-4o-mini") == "gpt-4o-mini"


@pytest.fixture
def args(tiny_llama, tmp_path):
    return SimpleNamespace(
        trust_remote_code=[],
        framework="hf",
        model_path=str(tiny_llama),
        generator_batch_size=3,
        quantization="none",
        request={},
        max_tokens=8,
        max_input_tokens=200,
        stop=[],
        openai_model="m",
        base_url=None,
        api_key=None,
        timeout=5.0,
        max_retries=0,
        batch=False,
        batch_poll=1.0,
        batch_tokens=0,
        longest_wait=600.0,
        concurrency=4,
        seed=1,
        prices={},
        max_cost=0.0,
        max_failures=0.0,
        save_dir=str(tmp_path / "output"),
        gpu_memory_utilization=0.5,
    )


def chat(i):
    return [{"role": "system", "content": "be brief " * i}, {"role": "user", "content": f"question {i}"}]


def test_hf_is_greedy_and_batching_changes_nothing(args):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model_path)
    model = AutoModelForCausalLM.from_pretrained(args.model_path).eval()
    prompts = [chat(i) for i in range(1, 8)] + ["a plain completion prompt"]
    expected = []
    for prompt in prompts:
        ids = token_ids(tokenizer, prompt)
        for _ in range(8):
            with torch.inference_mode():
                following = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(following)
            if following == tokenizer.eos_token_id:
                break
        new = ids[len(token_ids(tokenizer, prompt)) :]
        expected.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    args.generator_batch_size = 1
    assert make_generator(args).generate(prompts) == expected
    args.generator_batch_size, args.save_dir = 3, args.save_dir + "-again"
    assert make_generator(args).generate(prompts) == expected


def test_hf_batches_hold_as_many_tokens_as_full_prompts_would(args):
    args.generator_batch_size, args.max_input_tokens = 2, 100
    generator = make_generator(args)
    shapes, inner = [], generator.model.generate
    generator.model.generate = lambda **kw: (shapes.append(tuple(kw["input_ids"].shape)), inner(**kw))[1]
    generator.generate([f"{i} " + "word " * length for i, length in enumerate([2, 80, 2, 40, 2, 40] + 9 * [2])])
    assert sum(rows for rows, _ in shapes) == 15
    assert all(rows * (length + args.max_tokens) <= 2 * (100 + args.max_tokens) for rows, length in shapes)
    assert [length for _, length in shapes] == sorted((length for _, length in shapes), reverse=True)
    assert max(shapes)[0] > 2, "short prompts form a larger batch than generator_batch_size"


def test_local_answers_are_kept_and_other_settings_ask_again(args, monkeypatch):
    from utils.rag.generators import HFGenerator

    asked = []
    inner = HFGenerator._answer
    monkeypatch.setattr(HFGenerator, "_answer", lambda self, prompts: (asked.extend(prompts), inner(self, prompts))[1])
    first = make_generator(args).generate(["one", "two", "one"])
    assert first[0] == first[2]
    assert make_generator(args).generate(["two", "three"])[0] == first[1]
    assert asked == ["one", "two", "three"]
    args.max_tokens = 2
    make_generator(args).generate(["one"])
    assert asked[3:] == ["one"]


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_hf_generates_from_quantised_weights(args, kind):
    from bitsandbytes import nn

    args.quantization = kind
    generator = make_generator(args)
    layers = [type(module) for module in generator.model.modules()]
    assert (nn.Linear4bit if kind == "4bit" else nn.Linear8bitLt) in layers
    answers = generator.generate([chat(1), chat(2)])
    assert len(answers) == 2
    assert all(isinstance(answer, str) for answer in answers)


def test_fschat_answers_as_hf_does_where_the_model_has_a_chat_template(args):
    prompts = [chat(1), chat(2), "a completion"]
    expected = make_generator(args).generate(prompts)
    args.framework = "fschat"
    assert make_generator(args).generate(prompts) == expected


def test_fschat_writes_the_conversation_of_models_without_a_chat_template(args, tmp_path):
    folder = shutil.copytree(args.model_path, tmp_path / "vicuna-7b-v1.5")
    (folder / "chat_template.jinja").unlink()
    args.framework, args.model_path = "fschat", str(folder)
    generator = make_generator(args)
    ids = generator._ids(chat(2))
    assert generator.tokenizer.decode(ids) == "[CLS] be brief be brief user : question 2 assistant :"
    assert len(generator.generate([chat(2)])) == 1


def test_fschat_runs_no_code_of_the_model(args, tmp_path):
    folder = shutil.copytree(args.model_path, tmp_path / "own-code")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    args.framework, args.model_path = "fschat", str(folder)
    with pytest.raises(UsageError, match="brings its own code"):
        make_generator(args)


def test_vllm_is_asked_for_greedy_answers_to_prompts_with_one_bos(args, monkeypatch):
    """The contract with vLLM's documented interface; tests/test_vllm.py runs the library itself."""
    made, sampled = {}, {}

    class Engine:
        def __init__(self, model, **settings):
            made.update(settings, model=model)

        def generate(self, inputs, sampling):
            made.setdefault("inputs", []).extend(inputs)
            return [SimpleNamespace(outputs=[SimpleNamespace(text=f" answer {i} ")]) for i in range(len(inputs))]

    fake = ModuleType("vllm")
    fake.__spec__ = ModuleSpec("vllm", None)
    fake.LLM, fake.SamplingParams = Engine, lambda **settings: sampled.update(settings)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    args.framework, args.stop = "vllm", ["\n"]
    prompts = [chat(2), chat(1), "plain"]  # longest first, as they are asked
    generator = make_generator(args)
    assert generator.generate(prompts) == ["answer 0", "answer 1", "answer 2"]
    assert made["max_model_len"] == args.max_input_tokens + args.max_tokens
    assert (sampled["temperature"], sampled["max_tokens"], sampled["stop"]) == (0, args.max_tokens, ["\n"])
    for asked, prompt in zip(made["inputs"], prompts, strict=True):
        assert asked == {"prompt_token_ids": token_ids(generator.tokenizer, prompt)}
        assert asked["prompt_token_ids"].count(generator.tokenizer.bos_token_id) == 1
    assert generator.generate(prompts) == ["answer 0", "answer 1", "answer 2"]
    assert len(made["inputs"]) == 3


def test_an_unknown_quantisation_is_told(args):
    args.quantization = "2bit"
    with pytest.raises(UsageError, match="none of none, 4bit, 8bit"):
        make_generator(args)


def test_one_bos_with_and_without_a_chat_template(args):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model_path)
    for prompt in (chat(1), "plain"):
        assert token_ids(tokenizer, prompt).count(tokenizer.bos_token_id) == 1
        assert token_ids(tokenizer, prompt)[0] == tokenizer.bos_token_id
    tokenizer.chat_template = None
    assert token_ids(tokenizer, chat(1)).count(tokenizer.bos_token_id) == 1


def test_openai_answers_come_in_order_and_are_asked_once(args, llm_server):
    server = llm_server(0.02)
    args.framework, args.base_url = "openai", server.base_url
    prompts = [chat(i) for i in range(1, 12)] + ["a completion", chat(1)]
    answers = make_generator(args).generate(prompts)
    assert answers[3] == "because of question 4"
    assert answers[-2:] == ["because of a completion", answers[0]]
    assert make_generator(args).generate(prompts) == answers
    stats = server.stats()
    assert set(stats["seen"].values()) == {1}
    assert 2 <= stats["most_open"] <= 4


def test_openai_keeps_answers_when_a_request_fails_and_takes_empty_ones(args, llm_server):
    server = llm_server()
    args.framework, args.base_url = "openai", server.base_url
    with pytest.raises(UsageError, match=r"1 of 3 requests failed \(400"):
        make_generator(args).generate(["one", "[status 400]", "[empty]"])
    answers = make_generator(args).generate(["one", "[empty]", "[filter]", "[cut] x"])
    assert answers[1:] == ["", "", "because of [cut] x"]
    assert server.stats()["seen"]["one"] == 1


def test_the_key_reaches_no_file(args, llm_server, tmp_path):
    args.framework, args.base_url, args.api_key = "openai", llm_server().base_url, "canary-99"
    make_generator(args).generate(["one"])
    assert all(b"canary-99" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_unknown_framework_and_missing_library_are_told(args):
    args.framework = "tgi"
    with pytest.raises(UsageError, match="none of openai, hf, vllm"):
        make_generator(args)
    pytest.importorskip("torch")
    args.framework = "vllm"
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match="requirements/gpu.txt"):
            make_generator(args)


@pytest.mark.slow
@pytest.mark.long
def test_the_same_model_answers_alike_through_transformers_and_through_a_server(args, tmp_path):
    """SmolLM2 for real: llama.cpp computes with 4-bit weights, transformers with the same ones multiplied out."""
    from quickstart.models import smollm_path, unquantised
    from quickstart.server import running_server

    unquantised(smollm_path(), tmp_path / "smollm2-135m")
    args.model_path, args.max_tokens, args.stop, args.max_input_tokens = str(tmp_path / "smollm2-135m"), 8, ["\n"], 1500
    facts = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo", "Spain": "Madrid"}
    completions = [f"Question: what is the capital of {country}\nAnswer:" for country in facts]
    prompts = [f"Question: what is the capital of peru\nAnswer: Lima\n\n{text}" for text in completions]
    prompts += [[{"role": "user", "content": f"What is the capital of {country}? One word."}] for country in facts]
    with_hf = make_generator(args).generate(prompts)
    with running_server() as url:
        args.framework, args.base_url, args.timeout = "openai", url, 120.0
        served = make_generator(args).generate(prompts)
    assert with_hf[:5] == served[:5] == list(facts.values())
    assert sum(a == b for a, b in zip(with_hf, served, strict=True)) >= 8


def copied(args, tmp_path, template, tokens=(), special=()):
    """A copy of the model with another chat template and tokens of its own."""
    from transformers import AutoTokenizer

    folder = shutil.copytree(args.model_path, tmp_path / "copy")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_tokens(list(special), special_tokens=True)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    args.model_path = str(folder)
    return tokenizer


USERS = "{% for m in messages %}{% if m['role'] == 'user' %}<user> {{ m['content'] | trim }}\n{% endif %}{% endfor %}"
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


@pytest.mark.parametrize("template", [REFUSES + USERS, USERS], ids=["refused", "left out"])
def test_a_template_without_a_system_role_gets_the_text_in_the_users_message_and_says_so_once(
    args, tmp_path, capsys, template
):
    copied(args, tmp_path, template)
    generator = make_generator(args)
    for i in (1, 2):
        assert generator.tokenizer.decode(generator._ids(chat(i))) == f"< user > {'be brief ' * i}question {i}"
    assert capsys.readouterr().err.count("takes no system message: its text begins the user's") == 1
    assert len(generator.generate([chat(1), chat(2)])) == 2


@pytest.mark.parametrize("template", ["{{ raise_exception('no tools') }}", "{% if %}", "{{ messages[9]['x'] + 1 }}"])
def test_a_template_that_fails_is_told(args, tmp_path, template):
    copied(args, tmp_path, template)
    with pytest.raises(UsageError, match="the chat template of .*copy cannot write a prompt"):
        make_generator(args).generate([chat(1)])


def answering(generator, *texts):
    """Let the model answer with these texts, in the order of the prompts; shorter ones end with the end token."""
    import torch

    ids = [generator.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    longest, end = max(map(len, ids)), generator.tokenizer.eos_token_id
    new = torch.tensor([part + [end] * (longest - len(part)) for part in ids])
    generator.model.generate = lambda input_ids, **_: torch.cat([input_ids, new], dim=1)


@pytest.mark.parametrize(
    ("opening", "closing", "special"),
    [("<think>", "</think>", False), ("[THINK]", "[/THINK]", True),
     ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", True)],
)  # fmt: skip
def test_local_answers_come_without_thoughts_and_are_counted(args, tmp_path, capsys, opening, closing, special):
    marks = ["<|channel|>", "<|message|>"] if "|" in opening else [opening, closing]
    copied(args, tmp_path, None, *((), marks) if special else (marks,))
    args.framework, args.max_tokens, args.generator_batch_size = "hf", 12, 9
    generator = make_generator(args)
    long = "paris " * 20
    answering(generator, f"{opening} lyon ? {closing} paris", f"{opening} {long}"[: len(opening) + 60], "paris", "")
    prompts = [f"{i} is a prompt " + "word " * (9 - i) for i in range(4)]
    assert generator.generate(prompts) == ["paris", "", "paris", ""]
    assert generator.facts == {"empty answers": 2, "cut-off answers": 1}
    assert "of 4 answers, 2 are empty and 1 were cut off" in capsys.readouterr().out
    again = make_generator(args)
    again.model.generate = None
    assert again.generate(prompts) == ["paris", "", "paris", ""], "the journal has them"


def test_thoughts_that_the_chat_template_opens_are_no_answer(args, tmp_path):
    from conftest import CHAT_TEMPLATE

    copied(args, tmp_path, CHAT_TEMPLATE + "<think>\n", ["<think>", "</think>"])
    generator = make_generator(args)
    answering(generator, "lyon ? </think> paris", "lyon or")
    assert generator.generate([chat(3), chat(1)]) == ["paris", ""]
    assert generator.facts == {"empty answers": 1, "cut-off answers": 1}


def test_a_local_answer_that_reaches_max_tokens_is_cut_off_and_one_that_ends_is_not(args):
    args.generator_batch_size = 9
    generator = make_generator(args)
    answering(generator, "one two three four five six seven eight", "one two three four five six seven", "one. two")
    generator._args.stop = ["."]
    prompts = [f"{i} is a prompt " + "word " * (9 - i) for i in range(3)]
    assert generator.generate(prompts)[2] == "one"
    assert generator.facts == {"empty answers": 0, "cut-off answers": 1}


def test_an_answer_that_vllm_cuts_off_is_counted(args, monkeypatch):
    texts = iter([("<think>lyon", "length"), ("lyon?</think> paris", "stop"), ("paris is", "length")])

    class Engine:
        def __init__(self, *_, **__):
            pass

        def generate(self, inputs, sampling):
            found = [next(texts) for _ in inputs]
            return [SimpleNamespace(outputs=[SimpleNamespace(text=t, finish_reason=why)]) for t, why in found]

    fake = ModuleType("vllm")
    fake.__spec__ = ModuleSpec("vllm", None)
    fake.LLM, fake.SamplingParams = Engine, lambda **settings: settings
    monkeypatch.setitem(sys.modules, "vllm", fake)
    args.framework = "vllm"
    generator = make_generator(args)
    assert generator.generate([chat(3), chat(2), chat(1)]) == ["", "paris", "paris is"]
    assert generator.facts == {"empty answers": 1, "cut-off answers": 2}
