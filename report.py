"""Write the report of an experiment: one HTML page with tables, plots, costs and an explorer of every question.

    python report.py --profile smoke
    python report.py --profile paper --questions 500 --output report.html

reads   experiments/PROFILE.yaml, the runs that paper_tables.py made, and the training data behind them
writes  SAVE_DIR/report.html   self-contained: no network, no server; open it in any browser

Runs that were not made are left out. The explorer shows the first --questions questions of each kind.
"""

from __future__ import annotations

from pathlib import Path

from utils.config import UsageError, run_main, script_parser


def main() -> None:
    """Parse the command line and write the page."""
    parser = script_parser(__doc__)
    parser.add_argument("--profile", required=True, help="experiments/PROFILE.yaml")
    parser.add_argument("--questions", type=int, default=200, help="questions of each kind in the explorer [200]")
    parser.add_argument("--output", type=Path, help="[SAVE_DIR/report.html]")
    parser.add_argument("--seed", type=int, default=42, help="seed of intervals and tests [42]")
    args = parser.parse_args()
    if args.questions < 1:
        raise UsageError("--questions must be at least 1")

    from utils.tables.report.page import write_report  # loads numpy and jinja2

    print(write_report(args.profile, args.questions, args.output, args.seed))


if __name__ == "__main__":
    run_main(main)
