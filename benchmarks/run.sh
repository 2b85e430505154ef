#!/usr/bin/env bash
# Every benchmark, one after the other: bash benchmarks/run.sh [--device cuda]
# Results: benchmarks/results/*.json. On 2 cores under 20 minutes; nothing else should run meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_PROGRESS_BARS=1
if [ $# = 0 ]; then
  for name in machine startup fusion rationales search growth; do
    echo "== $name" && "$python" "benchmarks/$name.py"
  done
fi
for name in scoring index rerank finetune generate; do
  echo "== $name" && "$python" "benchmarks/$name.py" "$@"
done
