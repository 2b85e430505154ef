"""Small real parts shared by the tests: tiny random models with MiniLM's tokenizer, a corpus, an HTTP LLM."""

import contextlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import traceback
import urllib.request
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import forked
import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two test processes share the cores: a deadline per example would test the machine.
hypothesis.settings.register_profile("radio", deadline=None)
hypothesis.settings.load_profile("radio")
ROOT = Path(__file__).parents[1]
SUBJECTS = ["river", "castle", "engine", "violin", "glacier", "harbour", "comet", "orchard", "tunnel", "lantern"]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def pytest_collection_modifyitems(items):
    """Run the files with the longest tests first, so that two processes end at about the same time."""
    weight = {}
    for item in items:
        here = 2 * (item.get_closest_marker("long") is not None) + (item.get_closest_marker("slow") is not None)
        weight[item.path] = max(weight.get(item.path, 0), here)
    items.sort(key=lambda item: -weight[item.path])


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def disk(monkeypatch):
    """Let every disk have so many bytes left."""
    usage = namedtuple("usage", "total used free")
    return lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, free))


# Their phases start no processes whose words would be lost; in this process FlashRAG and torch load once for all tests.
IN_PROCESS = {
    "build_index.py",
    "dataset_generation.py",
    "import_rationales.py",
    "extras/injection_probe.py",
    "llm_generation.py",
    "mmlu_evaluation.py",
    "run_rag.py",
    "utils/training/finetune.py",
}


@pytest.fixture(scope="session")
def run_script() -> Callable[..., subprocess.CompletedProcess]:
    """Run one of the project's scripts, or a module of it after ``-m``; relative paths are those of ``cwd``."""

    def run(*words: object, cwd: Path, **env: str) -> subprocess.CompletedProcess:
        if words[0] in IN_PROCESS:
            return run_here([str(word) for word in words], cwd, env)
        if words[0] == "-m":
            return forked.run(words, cwd, environment(env))
        return subprocess.run(
            command(words), cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=300
        )

    return run


def run_here(words: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess:
    said, complained = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(complained),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", words)
        for name in os.environ.keys() - environment(env).keys():
            patch.delenv(name)
        for name, value in ({"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "")} | env).items():
            patch.setenv(name, value)
        try:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        except Exception:
            complained.write(traceback.format_exc())
            code = 1
    return subprocess.CompletedProcess(words, code, said.getvalue(), complained.getvalue())


@pytest.fixture(scope="session")
def start_script() -> Callable[..., subprocess.Popen]:
    """Start one of the project's scripts in a process group of its own, to be killed."""

    def start(*words: object, cwd: Path, **env: str) -> subprocess.Popen | forked.Forked:
        if not str(words[0]).endswith(".sh"):
            return forked.Forked(words, cwd, environment(env), os.devnull, os.devnull)
        return subprocess.Popen(
            command(words), cwd=cwd, env=environment(env), stdout=-3, stderr=-3, start_new_session=True
        )

    return start


def command(words: tuple[object, ...]) -> list[str]:
    first, *rest = (str(word) for word in words)
    return ["sh" if first.endswith(".sh") else sys.executable, str(ROOT / first), *rest]


def environment(own: dict[str, str]) -> dict[str, str]:
    known = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"}
    return known | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **own}


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    from quickstart.models import minilm_path

    return AutoTokenizer.from_pretrained(minilm_path())


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory, tokenizer) -> Path:
    """A random 2-layer BERT in a folder."""
    return _save(tmp_path_factory.mktemp("encoder"), tokenizer, "BertModel")


@pytest.fixture(scope="session")
def tiny_reranker(tmp_path_factory, tokenizer) -> Path:
    """A random 2-layer BERT with one label in a folder."""
    return _save(tmp_path_factory.mktemp("reranker"), tokenizer, "BertForSequenceClassification", num_labels=1)


def _save(folder: Path, tokenizer, architecture: str, **kwargs) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        initializer_range=0.3,
        **kwargs,
    )
    getattr(transformers, architecture)(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def unpadded(tokenizer):
    """MiniLM's vocabulary without its special tokens around a text, and without its padding."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    raw = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    raw.no_padding()
    raw.post_processor = TemplateProcessing("[CLS] $A", "[CLS] $A $B", special_tokens=[("[CLS]", 101)])
    return raw


@pytest.fixture(scope="session")
def tiny_decoders(tmp_path_factory, unpadded) -> dict[str, Path]:
    """Random decoders as classifiers with one label, whose tokenizer has an end token and no pad token."""
    import torch
    import transformers

    bare = transformers.PreTrainedTokenizerFast(
        tokenizer_object=unpadded, bos_token="[CLS]", eos_token="[SEP]", model_max_length=512
    )
    bare.model_input_names = ["input_ids", "attention_mask"]
    size = {
        "vocab_size": len(bare), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "intermediate_size": 64, "max_position_embeddings": 512, "initializer_range": 0.3,
        "num_labels": 1, "bos_token_id": 101, "eos_token_id": 102,
    }  # fmt: skip
    folders = {}
    for kind in ("Llama", "Qwen2", "GPT2"):
        torch.manual_seed(0)
        folders[kind] = tmp_path_factory.mktemp(kind)
        config = getattr(transformers, f"{kind}Config")(**size)
        getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folders[kind])
        bare.save_pretrained(folders[kind])
    return folders


def without_tokenizer(model: Path, folder: Path) -> Path:
    """Copy a model's configuration and weights alone."""
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """60 passages, the last two of equal text."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows = [
        {
            "id": f"p{i}",
            "contents": f"The {SUBJECTS[i % 10]} {i}\n" + f"about the {SUBJECTS[i // 7]} number {i} " * (i % 9 + 1),
        }
        for i in range(59)
    ]
    write_jsonl(path, [*rows, {"id": "p59", "contents": rows[58]["contents"]}])
    return path


@pytest.fixture(scope="session")
def index(tmp_path_factory, corpus, tiny_encoder) -> Path:
    """The corpus's Flat index, built by FlashRAG's builder with the published flags: the reference."""
    folder = tmp_path_factory.mktemp("index")
    words = [
        "-m", "flashrag.retriever.index_builder", "--retrieval_method", "e5",
        "--model_path", tiny_encoder, "--corpus_path", corpus, "--save_dir", f"{folder}/",
        "--max_length", "512", "--batch_size", "512", "--pooling_method", "mean", "--faiss_type", "Flat",
    ]  # fmt: skip
    forked.run(words, folder, environment({})).check_returncode()
    return folder / "e5_Flat.index"


@pytest.fixture
def retrieval_args(index, corpus, tiny_encoder) -> SimpleNamespace:
    """The retrieval section's settings over the tiny index."""
    return SimpleNamespace(
        retrieval_method="e5", retriever_path=str(tiny_encoder), index_path=str(index), corpus_path=str(corpus),
        retrieval_batch_size=4, retrieval_query_max_length=64, retrieval_pooling_method="mean",
        use_fp16=True, instruction=None, faiss_gpu=False, faiss_mmap=True, overwrite=False,
        trust_remote_code=[], engine="local", skip_bad_rows=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, tokenizer):
    """A random Llama with a chat template, a BOS, no pad token, and a config that asks for sampling."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("llama-chat-less-name")
    torch.manual_seed(0)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="[CLS]", eos_token="[SEP]", model_max_length=512
    )
    from tokenizers.processors import TemplateProcessing

    fast.backend_tokenizer.post_processor = TemplateProcessing("[CLS] $A", special_tokens=[("[CLS]", 101)])
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, max_position_embeddings=512, bos_token_id=101, eos_token_id=102, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_bytes().splitlines()]


def questions(count: int) -> list[dict]:
    return [
        {"id": f"q{i}", "question": f"where is the {SUBJECTS[i % 10]} number {i}", "golden_answers": [f"number {i}"]}
        for i in range(count)
    ]


@pytest.fixture
def ask(run_script, tmp_path):
    """Run llm_generation.py against a server on ``dataset/own/train.jsonl``, written first if ``rows`` are given."""

    def run(url, *flags, rows=None, **env):
        if rows is not None:
            write_jsonl(tmp_path / "dataset/own/train.jsonl", rows)
        base = ["--dataset", "own", "--base_url", url, "--timeout", "5"]
        return run_script("llm_generation.py", *base, *flags, cwd=tmp_path, **env)

    return run


@pytest.fixture
def llm_server():
    """Start `llm_server.py`; gives ``base_url`` and ``stats()``."""
    started = []

    def start(delay: float = 0.0, *flags: object, **options: object) -> SimpleNamespace:
        words = [f"--delay={delay}", *(f"--{name}={value}" for name, value in options.items()), *flags]
        process = subprocess.Popen(
            [sys.executable, ROOT / "tests/llm_server.py", *words], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"

        def stats() -> dict:
            with urllib.request.urlopen(f"{url}/stats") as reply:
                return json.load(reply)

        return SimpleNamespace(base_url=f"{url}/v1", stats=stats, process=process)

    yield start
    for process in started:
        process.kill()
        process.wait()
