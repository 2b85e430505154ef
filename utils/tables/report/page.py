"""The report of an experiment: a template, a style sheet and a script, put together into one HTML file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, StrictUndefined

from utils.config import UsageError, dataset_dir, docs_path, rationale_dir
from utils.method import descending, fuse
from utils.retrieval.answers import has_answer
from utils.store.files import write_file
from utils.store.jsonlines import PassageTexts, parse_row, passages_path, read_jsonl, read_rows
from utils.store.manifest import UNFINISHED, manifest_path, read_manifest
from utils.store.rows import Candidates, Rationale, Scored, TrainingGroup
from utils.tables.chain import chain
from utils.tables.experiment import EXPERIMENTS, label, read_experiment
from utils.tables.formats import headings, note, shown
from utils.tables.plan import Plan, Run
from utils.tables.report.plots import plots
from utils.tables.results import MANIFEST, Results
from utils.training.groups import open_cache


def write_report(profile: str, questions: int, output: Path | None, seed: int) -> str:
    """Collect what the experiment's finished runs show, write the page, and say what it holds."""
    plan = Plan(read_experiment(EXPERIMENTS / f"{profile}.yaml"))
    experiment, results = plan.experiment, Results(plan, seed)
    runs = [run for run in plan.runs(experiment.tables.values()) if results.of(run)]
    if not runs:
        raise UsageError(f"no run is finished; run: python paper_tables.py --profile {profile} --run")
    tables = [results.fill(name, table) for name, table in experiment.tables.items()]
    explored = views(results, runs, questions)
    data = {
        "title": f"RADIO: {experiment.title}",
        "subtitle": f"{len(runs)} runs, seed {seed}. python paper_tables.py --profile {profile} --run",
        "tables": tables,
        "chain": chain(results, experiment.tables.values()),
        "plots": plots(results, tables, explored),
        "explored": f"The first {questions} questions of each kind. Training questions have rationales.",
        **phases(plan, runs),
    }
    output = output or plan.folder(runs[0]).parent / "report.html"
    write_file(output, render(data, {"views": explored}))
    return f"{output}: {len(runs)} runs, {len(tables)} tables, {output.stat().st_size / 1e6:.1f} MB"


def render(data: dict[str, Any], explorer: dict[str, Any]) -> str:
    """Return the page, made of the fields of ``page.html`` and what ``explorer.js`` reads.

    Model output and passages are data: the template escapes them, the explorer's script puts them in as text, and the
    content security policy lets no other script run and no request leave the page.
    """
    names = ("page.html", "explorer.js", "page.css")
    page, script, style = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
    # "<" ends the script element if a passage holds "</script>"; its escape is the same character to JSON.
    embedded = orjson.dumps(explorer).decode().replace("<", "\\u003c")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.globals |= {"headings": headings, "label": label, "note": note, "shown": shown, "data_uri": data_uri}
    environment.filters |= {"duration": duration, "short": lambda path: "/".join(Path(path).parts[-2:])}
    template = environment.from_string(page)
    return template.render(**data, policy=policy, script=script, style=style, explorer=embedded)


def data_uri(svg: str) -> str:
    """Return an image inside the page; a picture, unlike inline SVG, runs nothing and shares no ids."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def phases(plan: Plan, runs: Sequence[Run]) -> dict[str, Any]:
    """Return what every phase made, dropped, took and cost, by script, and machines and versions, from manifests."""
    tuned, paths = [run for run in runs if run.is_tuned], []
    for folder in dict.fromkeys(dataset_dir(plan.training(run).settings) for run in tuned):
        paths += sorted(folder.rglob("*.manifest.json"), key=lambda path: path.stat().st_mtime)
    paths += [manifest_path(plan.training(run).checkpoint) for run in tuned]
    for manifest in (plan.folder(run) / MANIFEST for run in runs):
        stages = read_manifest(manifest)["facts"].get("stages", {})
        paths += [*(manifest_path(Path(stage)) for stage in stages.values()), manifest]
    paths = [path for path in dict.fromkeys(paths) if path.exists()]
    for path in paths:  # it grows: what made an input, such as the index or the base reranker, was a phase too
        origins = map(manifest_path, map(Path, read_manifest(path).get("inputs", {})))
        paths += [origin for origin in origins if origin.exists() and origin not in paths]
    made = [read_manifest(path) for path in paths]
    made = sorted((found for found in made if UNFINISHED not in found), key=lambda found: found["started"])
    scripts: dict[str, list[dict[str, Any]]] = {}
    for found in made:
        scripts.setdefault(_script(found["command"]), []).append(found)
    versions = {f"{name} {version}" for found in made for name, version in found["versions"].items()}
    return {
        "phases": [{"script": name, "outputs": found, **_totals(found)} for name, found in scripts.items()],
        "total": _totals(made),
        "machine": ", ".join(sorted({found["machine"] for found in made})),
        "versions": ", ".join([*sorted(versions), *sorted({f"commit {found['commit']}" for found in made})]),
    }


def _script(command: str) -> str:
    script = command.removeprefix("python ").removeprefix("-m ").split()[0]
    script = script.replace("utils.training.finetune", "run_finetune.sh")  # which calls it
    return " ".join([script, *re.findall(r"--(?:phase|method)[ =](\w+)", command)])


def _totals(made: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum what outputs took. Stages lie within their runs, and a script may write several outputs at once."""
    facts, dropped = [found["facts"] for found in made], Counter[str]()
    for found in made:
        dropped.update(found["dropped"])
    unpriced = any(fact.get("completion_tokens") and fact.get("cost") is None for fact in facts)
    seconds, end = 0.0, 0.0
    for start, length in sorted((datetime.fromisoformat(f["started"]).timestamp(), f["seconds"]) for f in made):
        seconds += max(0.0, start + length - max(start, end))
        end = max(end, start + length)
    return {
        "rows": sum(found["rows"] for found in made),
        "dropped": dropped,
        "seconds": seconds,
        "tokens_in": sum(fact.get("prompt_tokens", 0) for fact in facts),
        "tokens_out": sum(fact.get("completion_tokens", 0) for fact in facts),
        # None: an LLM without a price has answered.
        "cost": None if unpriced else sum(fact.get("cost") or 0 for fact in facts),
    }


def duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> duration(8.04), duration(125), duration(7380)
    ('8.0 s', '2 min 5 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def views(results: Results, runs: Sequence[Run], limit: int) -> list[dict[str, Any]]:
    """Return the explorer's views: the first test questions of every task, then training questions, with passages."""
    plan, found = results.plan, []
    for task in plan.experiment.tasks:
        if mine := [run for run in runs if run.task == task]:
            view = {"kind": "test", "name": f"{task}: test", "pair": _pair(plan, mine)}
            found.append(view | answered_questions(results, mine, limit))
    # One reranker per folder of training data: the first with the profile's own weight, if there is one.
    tuned = [run for run in reversed(runs) if run.is_tuned and plan.training(run).settings.rationale != "none"]
    tuned.sort(key=lambda run: not plan.training(run).fuse.keys() - {"rationale"})  # of several, the last stays
    for folder, run in {rationale_dir(plan.training(run).settings): run for run in tuned}.items():
        if (folder / "score_cache.jsonl").exists():  # a reranker can outlive its training data
            name = f"{folder.parent}: training" + (f", {folder.name}" if folder.name != "reason" else "")
            found.append({"kind": "training", "name": name, **training_questions(plan, run, limit)})
    return found


def _pair(plan: Plan, runs: Sequence[Run]) -> list[str]:
    """Return the first base run and RADIO's with the same generator and reranker, by name; nothing without both."""
    for base in (run for run in runs if run.condition == "base"):
        radio = plan.replicates(base.task, base.generator, base.reranker, "radio")[0]
        if radio in runs:
            return [base.name, radio.name]
    return []


def answered_questions(results: Results, runs: Sequence[Run], limit: int) -> dict[str, Any]:
    """Return questions of one task as each finished run ranked and answered them."""
    found: dict[str, dict[str, Any]] = {}
    texts: dict[str, str] = {}
    labels: dict[str, str] = {}  # a run's condition, and its generator and reranker where the task has several
    several = [part for part in ("generator", "reranker") if len({getattr(run, part) for run in runs} - {""}) > 1]
    for run in runs:
        labels[run.name] = ", ".join(filter(None, [results.plan.label(run), *(getattr(run, p) for p in several)]))
        made = results.of(run)
        assert made is not None
        ranked = _ranked(made.manifest, limit, texts)
        for row in made.rows[:limit]:
            fields = {"id": row["id"], "question": row["question"], "answers": row["golden_answers"]}
            entry = found.setdefault(row["id"], fields | {"relevant": [], "runs": {}})
            ranking, score = ranked.get(row["id"], []), row["output"]["metric_score"]
            if made.manifest["settings"]["answer_type"] == "text" and not entry["relevant"]:
                entry["relevant"] = [pid for pid, _ in ranking if has_answer(row["golden_answers"], texts[pid])]
            entry["runs"][run.name] = {
                "pred": row["output"].get("pred"),
                "right": bool(score["em"]) if "em" in score else None,
                "f1": score.get("f1"),
                "ranking": ranking,
            }
    return {"runs": labels, "questions": list(found.values()), "passages": texts}


def _ranked(manifest: dict[str, Any], limit: int, texts: dict[str, str]) -> dict[str, Any]:
    """Return question id -> [[passage id, score], ...] best first, of a run; add the passages to ``texts``."""
    if not (stages := manifest["facts"].get("stages")):
        return {}
    stored = PassageTexts(passages_path(stages["retrieval"]))
    rows = read_rows(Path(stages["reranking"]), Candidates, limit=limit)
    texts.update((pid, stored[pid]) for row in rows for pid in row.passage_ids if pid not in texts)
    return {row.id: [[p, round(s, 4)] for p, s in zip(row.passage_ids, row.scores, strict=True)] for row in rows}


def training_questions(plan: Plan, run: Run, limit: int) -> dict[str, Any]:
    """Return training questions of a run's reranker, each with its rationale and its passages by fused score."""
    training = plan.training(run)
    settings = training.settings
    folder, stored = dataset_dir(settings), PassageTexts(passages_path(docs_path(settings)))
    retrieval = open_cache(folder / "retrieval/score_cache.jsonl", "retrieval")
    scored = {row.id: row for row in read_rows(rationale_dir(settings) / "score_cache.jsonl", Scored, limit=limit)}
    roles = _roles(training.lines, {row.query for row in scored.values()})
    questions, texts = [], {}
    for rationale in read_rows(rationale_dir(settings) / "train_with_reason.jsonl", Rationale):
        if (row := scored.get(rationale.id)) is None:
            continue
        retrieved = parse_row(retrieval[row.id][1], Scored, str(folder))
        by_retrieval = dict(zip(retrieved.passage_ids, retrieved.scores, strict=True))
        scores = {"retrieval": [by_retrieval[pid] for pid in row.passage_ids], "rationale": row.scores}
        scores["fused"] = fuse(row.scores, scores["retrieval"], settings.reason_weight).tolist()
        # explorer.js expects the ranks by retrieval, rationale and fused score, in this order.
        # The argsort of an order is each passage's place in it.
        ranks = [(descending(values).argsort() + 1).tolist() for values in scores.values()]
        passages = []
        for i in descending(scores["fused"]).tolist():
            pid = row.passage_ids[i]
            text = texts[pid] = stored[pid]
            passage = {"id": pid, **{kind: round(values[i], 4) for kind, values in scores.items()}}
            passage["ranks"] = [ranking[i] for ranking in ranks]
            passage["role"] = roles.get((row.query, text), "")
            # Nearly every passage contains a letter.
            passage["answer"] = int(settings.answer_type == "text" and has_answer(rationale.golden_answers, text))
            passages.append(passage)
        fields = {"id": row.id, "question": rationale.question, "answers": rationale.golden_answers}
        questions.append(fields | {"rationale": rationale.reason, "passages": passages})
    return {"questions": questions, "passages": texts}


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
