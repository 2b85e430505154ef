"""A Flat index of a corpus: encoded shard by shard, joined into one file, never whole in memory."""

from __future__ import annotations

import argparse
import itertools
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from utils.config import UsageError
from utils.encoder import TextEncoder
from utils.files import atomic, lock_path, locked, parse_row, read_jsonl, remove_torn, require_space
from utils.manifest import Phase
from utils.rows import Passage

INDEX_SETTINGS = ("retrieval_method", "retrieval_pooling_method", "index_max_length", "index_use_fp16")
STORAGE: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
ENCODE_AT_ONCE = 8192  # passages sorted by length together, so that batches hold little padding
MADE_WITH = "made_with"


def build_index(corpus: Path, output: Path, args: argparse.Namespace) -> None:
    """Encode ``corpus`` and write ``output``, going on from the shards that an earlier call left.

    Args:
        corpus: JSON lines of `utils.rows.Passage`.
        output: the index file; its manifest tells with which encoder it must be searched.
        args: the ``retrieval`` and ``index`` sections' settings.

    Raises:
        UsageError: an unknown storage, a missing corpus, a bad line, or too small a disk.
    """
    if args.index_storage not in STORAGE:
        raise UsageError(f"--index_storage {args.index_storage!r} is none of {', '.join(STORAGE)}")
    if not corpus.is_file():
        fault = "is a folder, not a file" if corpus.is_dir() else "is missing"
        raise UsageError(f"corpus {corpus} {fault}; give --corpus_path (JSON lines {{id, contents}})")
    settings = {key: getattr(args, key) for key in INDEX_SETTINGS}
    if args.index_storage != "fp32":  # unmentioned otherwise: the manifests of older indexes do not have it
        settings["index_storage"] = args.index_storage
    folder = output.with_name(f"{output.name}.shards")
    phase = Phase(output, [corpus, args.retriever_path], settings, scratch=[folder])
    if phase.is_done(args.overwrite):
        return
    with locked(lock_path(folder)):
        folder.mkdir(exist_ok=True)
        remove_torn(output)
        size = corpus_size(corpus)
        _begin_anew_unless(folder, f"{phase.key} {args.index_shard_size}")
        encoder = TextEncoder(
            args.retriever_path,
            args.index_max_length,
            args.retrieval_pooling_method,
            half=args.index_use_fp16,
            prefix=passage_prefix(args.retrieval_method),
            trust=args.retriever_path in args.trust_remote_code,
            texts=size,
        )
        done = len(list(folder.glob("*.npy"))) * args.index_shard_size
        width = STORAGE[args.index_storage].itemsize * encoder.dimension
        require_space(folder, width * (2 * size - min(done, size)), f"{output} and its shards")
        paths = _encode_shards(corpus, size, folder, encoder, args)
        rows = join_shards(paths, encoder.dimension, output, args.index_storage)
        phase.finish(rows, facts={"dimension": encoder.dimension})
        shutil.rmtree(folder)


def passage_prefix(method: str) -> str:
    """FlashRAG's text before every passage, by the method's name: ``passage: `` for e5."""
    from utils.flashrag_parts import set_default_instruction

    return set_default_instruction(method, is_query=False)


def corpus_size(corpus: Path) -> int:
    """Lines that are not blank."""
    with open(corpus, "rb") as lines:
        return sum(not line.isspace() for line in lines)


def _begin_anew_unless(folder: Path, made_with: str) -> None:
    mark = folder / MADE_WITH
    if not mark.exists() or mark.read_text() != made_with:
        shutil.rmtree(folder)
        folder.mkdir()
        mark.write_text(made_with)


def _encode_shards(corpus: Path, size: int, folder: Path, encoder: TextEncoder, args: argparse.Namespace) -> list[Path]:
    lines = read_jsonl(corpus)
    paths: list[Path] = []
    with tqdm(total=size, desc="encode", unit="passage", smoothing=0.05) as bar:
        for number in itertools.count():
            shard = list(itertools.islice(lines, args.index_shard_size))
            if not shard:
                return paths
            paths.append(folder / f"{number:05d}.npy")
            if paths[-1].exists():
                bar.update(len(shard))
                bar.unpause()
                continue
            texts = [parse_row(raw, Passage, f"{corpus}:{line}").contents for line, raw in shard]
            rows = np.empty((len(texts), encoder.dimension), dtype=STORAGE[args.index_storage])
            for start in range(0, len(texts), ENCODE_AT_ONCE):
                part = texts[start : start + ENCODE_AT_ONCE]
                rows[start : start + len(part)] = encoder.encode(part, args.index_batch_size)
                bar.update(len(part))
            with atomic(paths[-1]) as handle:
                np.save(handle, rows)
    return paths


def join_shards(paths: list[Path], dimension: int, output: Path, storage: str = "fp32") -> int:
    """Write the rows of ``.npy`` files as one faiss Flat index with inner product; returns their number.

    faiss adds vectors in memory, 65 GB for wiki18. Its files are a header and the rows, so that the header
    of an empty index with the right counts, and the rows as they come, are the same file.

    Args:
        paths: float arrays of shape ``(any, dimension)``, in the corpus's order.
        dimension: of the vectors.
        output: the index file.
        storage: a key of `STORAGE`.
    """
    total = sum(len(_mapped(path)) for path in paths)
    with atomic(output) as handle:
        handle.write(index_header(dimension, total, storage))
        for block in _blocks(paths):
            handle.write(np.ascontiguousarray(block, dtype=STORAGE[storage]).data)
    return total


def index_header(dimension: int, rows: int, storage: str) -> bytes:
    """What stands before the vectors in the file of an index of so many rows: IndexFlatIP, or its kin in fp16."""
    import faiss

    quantiser = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    empty = faiss.IndexFlatIP(dimension) if storage == "fp32" else faiss.IndexScalarQuantizer(dimension, *quantiser)
    header = bytearray(faiss.serialize_index(empty).tobytes())
    # The kind and the dimension (4 bytes each), rows (8 bytes), ...; at the end (8 bytes) the vectors' floats, or
    # bytes if they are no fp32.
    struct.pack_into("<q", header, 8, rows)
    struct.pack_into("<Q", header, len(header) - 8, rows * dimension * (1 if storage == "fp32" else 2))
    return bytes(header)


def _mapped(path: Path) -> NDArray[Any]:
    return np.load(path, mmap_mode="r")


def _blocks(paths: list[Path]) -> Iterator[NDArray[Any]]:
    for path in paths:
        rows = _mapped(path)
        for start in range(0, len(rows), 65_536):
            yield rows[start : start + 65_536]
