"""Print the tables of docs/performance.md from results/*.json: ``python benchmarks/table.py``."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
# Name of the result file, phase, and the ratio aimed at on a CPU and on a GPU.
RATIOS = [
    ("scoring", "rationale scoring", 3.0, 5.0),
    ("fusion", "fusion and sampling", None, None),
    ("index", "corpus encoding", 2.0, 2.0),
    ("search", "Flat search", None, None),
    ("rerank", "reranking", 2.0, 2.5),
    ("finetune", "fine-tuning", 1.3, 1.5),
    ("generate", "local generation", 1.5, 1.5),
]


def main() -> None:
    print("| phase | against | times as fast | aimed at | n |\n|---|---|---|---|---|")
    for name, phase, *aims in RATIOS:
        for gpu, aim in zip((False, True), aims, strict=True):
            if found := read(f"{name}_cuda" if gpu else name):
                for other, ratio in found["ratio"].items():
                    spread = f"{ratio['median']:.2g} ({ratio['least']:.2g} to {ratio['most']:.2g})"
                    device = " (GPU)" if gpu else ""
                    print(f"| {phase}{device} | {other} | {spread} | {aim or '-'} | {found['n']:,} |")
    print("\n| measured | found | aimed at |\n|---|---|---|")
    for what, found, aim in measures():
        print(f"| {what} | {found} | {aim} |")


def read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def measures() -> list[tuple[str, str, str]]:
    """Return the rows of the second table, which are not ratios of two times: what was measured, found and aimed at."""
    rows = []
    if found := read("rationales"):
        for number, share in found["reached"].items():
            rows.append((f"rationale requests, {number} in flight: share of the ideal", f"{share:.0%}", "90 %"))
        *sizes, pool = found["peak MiB"].items()
        memory = ", ".join(f"{peak:.0f} ({rows})" for rows, peak in sizes)
        rows.append(("rationale requests: peak MiB", memory, "flat"))
        rows.append(
            (f"peak MiB of a {pool[0]}", f"{pool[1]:,.0f}, {pool[1] / sizes[-1][1]:.0f} times ours", "10 times")
        )
    if found := read("fusion"):
        seconds = found["seconds"]["ours"]["median"]
        rows.append((f"fusion and sampling of {found['n']:,} questions with 50 passages", f"{seconds:.1f} s", "10 s"))
        rows.append(("score caches by ids: times smaller", f"{found['cache bytes']['ratio']:.0f}", "10"))
    if found := read("scoring"):
        rows.append(("rationale scores: largest difference", f"{found['largest cosine difference']:.0e}", "1e-06"))
    if found := read("rerank"):
        rows.append(("reranking: same five best passages", f"{found['top-5 overlap']:.1%}", "99.5 %"))
    if found := read("search"):
        rows.append(("fp16 index: recall of fp32's 50 nearest", f"{found['fp16']['recall@50']:.2%}", "-"))
    if found := read("startup"):
        slowest = [max(one["median"] for one in found[kind].values()) for kind in ("help", "finished phase")]
        rows.append(("slowest --help", f"{slowest[0]:.2f} s", "0.5 s"))
        rows.append(("slowest phase whose output is finished", f"{slowest[1]:.2f} s", "2 s"))
    return rows


if __name__ == "__main__":
    main()
