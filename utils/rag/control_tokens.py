"""Passages are data: what a chat model would read as the end of a turn is broken up in them."""

from __future__ import annotations

import re
from typing import Any

# Of ChatML, Llama 2 and 3, Mistral, Gemma, DeepSeek, GLM, and their relatives.
CONTROL = re.compile(
    r"<(?=[|｜][^|｜<>\n]{1,40}[|｜]>|/?s>|(?:bos|eos|sop)>|(?:start|end)_of_turn>|</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|gMASK\])"
)


def defused(text: str) -> str:
    """The text with a blank in what chat models take for control tokens.

    A server reads them in a passage as it does in its own template: a document could end the user's turn and
    begin the system's.
    """
    return CONTROL.sub(lambda found: found[0] + " ", text)


def without_control(tokenizer: Any, text: str) -> str:
    """The text with a blank inside each of the tokenizer's control tokens, so that it reads them as words."""
    for token in tokenizer.added_tokens_encoder:
        if token.strip() and token in text:
            text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text
