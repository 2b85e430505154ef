"""FlagEmbedding's training file: fused rankings sampled into groups of positives and negatives."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from utils.config import UsageError
from utils.method import SAMPLERS, passages_needed
from utils.retrieval.answers import has_answer
from utils.store.jsonlines import LineIndex, PassageTexts, write_lines
from utils.store.manifest import Phase
from utils.store.rows import TrainingGroup
from utils.training.score_caches import Ranked, fused_rankings, is_published, open_cache


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
    sampling: str,
    topk: int,
    overwrite: bool = False,
) -> None:
    """Fuse two score caches and sample lines ``{query, pos, neg}``. Give the same cache twice to train on it alone.

    Memory holds the caches' keys and one question. Caches in the own format need ``passages``, the texts by passage id.
    Where ``docs``, the candidates file, exists, positives and negatives that contain an answer are counted. The
    rationale scores have ``weight``; ``topk`` passages are kept after fusion.
    """
    check_sampling(sampling, topk)
    settings = {"reason_weight": weight, "sampling": sampling, "fusion_topk": topk}
    known = [path for path in (docs, passages) if path.exists()]
    phase = Phase(output, dict.fromkeys([reason_cache, retrieval_cache, *known]), settings)
    if phase.is_done(overwrite):
        return
    reason, retrieval = open_cache(reason_cache, "reason"), open_cache(retrieval_cache, "retrieval")
    if is_published(reason) != is_published(retrieval):
        raise UsageError(f"{reason_cache} and {retrieval_cache} have different formats; make both by the same command")
    texts = None if is_published(reason) else PassageTexts(passages)
    counts = Counter({"questions without a rationale score": sum(key not in reason for key in retrieval)})
    rankings = tqdm(fused_rankings(reason, retrieval, weight, counts), "fuse", len(reason), unit="question")
    groups = training_groups(rankings, sampling, topk, counts, texts, _golden_answers(docs))
    first = next(groups, None)
    if first is None:
        raise UsageError(f"no training line could be made of {reason_cache} and {retrieval_cache}: {dict(counts)}")
    rows = write_lines(output, itertools.chain([first], groups))
    kinds = [f"{kind}{suffix}" for kind in ("positives", "negatives") for suffix in ("", " with an answer")]
    facts = {fact: counts.pop(fact) for fact in ("constant score lists", *kinds) if fact in counts}
    if all(kind in facts for kind in kinds):
        shares = [facts[f"{kind} with an answer"] / facts[kind] for kind in ("positives", "negatives")]
        print(f"{shares[0]:.1%} of the positives and {shares[1]:.1%} of the negatives contain an answer")
    phase.finish(rows, counts, facts=facts)


def training_groups(
    rankings: Iterable[Ranked],
    sampling: str,
    topk: int,
    counts: Counter[str],
    texts: PassageTexts | None,
    answers_of: Callable[[str], list[str]] | None,
) -> Iterator[TrainingGroup]:
    """Sample groups from the first ``topk`` distinct texts of each ranking; ``counts`` receives the statistics.

    A repeated text is left out: a positive that comes back as its own negative teaches nothing. ``texts`` is None if
    the rankings hold texts in place of passage ids.
    """
    for ranking in rankings:
        kept: dict[str, None] = {}  # distinct texts
        for passage in ranking.passages:
            if len(kept) == topk:
                break
            text = passage if texts is None else texts[passage]
            counts["repeated passages"] += text in kept
            kept[text] = None
        if len(kept) < passages_needed(sampling, topk):
            counts["questions with too few passages"] += 1
            continue
        answers = answers_of(ranking.query_id) if answers_of and ranking.query_id is not None else None
        for positives, negatives in SAMPLERS[sampling](list(kept)):
            for kind, part in (("positives", positives), ("negatives", negatives)):
                counts[kind] += len(part)
                if answers is not None:
                    counts[f"{kind} with an answer"] += sum(has_answer(answers, text) for text in part)
            yield TrainingGroup(query=ranking.query, pos=positives, neg=negatives)


def _golden_answers(docs: Path) -> Callable[[str], list[str]] | None:
    """Return a function from question id to answers, none for an unknown question; None if the file is not there."""
    if not docs.exists():
        return None
    candidates = LineIndex(docs)
    return lambda query_id: candidates[query_id][1]["golden_answers"] if query_id in candidates else []
