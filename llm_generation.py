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

import sys
from collections import Counter

from utils.config import dataset_dir, phase_arguments, run_main, settings_of

EXTRA = [("--dry_run", {"action": "store_true", "help": "print rows, tokens, cost, time and disk, and ask nothing"})]


def main() -> int:
    """Parse the command line, ask, and write; returns the exit code."""
    args = phase_arguments(__doc__, ["rationale"], extra=EXTRA)

    from utils.files import read_rows, require_space, write_lines
    from utils.forecast import forecast
    from utils.journal import Journal
    from utils.llm import Server, ask_all
    from utils.manifest import Phase
    from utils.pricing import Budget
    from utils.rationale import rationale_requests
    from utils.rows import Question, Rationale

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
    requests = rationale_requests(questions, args)
    server = Server.of(args)
    budget = Budget.for_model(args.prices, args.model, args.max_cost)
    require_space(folder, 4096 * len(requests), "rationales and their journal")
    answers = output.with_name("requests.journal.jsonl")
    if args.dry_run:
        print(forecast(requests, answers, server, budget))
        return 0
    with Journal(answers) as journal:
        outcome = ask_all(requests, server, journal, "rationales", budget=budget)

    failed, rows = [], []
    for question, item in zip(questions, requests, strict=True):
        if item.key in outcome.answers:
            reason = outcome.answers[item.key]["text"].strip()
            rows.append(Rationale(**question.model_dump(), reason=reason))
        elif item.key in outcome.failures:
            failed.append({"id": question.id, "question": question.question, "failure": outcome.failures[item.key]})
    failures = output.with_name("failures.jsonl")
    write_lines(failures, failed)
    print(
        f"asked {outcome.asked} of {len(questions)}, {outcome.tokens} tokens received, {len(failed)} failed, {budget}"
    )
    if outcome.unasked:
        print(
            f"error: {outcome.unasked} questions were not asked: {outcome.stopped}; the answers so far are kept, and "
            "the same command goes on (--max_cost raises the limit)",
            file=sys.stderr,
        )
        return 1
    if len(failed) > args.max_failures * len(questions):
        print(
            f"error: {len(failed)} of {len(questions)} questions have no rationale; {failures} says why. Run the same "
            f"command to ask only these again, or go on without: --max_failures {len(failed) / len(questions):.3f}",
            file=sys.stderr,
        )
        return 1
    write_lines(output, rows)
    lost = {"questions without a rationale": len(failed)} | (dropped or {})
    phase.finish(len(rows), lost, facts=outcome.usage() | {"cost": budget.cost})
    return 0


if __name__ == "__main__":
    run_main(main)
