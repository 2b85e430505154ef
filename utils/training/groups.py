"""From two score caches to FlagEmbedding's training file: joined, fused, ranked, and sampled into groups.

Two formats of a cache are read, told apart by their fields:

- own: ``{id, query, passage_ids, scores}``; far smaller, texts are looked up by passage id;
- published: ``{query, content: [[passage, score], ...]}``, where a passage's text is its identity.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from utils.config import UsageError, settings_of
from utils.method import SAMPLERS, descending, fuse, passages_needed, supervised_order
from utils.retrieval.answers import has_answer
from utils.store.jsonlines import LineIndex, PassageTexts, parse_row, write_lines
from utils.store.manifest import Phase
from utils.store.rows import PublishedScored, Scored, TrainingGroup

SAME_DOCS = "both caches must come from the same train_docs file"
SCORES = ("retrieval", "rationale", "fused")  # what ranks the candidates, in the data's order
THIS = "this"  # the score of a training file that is made of one cache alone


def check_sampling(sampling: str, topk: int) -> None:
    """Refuse an unknown sampler, and one that needs more passages than are kept."""
    if sampling not in SAMPLERS:
        raise UsageError(f"--sampling {sampling!r} is none of {', '.join(SAMPLERS)}")
    if passages_needed(sampling, topk) > topk:
        raise UsageError(f"--sampling {sampling} needs --fusion_topk {passages_needed(sampling, topk)}, not {topk}")


def write_training_file(
    *,
    reason_cache: Path,
    retrieval_cache: Path,
    docs: Path,
    passages: Path,
    output: Path,
    weight: float,
    args: argparse.Namespace,
) -> None:
    """Fuse two score caches and sample lines ``{query, pos, neg}``. Give the same cache twice to train on it alone.

    Memory holds the caches' keys and one question. Caches in the own format need ``passages``, the texts by passage id.
    Where ``docs``, the candidates file, exists, the manifest's facts and the last lines tell how far up the answers
    stand by each score, and how many positives and negatives contain one. The rationale scores have ``weight``;
    ``args`` has the other settings of the section fusion.
    """
    check_sampling(args.sampling, args.fusion_topk)
    settings = {"reason_weight": weight} | settings_of(args, "sampling", "fusion_topk")
    if args.supervised:  # left out otherwise, so that files of earlier versions still count as finished
        settings["supervised"] = True
    known = [path for path in (docs, passages) if path.exists()]
    phase = Phase(output, dict.fromkeys([reason_cache, retrieval_cache, *known]), settings)
    if phase.is_done(args.overwrite):
        return
    reason, retrieval = open_cache(reason_cache, "reason"), open_cache(retrieval_cache, "retrieval")
    _, first = reason[next(iter(reason))]
    texts = PassageTexts(passages) if "passage_ids" in first else None
    candidates = LineIndex(docs) if docs.exists() else None
    dropped = Counter({"questions without a rationale score": sum(key not in reason for key in retrieval)})
    facts: Counter[str] = Counter()
    rankings = tqdm(fused_rankings(reason, retrieval, weight, dropped, facts), "fuse", len(reason), unit="question")
    rows = write_lines(output, training_groups(rankings, args, texts, candidates, dropped, facts))
    phase.finish(rows, dropped, facts=tell_answers(facts))


def tell_answers(facts: Counter[str]) -> dict[str, float]:
    """Print how far up the answers stand, link by link, and return the facts with means in place of sums."""
    found: dict[str, float] = dict(facts)
    if not (lists := found.pop("candidate lists", 0)):
        return found
    answered = "candidate lists with an answer"
    scores = [score for score in (*SCORES, THIS) if f"mrr {score}" in facts]
    for name in (answered, *(f"{what} {score}" for score in scores for what in ("mrr", "first"))):
        found[name] = facts[name] / lists
    orders = (
        f"by {score} score {found[f'mrr {score}']:.3f} ({found[f'first {score}']:.1%} in first place)"
        for score in scores
    )
    print(f"{found[answered]:.1%} of the candidate lists contain an answer; its MRR {', '.join(orders)}")
    shares = [facts[f"{kind} with an answer"] / facts[kind] for kind in ("positives", "negatives")]
    print(f"{shares[0]:.1%} of the positives and {shares[1]:.1%} of the negatives contain an answer")
    return found


def open_cache(path: str | os.PathLike[str], method: str) -> LineIndex:
    """Open a cache for access by question: by id in the own format, by text in the published one."""
    made_by = f"python dataset_generation.py --dataset NAME --phase generate_dataset --method {method}"
    return LineIndex(path, made_by)


class Ranked(NamedTuple):
    """One question's passages after fusion, best first; ``passages`` are ids (own format) or texts (published)."""

    key: str
    query: str
    passages: list[str]
    orders: dict[str, list[int]]  # by each of `SCORES`, or by `THIS`: places in `passages`, best first


def fused_rankings(
    reason: LineIndex, retrieval: LineIndex, weight: float, dropped: Counter[str], facts: Counter[str]
) -> Iterator[Ranked]:
    """Join two caches by question and passage, fuse, and rank, in the order of the rationale cache.

    Equal fused scores keep its order too, as in the published script. Of a repeated passage the best score is kept. If
    all scores of a question are equal in one cache, the other decides; in both, the question is left out.
    """
    for key in reason:
        where, raw = reason[key]
        if key not in retrieval:
            raise UsageError(f"{where}: question {key[:80]!r} is not in {retrieval.path}; {SAME_DOCS}")
        other_where, other_raw = retrieval[key]
        query, rationale = _read_scores(raw, where, dropped)
        _, retrieved = _read_scores(other_raw, other_where, dropped)
        if rationale.keys() != retrieved.keys():
            single = len(rationale.keys() ^ retrieved.keys())
            raise UsageError(f"{where} and {other_where}: {single} passages stand in one cache only; {SAME_DOCS}")
        ours, theirs = list(rationale.values()), [retrieved[passage] for passage in rationale]
        # A list of weight 0 takes no part in the order.
        constant = [min(scores) == max(scores) for scores, w in ((ours, weight), (theirs, 1 - weight)) if w]
        if all(constant):
            dropped["questions without any order"] += 1
            continue
        facts["constant score lists"] += sum(constant)
        fused = fuse(ours, theirs, weight).tolist()
        order, names = descending(fused).tolist(), list(rationale)
        passages = [names[i] for i in order]
        place = {passage: i for i, passage in enumerate(passages)}
        # Equal scores keep their own cache's order; the fused one would credit the retriever with the rationale's.
        alone = reason.path == retrieval.path
        by_score = [(THIS, passages)] if alone else zip(SCORES, (retrieved, rationale, passages), strict=True)
        orders = {score: [place[passage] for passage in ranked] for score, ranked in by_score}
        yield Ranked(key, query, passages, orders)


def _read_scores(raw: dict[str, Any], where: str, dropped: Counter[str]) -> tuple[str, dict[str, float]]:
    """Return question, and passage -> score, best first."""
    if "content" in raw:
        published = parse_row(raw, PublishedScored, where)
        query, pairs = published.query, published.content
    else:
        own = parse_row(raw, Scored, where)
        query, pairs = own.query, list(zip(own.passage_ids, own.scores, strict=True))
    if not pairs:
        raise UsageError(f"{where}: the question has no passages")
    found: dict[str, float] = {}
    for passage, score in sorted(pairs, key=lambda pair: -pair[1]):
        found.setdefault(passage, score)
    dropped["repeated passages"] += len(pairs) - len(found)
    return query, found


def training_groups(
    rankings: Iterable[Ranked],
    args: argparse.Namespace,
    texts: PassageTexts | None,
    candidates: LineIndex | None,
    dropped: Counter[str],
    facts: Counter[str],
) -> Iterator[TrainingGroup]:
    """Sample groups from the first ``fusion_topk`` distinct texts of each ranking; at least one, or it is an error.

    A repeated text is left out: a positive that comes back as its own negative teaches nothing. ``texts`` is None if
    the rankings hold texts in place of passage ids; ``candidates``, by question id, have the golden answers.
    """
    for key, query, passages, orders in rankings:
        found = [passage if texts is None else texts[passage] for passage in passages]
        answers = candidates[key][1]["golden_answers"] if candidates and key in candidates else None
        if answers is None and args.supervised:
            raise UsageError(f"--supervised needs the candidates file's answers of {key!r}")
        answered: dict[str, bool] = {}
        if answers is not None:
            with_answer = [has_answer(answers, text) for text in found]
            count_answers(with_answer, orders, facts)
            answered = dict(zip(found, with_answer, strict=True))
        kept = list(dict.fromkeys(found))
        dropped["repeated passages"] += len(found) - len(kept)
        if args.supervised:
            kept = supervised_order(kept, [answered[text] for text in kept])
            dropped["questions without an answer in their passages"] += not kept
        kept = kept[: args.fusion_topk]
        if len(kept) < passages_needed(args.sampling, args.fusion_topk):
            dropped["questions with too few passages"] += bool(kept)
            continue
        for positives, negatives in SAMPLERS[args.sampling](kept):
            for kind, part in (("positives", positives), ("negatives", negatives)):
                facts[kind] += len(part)
                if answers is not None:
                    facts[f"{kind} with an answer"] += sum(answered[text] for text in part)
            yield TrainingGroup(query=query, pos=positives, neg=negatives)
    if not facts["positives"]:
        raise UsageError(f"no training line could be made of the score caches: {dict(dropped)}")


def count_answers(with_answer: list[bool], orders: dict[str, list[int]], facts: dict[str, Any]) -> None:
    """Add one question's first passage with an answer, as each score ranks it, to the sums of `tell_answers`."""
    facts["candidate lists"] += 1
    facts["candidate lists with an answer"] += any(with_answer)
    for name, order in orders.items():
        ranked = [with_answer[i] for i in order]
        facts[f"first {name}"] += ranked[0]
        facts[f"mrr {name}"] += 1 / (ranked.index(True) + 1) if True in ranked else 0
