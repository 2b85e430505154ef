"""Cards: the ``README.md`` that the Hugging Face hub shows of a reranker or of a set of rationales."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.config import ANSWER_ONLY, dataset_dir
from utils.store.files import write_file
from utils.store.manifest import CARD, manifest_path, read_manifest

MARK = "<!-- This card is written anew with new results. Remove this line to keep it as you have changed it. -->"
# Of the questions, as the hub spells what their publishers say. TriviaQA's say nothing.
LICENSES = {
    "nq": "cc-by-sa-3.0", "musique": "cc-by-4.0", "mmlu": "mit",
    "quickstart_nq": "cc-by-sa-3.0", "quickstart_base": "cc-by-sa-3.0", "quickstart_mmlu": "mit",
}  # fmt: skip


class Score(NamedTuple):
    """A reranker's mean over the questions of one test set, beside what other orders of the same passages reach."""

    dataset: str
    split: str
    metric: str
    generator: str  # who answered; empty where the ranking counts
    mean: float
    low: float | None
    high: float | None
    n: int
    others: Mapping[str, float | None]  # condition in words -> mean; the same conditions in all scores


def write_model_card(folder: Path, args: argparse.Namespace, scores: Sequence[Score] = ()) -> None:
    """Write the card of a fine-tuned reranker out of its manifest; leave one that a user has taken over."""
    from huggingface_hub import EvalResult, ModelCardData

    made = read_manifest(manifest_path(folder))
    train_data, base_model = made["inputs"]
    is_hub_id = made["inputs"][base_model] == f"name:{base_model}"
    results = [
        EvalResult(
            task_type="question-answering" if score.generator else "text-ranking",
            dataset_type=score.dataset,
            dataset_name=f"{score.dataset}, {score.split} (n = {score.n})",
            metric_type=score.metric,
            metric_name=f"{score.metric} of {score.generator}" if score.generator else score.metric,
            metric_value=round(score.mean, 4),
        )
        for score in scores
    ]
    data = ModelCardData(
        model_name=folder.name if scores else None,
        base_model=base_model if is_hub_id else None,  # the hub refuses a path
        library_name="sentence-transformers",
        pipeline_tag="text-ranking",
        tags=["cross-encoder", "reranker", "rag"],
        eval_results=results or None,
    )
    lines = manifest_path(Path(train_data))
    groups = read_manifest(lines) if lines.exists() else None
    chosen, folder_name = groups["settings"] if groups else {}, Path(train_data).parent.name
    dataset = args.dataset if Path(train_data).is_relative_to(dataset_dir(args)) else None
    _write(
        folder / CARD,
        data,
        folder=folder,
        made=made,
        train_data=train_data,
        base_model=base_model,
        length=made["settings"]["query_max_len"] + made["settings"]["passage_max_len"],
        groups=groups,
        # None: the groups are not RADIO's. Those of retrieval scores alone are made with weight 1 of that one cache.
        weight=0.0 if "reason_weight" in chosen and folder_name == "retrieval" else chosen.get("reason_weight"),
        supervised=chosen.get("supervised", False),
        no_rationale=folder_name.removesuffix("+retrieval") == ANSWER_ONLY,
        dataset=dataset,
        license=_license(dataset, args),
        scores=scores,
        labels=list(scores[0].others) if scores else [],
    )


def write_dataset_card(rationales: Path, args: argparse.Namespace) -> None:
    """Write the card of a file of rationales out of its manifest; leave one that a user has taken over."""
    from huggingface_hub import DatasetCardData

    made, license = read_manifest(manifest_path(rationales)), _license(args.dataset, args)
    settings, sources = made["settings"], list(made["inputs"])[1:]
    data = DatasetCardData(
        pretty_name=f"Rationales for {args.dataset}",
        license=license,
        task_categories=["question-answering"],
        tags=["rationale", "rag"],
        configs=[{"config_name": "default", "data_files": rationales.name}],
    )
    prompts = filter(None, map(settings.get, ("rationale_system", "rationale_user")))
    _write(
        rationales.with_name(CARD),
        data,
        folder=rationales.parent,
        made=made,
        dataset=args.dataset,
        license=license,
        model=settings.get("model"),
        sampling={name: settings[name] for name in ("temperature", "top_p", "max_tokens") if name in settings},
        prompt=settings.get("rationale_completion") or "\n".join(prompts),
        sources=sources,
    )


def _license(dataset: str | None, args: argparse.Namespace) -> str:
    return args.data_license or LICENSES.get(dataset or "", "unknown")


def _write(path: Path, data: Any, **fields: Any) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if path.exists() and MARK not in path.read_text(encoding="utf-8"):
        return
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "code": lambda text: f"`{text}`".replace("|", "\\|"),
        "listed": lambda items: ", ".join(f"{name} {value}" for name, value in items.items()),
        "number": lambda value: "-" if value is None else f"{value:.3f}",
    }
    template = environment.get_template("model_card.md" if "base_model" in fields else "dataset_card.md")
    write_file(path, template.render(fields, card_data=data.to_yaml(), mark=MARK))
