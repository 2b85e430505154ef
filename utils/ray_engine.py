"""Where a phase's parts of work are done: in this process, or by workers on a Ray cluster."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from utils.config import UsageError

# Parts -> each part's number, from 0 on, and its result, in any order: what a node that died had in work comes late.
Run = Callable[[Iterable[Any]], Iterator[tuple[int, Any]]]
ROOT = Path(__file__).parents[1]


class Engine(Protocol):
    """Does parts of work, each by a worker that loads its models once."""

    def start(self, make: Callable[[], Callable[[Any], Any]]) -> Run:
        """A function from parts to their results.

        Args:
            make: makes a worker, a function of one part. On a cluster it is pickled, with what it is made of.
        """


def one_by_one(function: Callable[[Any], Any]) -> Run:
    """The parts done in this process, in order."""
    return lambda parts: enumerate(map(function, parts))


class Here:
    """One worker, in this process."""

    def start(self, make: Callable[[], Callable[[Any], Any]]) -> Run:
        """See `Engine`; parts are taken one at a time."""
        return one_by_one(make())


class RayEngine:
    """An actor pool of Ray Data: a worker a GPU, or as many on CPUs as there is room for.

    Ray does the scheduling, and again what a node that died had in work. All nodes see the repository, models and
    data under the same paths.

    Args:
        address: of a running cluster, ``auto`` for the one this machine belongs to; None starts Ray here.
        cpus: cores of a worker.
    """

    def __init__(self, address: str | None, cpus: int) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError("--engine ray needs Ray: pip install -r requirements/scale.txt") from None
        self._cpus = cpus
        if not ray.is_initialized():
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

    def start(self, make: Callable[[], Callable[[Any], Any]]) -> Run:
        """See `Engine`; all parts go to the cluster's memory, and results come as they are made."""
        return functools.partial(self._run, make)

    def _run(self, make: Callable[[], Callable[[Any], Any]], parts: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        import ray

        rows = [{"number": number, "part": pickle.dumps(part)} for number, part in enumerate(parts)]
        if not rows:
            return
        context = ray.data.DataContext.get_current()
        # In order, a lost result would hold up all others, and with them the room for the worker that makes it again.
        context.execution_options.preserve_order = False
        context.enable_progress_bars = False  # the phase has one
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        found = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_args=(make, os.getcwd()),
            batch_size=1,
            batch_format="pyarrow",
            **self._share(),
        )
        try:
            for row in found.iter_rows():
                yield row["number"], pickle.loads(row["result"])
        except ray.exceptions.RayTaskError as error:
            if cause := _usage_error(error):
                raise cause from None
            raise

    def _share(self) -> dict[str, Any]:
        """What of the cluster one worker takes, and how many there may be."""
        import ray

        there = ray.cluster_resources()
        most = max(1, int(there.get("CPU", 1)) // self._cpus)
        share: dict[str, Any] = {"num_cpus": self._cpus}
        if gpus := int(there.get("GPU", 0)):
            share["num_gpus"], most = 1, min(gpus, most)
        return share | {"compute": ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most)}


class _Worker:
    """What an actor of the pool is.

    Args:
        make: makes the function of one part.
        folder: the working folder of the command, below which its paths are.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]], folder: str) -> None:
        os.chdir(folder)
        # Ray gives OMP_NUM_THREADS the worker's cores; tokenizers would take all of the machine's.
        os.environ.setdefault("RAYON_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", ""))
        self._work = make()

    def __call__(self, batch: Any) -> Any:
        import pyarrow

        results = [pickle.dumps(self._work(pickle.loads(part))) for part in batch["part"].to_pylist()]
        return pyarrow.table({"number": batch["number"], "result": pyarrow.array(results, pyarrow.large_binary())})


def _usage_error(error: BaseException | None) -> UsageError | None:
    """The user's mistake at the bottom of what Ray has wrapped it in, if it is one."""
    while error is not None:
        if isinstance(error, UsageError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None


def make_engine(args: argparse.Namespace) -> Engine:
    """The engine that ``--engine`` names.

    Raises:
        UsageError: an unknown name, Ray that is not installed, or a cluster that does not answer.
    """
    if args.engine == "local":
        return Here()
    if args.engine == "ray":
        return RayEngine(args.ray_address, args.ray_worker_cpus)
    raise UsageError(f"--engine {args.engine!r} is neither local nor ray")
