#!/usr/bin/env bash
# Run every benchmark but approximate.py and cluster.py, one after the other: bash benchmarks/run.sh [--device cuda]
# It writes benchmarks/results/*.json and takes under 20 minutes on 2 cores; nothing else should run meanwhile. First run
# `bash reproduce.sh`, which makes the data, and `python -m quickstart.models --all`, for the LLM of benchmarks/generate.py.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_PROGRESS_BARS=1
measure() { echo "== $*" && "$python" "benchmarks/$1.py" "${@:2}"; }
if [ "$*" = "--device cuda" ]; then
  measure machine --device cuda
  measure search --device cuda --vectors 21015324 --dimension 768 --queries 4096
  measure scoring --device cuda --questions 400
  measure index --device cuda --passages 200000 --repeats 1
  measure rerank --device cuda --questions 2000
  measure finetune --device cuda --steps 50 --repeats 2
  measure generate --device cuda --prompts 512
  exit
fi
for name in machine startup fusion rationales growth bm25; do measure $name; done
measure search --vectors 500000 --limit 450
measure index --repeats 1
for name in scoring rerank finetune generate; do measure $name --repeats 2; done
