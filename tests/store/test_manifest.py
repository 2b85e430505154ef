"""A phase and what lies beside its input: changed, mixed or half-made files are refused by name."""

import json
import os
import sys
from pathlib import Path

import pytest
from conftest import questions, write_jsonl

from utils.config import UsageError
from utils.store.files import locked
from utils.store.manifest import WHOLE_FILE_LIMIT, Phase, command_line, commit, digest, fingerprint, machine, processor


def made(path, inputs=(), settings=None, text="x"):
    path.write_text(text)
    Phase(path, inputs, settings or {}).finish(1)
    return path


def test_a_phase_is_done_only_for_the_same_inputs_and_settings(tmp_path, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    source.write_text("1")
    output.write_text("result")
    assert not Phase(output, [source], {"k": 1}).is_done(overwrite=False)
    Phase(output, [source], {"k": 1}).finish(3, {"bad rows": 2, "none": 0})
    assert "3 rows" in capsys.readouterr().out
    assert Phase(output, [source], {"k": 1}).is_done(overwrite=False)
    assert not Phase(output, [source], {"k": 1}).is_done(overwrite=True)
    assert not Phase(output, [source], {"k": 2}).is_done(overwrite=False)
    assert "made with other k" in capsys.readouterr().err
    source.write_text("2")
    assert not Phase(output, [source], {"k": 1}).is_done(overwrite=False)
    manifest = json.loads((tmp_path / "out.manifest.json").read_text())
    assert manifest["dropped"] == {"bad rows": 2}
    assert {"command", "settings", "inputs", "output_sha256", "versions", "seconds"} <= manifest.keys()


def test_an_output_without_rows_is_never_finished(tmp_path):
    output = tmp_path / "out"
    output.write_text("")
    with pytest.raises(UsageError, match=r"out has no rows, so it is not finished; dropped: 4 bad rows"):
        Phase(output, [], {}).finish(0, {"bad rows": 4})
    assert not Phase(output, [], {}).is_done(overwrite=False)
    Phase(output, [], {}).finish(1)
    manifest = tmp_path / "out.manifest.json"
    manifest.write_text(manifest.read_text().replace('"rows": 1', '"rows": 0'))  # of an earlier version
    assert not Phase(output, [], {}).is_done(overwrite=False)


def test_an_input_that_changed_after_it_was_made_is_refused_with_the_command(tmp_path):
    middle = made(tmp_path / "middle")
    Phase(tmp_path / "out", [middle], {})
    middle.write_text("edited by hand")
    with pytest.raises(UsageError, match=r"middle is not what .*middle\.manifest\.json says.* --overwrite"):
        Phase(tmp_path / "out", [middle], {})
    (tmp_path / "middle.manifest.json").unlink()
    Phase(tmp_path / "out", [middle], {})


def test_a_file_that_belongs_to_the_input_is_checked_with_it(tmp_path):
    docs, texts = tmp_path / "docs", tmp_path / "texts"
    docs.write_text("1")
    texts.write_text("2")
    Phase(docs, [], {}).finish(1, beside=[texts])
    Phase(tmp_path / "out", [docs], {})
    texts.write_text("3")
    with pytest.raises(UsageError, match="texts is not what"):
        Phase(tmp_path / "out", [docs], {})


def test_inputs_of_different_origin_are_refused(tmp_path):
    source = tmp_path / "source"
    source.write_text("1")
    first = made(tmp_path / "first", [source])
    source.write_text("2")
    second = made(tmp_path / "second", [source])
    with pytest.raises(UsageError, match="made from another version of .*source than the rest"):
        Phase(tmp_path / "out", [first, second], {})
    with pytest.raises(UsageError, match="first was made from another version of .*source"):
        Phase(tmp_path / "out", [first, source], {})
    Phase(tmp_path / "out", [second, source], {})


def test_an_origin_that_changed_since_is_told_and_no_reason_to_stop(tmp_path, capsys):
    source = tmp_path / "source"
    source.write_text("1")
    middle = made(tmp_path / "middle", [source])
    source.write_text("2")
    Phase(tmp_path / "out", [middle], {})
    assert "source has changed since" in capsys.readouterr().err


def test_a_finished_output_that_was_changed_is_neither_taken_nor_overwritten(tmp_path):
    output = made(tmp_path / "out", [], {"k": 1})
    output.write_text("my own corrections")
    with pytest.raises(UsageError, match="has changed since it was made; --overwrite"):
        Phase(output, [], {"k": 1}).is_done(overwrite=False)
    assert not Phase(output, [], {"k": 1}).is_done(overwrite=True)
    assert output.read_text() == "my own corrections"


def test_an_output_that_is_being_made_is_no_input_yet(tmp_path):
    output = tmp_path / "middle"
    Phase(output, [], {}).claim()
    output.write_text("half")
    assert not Phase(output, [], {}).is_done(overwrite=False)
    with pytest.raises(UsageError, match="the making of .*middle was interrupted; run: "):
        Phase(tmp_path / "out", [output], {})


def test_what_a_kill_left_is_swept_once_the_output_is_found_finished(tmp_path):
    """The kill came between the manifest and the removal; a run that is at work keeps what is its."""
    output, journal, folder = tmp_path / "out.jsonl", tmp_path / "out.journal.jsonl", tmp_path / "out.shards"
    output.write_text("{}")
    phase = Phase(output, [], {}, scratch=[journal, folder, tmp_path / "never made"])
    phase.finish(1)
    folder.mkdir()
    journal.write_text("left")
    (folder / "0.npy").write_text("left")
    with locked(journal), locked(folder):
        assert phase.is_done(overwrite=False)
        assert journal.exists()
        assert folder.exists()
    assert phase.is_done(overwrite=False)
    assert not journal.exists()
    assert not folder.exists()


@pytest.mark.parametrize("folder", [False, True])
def test_a_place_that_the_output_could_not_take_is_refused_before_the_work(tmp_path, folder):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    taken, message = ("file", "a file, but a folder") if folder else ("folder", "a folder, but a file")
    with pytest.raises(UsageError, match=f"{taken} is {message} is to be made there"):
        Phase(tmp_path / taken, [], {}, folder=folder)
    with pytest.raises(UsageError, match=r"file is a file, but a folder is to be made there; .* for .*file/a/b"):
        Phase(tmp_path / "file/a/b", [], {}, folder=folder)
    Phase(tmp_path / "folder/a/b", [], {}, folder=folder)


def test_a_file_that_is_changed_between_two_phases_stops_the_second(run_script, llm_server, tmp_path):
    """Through the scripts: rationales, edited by hand, then scored."""
    write_jsonl(tmp_path / "dataset/own/train.jsonl", questions(3))
    url = llm_server().base_url
    flags = ["--dataset", "own"]
    assert run_script("llm_generation.py", *flags, "--base_url", url, cwd=tmp_path).returncode == 0
    docs = tmp_path / "dataset/own/train_docs_20000.jsonl"
    write_jsonl(docs, [row | {"passage_ids": ["p"], "scores": [1.0]} for row in questions(3)])
    write_jsonl(docs.with_suffix(".passages.jsonl"), [{"id": "p", "contents": "t"}])
    reasons = tmp_path / "dataset/own/reason/train_with_reason.jsonl"
    reasons.write_text(reasons.read_text().replace("because", "be cause"))
    scoring = ["dataset_generation.py", *flags, "--phase=generate_dataset", "--method=reason"]
    result = run_script(*scoring, cwd=tmp_path)
    assert result.returncode == 2
    assert "train_with_reason.jsonl is not what" in result.stderr
    assert "python llm_generation.py --dataset own --base_url" in result.stderr


def test_fingerprints_follow_content(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_text("1")
    before = fingerprint(tmp_path / "d")
    (tmp_path / "d/a").write_text("2")
    assert fingerprint(tmp_path / "d") != before
    assert fingerprint("org/model") == "name:org/model"
    big = tmp_path / "big"
    with open(big, "wb") as handle:
        handle.truncate(WHOLE_FILE_LIMIT + 5)
    sparse = fingerprint(big)
    with open(big, "r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"x")
    assert fingerprint(big) != sparse


def test_digest_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"b": [2, 1], "a": 1})


def test_secrets_stay_out_of_manifests(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", "--api_key", "canary1", "--api_key=canary2", "--model", "m"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert command_line() == "python x.py --model m"
    output = tmp_path / "out"
    output.write_text("x")
    Phase(output, [], {"api_key": "canary3", "k": 1}).finish(1)
    assert "canary" not in (tmp_path / "out.manifest.json").read_text()


def test_manifests_tell_where_a_result_comes_from(tmp_path):
    made(tmp_path / "out")
    found = json.loads((tmp_path / "out.manifest.json").read_text())
    assert found["commit"] == commit()
    assert found["machine"] == machine()
    assert {"started", "seconds", "versions", "command"} <= found.keys()
    assert "cores" in machine()


CPUINFO = (
    "processor\t: 0\nmodel name\t: AMD EPYC\ncpu family\t: 23\nmodel\t\t: 1\nflags\t\t: fpu {}\n\nprocessor\t: 1\n"
)


@pytest.mark.parametrize(
    ("flags", "told"),
    [("sse2", "no AVX2"), ("avx2", "AVX2"), ("avx512f avx2", "AVX2, AVX-512"),
     ("avx2 avx512f avx512_bf16 amx_bf16 amx_tile", "AVX2, AVX-512, AVX512-bf16, AMX, AMX-bf16")],
)  # fmt: skip
def test_the_processors_family_and_instruction_sets_are_told(tmp_path, flags, told):
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(flags))
    assert processor(tmp_path / "cpuinfo") == f"AMD EPYC (family 23 model 1; {told})"


def test_a_processor_that_tells_nothing_still_has_a_name(tmp_path):
    assert processor(tmp_path / "none")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert processor(tmp_path / "cpuinfo")


def test_benchmarks_tell_the_machine_as_manifests_do(tmp_path, monkeypatch, capsys):
    from benchmarks import common

    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    common.save("benchmarks/some.py", {"seconds": 1.23456})
    found = json.loads((tmp_path / "results/some.json").read_text())
    assert (found["machine"], found["seconds"]) == (machine(), 1.235)
    assert processor(Path("/proc/cpuinfo")) in found["machine"]
