"""The report of an experiment: a template, a style sheet and a script, put together into one HTML file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, StrictUndefined

from utils.config import UsageError, dataset_dir
from utils.store.files import atomic
from utils.store.manifest import UNFINISHED, read_manifest
from utils.tables.experiment import EXPERIMENTS, label, read_experiment
from utils.tables.formats import headings, note, shown
from utils.tables.paper_values import fill_tables
from utils.tables.plan import Plan, Run
from utils.tables.report.explorer import views
from utils.tables.report.plots import plots
from utils.tables.results import MANIFEST, Cell, FilledTable, Results


def write_report(profile: str, questions: int, output: Path | None, seed: int) -> str:
    """Collect what the experiment's finished runs show, write the page, and say what it holds."""
    plan = Plan(read_experiment(EXPERIMENTS / f"{profile}.yaml"))
    experiment, results = plan.experiment, Results(plan, seed)
    runs = [run for run in plan.runs(experiment.tables.values()) if results.of(run)]
    if not runs:
        raise UsageError(f"no run is finished; run: python paper_tables.py --profile {profile} --run")
    tables, explored = fill_tables(results, experiment.tables), views(results, runs, questions)
    data = {
        "title": f"RADIO: {experiment.title}",
        "subtitle": f"{len(runs)} runs, seed {seed}. python paper_tables.py --profile {profile} --run",
        "tables": [_table(table) for table in tables],
        "plots": plots(results, tables, explored),
        "explored": f"The first {questions} questions of each kind. Training questions have rationales.",
        **phases(plan, runs),
    }
    output = output or plan.folder(runs[0]).parent / "report.html"
    with atomic(output) as handle:
        handle.write(render(data, {"views": explored}).encode())
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
    environment.filters["data_uri"] = data_uri
    template = environment.from_string(page)
    return template.render(**data, policy=policy, script=script, style=style, explorer=embedded)


def data_uri(svg: str) -> str:
    """Return an image inside the page; a picture, unlike inline SVG, runs nothing and shares no ids."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def phases(plan: Plan, runs: Sequence[Run]) -> dict[str, Any]:
    """Return what every finished phase made, dropped, took and cost, and the machines and versions, from manifests."""
    tuned, paths = [run for run in runs if run.is_tuned], []
    for folder in dict.fromkeys(dataset_dir(plan.training(run)) for run in tuned):
        paths += sorted(folder.rglob("*.manifest.json"), key=lambda path: path.stat().st_mtime)
    paths += [Path(f"{plan.checkpoint(run)}.manifest.json") for run in tuned]
    for manifest in (plan.folder(run) / MANIFEST for run in runs):
        stages = read_manifest(manifest)["facts"].get("stages", {})
        paths += [*(Path(f"{stage}.manifest.json") for stage in stages.values()), manifest]
    made = [read_manifest(path) for path in dict.fromkeys(paths) if path.exists()]
    made = [found for found in made if UNFINISHED not in found]
    versions = {f"{name} {version}" for found in made for name, version in found["versions"].items()}
    return {
        "phases": [_phase(found) for found in made],
        "machine": ", ".join(sorted({found["machine"] for found in made})),
        "versions": ", ".join([*sorted(versions), *sorted({f"commit {found['commit']}" for found in made})]),
    }


def _phase(found: dict[str, Any]) -> dict[str, Any]:
    script = found["command"].removeprefix("python ").removeprefix("-m ").split()[0]
    return {
        **{key: found[key] for key in ("command", "output", "rows", "seconds")},
        "script": " ".join([script, *re.findall(r"--(?:phase|method)[ =](\w+)", found["command"])]),
        "dropped": ", ".join(f"{count} {why}" for why, count in found["dropped"].items()) or "none",
        "tokens_in": found["facts"].get("prompt_tokens", ""),
        "tokens_out": found["facts"].get("completion_tokens", ""),
    }


def _table(table: FilledTable) -> dict[str, Any]:
    caption, heads = headings(table)
    return {
        "caption": caption,
        "labels": len(table.label_names),
        "heads": [*table.label_names, *heads],
        "rows": [{"labels": row.labels, "cells": [_cell(cell, table) for cell in row.cells]} for row in table.rows],
        "note": note(table),
    }


def _cell(cell: Cell, table: FilledTable) -> dict[str, str]:
    mean, interval = shown(cell)
    title = ""
    if cell.difference:
        title = f"difference to {label(table.baseline)}: {cell.difference}, p = {cell.p:.3g} (Holm)"
    return {"mean": mean, "interval": interval, "title": title, "paper_value": cell.paper_value}
