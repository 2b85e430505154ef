"""One process's share of a phase, for job arrays without a cluster engine: --num_shards, --shard_index."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from utils.config import ShareDone, UsageError
from utils.store.files import lock_path, locked

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """Every ``count``-th part of the work from ``index`` on, or all of it if ``index`` is None."""

    index: int | None
    count: int

    @classmethod
    def of(cls, args: argparse.Namespace) -> Share:
        """The share that the settings name.

        Raises:
            UsageError: a number that no share has.
        """
        if args.shard_index >= args.num_shards:
            raise UsageError(f"--shard_index {args.shard_index} must be below --num_shards {args.num_shards}")
        return cls(None if args.shard_index < 0 else args.shard_index, args.num_shards)

    @property
    def whole(self) -> bool:
        """Whether this process does everything that is left, and writes the output."""
        return self.index is None

    def pick(self, items: Sequence[Item], chunk: int = 1) -> list[Item]:
        """What of the items is this share's: runs of ``chunk`` of them, so that all shares form the same batches."""
        if self.index is None:
            return list(items)
        return [item for place, item in enumerate(items) if place // chunk % self.count == self.index]

    def beside(self, path: Path) -> Path:
        """The share's own of a file of which each share has one."""
        return path if self.index is None else path.with_name(f"{path.name}.{self.index}-of-{self.count}")

    def end_unless_whole(self, output: str | os.PathLike[str]) -> None:
        """End the command here if it does a share alone.

        Raises:
            ShareDone: it does.
        """
        if not self.whole:
            raise ShareDone(
                f"{output}: share {self.index} of {self.count} is done; once all are, the same command without "
                "--shard_index joins them"
            )

    @contextlib.contextmanager
    def lock(self, folder: Path) -> Iterator[None]:
        """Work in a folder beside other shares, but not beside the same one, nor beside the process that joins them.

        Raises:
            UsageError: one of these is at work.
        """
        lock = lock_path(folder)
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self.beside(lock)))
            if self.whole:
                for other in others(lock):
                    stack.enter_context(locked(other))
                    stack.callback(other.unlink, missing_ok=True)
            else:
                locked(lock).close()
            yield


def others(path: Path) -> list[Path]:
    """The files of shares beside the one that all of them make."""
    return sorted(path.parent.glob(f"{path.name}.*-of-*"))


WHOLE = Share(None, 1)
