"""Encode texts as vectors, and keep the vectors in files that a killed run goes on with."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from utils.config import UsageError
from utils.devices import (
    autocast,
    fitting_length,
    half_precision,
    in_batches,
    load_model,
    load_tokenizer,
    local_model,
    model_file,
    torch_device,
)
from utils.openvino_model import with_openvino
from utils.ray_engine import MapParts
from utils.store.files import atomic, write_file

Embeddings = NDArray[np.float32]  # normalised rows of shape (texts, dimension)
POOLING = ("mean", "cls", "pooler")
# sentence-transformers' names of what is done here; other modules and ways of pooling are named as they are.
DONE_HERE = ("Transformer", "Pooling", "Normalize", "Dropout")
MODES = {
    "cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "weightedmean_tokens": "weightedmean",
    # The division by the square root of the length is undone by the normalisation.
    "mean_sqrt_len_tokens": "mean",
}  # fmt: skip
MADE_WITH = "made_with"  # file in a folder of vectors that says which inputs and settings they belong to


def encoder_family(name: str) -> str:
    """Return the family in a model's name, on which its prefixes depend; bge-m3 needs none, as no other of bge."""
    found = re.search("e5|bge[-_]?m3|bge", name.lower())
    return re.sub("[-_]?m3", "-m3", found[0]) if found else ""


def length_order(texts: Sequence[str]) -> list[int]:
    """Return the texts' indices, longest text first: then the first batch shows whether memory suffices."""
    return sorted(range(len(texts)), key=lambda i: -len(texts[i]))


def encode_distinct(texts: Sequence[str], encode: Callable[[list[str]], Embeddings]) -> Embeddings:
    """Encode each distinct text once: a vector's last digits depend on its batch, and equal texts must be equal."""
    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    rows = encode(list(row_of))
    return rows[[row_of[text] for text in texts]]


class TextEncoder:
    """Any Hugging Face encoder, given by folder or hub id.

    ``prefix``, such as e5's "query: ", is put before each text, and the result is cut at ``max_length`` tokens.
    ``pooling`` is one of `POOLING`, ``half`` is fp16 on a GPU, ``texts`` is about how many texts will be encoded.
    """

    def __init__(
        self,
        path: str,
        max_length: int,
        pooling: str = "mean",
        half: bool = False,
        prefix: str = "",
        trust: bool = False,
        texts: int = 0,
    ) -> None:
        from transformers import AutoModel

        if pooling not in POOLING:
            raise UsageError(f"pooling method {pooling!r} is none of {', '.join(POOLING)}")
        path = local_model(path)
        self.tokenizer: Any = load_tokenizer(path, trust)
        unused = "" if pooling == "pooler" else "pooler."
        self.model: Any = load_model(AutoModel, path, trust, self.tokenizer, unused).to(torch_device())
        self.dimension: int = self.model.config.hidden_size
        self.max_length = fitting_length(max_length, self.tokenizer, self.model.config)
        self.pooling, self.prefix = pooling, prefix
        self._fits = sys.maxsize  # texts at once, as far as is known
        self._half = half_precision() if half else None
        if pooling != "pooler":
            self.model = with_openvino(self.model, self.tokenizer, "last_hidden_state", texts)

    def encode(self, texts: list[str], batch_size: int = 64) -> Embeddings:
        """Encode texts in batches of similar length."""
        return encode_distinct(texts, lambda distinct: self._encode(distinct, batch_size))

    def _encode(self, texts: list[str], batch_size: int) -> Embeddings:
        import torch

        rows = np.empty((len(texts), self.dimension), dtype=np.float32)

        def work(batch: Sequence[int]) -> None:
            words = [self.prefix + texts[i] for i in batch]
            inputs = self.tokenizer(
                words, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
            ).to(self.model.device)
            pooled = self._pooled(self.model(**inputs), inputs["attention_mask"][..., None])
            rows[batch] = torch.nn.functional.normalize(pooled.float(), dim=-1).cpu().numpy()

        with torch.inference_mode(), autocast(self._half):
            self._fits = in_batches(length_order(texts), min(batch_size, self._fits), work)
        return rows

    def _pooled(self, output: Any, mask: Any) -> Any:
        if self.pooling == "pooler":
            return output.pooler_output
        if self.pooling == "cls":
            return output.last_hidden_state[:, 0]
        return output.last_hidden_state.masked_fill(~mask.bool(), 0.0).sum(dim=1) / mask.sum(dim=1)


class BgeM3Encoder:
    """BGE-M3's dense vectors through FlagEmbedding; the arguments are those of `TextEncoder`."""

    def __init__(self, path: str, max_length: int, half: bool = True, texts: int = 0) -> None:
        from FlagEmbedding import BGEM3FlagModel
        from transformers import AutoModel

        path = local_model(path)
        # FlagEmbedding does not tell what was missing.
        load_model(AutoModel, path, False, load_tokenizer(path, trust=False), "pooler.")
        # One device: for several, FlagEmbedding starts a process pool, which needs a main guard in every caller.
        device = torch_device()
        self.model: Any = BGEM3FlagModel(path, use_fp16=half and device == "cuda", devices=device)
        self.max_length = max_length
        inner = self.model.model.model
        del self.model.model.model  # torch lets only a module take a module's place
        self.model.model.model = with_openvino(inner, self.model.tokenizer, "last_hidden_state", texts)

    def encode(self, texts: list[str], batch_size: int = 64) -> Embeddings:
        """Encode texts; FlagEmbedding sorts them by length itself."""
        found = encode_distinct(texts, lambda t: self.model.encode(t, batch_size, self.max_length)["dense_vecs"])
        return np.asarray(found, dtype=np.float32)


def declared_pooling(name: str) -> str | None:
    """Return what a model does after its last layer by sentence-transformers' files, None if it does not tell.

    That is one of `POOLING`, or more than is done here, such as ``lasttoken`` or ``cls + Dense``.
    """
    modules = _declared(name, "modules.json", list) or []
    kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    about = _declared(name, f"{kinds.get('Pooling') or '1_Pooling'}/config.json", dict) or {}
    modes = about.get("pooling_mode") or [
        key.removeprefix("pooling_mode_") for key, chosen in about.items() if key.startswith("pooling_mode_") and chosen
    ]
    steps = [MODES.get(mode, mode) for mode in ([modes] if isinstance(modes, str) else modes)]
    if about.get("include_prompt") is False:
        steps.append("without the prompt")
    return " + ".join([*steps, *(kind for kind in kinds if kind not in DONE_HERE)]) or None


def _declared(name: str, file: str, kind: type) -> Any:
    if (path := model_file(name, file)) is None:
        return None
    with contextlib.suppress(ValueError):
        if isinstance(found := json.loads(path.read_bytes()), kind):
            return found
    raise UsageError(f"{path} is damaged: a JSON {'list' if kind is list else 'object'} is expected")


def pooling_method(name: str, given: str | None, setting: str | None = None) -> str:
    """Return the pooling method of a model: the ``given`` one, else the declared one, else mean.

    With the name of the ``setting``, say where that is not the one to be expected.
    """
    if given and not setting:
        return given
    declared = declared_pooling(name) or given or "mean"
    if not given and declared not in POOLING:
        fault = f"{name} declares the pooling {declared!r}, which is none of {', '.join(POOLING)}"
        raise UsageError(f"{fault}; --retrieval_pooling_method or --scorer_pooling_method takes another all the same")
    if setting and given and given != declared:
        print(f"note: --{setting} {given} is used, although {name} declares {declared}", file=sys.stderr)
    elif setting and declared != "mean" and not given:
        print(f"{name} declares {declared} pooling, which is used; --{setting} chooses another", file=sys.stderr)
    return given or declared


def retriever_encoder(args: argparse.Namespace, max_length: int, prefix: str, texts: int) -> TextEncoder:
    """Load the encoder that the ``retrieval`` section names."""
    path = args.retriever_path
    pooling = pooling_method(path, args.retrieval_pooling_method)
    return TextEncoder(path, max_length, pooling, args.use_fp16, prefix, path in args.trust_remote_code, texts)


def make_scorer(args: argparse.Namespace, texts: int) -> TextEncoder | BgeM3Encoder:
    """Load the encoder of rationale scores that the ``scoring`` section names, for about ``texts`` texts."""
    path, length, half = args.model_path, args.scorer_max_length, args.use_fp16
    if args.scorer == "bge-m3":
        return BgeM3Encoder(path, length, half, texts)
    if args.scorer == "encoder":
        pooling, trust = pooling_method(path, args.scorer_pooling_method), path in args.trust_remote_code
        return TextEncoder(path, length, pooling, half, trust=trust, texts=texts)
    raise UsageError(f"--scorer {args.scorer!r} is neither bge-m3 nor encoder")


def encode_files(files: Mapping[Path, Sequence[Sized]], encode: MapParts, desc: str, unit: str) -> None:
    """Write the ``.npy`` files that are missing, each whole: a kill costs only the unfinished files.

    ``files`` gives for each path the parts whose rows it holds, in order; a part of length n has n rows. ``encode``
    maps parts to their rows. ``desc`` and ``unit`` are shown by the progress bar.
    """
    work = [(path, part) for path, parts in files.items() if not path.exists() for part in parts]
    total = sum(len(part) for parts in files.values() for part in parts)
    left = sum(len(part) for _, part in work)
    done: dict[Path, dict[int, Any]] = defaultdict(dict)
    with tqdm(total=total, initial=total - left, desc=desc, unit=unit, smoothing=0.05) as bar:
        for number, rows in encode(part for _, part in work):
            path, _ = work[number]
            done[path][number] = rows
            bar.update(len(rows))
            if len(done[path]) == len(files[path]):
                with atomic(path) as handle:
                    np.save(handle, np.concatenate([rows for _, rows in sorted(done.pop(path).items())]))


def prepare_folder(folder: Path, made_with: str) -> None:
    """Keep the vectors that an earlier call with the same inputs and settings left; remove all others."""
    mark = folder / MADE_WITH
    if mark.exists() and mark.read_text() == made_with:
        return
    if any(folder.glob("*.npy")):
        shutil.rmtree(folder)
    write_file(mark, made_with)  # makes the folder
