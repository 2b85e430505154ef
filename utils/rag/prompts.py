"""Prompts that always keep the question: passages are trimmed to fit, and the trimming is counted."""

from __future__ import annotations

from collections.abc import Callable

from utils.llm.types import Prompt
from utils.rag.control_tokens import defused


class RagPrompt:
    """FlashRAG's document layout in our templates.

    FlashRAG's own PromptTemplate loads a tokenizer to guess from the model's path whether it is a
    chat model, and truncates by cutting the middle or the question. Here the templates decide: a
    completion template gives a string, otherwise chat messages are made.

    Args:
        prompts: the ``prompts`` section.
        max_input_tokens: most tokens of a whole prompt.
        count_tokens: tokens of a text, exact or a cautious estimate.
        defuse: takes the meaning from control tokens, which passages and questions may hold.
    """

    def __init__(
        self,
        prompts: dict[str, str | None],
        max_input_tokens: int,
        count_tokens: Callable[[str], int],
        defuse: Callable[[str], str] = defused,
    ) -> None:
        self.prompts = prompts
        self.max_input_tokens = max_input_tokens
        self.count_tokens = count_tokens
        self.defuse = defuse
        self.trimmed = 0

    def build(self, question: str, passages: list[str]) -> Prompt:
        """The prompt for one question.

        Args:
            question: never cut.
            passages: ``title, newline, text`` each, best first; empty for the closed-book baseline.

        Returns:
            Chat messages, or the completion prompt.
        """
        question, passages = self.defuse(question), [self.defuse(text) for text in passages]
        kept = self._fitting(question, passages)
        self.trimmed += kept != passages
        return self._render(question, kept)

    def _fitting(self, question: str, passages: list[str]) -> list[str]:
        """Shorten the longest passages, evenly, until the prompt fits."""
        kept = list(passages)
        for _ in range(8):  # tokens are not characters: each round halves what the estimate left over
            excess = self._length(question, kept) - self.max_input_tokens
            if excess <= 0 or not any(kept):
                break
            characters = sum(map(len, kept))
            tokens = max(1, self.count_tokens("\n".join(kept)))
            budget = max(0, characters - int(excess * characters / tokens * 1.1) - 8)
            kept = _cut_longest(kept, budget)
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
        return [
            {"role": "system", "content": system.format(reference=reference)},
            {"role": "user", "content": (self.prompts["rag_user"] or "").format(question=question)},
        ]


def format_reference(passages: list[str]) -> str:
    """FlashRAG's layout: ``Doc 1(Title: first line) rest``, a line a passage."""
    documents = [text.partition("\n") for text in passages]
    return "".join(f"Doc {i}(Title: {title}) {text}\n" for i, (title, _, text) in enumerate(documents, 1))


def _cut_longest(passages: list[str], budget: int) -> list[str]:
    """Cut passages to one common length such that all together have at most ``budget`` characters."""
    limit, left = 0, budget
    lengths = sorted(map(len, passages))
    for i, length in enumerate(lengths):
        limit = left // (len(lengths) - i)
        if length > limit:
            break
        left -= length
    return [text[:limit] for text in passages]
