"""A journal is one run's, and a cut costs its last record; tests/test_faults.py damages journals further."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config import UsageError
from utils.store.journal import Journal


@settings(max_examples=60, deadline=None)
@given(data=st.data(), records=st.lists(st.text(max_size=20), max_size=6))
def test_a_journal_cut_at_any_byte_loses_at_most_one_record(tmp_path_factory, data, records):
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    with Journal(path, "settings") as journal:
        for i, text in enumerate(records):
            journal.append(f"k{i}", {"text": text})
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = max(0, whole[:cut].count(b"\n") - 1)
    with Journal(path, "settings") as journal:
        assert list(journal) == [f"k{i}" for i in range(kept)]
        for i, text in enumerate(records[kept:], kept):
            journal.append(f"k{i}", {"text": text})
    assert path.read_bytes() == whole


def test_a_journal_of_other_settings_is_begun_anew_and_that_is_said(tmp_path, capsys):
    with Journal(tmp_path / "j", {"topk": 5}) as journal:
        journal.append("a", {"x": 1})
    with Journal(tmp_path / "j", {"topk": 6}) as journal:
        assert dict(journal) == {}
    assert "begun anew" in capsys.readouterr().err


def test_a_journal_is_one_runs_and_leaves_no_lock_behind(tmp_path):
    path = tmp_path / "new/j.jsonl"
    with Journal(path) as journal:
        journal.append("a", {"x": 1})
        with pytest.raises(UsageError, match=r"j\.jsonl is being written by another run"):
            Journal(path)
    assert os.listdir(path.parent) == ["j.jsonl"]
    path.write_text("no journal\n")
    with pytest.raises(UsageError, match="no journal"):
        Journal(path)
    assert os.listdir(path.parent) == ["j.jsonl"]
    path.unlink()
    with Journal(path) as journal:
        journal.delete()
    assert os.listdir(path.parent) == []
