"""FlagEmbedding's training file from ranked passages."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.config import UsageError
from utils.retrieval.answers import has_answer
from utils.store.files import atomic
from utils.store.jsonlines import dump_line
from utils.store.lookup import LineIndex, PassageTexts
from utils.store.manifest import Phase
from utils.store.parallel import map_chunks
from utils.store.rows import TrainingGroup
from utils.training.sampling import SAMPLERS, passages_needed
from utils.training.score_cache import (
    QUESTIONS_AT_ONCE,
    Ranked,
    check_formats,
    fused_rankings,
    is_published,
    open_cache,
    unscored,
)

PathLike = str | os.PathLike[str]


def training_groups(
    rankings: Iterable[Ranked],
    sampling: str,
    topk: int,
    counts: Counter[str],
    texts: PassageTexts | None = None,
    answers_of: Callable[[str], list[str]] | None = None,
) -> Iterator[TrainingGroup]:
    """Sample groups from the first ``topk`` passages of each ranking.

    Passages whose text repeats a better-ranked one are passed over: a positive that comes back as
    its own negative teaches nothing.

    Args:
        rankings: passages best first.
        sampling: a key of `utils.training.sampling.SAMPLERS`.
        topk: passages kept.
        counts: receives ``questions with too few passages`` (left out), ``repeated passages``,
            ``positives``, ``negatives`` and, with ``answers_of``, those of each ``with an answer``.
        texts: by passage id; None if the rankings hold the texts themselves.
        answers_of: the answers of a question id, to count passages that contain one.
    """
    needed = passages_needed(sampling, topk)
    text_of = str if texts is None else texts.__getitem__
    for ranking in rankings:
        kept, repeated = _distinct(ranking.passages, topk, texts)
        counts["repeated passages"] += repeated
        if len(kept) < needed:
            counts["questions with too few passages"] += 1
            continue
        groups = SAMPLERS[sampling](kept)
        chosen = set(itertools.chain.from_iterable(positives + negatives for positives, negatives in groups))
        text = {passage: text_of(passage) for passage in chosen}
        answers = answers_of(ranking.query_id) if answers_of and ranking.query_id is not None else None
        correct = {p for p in chosen if has_answer(answers, text[p])} if answers is not None else None
        for positives, negatives in groups:
            for kind, part in (("positives", positives), ("negatives", negatives)):
                counts[kind] += len(part)
                if correct is not None:
                    counts[f"{kind} with an answer"] += sum(passage in correct for passage in part)
            yield TrainingGroup(query=ranking.query, pos=[text[p] for p in positives], neg=[text[p] for p in negatives])


def _distinct(passages: list[str], topk: int, texts: PassageTexts | None) -> tuple[list[str], int]:
    """The first ``topk`` passages of different texts, and how many of equal text stand between them."""
    if texts is None or texts.all_differ(passages[:topk]):
        return passages[:topk], 0
    by_text: dict[str, str] = {}
    seen = 0
    while seen < len(passages) and len(by_text) < topk:
        by_text.setdefault(texts[passages[seen]], passages[seen])
        seen += 1
    return list(by_text.values()), seen - len(by_text)


def write_training_file(
    *,
    reason_cache: PathLike,
    retrieval_cache: PathLike,
    docs: PathLike,
    passages: PathLike,
    output: PathLike,
    weight: float,
    sampling: str,
    topk: int,
    overwrite: bool = False,
) -> None:
    """Fuse two caches into one training file. Give the same cache twice to train on it alone.

    Args:
        reason_cache: rationale scores.
        retrieval_cache: retrieval scores of the same questions and passages.
        docs: the candidates file; where it stands, negatives that contain an answer are counted.
        passages: texts by passage id, needed by caches in the own format.
        output: FlagEmbedding lines ``{query, pos, neg}``.
        weight: of the rationale scores.
        sampling: a key of `utils.training.sampling.SAMPLERS`.
        topk: passages kept after fusion.
        overwrite: make the file again even if it is finished.

    Raises:
        UsageError: unusable caches (see `utils.training.score_cache.fused_rankings`), ``topk`` below the
            sampler's ranks, or no line left to write.
    """
    if passages_needed(sampling, topk) > topk:
        raise UsageError(f"--sampling {sampling} needs --fusion_topk {passages_needed(sampling, topk)}, not {topk}")
    settings = {"reason_weight": weight, "sampling": sampling, "fusion_topk": topk}
    known = [path for path in (docs, passages) if Path(path).exists()]
    phase = Phase(output, dict.fromkeys([reason_cache, retrieval_cache, *known]), settings)
    if phase.is_done(overwrite):
        return
    make = "python dataset_generation.py --dataset NAME --phase generate_dataset --method {}"
    reason = open_cache(reason_cache, make.format("reason"))
    retrieval = open_cache(retrieval_cache, make.format("retrieval"))
    texts = None if is_published(reason) else PassageTexts(passages)
    check_formats(reason, retrieval)
    made = (reason, retrieval, texts, _golden_answers(docs), weight, sampling, topk)
    counts: Counter[str] = Counter({"questions without a rationale score": unscored(reason, retrieval)})
    with atomic(output) as handle, tqdm(total=len(reason), desc="fuse", unit="question") as bar:
        for lines, part in map_chunks(_lines, reason, QUESTIONS_AT_ONCE, _inherit, made):
            handle.write(lines)
            counts.update(part)
            bar.update(part["questions"])
        rows = counts.pop("lines")
        del counts["questions"]
        if not rows:
            raise UsageError(f"no training line could be made of {reason_cache} and {retrieval_cache}: {dict(counts)}")
    kinds = [kind + suffix for kind in ("positives", "negatives") for suffix in ("", " with an answer")]
    facts = {fact: counts.pop(fact) for fact in ("constant score lists", *kinds) if fact in counts}
    if all(kind in facts for kind in kinds):
        shares = [facts[f"{kind} with an answer"] / facts[kind] for kind in ("positives", "negatives")]
        print(
            f"{shares[0]:.1%} of the positives and {shares[1]:.1%} of the negatives contain an answer of their question"
        )
    phase.finish(rows, counts, facts=facts)


_inherited: list[Any] = []  # of a process: what `_lines` works on


def _inherit(*made: Any) -> None:
    _inherited[:] = made


def _lines(keys: list[str]) -> tuple[bytes, Counter[str]]:
    """The training lines of some questions of the rationale cache, and what there is to count."""
    reason, retrieval, texts, answers_of, weight, sampling, topk = _inherited
    counts = Counter({"questions": len(keys)})
    rankings = fused_rankings(keys, reason, retrieval, weight, counts)
    lines = [dump_line(group) for group in training_groups(rankings, sampling, topk, counts, texts, answers_of)]
    counts["lines"] = len(lines)
    return b"".join(lines), counts


def _golden_answers(docs: PathLike) -> Callable[[str], list[str]] | None:
    """The answers of a question id, none if it is unknown; None if no answers are at hand."""
    if not Path(docs).exists():
        return None
    candidates = LineIndex(docs, lambda row: str(row["id"]))
    return lambda query_id: candidates[query_id][1]["golden_answers"] if query_id in candidates else []
