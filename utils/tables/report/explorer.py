"""What the report's explorer shows: questions with their rationales, candidates, scores and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.config import dataset_dir, docs_path
from utils.method import descending, fuse
from utils.rag.metrics import relevance
from utils.store.jsonlines import LineIndex, PassageTexts, parse_row, passages_path, read_jsonl, read_rows
from utils.store.rows import Candidates, Rationale, Scored, TrainingGroup
from utils.tables.plan import Plan, Run
from utils.tables.results import Results
from utils.training.score_caches import open_cache


def views(results: Results, runs: Sequence[Run], limit: int) -> list[dict[str, Any]]:
    """Return the explorer's views: the first test questions of every task, then training questions, with passages."""
    plan, found = results.plan, []
    for task in plan.experiment.tasks:
        if mine := [run for run in runs if run.task == task]:
            found.append({"kind": "test", "name": f"{task}: test", **answered_questions(results, mine, limit)})
    # One reranker per folder of training data: the first.
    for folder, run in {dataset_dir(plan.training(run)): run for run in reversed(runs) if run.is_tuned}.items():
        if (folder / "reason/score_cache.jsonl").exists():  # a reranker can outlive its training data
            name = f"{folder.name}: training"
            found.append({"kind": "training", "name": name, **training_questions(plan, run, limit)})
    return found


def training_questions(plan: Plan, run: Run, limit: int) -> dict[str, Any]:
    """Return training questions of a run's reranker, each with its rationale and its passages by fused score."""
    settings = plan.training(run)
    docs, folder = docs_path(settings), dataset_dir(settings)
    texts, candidates = PassageTexts(passages_path(docs)), LineIndex(docs)
    retrieval = open_cache(folder / "retrieval/score_cache.jsonl", "retrieval")
    scored = {row.id: row for row in read_rows(folder / "reason/score_cache.jsonl", Scored, limit=limit)}
    qrels: dict[str, dict[str, int]] = {}
    if settings.answer_type != "letter":  # which nearly every passage contains
        qrels = relevance([parse_row(candidates[key][1], Candidates, str(docs)) for key in scored], texts)
    roles = _roles(plan.training_lines(run), {row.query for row in scored.values()})
    questions, shown = [], {}
    for rationale in read_rows(folder / "reason/train_with_reason.jsonl", Rationale):
        if (row := scored.get(rationale.id)) is None:
            continue
        retrieved = parse_row(retrieval[row.id][1], Scored, str(folder))
        by_retrieval = dict(zip(retrieved.passage_ids, retrieved.scores, strict=True))
        scores = {"retrieval": [by_retrieval[pid] for pid in row.passage_ids], "rationale": row.scores}
        scores["fused"] = fuse(row.scores, scores["retrieval"], run.weight).tolist()
        # explorer.js expects the ranks by retrieval, rationale and fused score, in this order.
        # The argsort of an order is each passage's place in it.
        ranks = [(descending(values).argsort() + 1).tolist() for values in scores.values()]
        passages = []
        for i in descending(scores["fused"]).tolist():
            pid = row.passage_ids[i]
            shown[pid] = texts[pid]
            passage = {"id": pid, **{kind: round(values[i], 4) for kind, values in scores.items()}}
            passage["ranks"] = [ranking[i] for ranking in ranks]
            passage["role"] = roles.get((row.query, texts[pid]), "")
            passage["answer"] = qrels[row.id][pid] if qrels else 0
            passages.append(passage)
        fields = {"id": row.id, "question": rationale.question, "answers": rationale.golden_answers}
        questions.append(fields | {"rationale": rationale.reason, "passages": passages})
    return {"questions": questions, "passages": shown}


def answered_questions(results: Results, runs: Sequence[Run], limit: int) -> dict[str, Any]:
    """Return questions of one task as each run ranked and answered them."""
    found: dict[str, dict[str, Any]] = {}
    shown: dict[str, str] = {}
    labels: dict[str, str] = {}  # a run's condition, and its generator and reranker where the task has several
    several = [part for part in ("generator", "reranker") if len({getattr(run, part) for run in runs} - {""}) > 1]
    for run in runs:
        labels[run.name] = ", ".join(filter(None, [results.plan.label(run), *(getattr(run, p) for p in several)]))
        if (made := results.of(run)) is None:
            continue
        ranked, qrels = _ranked(made.manifest, limit, shown)
        for row in made.rows[:limit]:
            fields = {"id": row["id"], "question": row["question"], "answers": row["golden_answers"]}
            entry = found.setdefault(row["id"], fields | {"relevant": [], "runs": {}})
            entry["relevant"] = entry["relevant"] or [pid for pid, hit in qrels.get(row["id"], {}).items() if hit]
            score = row["output"]["metric_score"]
            entry["runs"][run.name] = {
                "pred": row["output"].get("pred"),
                "right": bool(score["em"]) if "em" in score else None,
                "f1": score.get("f1"),
                "ranking": ranked.get(row["id"], []),
            }
    return {"runs": labels, "questions": list(found.values()), "passages": shown}


def _ranked(manifest: dict[str, Any], limit: int, shown: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return question id -> [[passage id, score], ...] best first, and the qrels; add the texts to ``shown``."""
    if not (stages := manifest["facts"].get("stages")):
        return {}, {}
    texts = PassageTexts(passages_path(stages["retrieval"]))
    rows = read_rows(Path(stages["reranking"]), Candidates, limit=limit)
    shown.update((pid, texts[pid]) for row in rows for pid in row.passage_ids if pid not in shown)
    ranked = {row.id: [[p, round(s, 4)] for p, s in zip(row.passage_ids, row.scores, strict=True)] for row in rows}
    return ranked, {} if manifest["settings"]["answer_type"] == "letter" else relevance(rows, texts)


def _roles(lines: Path, queries: set[str]) -> dict[tuple[str, str], str]:
    """Return (query, passage text) -> positive or negative, or both over a query's several lines."""
    found: dict[tuple[str, str], set[str]] = {}
    for number, raw in read_jsonl(lines):
        if raw.get("query") in queries:
            group = parse_row(raw, TrainingGroup, f"{lines}:{number}")
            for role, texts in (("positive", group.pos), ("negative", group.neg)):
                for text in texts:
                    found.setdefault((group.query, text), set()).add(role)
    return {key: ", ".join(sorted(roles, reverse=True)) for key, roles in found.items()}
