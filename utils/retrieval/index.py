"""A Flat index of a corpus: encoded shard by shard, joined into one file, never whole in memory."""

from __future__ import annotations

import argparse
import functools
import io
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.config import UsageError, without_secrets
from utils.devices import model_dimension
from utils.ray_engine import make_engine
from utils.retrieval.embedding_files import EmbeddingFile, encode_files, prepare_folder
from utils.retrieval.encoder import TextEncoder
from utils.store.files import atomic, locked, remove_torn, require_space
from utils.store.jsonlines import parse_lines, parse_row
from utils.store.manifest import Phase
from utils.store.rows import Passage

INDEX_SETTINGS = ("retrieval_method", "retrieval_pooling_method", "index_max_length")
STORAGE: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
ENCODE_AT_ONCE = 8192  # passages sorted by length together, so that batches hold little padding


def build_index(corpus: str, output: Path, args: argparse.Namespace) -> None:
    """Encode ``corpus`` and write ``output``, going on from the shards that an earlier call left.

    Args:
        corpus: JSON lines of `utils.store.rows.Passage`.
        output: the index file; its manifest tells with which encoder it must be searched.
        args: the ``retrieval`` and ``index`` sections' settings.

    Raises:
        UsageError: an unknown storage, a missing corpus, a bad line, or too small a disk.
    """
    if args.index_storage not in STORAGE:
        raise UsageError(f"--index_storage {args.index_storage!r} is none of {', '.join(STORAGE)}")
    if not Path(corpus).is_file():
        fault = "is a folder, not a file" if Path(corpus).is_dir() else "is missing"
        raise UsageError(f"corpus {corpus} {fault}; give --corpus_path (JSON lines {{id, contents}})")
    settings = {key: getattr(args, key) for key in INDEX_SETTINGS}
    settings["index_use_fp16"] = args.use_fp16  # the name in the manifests of older indexes, which stay valid
    if args.index_storage != "fp32":  # unmentioned otherwise: the manifests of older indexes do not have it
        settings["index_storage"] = args.index_storage
    folder = output.with_name(f"{output.name}.shards")
    phase = Phase(output, [corpus, args.retriever_path], settings, scratch=[folder])
    if phase.is_done(args.overwrite):
        return
    with locked(folder):
        remove_torn(output)
        with open(corpus, "rb") as lines:
            blocks = corpus_blocks(lines, args.index_shard_size)
        size = sum(block.passages for block in blocks)
        prepare_folder(folder, f"{phase.key} {args.index_shard_size}")
        files = [
            EmbeddingFile(folder / f"{number:05d}.npy", [(block.passages, block) for block in part])
            for number, part in groupby(blocks, lambda block: block.shard)
        ]
        dimension = model_dimension(args.retriever_path)
        width = STORAGE[args.index_storage].itemsize * dimension
        left = sum(file.rows for file in files if not file.path.exists())
        require_space(folder, width * (size + left), f"{output} and its shards")
        run = make_engine(args).start(functools.partial(PassageWork, corpus, without_secrets(args), size))
        encode_files(files, run, "encode", "passage")
        rows = join_shards([file.path for file in files], dimension, output, args.index_storage)
        phase.finish(rows, facts={"dimension": dimension})
        shutil.rmtree(folder)


def passage_prefix(method: str) -> str:
    """FlashRAG's text before every passage, by the method's name: ``passage: `` for e5."""
    from utils.retrieval.flashrag_parts import set_default_instruction

    return set_default_instruction(method, is_query=False)


@dataclass(frozen=True)
class Block:
    """Consecutive lines of a corpus that are encoded together.

    Attributes:
        shard: number of the shard that they belong to.
        start: place of their first byte.
        size: bytes.
        line: number of the first, from 1.
        passages: lines that are not blank.
    """

    shard: int
    start: int
    size: int
    line: int
    passages: int


def corpus_blocks(lines: Iterable[bytes], shard_size: int) -> list[Block]:
    """The blocks of a corpus's lines, of `ENCODE_AT_ONCE` passages or what is left of a shard."""
    blocks: list[Block] = []
    start = end = passages = done = 0
    line = first = 1

    def close() -> None:
        nonlocal start, passages, first
        if passages:
            blocks.append(Block((done - 1) // shard_size, start, end - start, first, passages))
        start, passages, first = end, 0, line

    for text in lines:
        end += len(text)
        line += 1
        if not text.isspace():
            passages += 1
            done += 1
        if passages == ENCODE_AT_ONCE or (passages and done % shard_size == 0):
            close()
    close()
    return blocks


class PassageWork:
    """A worker that encodes blocks of a corpus.

    Args:
        corpus: the file, which every worker can read.
        args: the ``retrieval`` and ``index`` sections' settings.
        texts: about how many will be encoded, by all workers.
    """

    def __init__(self, corpus: str, args: argparse.Namespace, texts: int) -> None:
        self._corpus = corpus
        self._batch_size, self._dtype = args.index_batch_size, STORAGE[args.index_storage]
        self._encoder = TextEncoder(
            args.retriever_path,
            args.index_max_length,
            args.retrieval_pooling_method,
            half=args.use_fp16,
            prefix=passage_prefix(args.retrieval_method),
            trust=args.retriever_path in args.trust_remote_code,
            texts=texts,
        )

    def __call__(self, block: Block) -> NDArray[Any]:
        """The block's vectors, as they are stored."""
        with open(self._corpus, "rb") as file:
            file.seek(block.start)
            lines = io.BytesIO(file.read(block.size))
        texts = [
            parse_row(raw, Passage, f"{self._corpus}:{number}").contents
            for number, _, _, raw in parse_lines(lines, self._corpus, first=block.line)
        ]
        return self._encoder.encode(texts, self._batch_size).astype(self._dtype)


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
