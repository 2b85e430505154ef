"""Whatever bytes a file holds, its reader gives rows or a message with a place; never another exception.

Each reader gets random bytes, a sound file with random damage, and lines of random JSON values. Run with ``-s``
to see the counts of docs/reliability.md.
"""

import contextlib
import json
import math
from collections import Counter
from pathlib import Path

import orjson
import pytest
import yaml
from conftest import questions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extras.injection_probe import read_probes
from utils.config import UsageError, load_config
from utils.llm.batch import read_state
from utils.llm.faults import retry_after
from utils.llm.rationales import match_rationales
from utils.llm.types import UnusableError, read_completion
from utils.retrieval.answers import FileReport
from utils.retrieval.corpus import read_corpus
from utils.store.journal import Journal
from utils.store.jsonlines import LineIndex, PassageTexts, parse_row, read_jsonl, read_parquet, read_records, read_rows
from utils.store.manifest import Phase, manifest_path
from utils.store.rows import Candidates, Passage, Question, Rationale, TrainingGroup
from utils.tables.experiment import PaperValues, read_experiment, read_model
from utils.training.groups import fused_rankings, open_cache

ROOT = Path(__file__).parents[1]
EXAMPLES = 300  # of each of the three kinds, for each reader


def lines(rows):
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


QUESTIONS = questions(4)
SCORED = [
    {"id": row["id"], "query": row["question"], "passage_ids": ["a", "b"], "scores": [1.0, 0.5]} for row in QUESTIONS
]
PUBLISHED = [{"query": row["question"], "content": [["text a", 1.0], ["text b", 0.5]]} for row in QUESTIONS]
MADE = {"key": "k", "rows": 1, "command": "c", "settings": {}, "inputs": {}, "output_sha256": "x", "beside": {}}
COMPLETION = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
RATIONALES = [row | {"reason": "because"} for row in QUESTIONS]


def cache(path):
    found = open_cache(path, "reason")
    return list(fused_rankings(found, found, 0.5, Counter(), Counter()))


def checked_as_input(path):
    output = path.with_name("x")
    output.write_text("x")
    Phase(path.with_name("other"), [output], {})
    Phase(output, [], {}).is_done(overwrite=False)


def parquet(rows):
    import io

    import pyarrow
    from pyarrow.parquet import write_table

    buffer = io.BytesIO()
    write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def with_journal(path):
    with Journal(path) as journal:
        journal.append("new", {"text": "x"})
    with Journal(path) as journal:
        assert journal["new"] == {"text": "x"}


READERS = {
    "read_jsonl": (lines(QUESTIONS), lambda path: list(read_jsonl(path))),
    "questions": (lines(QUESTIONS), lambda path: read_rows(path, Question)),
    "questions, bad ones left out": (lines(QUESTIONS), lambda path: read_rows(path, Question, dropped=Counter())),
    "rationales": (lines(RATIONALES), lambda path: read_rows(path, Rationale)),
    "candidates": (
        lines(row | SCORED[0] | {"id": row["id"]} for row in QUESTIONS),
        lambda path: read_rows(path, Candidates),
    ),
    "training groups": (
        lines([{"query": f"q{i}", "pos": ["p"], "neg": ["n"]} for i in range(3)]),
        lambda path: [parse_row(raw, TrainingGroup, f"{path}:{number}") for number, raw in read_jsonl(path)],
    ),
    "passages by id": (
        lines([{"id": "1", "contents": "x"}]),
        lambda path: [PassageTexts(path)[key] for key in LineIndex(path)],
    ),
    "index of lines": (lines(SCORED), lambda path: len(LineIndex(path))),
    "score cache": (lines(SCORED), cache),
    "score cache, published format": (lines(PUBLISHED), cache),
    "check of a dataset": (lines(QUESTIONS), lambda path: list(FileReport(path).sound_rows(Passage))),
    "corpus": (lines([{"id": str(i), "contents": "x"} for i in range(4)]), lambda path: list(read_corpus(path))),
    "records": (json.dumps(RATIONALES).encode(), lambda path: list(read_records(path))),
    "Parquet": (parquet(RATIONALES), lambda path: list(read_parquet(path))),
    "published rationales": (
        lines(RATIONALES),
        lambda path: match_rationales([Question(**row) for row in QUESTIONS], [path], Counter()),
    ),
    "journal": (lines([{"made_with": "74234e98afe7498f"}, {"key": "a", "text": "x"}]), with_journal),
    "manifest": (orjson.dumps(MADE), checked_as_input),
    "state of batches": (
        b'{"name": {"keys": ["a"], "batch": "b", "base_url": null, "most_tokens": [1, 2]}}',
        read_state,
    ),
    "profile": ((ROOT / "profiles/quickstart.yaml").read_bytes(), lambda path: load_config(str(path))),
    "experiment": ((ROOT / "experiments/smoke.yaml").read_bytes(), read_experiment),
    "paper values": (
        (ROOT / "experiments/paper_values.yaml").read_bytes(),
        lambda path: read_model(path, PaperValues),
    ),
    "probes": ((ROOT / "extras/injection.yaml").read_bytes(), read_probes),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw, content):
    """Bytes of ``content`` cut, overwritten, put in, or taken out."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(found)))
        kind = draw(st.sampled_from(["cut", "over", "in", "out"]))
        some = draw(st.binary(min_size=1, max_size=8))
        if kind == "cut":
            del found[at:]
        elif kind == "over":
            found[at : at + len(some)] = some
        elif kind == "in":
            found[at:at] = some
        else:
            del found[at : at + len(some)]
    return bytes(found)


@st.composite
def other_values(draw, content):
    """The sound rows with one value each replaced by any other."""
    rows = []
    for line in content.splitlines():
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            return draw(st.binary(max_size=100))
        if isinstance(row, dict) and row:
            row[draw(st.sampled_from(sorted(row)))] = draw(JSON)
        rows.append(json.dumps(row if draw(st.booleans()) else draw(JSON)).encode())
    return b"\n".join(rows)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.slow
def test_no_file_breaks_its_reader(name, tmp_path):
    content, read = READERS[name]
    counts, places = Counter(), []

    @settings(
        max_examples=3 * EXAMPLES,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.one_of(st.binary(max_size=300), damaged(content), other_values(content)))
    def run(found):
        path = tmp_path / ("x.manifest.json" if name == "manifest" else "file")
        path.unlink(missing_ok=True)
        path.write_bytes(found)
        try:
            read(path)
            counts["read"] += 1
        except UsageError as error:
            counts["refused"] += 1
            places.append(str(path) in str(error))

    run()
    assert all(places)
    print(f"\n{name}: {counts.total()} files, {counts['refused']} refused", end="")
    assert counts["refused"] > 0 or "check" in name  # which counts faults and refuses nothing
    read_sound = tmp_path / ("x.manifest.json" if name == "manifest" else "file")
    read_sound.write_bytes(content)
    if name != "manifest":
        read(read_sound)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=100), damaged(orjson.dumps(COMPLETION)), other_values(orjson.dumps(COMPLETION))))
def test_no_body_of_a_server_breaks_its_reader(body):
    for accept_any in (True, False):
        with contextlib.suppress(UnusableError):
            assert isinstance(read_completion(body, accept_any)["text"], str)


@given(st.text(max_size=30))
def test_no_header_breaks_its_reader(value):
    assert 0 <= retry_after({"retry-after": value}) < math.inf


def test_the_sound_manifest_is_one(tmp_path):
    output = tmp_path / "x"
    output.write_text("1")
    Phase(output, [], {}).finish(1)
    assert MADE.keys() <= orjson.loads(manifest_path(output).read_bytes()).keys()
    assert yaml.safe_load((ROOT / "extras/injection.yaml").read_text())["attacks"]
