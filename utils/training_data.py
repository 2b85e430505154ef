"""FlagEmbedding's training file from ranked passages."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from utils.answers import has_answer
from utils.config import UsageError
from utils.files import LineIndex, write_lines
from utils.manifest import Phase
from utils.passages import PassageTexts
from utils.rows import TrainingGroup
from utils.sampling import SAMPLERS, passages_needed
from utils.score_cache import Ranked, fused_rankings, is_published, open_cache

PathLike = str | os.PathLike[str]


def training_groups(
    rankings: Iterable[Ranked],
    sampling: str,
    topk: int,
    counts: Counter[str],
    texts: PassageTexts | None = None,
    answer_in: Callable[[str, str], bool] | None = None,
) -> Iterator[TrainingGroup]:
    """Sample groups from the first ``topk`` passages of each ranking.

    Passages whose text repeats a better-ranked one are passed over: a positive that comes back as
    its own negative teaches nothing.

    Args:
        rankings: passages best first.
        sampling: a key of `utils.sampling.SAMPLERS`.
        topk: passages kept.
        counts: receives ``questions with too few passages`` (left out), ``repeated passages``,
            ``positives``, ``negatives`` and, with ``answer_in``, those of each ``with an answer``.
        texts: of the passages in the rankings; None where these are texts themselves.
        answer_in: ``(question id, text) -> bool``, to count passages that contain an answer.
    """
    needed = passages_needed(sampling, topk)
    original: Callable[[str], str] = texts.original if texts else str
    for ranking in rankings:
        kept: dict[str, None] = {}
        for passage in map(original, ranking.passages):
            counts["repeated passages"] += passage in kept
            kept[passage] = None
            if len(kept) == topk:
                break
        if len(kept) < needed:
            counts["questions with too few passages"] += 1
            continue
        for group in SAMPLERS[sampling](list(kept)):
            positives, negatives = ([texts[name] if texts else name for name in chosen] for chosen in group)
            for kind, chosen in (("positives", positives), ("negatives", negatives)):
                counts[kind] += len(chosen)
                if answer_in and ranking.query_id is not None:
                    counts[f"{kind} with an answer"] += sum(answer_in(ranking.query_id, text) for text in chosen)
            yield TrainingGroup(query=ranking.query, pos=positives, neg=negatives)


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
        sampling: a key of `utils.sampling.SAMPLERS`.
        topk: passages kept after fusion.
        overwrite: make the file again even if it is finished.

    Raises:
        UsageError: unusable caches (see `utils.score_cache.fused_rankings`), ``topk`` below the
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
    counts: Counter[str] = Counter()
    rankings = tqdm(fused_rankings(reason, retrieval, weight, counts), total=len(reason), desc="fuse", unit="question")
    groups = training_groups(rankings, sampling, topk, counts, texts, _answer_matcher(docs))
    first = next(groups, None)
    if first is None:
        raise UsageError(f"no training line could be made of {reason_cache} and {retrieval_cache}: {dict(counts)}")
    rows = write_lines(output, itertools.chain([first], groups))
    kinds = [kind + suffix for kind in ("positives", "negatives") for suffix in ("", " with an answer")]
    facts = {fact: counts.pop(fact) for fact in ("constant score lists", *kinds) if fact in counts}
    if all(kind in facts for kind in kinds):
        shares = [facts[f"{kind} with an answer"] / facts[kind] for kind in ("positives", "negatives")]
        print(
            f"{shares[0]:.1%} of the positives and {shares[1]:.1%} of the negatives contain an answer of their question"
        )
    phase.finish(rows, counts, facts=facts)


def _answer_matcher(docs: PathLike) -> Callable[[str, str], bool] | None:
    """``(question id, text) -> bool``, if the questions' answers are at hand."""
    if not Path(docs).exists():
        return None
    candidates = LineIndex(docs, lambda row: str(row["id"]))

    def answer_in(query_id: str, text: str) -> bool:
        return query_id in candidates and has_answer(candidates[query_id][1]["golden_answers"], text)

    return answer_in
