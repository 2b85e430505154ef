"""Make the paper's kinds of table: list the commands, run what is missing, collect, compare.

    python paper_tables.py --profile smoke                    print the commands still to run, and the tables so far
    python paper_tables.py --profile smoke --run              run them first
    python paper_tables.py --profile paper --tables main      of one table
    python paper_tables.py --profile paper --check            exit code 1 unless the paper's values are met
    python paper_tables.py --profile paper --tables weights --split dev    choose a weight without the test questions

reads   experiments/PROFILE.yaml   tasks, generators, rerankers, conditions, and the tables made of them
        output/.../intermediate_data.json of every run, as run_rag.py leaves it
writes  SAVE_DIR/tables/TABLE.{md,tex,csv} and all.md (tables_dev for --split dev);
        the CSV has n, interval, difference and p of every cell
        README.md of the fine-tuned rerankers, their model cards, with the numbers

The last lines, also in chain.md, follow the answers from link to link of the method, on training and on test
questions: they show where your own data lose.

With --run the commands run one after the other in this process's Python; each resumes where it was and
ends at once if it is finished. Without it they are printed, for a job queue.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence

from utils.config import UsageError, run_main, script_parser
from utils.store.files import write_file
from utils.tables.chain import chain
from utils.tables.experiment import EXPERIMENTS, Experiment, read_experiment
from utils.tables.formats import write_cards, write_tables
from utils.tables.plan import Plan, Run
from utils.tables.results import Results


def main() -> int:
    """Parse the command line, run, collect, compare; return the exit code."""
    parser = script_parser(__doc__)
    parser.add_argument("--profile", required=True, help="experiments/PROFILE.yaml")
    parser.add_argument("--tables", nargs="+", metavar="TABLE", help="only these of its tables [all]")
    parser.add_argument("--run", action="store_true", help="run the commands")
    parser.add_argument("--prepared", action="store_true", help="leave out the experiment's prepare commands")
    parser.add_argument("--base_url", help="OpenAI-compatible server for the commands whose profile names none")
    parser.add_argument("--check", action="store_true", help="compare with the paper's values; exit code 1 on a miss")
    parser.add_argument("--split", help="questions of all runs, as dev for choosing weights or epochs [the profiles']")
    parser.add_argument("--seed", type=int, default=42, help="seed of intervals and tests [42]")
    args = parser.parse_args()

    experiment = read_experiment(EXPERIMENTS / f"{args.profile}.yaml")
    experiment.split = args.split or experiment.split
    tables, plan = experiment.chosen(args.tables), Plan(experiment)
    runs = plan.runs(tables.values())
    prepare = [] if args.prepared else [shlex.split(command) for command in experiment.prepare]
    if args.run:
        run_all(experiment, prepare, runs, args.base_url)
    results = Results(plan, args.seed)
    list_missing(results, runs, prepare, args.base_url)
    filled = [results.fill(name, table) for name, table in tables.items()]
    for table in filled:
        for task, metric in table.dropped:
            print(f"# {table.name}: no run of {task} has '{metric}'")
    folder = plan.folder(runs[0]).parent / "_".join(filter(None, ["tables", experiment.split]))
    print(write_tables(filled, plan, folder))
    if not experiment.split:  # the cards tell what the test questions say, of all tables
        others = (name for name in experiment.tables if name not in tables)
        write_cards([*filled, *(results.fill(name, experiment.tables[name]) for name in others)], results)
    links = "\n".join(chain(results, tables.values()))
    print(links)
    write_file(folder / "chain.md", "".join(f"- {line}\n" for line in links.splitlines()))
    print(f"{folder}: {', '.join(tables)} as .md, .tex and .csv")
    if not args.check:
        return 0
    lines, agree = results.compare()
    print("\n".join(lines))
    return 0 if agree else 1


def run_all(experiment: Experiment, prepare: list[list[str]], runs: Sequence[Run], base_url: str | None) -> None:
    """Run every command, with the embedded LLM served to those that ask one, if the experiment wants it."""
    for words in prepare:
        call(words)
    with served(experiment, base_url) as url:
        for command in Plan(experiment, url).commands(runs):
            call(command)


@contextlib.contextmanager
def served(experiment: Experiment, base_url: str | None) -> Iterator[str | None]:
    """Yield the address of the LLM server: the one given, or the embedded one's, started here."""
    if base_url or not experiment.embedded_server:
        yield base_url
        return
    from quickstart.server import HOST, running_server

    # No proxy may stand between this machine and itself. Both spellings are read, and the lower-case one wins.
    known = (os.environ.get(name) for name in ("NO_PROXY", "no_proxy"))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(filter(None, [HOST, *known]))
    with running_server() as url:
        yield url


def call(words: Sequence[str]) -> None:
    """Show one command and run it."""
    print(f"+ {shlex.join(words)}", flush=True)
    program = sys.executable if words[0] == "python" else words[0]
    code = subprocess.run([program, *words[1:]], env=os.environ | {"PYTHON": sys.executable}).returncode
    if code:
        raise UsageError(f"this command ended with exit code {code}; the same call of paper_tables.py goes on from it")


def list_missing(results: Results, runs: Sequence[Run], prepare: list[list[str]], base_url: str | None) -> None:
    """Print the commands that the unfinished runs need, if there are any."""
    plan, missing = results.plan, [run for run in runs if results.of(run) is None]
    if not missing:
        return
    print(f"# {len(runs) - len(missing)} of {len(runs)} runs are finished; the others need, in this order:")
    base_url = base_url or ("$BASE_URL" if plan.experiment.embedded_server else None)
    for command in [*prepare, *Plan(plan.experiment, base_url).commands(missing)]:
        print(shlex.join(command).replace("'$BASE_URL'", "$BASE_URL"))
    if base_url == "$BASE_URL":
        print("# BASE_URL is what python -m quickstart.server prints; --run starts it itself")
    print()


if __name__ == "__main__":
    run_main(main)
