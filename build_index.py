"""Build the index that retrieval searches: a corpus's vectors, or for BM25 its words.

    python build_index.py                                                  (e5-base-v2 over wiki18, on a GPU)
    python build_index.py --corpus_path=mine.jsonl --index_path=indexes/mine_Flat.index
    python build_index.py --corpus_path=mine.jsonl --index_path=indexes/bm25 --retrieval_method=bm25

reads   --corpus_path, JSON lines {id, contents}: all of it is checked before the first passage is encoded
writes  --index_path, a faiss Flat index (inner product) whose row i is the corpus's row i
        INDEX_PATH.shards/ until then: encoded passages, --index_shard_size per file
        for bm25 a folder of the library bm25s, as FlashRAG's index builder makes it

A kill costs at most the unfinished shard. Memory holds one shard and 32 bytes per passage. The file is the one
that FlashRAG's index builder makes with --faiss_type Flat, and FlashRAG reads it. BM25 holds the whole corpus
in memory, and a kill costs all of its work.
"""

from __future__ import annotations

from pathlib import Path

from utils.config import phase_arguments, run_main
from utils.devices import select_devices


def main() -> None:
    """Parse the command line and build the index."""
    args = phase_arguments(__doc__, ["retrieval", "index", "engine"])
    select_devices(args)

    from utils.retrieval.index import build_bm25_index, build_index  # imports torch, which --help need not wait for

    build = build_bm25_index if args.retrieval_method == "bm25" else build_index
    build(args.corpus_path, Path(args.index_path), args)


if __name__ == "__main__":
    run_main(main)
