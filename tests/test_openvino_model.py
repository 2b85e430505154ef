"""OpenVINO in torch's place: the same numbers, or torch again."""

import contextlib
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT

import utils.openvino_model
from utils.openvino_model import WORTHWHILE, OpenVINOModel
from utils.retrieval.encoder import TextEncoder

pytest.importorskip("openvino")
TEXTS = ["a word", "some more words than that", "", "and so on " * 60, *(f"passage number {i} " * i for i in range(30))]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_many_texts_are_encoded_as_torch_does(tiny_encoder, pooling):
    torchs = TextEncoder(str(tiny_encoder), 256, pooling, texts=WORTHWHILE - 1)
    ours = TextEncoder(str(tiny_encoder), 256, pooling, texts=WORTHWHILE)
    assert isinstance(ours.model, OpenVINOModel)
    assert not isinstance(torchs.model, OpenVINOModel)
    np.testing.assert_allclose(ours.encode(TEXTS, 8), torchs.encode(TEXTS, 8), atol=1e-6)


def test_many_pairs_are_scored_as_torch_does(tiny_reranker):
    from types import SimpleNamespace

    from utils.rag.rerankers import LengthSortedReranker

    args = SimpleNamespace(
        rerank_model_name="x", rerank_model_path=str(tiny_reranker), rerank_topk=5, rerank_max_length=256,
        rerank_batch_size=8, use_fp16=False, trust_remote_code=[],
    )  # fmt: skip
    torchs, ours = LengthSortedReranker(args), LengthSortedReranker(args, pairs=WORTHWHILE)
    assert isinstance(ours.ranker, OpenVINOModel)
    expected = torchs.score(["which", "who"], [TEXTS, TEXTS[:5]])
    for scores, same in zip(ours.score(["which", "who"], [TEXTS, TEXTS[:5]]), expected, strict=True):
        np.testing.assert_allclose(scores, same, atol=1e-5)


def test_a_model_with_other_numbers_stays_with_torch(tiny_encoder, monkeypatch, capsys):
    monkeypatch.setattr(utils.openvino_model, "ROUNDING", 0.0)
    assert not isinstance(TextEncoder(str(tiny_encoder), 256, texts=WORTHWHILE).model, OpenVINOModel)
    assert "numbers differ from torch's" in capsys.readouterr().err


def test_a_model_that_cannot_be_converted_stays_with_torch(tiny_encoder, monkeypatch, capsys):
    import openvino

    def fail(*_, **__):
        raise RuntimeError

    monkeypatch.setattr(openvino, "convert_model", fail)
    encoder = TextEncoder(str(tiny_encoder), 256, texts=WORTHWHILE)
    assert "OpenVINO cannot convert this model (RuntimeError)" in capsys.readouterr().err
    assert encoder.encode(TEXTS[:3]).shape == (3, 32)


REPORTS = """
import sys
from utils.openvino_model import WORTHWHILE
from utils.retrieval.encoder import TextEncoder
TextEncoder(sys.argv[1], 64, texts=WORTHWHILE)
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__)
"""


@pytest.mark.slow
def test_nothing_is_reported_to_the_makers(tiny_encoder):
    found = subprocess.run(
        [sys.executable, "-c", REPORTS, tiny_encoder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no thread affinity here")
def test_threads_are_bound_to_no_core(tiny_encoder, monkeypatch):
    """Else two processes of one thread each share a core, however many there are."""
    monkeypatch.setattr(utils.openvino_model, "usable_cores", lambda: 1)
    encoder, seen = TextEncoder(str(tiny_encoder), 256, texts=WORTHWHILE), set()
    work = threading.Thread(target=encoder.encode, args=(TEXTS * 20,))
    work.start()
    while work.is_alive():
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):
                seen.add(frozenset(os.sched_getaffinity(int(thread))))
    assert seen == {frozenset(os.sched_getaffinity(0))}
