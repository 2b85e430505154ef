"""Corpora that are compressed or behind an address."""

import bz2
import gzip

import pytest
from conftest import questions, read_jsonl, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config import UsageError
from utils.retrieval.corpus_file import CorpusFile
from utils.retrieval.index import corpus_blocks


@pytest.mark.parametrize("kind", ["plain", "gz", "bz2", "zst", "address"])
def test_all_kinds_have_the_same_lines_and_bytes(tmp_path, kind):
    import pyarrow

    data = b"".join(b"line %d %s\n" % (i, b"x" * (i % 97)) for i in range(5000))
    path = tmp_path / f"corpus.jsonl{'' if kind in ('plain', 'address') else '.' + kind}"
    packed = {"gz": gzip.compress, "bz2": bz2.compress, "zst": lambda d: pyarrow.compress(d, "zstd", asbytes=True)}
    path.write_bytes(packed.get(kind, bytes)(data))
    file = CorpusFile(path.as_uri() if kind == "address" else str(path))
    assert b"".join(file.lines()) == data
    for start, size in ((0, 10), (7, 100), (90_000, 5000), (20, 30), (len(data) - 3, 3)):
        assert file.read(start, size) == data[start : start + size]


@pytest.mark.parametrize(
    ("path", "said"),
    [("missing.jsonl", "is missing"), (".", "is a folder, not a file"), ("file:///no/such.jsonl", "is missing"),
     ("nothing://x/y", "cannot be reached")],
)  # fmt: skip
def test_what_is_no_file_is_told(path, said):
    with pytest.raises(UsageError, match=said):
        CorpusFile(path)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([b"a\n", b"bcd\n", b"\n", b" \r\n"]), max_size=60), st.integers(1, 9), st.integers(1, 5)
)
def test_blocks_hold_every_passage_once_and_stay_in_their_shard(lines, shard_size, at_once):
    import utils.retrieval.index

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils.retrieval.index, "ENCODE_AT_ONCE", at_once)
        blocks = corpus_blocks(lines, shard_size)
    data, real = b"".join(lines), [(n, line) for n, line in enumerate(lines, 1) if not line.isspace()]
    seen = []
    for block in blocks:
        inside = data[block.start : block.start + block.size].splitlines(keepends=True)
        found = [(n, line) for n, line in enumerate(inside, block.line) if not line.isspace()]
        assert len(found) == block.passages <= at_once
        assert {(len(seen) + i) // shard_size for i in range(len(found))} == {block.shard}
        seen += found
    assert seen == real


@pytest.mark.parametrize("kind", ["gz", "address"])
def test_an_index_of_a_stream_is_searched_with_a_copy_of_the_corpus(kind, corpus, tiny_encoder, run_script, tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(corpus.read_bytes())
    packed = tmp_path / "corpus.jsonl.gz"
    packed.write_bytes(gzip.compress(copy.read_bytes()))
    given = packed if kind == "gz" else copy.as_uri()
    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(3))
    words = ["--retriever_path", tiny_encoder, "--index_path", "own.index"]
    built = run_script("build_index.py", *words, "--corpus_path", given, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    docs = ["dataset_generation.py", "--dataset", "own", "--phase=get_docs", *words]
    refused = run_script(*docs, "--corpus_path", given, cwd=tmp_path)
    assert refused.returncode == 2
    assert "looked up in an uncompressed copy on this machine" in refused.stderr
    found = run_script(*docs, "--corpus_path", "copy.jsonl", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert len(read_jsonl(tmp_path / "dataset/own/train_docs_20000.jsonl")) == 3
