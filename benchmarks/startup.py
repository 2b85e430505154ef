"""Measure how long --help takes, and how long a phase takes whose output is already finished.

    python benchmarks/startup.py

The targets are 0.5 s and 2 s. The finished phases are the quickstart's, so run `bash reproduce.sh` first.
"""

import subprocess
import sys
import time

from common import ROOT, arguments, save, spread

SCRIPTS = [
    "llm_generation.py",
    "build_index.py",
    "dataset_generation.py",
    "score_cache_to_dataset.py",
    "run_rag.py",
    "paper_tables.py",
    "report.py",
    "mmlu_preprocess.py",
    "mmlu_evaluation.py",
    "import_rationales.py",
]
PROFILE = ["--config", "profiles/quickstart.yaml"]
PHASES = {
    "llm_generation.py": PROFILE,
    "build_index.py": PROFILE,
    "dataset_generation.py": [*PROFILE, "--phase=get_docs"],
    "score_cache_to_dataset.py": PROFILE,
}


def seconds(words: list[str], repeats: int) -> dict[str, float]:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return spread(times)


def main() -> None:
    args = arguments(__doc__)
    shown = {script: seconds([script, "--help"], args.repeats) for script in SCRIPTS}
    shown["run_finetune.sh"] = seconds(["-m", "utils.training.finetune", "--help"], args.repeats)
    finished = {script: seconds([script, *flags], args.repeats) for script, flags in PHASES.items()}
    save(__file__, {"help": shown, "finished phase": finished, "n": len(shown)})


if __name__ == "__main__":
    main()
