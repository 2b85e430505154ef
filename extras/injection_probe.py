"""Put passages that carry instructions before a reader and a reranker, and count who follows them.

    python -m extras.injection_probe --framework=openai --openai_model=gpt-4o-mini
    python -m extras.injection_probe --framework=none --rerank_model_path=checkpoints/nq_radio

reads   --probes, attacks and questions (extras/injection.yaml)
writes  SAVE_DIR/injection_GENERATOR_RERANKER.json, and prints the same

For the reader: how often it is right, and how often it gives the attack's wrong answer instead. For the
reranker: how often it puts the passage with the attack, which does not answer the question, before the
one that does. The row "none" is the same documents without an attack.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.config import UsageError, phase_arguments, run_main, settings_of
from utils.devices import select_devices

SETTINGS = ("framework", "base_url", "quantization", "max_tokens", "max_input_tokens", "stop", "seed", "prompts")
EXTRA = [("--probes", {"type": Path, "default": Path(__file__).with_name("injection.yaml")})]


def main() -> None:
    """Parse the command line, probe, print and write."""
    args = phase_arguments(__doc__, ["rag"], extra=EXTRA)
    select_devices(args)

    import orjson

    from extras.probe import read_probes, reader_rows, reranker_rows
    from utils.classes import NO_GENERATOR, generator_name, reranker_name
    from utils.rag.generators import LOCAL_FRAMEWORKS
    from utils.store.files import atomic, file_name
    from utils.store.manifest import Phase

    attacks, probes = read_probes(args.probes)
    generator, ranker = generator_name(args), reranker_name(args)
    output = Path(args.save_dir) / f"injection_{file_name(generator)}_{file_name(ranker)}.json"
    if args.framework == NO_GENERATOR and not args.rerank_model_path:
        raise UsageError("nothing to probe: --framework names a reader, --rerank_model_path a reranker")
    local = [args.model_path] if args.framework in LOCAL_FRAMEWORKS else []
    inputs = [args.probes, *local, *([args.rerank_model_path] if args.rerank_model_path else [])]
    phase = Phase(output, inputs, settings_of(args, *SETTINGS) | {"generator": generator})
    found: dict[str, list[dict[str, Any]]] = {}
    if args.framework != NO_GENERATOR:
        found["reader"] = reader_rows(attacks, probes, _reader(args))
    if args.rerank_model_path:
        found["reranker"] = reranker_rows(attacks, probes, _reranker(args))
    for name, rows in found.items():
        print(f"{name}, n = {len(probes)} an attack")
        for row in rows:
            shares = "  ".join(f"{key} {value:6.1%}" for key, value in row.items() if key != "attack")
            print(f"  {row['attack']:10} {shares}")
    with atomic(output) as handle:
        handle.write(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    phase.finish(len(probes) * (len(attacks) + 1))


def _reader(args: Any) -> Any:
    from utils.rag.generators import make_generator
    from utils.rag.prompts import RagPrompt

    generator = make_generator(args)
    prompt = RagPrompt(args.prompts, args.max_input_tokens, generator.count_tokens, generator.defuse)
    return lambda jobs: generator.generate([prompt.build(question, passages) for question, passages in jobs])


def _reranker(args: Any) -> Any:
    from utils.rag.rerankers import LengthSortedReranker

    reranker = LengthSortedReranker(args)

    def score(questions: list[str], passages: list[list[str]]) -> list[list[float]]:
        flat = iter(reranker.get_rerank_scores(questions, passages, args.rerank_batch_size))
        return [[next(flat) for _ in texts] for texts in passages]

    return score


if __name__ == "__main__":
    run_main(main)
