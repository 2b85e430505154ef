"""Run encoders and rerankers through OpenVINO on a CPU: torch's numbers in a fraction of the time.

torch multiplies fp32 matrices through MKL, which reaches less than half of what AMD's processors can do. OpenVINO
also fuses the steps between the products.
"""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from utils.devices import torch_device, usable_cores

WORTHWHILE = 2000  # texts; the conversion takes about three seconds
ROUNDING = 1e-4  # largest difference that counts as fp32 rounding, relative to the largest number


class OpenVINOModel:
    """A compiled model that is called like the transformers model it was made from."""

    def __init__(self, compiled: Any, names: list[str], output: str) -> None:
        import torch

        self._compiled, self._names, self._output = compiled, names, output
        self.device = torch.device("cpu")

    def __call__(self, **inputs: Any) -> Any:
        """Return an object with the one output under its name."""
        import torch

        found = self._compiled([inputs[name].numpy() for name in self._names])[0]
        return SimpleNamespace(**{self._output: torch.from_numpy(found.copy())})


def with_openvino(model: Any, tokenizer: Any, output: str, texts: int) -> Any:
    """Return an fp32 model compiled by OpenVINO where that pays and gives the same numbers, else the model itself.

    Args:
        model: a transformers model.
        tokenizer: the model's.
        output: the only output that is used, ``last_hidden_state`` or ``logits``.
        texts: about how many the whole phase has, not what is left of it: a resumed run must make the same choice.
    """
    if texts < WORTHWHILE or torch_device() != "cpu" or find_spec("openvino") is None:
        return model
    try:
        compiled = _compiled(model, tokenizer, output)
        difference = _difference(model, compiled, tokenizer, output)
        if difference <= ROUNDING:
            return compiled
        fault = f"OpenVINO's numbers differ from torch's by {difference:.1e}"
    except Exception as error:  # whatever OpenVINO's converter does not know about a model
        fault = f"OpenVINO cannot convert this model ({type(error).__name__})"
    print(f"note: {fault}; torch runs it", file=sys.stderr)
    return model


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which would report each conversion to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _compiled(model: Any, tokenizer: Any, output: str) -> OpenVINOModel:
    import torch

    openvino = import_openvino()
    example = dict(tokenizer(["one two", "three"], padding=True, return_tensors="pt"))

    class OneOutput(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return self.model(**dict(zip(example, inputs, strict=True)))[output]

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch warns that shapes may be baked in; `_difference` tries others
        graph = openvino.convert_model(OneOutput(), example_input=tuple(example.values()))
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": usable_cores(),
        "ENABLE_CPU_PINNING": False,  # two processes of one thread each would be bound to the same core
    }
    return OpenVINOModel(openvino.Core().compile_model(graph, "CPU", settings), list(example), output)


def _difference(model: Any, compiled: OpenVINOModel, tokenizer: Any, output: str) -> float:
    import torch

    worst = 0.0
    for texts in (["a word"], ["one", "some more words than that", "and " * 40]):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            expected, found = model(**inputs)[output], getattr(compiled(**inputs), output)
        kept = inputs["attention_mask"].bool() if output == "last_hidden_state" else ...
        worst = max(worst, float((expected[kept] - found[kept]).abs().max() / expected[kept].abs().max()))
    return worst
