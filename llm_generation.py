"""Ask an LLM why the gold answer of each training question is right.

    python llm_generation.py --dataset=nq --model=gpt-4o-mini          (key in OPENAI_API_KEY)
    python llm_generation.py --dataset=nq --dry_run                    (tokens, cost and time, before a request)
    python llm_generation.py --dataset=nq --base_url=http://127.0.0.1:8000/v1 --model=my-model

reads   DATA_DIR/DATASET/train.jsonl                       {id, question, golden_answers}
writes  DATA_DIR/DATASET/reason/train_with_reason.jsonl    the same rows with "reason"
        DATA_DIR/DATASET/reason/README.md                  their card for the Hugging Face hub
        DATA_DIR/DATASET/reason/requests.journal.jsonl     every answer as it arrived
        DATA_DIR/DATASET/reason/failures.jsonl             questions without a usable answer, and why

Up to --concurrency requests are in flight, fewer while the server answers 429, or not in time. Run again after a
stop, the script asks only what is missing. --batch uses OpenAI's Batch API: half the price, within a day; stop and
start it at will. Empty and cut-off answers are failures. If a larger share of the questions than --max_failures has
failed, or all of them, the exit code is 1: the answers so far are kept, and the output is not written.
"""

from __future__ import annotations

from utils.config import phase_arguments, run_main
from utils.llm.rationales import ask_rationales

EXTRA = [("--dry_run", {"action": "store_true", "help": "print rows, tokens, cost and time, and ask nothing"})]


def main() -> int:
    """Parse the command line and ask; return the exit code."""
    return ask_rationales(phase_arguments(__doc__, ["rationale"], extra=EXTRA))


if __name__ == "__main__":
    run_main(main)
