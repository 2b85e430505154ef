#!/bin/sh
# Fine-tune the reranker on RADIO's training groups: sh run_finetune.sh [flags]; --help lists them.
# Uses the Python on your PATH; PYTHON=/path/to/python chooses another.
command -v "${PYTHON:=python}" >/dev/null || PYTHON=python3
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m utils.training.finetune "$@"
