"""Step 1 of RADIO: rationales asked of an LLM, or taken from a published file."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from utils.config import UsageError, dataset_dir, rationale_dir, settings_of
from utils.llm.batch import open_keys
from utils.llm.client import ask_all
from utils.llm.cost import Budget, forecast, too_many
from utils.llm.types import Prompt, Request, Server, answer_in, answer_of, chat, request
from utils.store.cards import write_dataset_card
from utils.store.journal import Journal
from utils.store.jsonlines import parse_row, read_records, read_rows, write_lines
from utils.store.manifest import CARD, Phase
from utils.store.rows import Answers, Question, Rationale, Text

SAMPLING = ("model", "temperature", "top_p", "max_tokens", "stop", "seed")
HOW_TO = "see README, 'Your own data'"


def rationales_path(args: argparse.Namespace) -> Path:
    """Return the file of the rationales."""
    if args.rationale == "none":
        raise UsageError("--rationale none means that there are no rationales to write; name a folder for them")
    return rationale_dir(args) / "train_with_reason.jsonl"


def rationale_request(row: Question, args: argparse.Namespace) -> Request:
    """Return the request for one question's rationale: a system and a user message, or a completion prompt."""
    fields, prompts = {"question": row.question, "answers": "; ".join(row.golden_answers)}, args.prompts
    prompt: Prompt
    if prompts["rationale_completion"]:
        prompt = prompts["rationale_completion"].format(**fields)
    else:
        prompt = chat(prompts["rationale_system"], prompts["rationale_user"].format(**fields))
    sampling = settings_of(args, "temperature", "top_p", "max_tokens", "seed")
    return request(args.model, prompt, args.stop, args.request, **sampling, n=1)


def ask_rationales(args: argparse.Namespace) -> int:
    """Ask for the rationale of every training question and write them; return the exit code.

    The code is 1, and the output is not written, if requests were left for another call or if a larger share of the
    questions than ``max_failures`` has no usable answer.
    """
    source, output, dropped = dataset_dir(args) / "train.jsonl", rationales_path(args), Counter[str]()
    skipped = dropped if args.skip_bad_rows else None
    questions = read_rows(source, Question, HOW_TO, args.train_questions, dropped=skipped)
    prompts = {name: text for name, text in args.prompts.items() if name.startswith("rationale_")}
    settings = settings_of(args, "train_questions", *SAMPLING, *(["request"] if args.request else [])) | prompts
    phase = Phase(output, [source], settings)
    if _is_done(phase, args):
        return 0
    requests, server = [rationale_request(row, args) for row in questions], Server.of(args)
    budget = Budget.for_model(args.prices, args.model, args.max_cost)
    answers, failures = output.with_name("requests.journal.jsonl"), output.with_name("failures.jsonl")
    if args.dry_run:
        print(forecast(requests, answers, open_keys(answers), server, budget))
        return 0
    with Journal(answers) as journal:
        outcome = ask_all(requests, server, journal, "rationales", budget=budget)
        pairs = list(zip(questions, (item.key for item in requests), strict=True))
        without = [(row, outcome.failures[key]) for row, key in pairs if key in outcome.failures]
        failed = write_lines(
            failures, ({"id": row.id, "question": row.question, "failure": said} for row, said in without)
        )
        total, tokens = len(questions), outcome.usage["completion_tokens"]
        print(f"asked {outcome.asked} of {total}, {failed} failed, {tokens} tokens received in all, {budget}")
        if failed:
            print(f"failed: {outcome.reasons}; {failures} has all")
        error = outcome.rest
        if not error and (remedy := too_many(failed, total, args.max_failures)):
            error = f"{failed} of {total} questions have no rationale; {remedy}"
        if error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        found = ((row, answer_of(journal[key])) for row, key in pairs if key in journal)
        count = write_lines(output, (Rationale(**row.model_dump(), reason=text) for row, text in found if text))
    lost = {"questions without a rationale": total - count} | dropped
    phase.finish(count, lost, facts=outcome.usage | {"cost": budget.cost})
    write_dataset_card(output, args)
    return 0


def import_rationales(args: argparse.Namespace) -> None:
    """Write the training questions that have a published rationale, with it."""
    source, output, counts = dataset_dir(args) / "train.jsonl", rationales_path(args), Counter[str]()
    dropped = counts if args.skip_bad_rows else None
    questions = read_rows(source, Question, HOW_TO, args.train_questions, dropped=dropped)
    phase = Phase(output, [source, *args.source], settings_of(args, "train_questions"))
    if _is_done(phase, args):
        return
    rows = match_rationales(questions, args.source, counts)
    if not rows:
        raise UsageError(f"none of {len(questions)} questions of {source} has a row in --source")
    write_lines(output, rows)
    differing = counts.pop("questions with other answers than published", 0)
    phase.finish(len(rows), counts, facts={"questions with other answers than published": differing})
    write_dataset_card(output, args)


def _is_done(phase: Phase, args: argparse.Namespace) -> bool:
    done = phase.is_done(args.overwrite)
    if done and not phase.output.with_name(CARD).exists():  # a kill came before it
        write_dataset_card(phase.output, args)
    return done


class _Published(BaseModel):
    question: Text
    golden_answers: Answers
    reason: str | None


def match_rationales(questions: Iterable[Question], files: Iterable[Path], counts: Counter[str]) -> list[Rationale]:
    """Return the questions that have a published rationale, with it; count what does not match.

    Two texts are the same question if they differ at most in case and blanks; ids are not used, because published ones
    may count other rows. Of repeated rows the first is used. A rationale is also used where our gold answers differ.
    """
    published: dict[str, _Published] = {}
    for file in files:
        for where, raw in read_records(file):
            row = parse_row(raw, _Published, where)
            row.reason = answer_in(row.reason or "")
            if not (row.reason or "").strip():
                counts["published rows without a rationale"] += 1
            elif published.setdefault(_same(row.question), row) is not row:
                counts["repeated published rows"] += 1
    found, unused = [], set(published)
    for question in questions:
        key = _same(question.question)
        if key not in published:
            counts["questions without a published rationale"] += 1
            continue
        unused.discard(key)
        if set(question.golden_answers) != set(published[key].golden_answers):
            counts["questions with other answers than published"] += 1
        found.append(Rationale(**question.model_dump(), reason=str(published[key].reason)))
    counts["published rows for no question of ours"] += len(unused)
    return found


def _same(question: str) -> str:
    return " ".join(question.casefold().split())
