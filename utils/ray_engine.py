"""Do the parts of a phase's work in this process, or by workers on a Ray cluster."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from utils.config import UsageError

# Makes a worker, which loads its models once and then does one part per call. It is pickled for a cluster.
MakeWorker = Callable[[], Callable[[Any], Any]]
# Takes parts; yields (number of the part, result) in any order, because the parts of a node that died come late.
MapParts = Callable[[Iterable[Any]], Iterator[tuple[int, Any]]]
ROOT = Path(__file__).parents[1]


def start_workers(args: argparse.Namespace, make: MakeWorker) -> MapParts:
    """Return the map over parts that ``--engine`` names: in this process, or on a Ray cluster."""
    if args.engine == "local":
        return one_by_one(make())
    if args.engine != "ray":
        raise UsageError(f"--engine {args.engine!r} is neither local nor ray")
    _connect(args.ray_address)
    return functools.partial(_map_on_cluster, make, args.ray_worker_cpus)


def one_by_one(function: Callable[[Any], Any]) -> MapParts:
    """Return a map over parts that calls ``function`` in this process, in order."""
    return lambda parts: enumerate(map(function, parts))


def _connect(address: str | None) -> None:
    """Connect to the cluster at an address (``auto``: the one that this machine belongs to), or start Ray here."""
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray: pip install -r requirements/scale.txt") from None
    if ray.is_initialized():
        return
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "")}
    try:
        ray.init(
            address or "local",
            runtime_env={"env_vars": environment},
            include_dashboard=None if address else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except ConnectionError as error:
        raise UsageError(f"--ray_address {address}: no Ray cluster answers there ({error})") from None


def _map_on_cluster(make: MakeWorker, cpus: int, parts: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Map parts by a pool of Ray actors, one per GPU, or one per ``cpus`` cores where no node has a GPU."""
    import ray

    rows = [{"number": number, "part": pickle.dumps(part)} for number, part in enumerate(parts)]
    if not rows:
        return
    resources = ray.cluster_resources()
    gpus, by_cores = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)) // cpus)
    most = min(gpus, by_cores) if gpus else by_cores
    context = ray.data.DataContext.get_current()
    # In order, one lost result would keep all later ones waiting in memory, where the worker that redoes it needs room.
    context.execution_options.preserve_order = False
    context.enable_progress_bars = False  # the phase has one
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    found = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_args=(make, os.getcwd()),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=cpus,
        num_gpus=1 if gpus else None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),
    )
    try:
        for row in found.iter_rows():
            yield row["number"], pickle.loads(row["result"])
    except ray.exceptions.RayTaskError as error:
        # A user's mistake lies below what Ray has wrapped it in.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UsageError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise cause from None


class _Worker:
    """An actor of the pool; relative paths mean the same to it as to the command."""

    def __init__(self, make: MakeWorker, folder: str) -> None:
        os.chdir(folder)
        # Ray sets OMP_NUM_THREADS to the worker's cores; tokenizers would take all of the machine's.
        os.environ.setdefault("RAYON_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", ""))
        self._work = make()

    def __call__(self, batch: Any) -> Any:
        import pyarrow

        results = [pickle.dumps(self._work(pickle.loads(part))) for part in batch["part"].to_pylist()]
        return pyarrow.table({"number": batch["number"], "result": pyarrow.array(results, pyarrow.large_binary())})
