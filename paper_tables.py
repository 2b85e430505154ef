"""Make the paper's kinds of table: list the commands, run what is missing, collect, compare.

    python paper_tables.py --profile smoke                    print the commands still to run, and the tables so far
    python paper_tables.py --profile smoke --run              run them first
    python paper_tables.py --profile paper --tables main      of one table
    python paper_tables.py --profile paper --check            exit code 1 unless the published values are met

reads   experiments/PROFILE.yaml   tasks, generators, rerankers, conditions, and the tables made of them
        output/.../intermediate_data.json of every run, as run_rag.py leaves it
writes  SAVE_DIR/tables/TABLE.{md,tex,csv} and all.md; the CSV has n, interval, difference and p of every cell

With --run the commands run one after the other in this process's Python; each resumes where it was and
ends at once if it is finished. Without it they are printed, for a job queue.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import UsageError, run_main
from utils.tables.experiment import EXPERIMENTS, Experiment, Table, read_experiment
from utils.tables.plan import Plan, Step

if TYPE_CHECKING:
    from utils.tables.results import Results


def main() -> int:
    """Parse the command line, run, collect, compare; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--profile", required=True, help="experiments/PROFILE.yaml")
    parser.add_argument("--tables", nargs="+", metavar="TABLE", help="only these of its tables [all]")
    parser.add_argument("--run", action="store_true", help="run the commands")
    parser.add_argument("--prepared", action="store_true", help="leave out the experiment's prepare commands")
    parser.add_argument("--base_url", help="OpenAI-compatible server for the commands whose profile names none")
    parser.add_argument("--check", action="store_true", help="compare with the published values; exit code 1 on a miss")
    parser.add_argument("--seed", type=int, default=42, help="of intervals and tests [42]")
    args = parser.parse_args()

    experiment = read_experiment(EXPERIMENTS / f"{args.profile}.yaml")
    tables = chosen(experiment, args.tables)
    plan = Plan(experiment)
    runs = plan.runs(tables.values())
    prepare = [] if args.prepared else [shlex.split(command) for command in experiment.prepare]
    if args.run:
        run_all(experiment, prepare, plan.steps(runs), args.base_url)
    from utils.tables.results import Results

    results = Results(plan, args.seed)
    if missing := [run for run in runs if results.of(run) is None]:
        print(f"# {len(runs) - len(missing)} of {len(runs)} runs are finished; the others need, in this order:")
        base_url = args.base_url or ("$BASE_URL" if experiment.embedded_server else None)
        for command in [*prepare, *(step.command(base_url) for step in plan.steps(missing))]:
            print(shlex.join(command).replace("'$BASE_URL'", "$BASE_URL"))
        if base_url == "$BASE_URL":
            print("# BASE_URL is what python -m quickstart.server prints; --run starts it itself")
        print()
    write_tables(experiment, results, tables, plan.folder(runs[0]).parent / "tables")
    return check(experiment, results) if args.check else 0


def chosen(experiment: Experiment, names: list[str] | None) -> dict[str, Table]:
    """The tables asked for.

    Raises:
        UsageError: a name that the experiment has not.
    """
    for name in names or []:
        if name not in experiment.tables:
            raise UsageError(f"--tables {name}: there are {', '.join(experiment.tables)}")
    return {name: table for name, table in experiment.tables.items() if not names or name in names}


def run_all(experiment: Experiment, prepare: list[list[str]], steps: list[Step], base_url: str | None) -> None:
    """Run every command; the embedded LLM is served for as long as they take, if the experiment wants it.

    Raises:
        UsageError: a command failed; it has said why.
    """
    for command in prepare:
        call(command)
    with served(experiment, steps, base_url) as url:
        for step in steps:
            call(step.command(url))


@contextlib.contextmanager
def served(experiment: Experiment, steps: list[Step], base_url: str | None) -> Iterator[str | None]:
    """The address of the LLM server: the one given, or the embedded one's, started here."""
    if base_url or not experiment.embedded_server or not any(step.asks_server for step in steps):
        yield base_url
        return
    from quickstart.server import HOST, running_server

    # A proxy of the environment must not stand between this machine and itself.
    # Both spellings are read, and the small one wins.
    known = (os.environ.get(name) for name in ("NO_PROXY", "no_proxy"))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(filter(None, [HOST, *known]))
    with running_server() as url:
        yield url


def call(words: list[str]) -> None:
    """Run one command and show it."""
    print(f"+ {shlex.join(words)}", flush=True)
    python = [sys.executable] if words[0] == "python" else [words[0]]
    code = subprocess.run([*python, *words[1:]], env=os.environ | {"PYTHON": sys.executable}).returncode
    if code:
        raise UsageError(f"this command ended with exit code {code}; the same call of paper_tables.py goes on from it")


def write_tables(experiment: Experiment, results: Results, tables: dict[str, Table], folder: Path) -> None:
    """Compute, print and write the tables."""
    from utils.store.files import atomic
    from utils.tables.formats import CSV_COLUMNS, csv_rows, latex, markdown
    from utils.tables.paper_values import beside, read_expected

    texts = []
    for name, table in tables.items():
        filled = results.fill(name, table)
        for task, metric in filled.dropped:
            print(f"# {name}: no run of {task} has '{metric}'")
        if experiment.expected:
            filled = beside(filled, read_expected(EXPERIMENTS / experiment.expected))
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        writer.writerows(csv_rows(filled, results.plan.folder))
        texts.append(markdown(filled))
        for suffix, text in (("md", texts[-1]), ("tex", latex(filled)), ("csv", lines.getvalue())):
            with atomic(folder / f"{name}.{suffix}") as handle:
                handle.write(text.encode())
    if tables.keys() == experiment.tables.keys():
        with atomic(folder / "all.md") as handle:
            handle.write("\n".join(texts).encode())
    print("\n".join(texts))
    print(f"{folder}: {', '.join(tables)} as .md, .tex and .csv")


def check(experiment: Experiment, results: Results) -> int:
    """Print the comparison with the published values; 1 on a miss."""
    from utils.tables.paper_values import compare, read_expected

    if experiment.expected is None:
        raise UsageError("--check: the experiment names no file of published values ('expected')")
    found, unplaced = compare(read_expected(EXPERIMENTS / experiment.expected), results)
    for comparison in found:
        print(comparison)
    for value in unplaced:
        print(f"not compared: {value.metric} {value.value:g} ({value.source}): {value.remark}")
    misses = sum(not comparison.agrees for comparison in found)
    print(f"{len(found) - misses} of {len(found)} published values agree, {len(unplaced)} are not compared")
    return 1 if misses or not found else 0


if __name__ == "__main__":
    run_main(main)
