#!/usr/bin/env bash
# Set up what is needed and run every check:   bash test.sh [pytest's arguments]
#   bash test.sh -m 'not slow'     the fast suite, for every day
set -euo pipefail
cd "$(dirname "$0")"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_PROGRESS_BARS=1
bash reproduce.sh --only_install
python=.venv/bin/python
stamp=.venv/.installed-dev wanted=$(cat requirements/dev.txt requirements/scale.txt | cksum)
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
  $python -m pip install --quiet -r requirements/dev.txt
  echo "$wanted" >$stamp
fi
$python -m ruff check .
$python -m ruff format --check .
$python -m mypy utils quickstart extras ./*.py
$python -m pytest "$@"
