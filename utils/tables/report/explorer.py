"""What the report's explorer shows: questions with their rationales, candidates, scores and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.method import descending, fuse
from utils.rag.metrics import relevance
from utils.store.files import parse_row, read_jsonl, read_rows
from utils.store.lookup import LineIndex
from utils.store.passages import PassageTexts, passages_path
from utils.store.rows import Candidates, Rationale, Scored, TrainingGroup
from utils.tables.plan import Plan, Run
from utils.tables.results import Results
from utils.training.score_caches import open_cache

Texts = dict[str, str]


def training_questions(plan: Plan, run: Run, limit: int) -> dict[str, Any]:
    """The first questions with a rationale, and their passages by fused score.

    Args:
        plan: of the experiment.
        run: whose reranker was trained on these questions.
        limit: questions.

    Returns:
        ``questions``: ``{id, question, answers, rationale, passages: [{id, retrieval, rationale, fused, ranks, role,
        answer}]}``, where ranks are by retrieval, rationale and fused score and ``role`` is positive,
        negative or empty in the training group; and ``passages``: id -> text.
    """
    docs, folder = plan.train_docs(run), plan.train_folder(run)
    texts = PassageTexts(passages_path(docs))
    shown: Texts = {}
    retrieval = open_cache(folder / "retrieval/score_cache.jsonl", "retrieval")
    reasons = read_rows(folder / "reason/train_with_reason.jsonl", Rationale)
    scores = {row.id: row for row in read_rows(folder / "reason/score_cache.jsonl", Scored, limit=limit)}
    candidates = LineIndex(docs, lambda row: str(row["id"]))
    kept = [parse_row(candidates[key][1], Candidates, str(docs)) for key in scores]
    # Where the answer is a letter, every passage would contain it.
    qrels = {} if plan.asks_letters(run) else relevance(kept, texts)
    roles = _roles(plan.training_lines(run), {row.query for row in scores.values()})
    found = []
    for reason in reasons:
        if reason.id not in scores:
            continue
        row = scores[reason.id]
        retrieved = parse_row(retrieval[row.id][1], Scored, str(folder))
        by_retrieval = dict(zip(retrieved.passage_ids, retrieved.scores, strict=True))
        pairs = [by_retrieval[pid] for pid in row.passage_ids]
        fused = fuse(row.scores, pairs, plan.weight(run))
        ranks = [_ranks(values) for values in (pairs, row.scores, fused)]
        passages = []
        for i in descending(fused).tolist():
            pid = row.passage_ids[i]
            shown[pid] = texts[pid]
            passages.append(
                {
                    "id": pid,
                    "retrieval": round(pairs[i], 4),
                    "rationale": round(row.scores[i], 4),
                    "fused": round(float(fused[i]), 4),
                    "ranks": [ranking[i] for ranking in ranks],
                    "role": roles.get((row.query, texts[pid]), ""),
                    "answer": qrels[row.id][pid] if qrels else 0,
                }
            )
        found.append(
            {
                "id": reason.id,
                "question": reason.question,
                "answers": reason.golden_answers,
                "rationale": reason.reason,
                "passages": passages,
            }
        )
    return {"questions": found, "passages": shown}


def answered_questions(results: Results, runs: list[Run], limit: int) -> dict[str, Any]:
    """The first questions of a task, as each run ranked and answered them.

    Args:
        results: of the experiment.
        runs: finished runs of one task.
        limit: questions.

    Returns:
        ``questions``: ``{id, question, answers, relevant: [passage ids], runs: {run: {pred, right, f1, ranking:
        [[id, score]]}}}``, and ``passages``: id -> text.
    """
    found: dict[str, dict[str, Any]] = {}
    shown: Texts = {}
    for run in runs:
        made = results.of(run)
        if made is None:
            continue
        rows = made.rows[:limit]
        rankings, qrels = _rankings(made.manifest, limit, shown)
        for row in rows:
            entry = found.setdefault(
                row["id"],
                {
                    "id": row["id"],
                    "question": row["question"],
                    "answers": row["golden_answers"],
                    "relevant": [],
                    "runs": {},
                },
            )
            score = row["output"]["metric_score"]
            entry["relevant"] = entry["relevant"] or [pid for pid, hit in qrels.get(row["id"], {}).items() if hit]
            entry["runs"][run.name] = {
                "pred": row["output"].get("pred"),
                "right": bool(score["em"]) if "em" in score else None,
                "f1": score.get("f1"),
                "ranking": rankings.get(row["id"], []),
            }
    return {"questions": list(found.values()), "passages": shown}


def run_labels(plan: Plan, runs: list[Run]) -> dict[str, str]:
    """Run name -> words that tell it from the others of its task."""
    several = {
        part: len({getattr(run, part) for run in runs if getattr(run, part)}) > 1 for part in ("generator", "reranker")
    }
    labels = {}
    for run in runs:
        parts = [plan.label(run)]
        parts += [getattr(run, part) for part in ("generator", "reranker") if several[part] and getattr(run, part)]
        labels[run.name] = ", ".join(parts)
    return labels


def _rankings(
    manifest: dict[str, Any], limit: int, shown: Texts
) -> tuple[dict[str, list[list[Any]]], dict[str, dict[str, int]]]:
    """Question id -> [[passage id, score], ...] best first, and qrels; the texts go into ``shown``."""
    stages = manifest["facts"].get("stages")
    if not stages:
        return {}, {}
    texts = PassageTexts(passages_path(stages["retrieval"]))
    ranked = read_rows(Path(stages["reranking"]), Candidates, limit=limit)
    for row in ranked:
        shown.update((pid, texts[pid]) for pid in row.passage_ids if pid not in shown)
    pairs = {
        row.id: [[pid, round(score, 4)] for pid, score in zip(row.passage_ids, row.scores, strict=True)]
        for row in ranked
    }
    return pairs, {} if manifest["settings"]["answer_type"] == "letter" else relevance(ranked, texts)


def _ranks(scores: Any) -> list[int]:
    ranks = [0] * len(scores)
    for rank, i in enumerate(descending(scores).tolist(), 1):
        ranks[i] = rank
    return ranks


def _roles(lines: Path, queries: set[str]) -> dict[tuple[str, str], str]:
    """(query, passage text) -> positive or negative, or both over a query's several lines."""
    found: dict[tuple[str, str], set[str]] = {}
    for number, raw in read_jsonl(lines):
        if raw.get("query") in queries:
            group = parse_row(raw, TrainingGroup, f"{lines}:{number}")
            for role, texts in (("positive", group.pos), ("negative", group.neg)):
                for text in texts:
                    found.setdefault((group.query, text), set()).add(role)
    return {key: ", ".join(sorted(roles, reverse=True)) for key, roles in found.items()}
