"""Ask an LLM why the gold answer of each training question is right.

    python llm_generation.py --dataset=nq --model=gpt-4o-mini          (key in OPENAI_API_KEY)
    python llm_generation.py --dataset=nq --dry_run                    (tokens, cost, time and disk, before a request)
    python llm_generation.py --dataset=nq --base_url=http://127.0.0.1:8000/v1 --model=my-model

reads   DATA_DIR/DATASET/train.jsonl                       {id, question, golden_answers}
writes  DATA_DIR/DATASET/reason/train_with_reason.jsonl    the same rows with "reason"
        DATA_DIR/DATASET/reason/requests.journal.jsonl     every answer as it arrived
        DATA_DIR/DATASET/reason/failures.jsonl             questions without a usable answer, and why

Up to --concurrency requests are in flight, fewer while the server answers 429. Ctrl-C lets them finish;
run again after a stop, the script asks only what is missing. --dry_run tells what a run would take.
--batch uses OpenAI's Batch API: half the price, within a day; stop and start it at will.
Empty and cut-off answers are failures; with more failures than --max_failures (a share of the
questions) the exit code is 1, the answers so far are kept and the output is not written.
"""

from __future__ import annotations

import functools
import math
import sys
from collections import Counter

from utils.config import dataset_dir, phase_arguments, run_main, settings_of

EXTRA = [("--dry_run", {"action": "store_true", "help": "print rows, tokens, cost, time and disk, and ask nothing"})]


def main() -> int:
    """Parse the command line, ask, and write; returns the exit code."""
    args = phase_arguments(__doc__, ["rationale"], extra=EXTRA)

    from utils.llm.client import ask_all
    from utils.llm.forecast import forecast
    from utils.llm.pricing import Budget
    from utils.llm.rationales import RationaleRequests
    from utils.llm.types import Server
    from utils.store.journal import Journal
    from utils.store.jsonlines import read_rows, write_lines
    from utils.store.manifest import Phase
    from utils.store.rows import Question, Rationale

    folder = dataset_dir(args)
    source, output = folder / "train.jsonl", folder / "reason/train_with_reason.jsonl"
    dropped = Counter[str]() if args.skip_bad_rows else None
    made_by = f"see README, 'Your own data': {source}"
    questions = read_rows(source, Question, made_by, args.train_questions, dropped=dropped)
    sampling = settings_of(args, "train_questions", "model", "temperature", "top_p", "max_tokens", "stop", "seed")
    prompts = {name: text for name, text in args.prompts.items() if name.startswith("rationale_")}
    phase = Phase(output, [source], sampling | prompts)
    if phase.is_done(args.overwrite):
        return 0
    requests = RationaleRequests(questions, args)
    server = Server.of(args)
    budget = Budget.for_model(args.prices, args.model, args.max_cost)
    answers = output.with_name("requests.journal.jsonl")
    if args.dry_run:
        print(forecast(requests, answers, server, budget))
        return 0
    with Journal(answers) as journal:
        outcome = ask_all(requests, server, journal, "rationales", budget=budget)
        pairs = functools.partial(zip, questions, requests, strict=True)
        failures = output.with_name("failures.jsonl")
        failed = write_lines(
            failures,
            (
                {"id": question.id, "question": question.question, "failure": outcome.failures[item.key]}
                for question, item in pairs()
                if item.key in outcome.failures
            ),
        )
        total = len(questions)
        print(f"asked {outcome.asked} of {total}, {outcome.tokens} tokens received, {failed} failed, {budget}")
        if outcome.unasked:
            print(
                f"error: {outcome.unasked} questions were not asked: {outcome.stopped}; the answers so far are kept, "
                "and the same command goes on (--max_cost raises the limit)",
                file=sys.stderr,
            )
            return 1
        if failed > args.max_failures * total:
            enough = math.ceil(failed / total * 10_000) / 10_000
            print(
                f"error: {failed} of {total} questions have no rationale; {failures} says why. Run the same command to "
                f"ask only these again, or go on without: --max_failures {enough:g}",
                file=sys.stderr,
            )
            return 1
        count = write_lines(
            output,
            (
                Rationale(**question.model_dump(), reason=journal[item.key]["text"].strip())
                for question, item in pairs()
                if item.key in journal
            ),
        )
    lost = {"questions without a rationale": failed} | (dropped or {})
    phase.finish(count, lost, facts=outcome.usage | {"cost": budget.cost})
    return 0


if __name__ == "__main__":
    run_main(main)
