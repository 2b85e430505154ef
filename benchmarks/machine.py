"""Measure what this machine can do at most: matrix products per second, and bytes read from memory per second.

    python benchmarks/machine.py

These are the limits for the other benchmarks: the first for phases that multiply, the second for phases that read.
"""

import time
from collections.abc import Callable

import numpy as np
from common import arguments, save, spread

ROWS, INNER, OUTER = 2048, 384, 1536  # a batch of tokens through one of MiniLM's layers


def rate(work: Callable[[], object], amount: float, repeats: int) -> dict[str, float]:
    """Return the work done per second, measured ``repeats`` times over about a second; one call does ``amount``."""
    work()
    found = []
    for _ in range(repeats):
        started, times = time.perf_counter(), 0
        while time.perf_counter() - started < 1.0:
            work()
            times += 1
        found.append(amount * times / (time.perf_counter() - started))
    return spread(found)


def main() -> None:
    args = arguments(__doc__)
    import torch

    device = "cuda" if args.device == "cuda" else "cpu"
    rows, inner, outer = (8192, 4096, 4096) if device == "cuda" else (ROWS, INNER, OUTER)
    result: dict = {"device": device, "n": args.repeats, "shape": [rows, inner, outer], "GFLOP/s": {}}
    for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left = torch.randn(rows, inner, dtype=kind, device=device)
        right = torch.randn(inner, outer, dtype=kind, device=device)

        def product(left: torch.Tensor = left, right: torch.Tensor = right) -> None:
            left @ right
            if device == "cuda":
                torch.cuda.synchronize()

        result["GFLOP/s"][f"torch {name}"] = rate(product, 2e-9 * rows * inner * outer, args.repeats)
    if device == "cpu":
        result["GFLOP/s"]["OpenVINO fp32"] = rate(_openvino(), 2e-9 * rows * inner * outer, args.repeats)
        block = np.ones(1 << 26, dtype=np.float32)
        result["GB/s read"] = rate(block.sum, block.nbytes / 1e9, args.repeats)
    save(__file__, result)


def _openvino() -> Callable[[], object]:
    import torch

    from utils.openvino_model import import_openvino

    openvino = import_openvino()
    layer = openvino.convert_model(torch.nn.Linear(INNER, OUTER, bias=False), example_input=torch.randn(ROWS, INNER))
    compiled = openvino.Core().compile_model(layer, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rows = np.random.default_rng(0).standard_normal((ROWS, INNER), dtype=np.float32)
    request = compiled.create_infer_request()
    return lambda: request.infer([rows])


if __name__ == "__main__":
    main()
