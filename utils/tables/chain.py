"""Tell where the answers stand after each step of the method, and so at which link one's own data lose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import Any

from utils.store.manifest import UNFINISHED, manifest_path, read_manifest
from utils.tables.experiment import Table
from utils.tables.plan import Run
from utils.tables.results import Results
from utils.training.groups import SCORES

MRR = "mrr"


def chain(results: Results, tables: Iterable[Table]) -> list[str]:
    """Return two lines for each task and reranker that has a table with RADIO: training questions, test questions."""
    cells = {
        (task, generator, reranker): None
        for table in tables
        for task in table.tasks
        for generator, reranker, condition in results.plan.rows(table)
        if condition == "radio"
    }
    lines: dict[str, None] = {}  # tasks may share a training
    for task, generator, reranker in cells:
        radio = results.plan.replicates(task, generator, reranker, "radio")
        base = results.plan.run(task, generator, reranker, "base")
        retriever = results.plan.run(task, generator, reranker, "retriever")
        lines |= dict.fromkeys([*training_links(results, radio[0]), *test_links(results, retriever, base, radio)])
    return list(lines)


def training_links(results: Results, radio: Run) -> Iterator[str]:
    """Yield what the manifest of RADIO's training file tells, if the candidates have gold answers."""
    lines, settings = results.plan.training(radio).lines, results.plan.training(radio).settings
    if settings.answer_type == "letter":  # nearly every passage contains a letter
        return
    if not manifest_path(lines).exists() or UNFINISHED in (made := read_manifest(manifest_path(lines))):
        return
    facts: dict[str, Any] = made["facts"]
    if "mrr fused" not in facts:
        return
    orders = ", ".join(
        f"by {name} score {facts[f'mrr {name}']:.3f} ({facts[f'first {name}']:.0%} in first place)" for name in SCORES
    )
    shares = [
        f"{facts[f'{kind} with an answer'] / facts[kind]:.0%} of the {kind}" for kind in ("positives", "negatives")
    ]
    yield (
        f"{lines.parent.parent}, training questions: {facts['candidate lists with an answer']:.0%} have an answer "
        f"in their candidates; MRR {orders}; an answer is in {shares[0]} and {shares[1]}"
    )


def test_links(results: Results, retriever: Run, base: Run, radio: list[Run]) -> Iterator[str]:
    """Yield the MRR of each order of the same candidates, if the runs have rankings."""
    orders = {"retriever": [retriever], "base reranker": [base], "RADIO": radio}
    found = {name: results.seed_mean(runs, MRR) for name, runs in orders.items()}
    if not all(found.values()):
        return
    answered = fmean(value > 0 for value in found["retriever"].values())
    means = ", ".join(f"{name} {fmean(values.values()):.3f}" for name, values in found.items())
    place = f"{retriever.task}, {base.reranker}"
    yield f"{place}, test questions: {answered:.0%} have an answer in their candidates; MRR: {means}"
