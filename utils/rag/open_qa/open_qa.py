"""Exact match, token F1 and containment of an answer, as a metric of Hugging Face's evaluate library.

>>> import evaluate
>>> metric = evaluate.load("utils/rag/open_qa/open_qa.py")
>>> answers = {"predictions": ["the Nile", "it is Rome"], "references": [["Nile", "River Nile"], ["Rome"]]}
>>> metric.compute(**answers)
{'em': 0.5, 'f1': 0.75, 'contains': 1.0}
>>> metric.compute(**answers, per_question=True)
{'em': [1.0, 0.0], 'f1': [1.0, 0.5], 'contains': [1.0, 1.0]}

evaluate copies this file into its cache and imports it there, so it uses nothing of this repository. It reads the
imports line by line: each stands on one line.
"""

from statistics import mean
from typing import Any

import evaluate
from datasets import Features, List, Value
from flashrag.evaluator.metrics import ExactMatch, F1_Score, Sub_ExactMatch, normalize_answer

DESCRIPTION = "Exact match, token F1 and containment for open-domain question answering, as FlashRAG computes them."
INPUTS = """
Args:
    predictions: one answer per question.
    references: for each question the list of its correct answers.
    per_question: return a list of scores per metric in place of its mean.
"""


class OpenQa(evaluate.Metric):
    """FlashRAG's metric classes, called directly: its evaluator leaves a metric that fails out of the result.

    An answer such as "A" or "%" normalises to nothing, which every prediction would contain: it scores 1 where the
    prediction is the same text, up to case and blanks, else 0.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("string"), "references": List(Value("string"))})
        return evaluate.MetricInfo(DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(
        self, predictions: list[str], references: list[list[str]], per_question: bool = False
    ) -> dict[str, Any]:
        config: Any = {"dataset_name": "own", "metric_setting": {}}
        em, f1, contains = ExactMatch(config), F1_Score(config), Sub_ExactMatch(config)
        scores: dict[str, list[float]] = {"em": [], "f1": [], "contains": []}
        for prediction, answers in zip(predictions, references, strict=True):
            usable = [answer for answer in answers if normalize_answer(answer)]
            unusable = {_bare(answer) for answer in answers if not normalize_answer(answer)} - {""}
            same = float(_bare(prediction) in unusable)
            scores["em"].append(max(same, float(em.calculate_em(prediction, usable))))
            scores["f1"].append(max(same, float(f1.token_level_scores(prediction, usable)["f1"])))
            scores["contains"].append(max(same, float(contains.calculate_sub_em(prediction, usable))))
        return scores if per_question else {name: mean(values) for name, values in scores.items()}


def _bare(text: str) -> str:
    return " ".join(text.lower().split())
