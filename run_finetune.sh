#!/bin/sh
# Fine-tune the reranker on RADIO's training groups: sh run_finetune.sh [flags]; --help lists them.
# Uses the Python on your PATH; PYTHON=/path/to/python chooses another.
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" -m utils.finetune "$@"
