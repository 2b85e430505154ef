"""What a server says, and what a model thinks, beside the answer; and requests as the setting ``request`` has them."""

import doctest

import pytest

import utils.llm.types
from utils.llm.cost import Budget, forecast
from utils.llm.types import NO_LIMIT, Server, UnusableError, answer_in, most_tokens, read_completion, refused, request

THOUGHTS = [
    "<think>Lyon?</think>{}",
    "<think>\n\n</think>\n\n{}\n",
    "Lyon? No.\n</think>\n{}",  # the chat template has opened the thoughts
    "<think>Lyon? <think> marks thoughts, </think> ends them.</think>{}",
    "<think>Lyon?</think>Wait.<think>Nice?</think>{}",
    "<thinking>Lyon?</thinking>{}",
    "<THOUGHT>Lyon?</THOUGHT>{}",
    "<reasoning>Lyon?\n</reasoning>\n<answer>{}</answer>",
    "<think>Lyon?</think>\n<answer>\n{}\n</answer>\n",
    "<seed:think>Lyon?</seed:think>{}",
    "[THINK]Lyon?[/THINK]{}",
    "◁think▷Lyon?◁/think▷{}",
    "<|START_THINKING|>Lyon?<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "<|begin_of_thought|>Lyon?<|end_of_thought|>\n\n<|begin_of_solution|>{}<|end_of_solution|>",
    "<|inner_prefix|>Lyon?<|inner_suffix|>{}",
    "<|channel|>analysis<|message|>Lyon?<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "<|channel|>analysis<|message|>Lyon?<|end|><|start|>assistant<|channel|>commentary<|message|>Hm.<|end|>"
    "<|start|>assistant<|channel|>final <|constrain|>text<|message|>{}",
    "analysisThe user asks for Lyon?assistantfinal{}",  # the same with its special tokens taken out
    "<|channel>thought\nLyon?<channel|>{}",
    "Here is my thought process: Lyon? Here is my response: {}",
]


@pytest.mark.parametrize("layout", THOUGHTS)
@pytest.mark.parametrize("answer", ["Paris", "B", "In Paris.\nBecause <b>the</b> capital is there."])
def test_an_answer_is_what_follows_the_thoughts(layout, answer):
    assert answer_in(layout.format(answer)).strip() == answer


@pytest.mark.parametrize("layout", THOUGHTS)
def test_thoughts_without_an_answer_are_none(layout):
    assert not answer_in(layout.format("")).strip()


@pytest.mark.parametrize(
    "text",
    ["<think>Lyon", "\n<think>\n", "[THINK]Lyon", "<|channel|>analysis<|message|>Lyon", "<think>a</think>b<think>c",
     "◁think▷", "<|channel>thought\nLyon", "Here's my thought process: Lyon", "Okay. <thinking>Lyon"],
)  # fmt: skip
def test_a_text_that_ends_within_thoughts_has_no_answer(text):
    assert answer_in(text) is None


@pytest.mark.parametrize(
    "text",
    ["", " Paris\n", "I think so.", "a <b>bold</b> thought", "The reasoning: x", "analysis of Paris", "x < y [1] > z",
     "<answer>Paris</answer>", "Here is my response: Paris", "the final channel", "<s>Paris</s>"],
)  # fmt: skip
def test_a_text_without_thoughts_stays_as_it_is(text):
    assert answer_in(text) == text


def test_an_answer_before_the_thoughts_is_kept_where_none_follows():
    assert answer_in("Paris.<think>Right.</think>\n") == "Paris."


def test_the_docstrings_examples_run():
    assert doctest.testmod(utils.llm.types).failed == 0


def body(content, finish="stop", **more):
    return {"choices": [{"message": {"content": content, **more}, "finish_reason": finish}]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "Pa"}, {"type": "text", "text": "ris"}], "Paris"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "Lyon?"}]}, {"type": "text", "text": "Paris"}],
         "Paris"),
        ([{"type": "reasoning", "text": "Lyon?"}, {"type": "output_text", "text": "Paris"}], "Paris"),
        ([{"type": "reasoning.text", "text": "Lyon?"}, {"type": "text", "text": "Paris"}], "Paris"),
        (["Pa", {"text": "ris"}], "Paris"),
        ([], ""),
    ],
)  # fmt: skip
def test_content_in_parts_is_joined_without_its_thoughts(content, text):
    assert read_completion(body(content), accept_any=True)["text"] == text


@pytest.mark.parametrize("content", [[1], [{"type": "text"}], [{"type": "text", "text": 1}], [["x"]]])
def test_parts_that_are_no_text_are_told(content):
    with pytest.raises(UnusableError, match=r"field 'choices.0.message.content'"):
        read_completion(body(content), accept_any=True)


@pytest.mark.parametrize(
    "said",
    [body(None, "length", reasoning_content="Lyon"), body("", "length"), body("<think>Lyon", "length"),
     body("<think>Lyon", "stop"), body("<think>Lyon", None), body(None, "max_tokens"), body(None, "MAX_TOKENS"),
     body([{"type": "thinking", "thinking": []}], "length"), body("<think>Lyon</think>", "length")],
)  # fmt: skip
def test_cut_off_while_reasoning_names_the_setting_and_is_not_asked_again(said):
    with pytest.raises(UnusableError, match="cut off at max_tokens while reasoning.*--max_tokens is too small") as told:
        read_completion(said, accept_any=False)
    assert not told.value.retry


def test_thoughts_alone_are_an_empty_answer_which_another_try_may_fill():
    with pytest.raises(UnusableError, match="empty answer after reasoning") as told:
        read_completion(body("<think>Lyon</think>\n"), accept_any=False)
    assert told.value.retry


def test_a_cut_off_answer_names_the_setting():
    with pytest.raises(UnusableError, match="cut off at max_tokens: --max_tokens is too small") as told:
        read_completion(body("<think>Lyon?</think>Paris is", "length"), accept_any=False)
    assert not told.value.retry


def test_changes_leave_out_add_and_replace_fields():
    ours = {"temperature": 0.2, "max_tokens": 9, "seed": 1}
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    changes = {"seed": None, "max_tokens": None, "max_completion_tokens": 7, "temperature": 1, "top_p": None, **extra}
    found = request("m", "x", ["\n"], changes, **ours)
    assert found.body == {
        "model": "m", "prompt": "x", "stop": ["\n"], "temperature": 1, "max_completion_tokens": 7, **extra
    }  # fmt: skip
    assert request("m", "x", ["\n"], {"stop": None}, **ours).body == {"model": "m", "prompt": "x", **ours}
    assert found.key != request("m", "x", ["\n"], **ours).key


def test_one_answer_is_asked_for_only_if_that_is_set():
    plain = request("m", "x", n=1, max_tokens=9)
    assert "n" not in plain.body
    assert request("m", "x", changes={"n": 1}, n=1, max_tokens=9).body["n"] == 1
    assert request("m", "x", changes={"n": 3}, n=1, max_tokens=9).body["n"] == 3
    assert plain.key == request("m", "x", changes={"n": 1}, n=1, max_tokens=9).key, "which is the same question"


@pytest.mark.parametrize(
    ("changes", "most"),
    [({}, 9), ({"max_tokens": None, "max_completion_tokens": 70}, 70), ({"max_completion_tokens": 70}, 70),
     ({"max_tokens": None, "max_output_tokens": 5}, 5), ({"max_tokens": 11}, 11), ({"n": 2}, 18), ({"n": "x"}, 9),
     ({"max_tokens": None}, NO_LIMIT)],
)  # fmt: skip
def test_the_most_tokens_are_known_whatever_the_field_is_called(changes, most, tmp_path):
    asked = request("m", "x" * 40, changes=changes, max_tokens=9)
    assert most_tokens([asked]) == (10, most)
    told = forecast([asked], tmp_path / "none", (), Server(None, None, 1.0, 0, 1), Budget((1.0, 1e6)))
    assert f"10 in, {most if most < NO_LIMIT else 'no limit'} out (at most" in told
    assert (f"cost: ${most}.00" if most < NO_LIMIT else "cost: unknown") in told


@pytest.mark.parametrize(
    ("status", "said", "setting"),
    [
        (400, "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'.",
         '--request \'{"max_tokens": null, "max_completion_tokens": 1000}\''),
        (400, "Unsupported value: 'temperature' does not support 0.2 with this model", '\'{"temperature": null}\''),
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"]}]}, '\'{"seed": null}\''),
        (400, 'Invalid JSON payload received. Unknown name "n": Cannot find field.', '\'{"n": null}\''),
        (400, "`temperature` and `top_p` cannot both be specified", '\'{"temperature": null, "top_p": null}\''),
        (422, "Extra inputs are not permitted", '\'{"FIELD": null}\''),
        (400, "System role not supported", "prompts.rag_user may hold {reference}"),
        (500, "System role not supported", "a blank system prompt is not sent"),
        (400, "Developer instruction is not enabled for models/gemma-3-27b-it", "a blank system prompt is not sent"),
        (400, "Conversation roles must alternate user/assistant/user/assistant/...", "prompts.rag_user may hold"),
    ],
)  # fmt: skip
def test_the_refusal_of_a_field_names_the_setting(status, said, setting):
    assert setting in refused(status, said)


@pytest.mark.parametrize(
    ("status", "said"),
    [(400, "scripted 400"), (402, "more credits, or fewer max_tokens"), (429, "tokens per minute: lower max_tokens"),
     (400, "max_tokens is too large: 5000"), (400, "the maximum context length is 4096 tokens, max_tokens 512"),
     (400, "unknown model 'x'"), (400, "the system prompt is too long"), (500, "unknown error"),
     (400, "flagged by the moderation")],
)  # fmt: skip
def test_other_errors_do_not(status, said):
    assert refused(status, said) == ""
