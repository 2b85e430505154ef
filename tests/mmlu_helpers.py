"""What the tests of MMLU share."""

import csv
import subprocess
import sys

from conftest import ROOT

CHOICES = ["1", "N/A", 'say "x", y', "two\nlines"]


def run(script, *args):
    """Run a script as a user does; returns exit code, stdout, stderr."""
    done = subprocess.run([sys.executable, ROOT / script, *map(str, args)], capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def fails(script, *args):
    """The message of a run that must end as a usage error, without a traceback."""
    code, _, err = run(script, *args)
    assert code == 2, err
    assert "Traceback" not in err
    return err


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(rows)
