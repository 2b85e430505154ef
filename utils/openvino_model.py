"""Encoders and rerankers through OpenVINO on a CPU: torch's numbers in a fraction of the time.

torch multiplies fp32 matrices through MKL, which on processors of other makers than Intel reaches less than half
of what they can do; OpenVINO also fuses what stands between the products.
"""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from utils.devices import torch_device, usable_cores

WORTHWHILE = 2000  # texts; the conversion takes about three seconds
ROUNDING = 1e-4  # largest difference that is fp32's, relative to the largest number


class CpuModel:
    """A compiled model that is called like the one it was made of.

    Args:
        compiled: OpenVINO's.
        names: of its inputs, in order.
        output: name of the one output: ``last_hidden_state`` or ``logits``.
    """

    def __init__(self, compiled: Any, names: list[str], output: str) -> None:
        import torch

        self._compiled, self._names, self._output = compiled, names, output
        self.device = torch.device("cpu")

    def __call__(self, **inputs: Any) -> Any:
        """The output under its name, as transformers gives it."""
        import torch

        found = self._compiled([inputs[name].numpy() for name in self._names])[0]
        return SimpleNamespace(**{self._output: torch.from_numpy(found.copy())})


def fastest(model: Any, tokenizer: Any, output: str, texts: int) -> Any:
    """The model itself, or, where that is worth while and gives the same numbers, the same compiled by OpenVINO.

    Args:
        model: as transformers loads it, in fp32, on its device.
        tokenizer: its own.
        output: what is wanted of it: ``last_hidden_state`` or ``logits``.
        texts: about how many it will see. It decides alone, so that a resumed run takes the same way.

    Returns:
        The model, or a `CpuModel` that takes the same inputs by name.
    """
    if texts < WORTHWHILE or torch_device() != "cpu" or find_spec("openvino") is None:
        return model
    try:
        compiled = _compiled(model, tokenizer, output)
    except Exception as error:  # whatever OpenVINO's converter does not know about a model
        print(f"note: OpenVINO cannot convert this model ({type(error).__name__}); torch runs it", file=sys.stderr)
        return model
    difference = _difference(model, compiled, tokenizer, output)
    if not difference <= ROUNDING:
        print(f"note: OpenVINO's numbers differ from torch's by {difference:.1e}; torch runs it", file=sys.stderr)
        return model
    return compiled


def quiet_openvino() -> Any:
    """The library. Its converter reports its use to the makers, which it cannot without another package."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _compiled(model: Any, tokenizer: Any, output: str) -> CpuModel:
    import torch

    openvino = quiet_openvino()
    example = dict(tokenizer(["one two", "three"], padding=True, return_tensors="pt"))

    class OneOutput(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return self.model(**dict(zip(example, inputs, strict=True)))[output]

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracer's, about what the comparison checks
        graph = openvino.convert_model(OneOutput(), example_input=tuple(example.values()))
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": usable_cores(),
        "ENABLE_CPU_PINNING": False,  # two processes of one thread each would be bound to the same core
    }
    return CpuModel(openvino.Core().compile_model(graph, "CPU", settings), list(example), output)


def _difference(model: Any, compiled: CpuModel, tokenizer: Any, output: str) -> float:
    """Largest difference on batches of other shapes than the example's, relative to the largest number."""
    import torch

    worst = 0.0
    for texts in (["a word"], ["one", "some more words than that", "and " * 40]):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            expected, found = (way(**inputs) for way in (model, compiled))
        expected, found = expected[output], getattr(found, output)
        kept = inputs["attention_mask"].bool() if output == "last_hidden_state" else ...
        worst = max(worst, float((expected[kept] - found[kept]).abs().max() / expected[kept].abs().max()))
    return worst
