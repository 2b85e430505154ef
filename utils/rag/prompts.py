"""Prompts that always keep the question: passages are trimmed to fit, and their control tokens are broken up."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from utils.config import UsageError
from utils.llm.types import Prompt, chat

# Control tokens of ChatML, Llama 2 and 3, Mistral, Gemma, DeepSeek, GLM, and their relatives.
CONTROL = re.compile(
    r"<(?=[|｜][^|｜<>\n]{1,40}[|｜]>|/?s>|(?:bos|eos|sop)>|(?:start|end)_of_turn>|</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|gMASK\])"
)


def defused(text: str) -> str:
    """Put a blank into what chat models take for control tokens.

    A server reads them in a passage as it does in its own template: a document could end the user's turn and
    begin the system's.
    """
    return CONTROL.sub(lambda found: found[0] + " ", text)


def without_control(tokenizer: Any, text: str) -> str:
    """Put a blank into each of the tokenizer's own control tokens, so that it reads them as words."""
    for token in tokenizer.added_tokens_encoder:
        if token.strip() and token in text:
            text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text


def token_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Tokenise a prompt with one BOS; messages go through the tokenizer's chat template, if it has one."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    if tokenizer.chat_template is None:
        return tokenizer("\n\n".join(message["content"] for message in prompt))["input_ids"]
    text = _templated(tokenizer, prompt)
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has written the special tokens


def _templated(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Write messages by a chat template; one that refuses or leaves out system messages gets their text in the user's.

    Templates are programs that come with models, and raise anything.
    """
    write = functools.partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    texts = [message["content"] for message in messages]
    text, refusal = "", None
    try:
        text = write(messages)
    except Exception as error:
        refusal = error
    if len(messages) > 1 and texts[0].strip() not in text:
        with contextlib.suppress(Exception):
            folded = write([{"role": "user", "content": "\n\n".join(texts)}])
            if refusal or texts[0].strip() in folded:
                _say_folded(tokenizer.name_or_path)
                return folded
    if refusal:
        raise UsageError(
            f"the chat template of {tokenizer.name_or_path} cannot write a prompt ({type(refusal).__name__}: {refusal})"
        )
    return text


@functools.cache
def _say_folded(model: str) -> None:
    """Say once per model where the system text goes."""
    print(f"note: the chat template of {model} takes no system message: its text begins the user's", file=sys.stderr)


def check_prompts(prompts: Mapping[str, str | None]) -> None:
    """Refuse prompts in which the passages would stand nowhere."""
    names = ["rag_completion"] if prompts["rag_completion"] else ["rag_system", "rag_user"]
    if not any("{reference" in (prompts[name] or "") for name in names):
        raise UsageError(f"no passage would reach the LLM: put {{reference}} into prompts.{' or prompts.'.join(names)}")


class RagPrompt:
    """FlashRAG's document layout in our templates.

    FlashRAG's PromptTemplate guesses from the model's path whether it is a chat model, and cuts the middle of a
    long prompt or its question. Here a completion template gives a string, otherwise chat messages are made.
    ``count_tokens`` may be a cautious estimate; ``defuse`` breaks up control tokens in passages and questions.
    """

    def __init__(
        self,
        prompts: dict[str, str | None],
        max_input_tokens: int,
        count_tokens: Callable[[str], int],
        defuse: Callable[[str], str] = defused,
    ) -> None:
        self.prompts, self.max_input_tokens = prompts, max_input_tokens
        self.count_tokens, self.defuse = count_tokens, defuse
        self.trimmed = 0  # prompts with shortened passages

    def build(self, question: str, passages: list[str]) -> Prompt:
        """Build the prompt of one question from ``title, newline, text`` passages, best first; none: closed book."""
        question, passages = self.defuse(question), list(map(self.defuse, passages))
        kept = self._fitting(question, passages)
        self.trimmed += kept != passages
        return self._render(question, kept)

    def _fitting(self, question: str, passages: list[str]) -> list[str]:
        """Shorten the longest passages until the prompt fits."""
        kept = list(passages)
        for _ in range(8):  # characters per token are an estimate, which each round improves
            excess = self._length(question, kept) - self.max_input_tokens
            if excess <= 0 or not any(kept):
                break
            characters = sum(map(len, kept))
            tokens = max(1, self.count_tokens("\n".join(kept)))
            kept = _cut_longest(kept, max(0, characters - int(excess * characters / tokens * 1.1) - 8))
        return kept

    def _length(self, question: str, passages: list[str]) -> int:
        prompt = self._render(question, passages)
        return self.count_tokens(prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt))

    def _render(self, question: str, passages: list[str]) -> Prompt:
        reference = format_reference(passages)
        completion = "rag_completion" if passages else "rag_completion_closed_book"
        if template := self.prompts[completion] or self.prompts["rag_completion"]:
            return template.format(reference=reference, question=question)
        system = self.prompts["rag_system" if passages else "rag_system_closed_book"] or ""
        user = (self.prompts["rag_user"] or "").format(question=question, reference=reference)
        return chat(system.format(reference=reference), user)


def format_reference(passages: list[str]) -> str:
    """Write passages as FlashRAG does: ``Doc 1(Title: first line) rest``, one line per passage."""
    documents = [text.partition("\n") for text in passages]
    return "".join(f"Doc {i}(Title: {title}) {text}\n" for i, (title, _, text) in enumerate(documents, 1))


def _cut_longest(passages: list[str], budget: int) -> list[str]:
    """Cut passages to one common length, so that together they have at most ``budget`` characters."""
    limit, left = 0, budget
    lengths = sorted(map(len, passages))
    for i, length in enumerate(lengths):
        limit = left // (len(lengths) - i)
        if length > limit:
            break
        left -= length
    return [text[:limit] for text in passages]
