"""Build a corpus's Flat index, encoded shard by shard and never whole in memory, or its BM25 index."""

from __future__ import annotations

import argparse
import functools
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.config import UsageError, settings_of, without_secrets
from utils.devices import model_dimension
from utils.ray_engine import start_workers
from utils.retrieval.corpus import Corpus, read_corpus
from utils.retrieval.encoder import encode_files, pooling_method, prepare_folder, retriever_encoder
from utils.store.files import atomic, locked, remove_torn, require_file, require_space
from utils.store.jsonlines import fault_handler
from utils.store.manifest import Phase

STORAGE: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
BATCHES_AT_ONCE = 32  # their passages are sorted by length together, so that a batch holds little padding


def build_bm25_index(path: str, output: Path, args: argparse.Namespace) -> None:
    """Write the folder ``output`` of bm25s as FlashRAG's index builder does, with all of the corpus in memory."""
    import bm25s

    from utils.retrieval.retrievers import bm25_tokenizer

    require_file(path, "corpus", "give --corpus_path (JSON lines {id, contents})")
    phase = Phase(output, [path], settings_of(args, "retrieval_method"), folder=True)
    if phase.is_done(args.overwrite):
        return
    aside = output.with_name(f"{output.name}.part")
    with locked(aside):
        dropped = Counter[str]() if args.skip_bad_rows else None
        corpus = read_corpus(path, fault_handler(dropped))
        tokenizer, index = bm25_tokenizer(next(iter(corpus)).contents), bm25s.BM25()
        index.index(tokenizer.tokenize([passage.contents for passage in corpus], return_as="tuple"))
        shutil.rmtree(aside, ignore_errors=True)
        index.save(aside)
        tokenizer.save_vocab(aside)
        tokenizer.save_stopwords(aside)
        shutil.rmtree(output, ignore_errors=True)
        aside.rename(output)
        phase.finish(len(corpus), dropped)


def build_index(path: str, output: Path, args: argparse.Namespace) -> None:
    """Encode the corpus at ``path`` and write the index ``output``; shards that a killed call finished are used."""
    if args.index_storage not in STORAGE:
        raise UsageError(f"--index_storage {args.index_storage!r} is none of {', '.join(STORAGE)}")
    require_file(path, "corpus", "give --corpus_path (JSON lines {id, contents})")
    settings = settings_of(args, "retrieval_method", "index_max_length")
    pooling = pooling_method(args.retriever_path, args.retrieval_pooling_method, "retrieval_pooling_method")
    settings["retrieval_pooling_method"] = pooling
    # The old name of the key, and no key for fp32: so manifests of older indexes still match.
    settings |= {"index_use_fp16": args.use_fp16}
    if args.index_storage != "fp32":
        settings["index_storage"] = args.index_storage
    folder = output.with_name(f"{output.name}.shards")
    phase = Phase(output, [path, args.retriever_path], settings, scratch=[folder])
    if phase.is_done(args.overwrite):
        return
    with locked(folder):
        remove_torn(output)
        prepare_folder(folder, f"{phase.key} {args.index_shard_size}")
        dropped = Counter[str]() if args.skip_bad_rows else None
        dimension, corpus = model_dimension(args.retriever_path), read_corpus(path, fault_handler(dropped))
        parts = corpus.split(args.index_shard_size)
        block = BATCHES_AT_ONCE * args.index_batch_size
        shards = {folder / f"{number:05d}.npy": part.split(block) for number, part in enumerate(parts)}
        # The index and its shards are on the disk together: 2 x 65 GB for wiki18.
        size = len(corpus) * dimension * STORAGE[args.index_storage].itemsize
        encoded = sum(path.stat().st_size for path in shards if path.exists())
        require_space(folder, 2 * size - encoded, f"{output} and its shards")
        encode = start_workers(args, functools.partial(encode_worker, without_secrets(args), len(corpus)))
        encode_files(shards, encode, "encode", "passage")
        rows = join_shards(list(shards), dimension, output, args.index_storage)
        phase.finish(rows, dropped, facts={"dimension": dimension})
        shutil.rmtree(folder)


def encode_worker(args: argparse.Namespace, texts: int) -> Callable[[Corpus], NDArray[Any]]:
    """Load the encoder, for about ``texts`` passages over all workers, and return the function that encodes some."""
    from utils.retrieval.retrievers import set_default_instruction

    prefix = set_default_instruction(args.retrieval_method, is_query=False)  # "passage: " for e5
    encoder = retriever_encoder(args, args.index_max_length, prefix, texts)

    def encode(rows: Corpus) -> NDArray[Any]:
        texts = [passage.contents for passage in rows]
        return encoder.encode(texts, args.index_batch_size).astype(STORAGE[args.index_storage])

    return encode


def join_shards(paths: list[Path], dimension: int, output: Path, storage: str) -> int:
    """Write the rows of ``.npy`` files as one faiss Flat index with inner product, and return their number.

    faiss would hold all vectors in memory, 65 GB for wiki18. Its file is a header and the rows, so that copying the
    rows behind the right header gives the same bytes.
    """
    total = sum(len(np.load(path, mmap_mode="r")) for path in paths)
    with atomic(output) as handle:
        handle.write(index_header(dimension, total, storage))
        for path in paths:
            handle.write(np.load(path, mmap_mode="r").astype(STORAGE[storage], copy=False).data)
    return total


def index_header(dimension: int, rows: int, storage: str) -> bytes:
    """Return the bytes before the vectors in faiss's file of an IndexFlatIP, or of the scalar quantizer for fp16."""
    import faiss

    empty: faiss.Index = faiss.IndexFlatIP(dimension)
    if storage == "fp16":
        empty = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    header = bytearray(faiss.serialize_index(empty).tobytes())
    # 4 bytes for the type, 4 for the dimension, 8 for the number of rows, ...; the last 8 are the length of the
    # vectors: in floats for fp32, in bytes for fp16.
    struct.pack_into("<q", header, 8, rows)
    struct.pack_into("<Q", header, len(header) - 8, rows * dimension * (1 if storage == "fp32" else 2))
    return bytes(header)
