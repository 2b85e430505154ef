"""What every phase of an experiment made, dropped, took and cost, out of the manifests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.store.manifest import UNFINISHED, read_manifest
from utils.tables.plan import Plan, Run
from utils.tables.results import MANIFEST


def phases(plan: Plan, runs: list[Run]) -> dict[str, Any]:
    """Rows of the report's phase table, the machine, and the versions that made the outputs.

    Args:
        plan: of the experiment.
        runs: its finished runs.
    """
    manifests = [found for path in _manifests(plan, runs) if UNFINISHED not in (found := read_manifest(path))]
    machines = sorted({found["machine"] for found in manifests})
    versions = sorted({f"{name} {version}" for found in manifests for name, version in found["versions"].items()})
    versions += sorted({f"commit {found['commit']}" for found in manifests})
    return {
        "phases": [_row(found) for found in manifests],
        "machine": ", ".join(machines),
        "versions": ", ".join(versions),
    }


def _manifests(plan: Plan, runs: list[Run]) -> Iterator[Path]:
    """Training data, checkpoints, shared stages, runs: each once."""
    tuned = [run for run in runs if run.reranker and run.condition != "base"]
    paths: list[Path] = []
    for folder in dict.fromkeys(plan.train_folder(run) for run in tuned):
        paths += sorted(folder.rglob("*.manifest.json"), key=lambda path: path.stat().st_mtime)
    paths += [Path(f"{plan.checkpoint(run)}.manifest.json") for run in tuned]
    for run in runs:
        manifest = plan.folder(run) / MANIFEST
        stages = read_manifest(manifest)["facts"].get("stages", {})
        paths += [Path(f"{stage}.manifest.json") for stage in stages.values()]
        paths.append(manifest)
    yield from (path for path in dict.fromkeys(paths) if path.exists())


def _row(found: dict[str, Any]) -> dict[str, Any]:
    facts = found["facts"]
    script = found["command"].removeprefix("python ").removeprefix("-m ").split()[0]
    flags = re.findall(r"--(?:phase|method)[ =](\w+)", found["command"])
    return {
        "command": found["command"],
        "script": " ".join([script, *flags]),
        "output": found["output"],
        "rows": found["rows"],
        "dropped": ", ".join(f"{count} {reason}" for reason, count in found["dropped"].items()) or "none",
        "seconds": found["seconds"],
        "tokens_in": facts.get("prompt_tokens", ""),
        "tokens_out": facts.get("completion_tokens", ""),
    }
