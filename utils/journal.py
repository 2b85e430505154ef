"""A phase's finished work while the phase runs, so that a kill costs only what was in flight."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from utils.files import dump_line, locked
from utils.manifest import digest


class Journal:
    """Append-only records of finished work, found again by key after a kill.

    Each line is ``{"key": ..., **record}``. A torn last line, whatever the byte, is cut off when the
    journal is opened: it costs that record and no other.

    Args:
        path: the file; made with its folder if missing.
        made_with: settings that the records depend on. If the file was made with others it is
            begun anew, and that is said. None: the keys alone say what a record depends on.
        sync_every: seconds between fsyncs, the most a power cut can lose.

    Raises:
        UsageError: another run has the journal open. The kernel ends its claim with its process.
    """

    def __init__(self, path: str | os.PathLike[str], made_with: Any = None, sync_every: float = 1.0) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._sync_every, self._synced = sync_every, time.monotonic()
        header = digest(made_with)
        self._file = locked(self.path)
        self.records, keep = read_records(self.path, header)
        self._file.truncate(keep)
        if keep == 0:
            self._write({"made_with": header})

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def append(self, key: str, record: dict[str, Any]) -> None:
        """Keep one finished record."""
        self.records[key] = record
        self._write({"key": key, **record})

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(dump_line(row))
        self._file.flush()
        if time.monotonic() - self._synced >= self._sync_every:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close the file."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def delete(self) -> None:
        """Remove the journal once its records stand in a finished output."""
        self.path.unlink(missing_ok=True)
        self.close()


def read_records(path: Path, header: str) -> tuple[dict[str, dict[str, Any]], int]:
    """The whole records of a journal by key, and the offset up to which the file is sound (0: begin anew)."""
    records: dict[str, dict[str, Any]] = {}
    sound = 0
    with open(path, "rb") as handle:
        for line in handle:
            if not line.endswith(b"\n"):
                break
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                break
            if sound == 0:
                if record.get("made_with") != header:
                    print(f"{path}: left by other inputs or settings; begun anew", file=sys.stderr)
                    return {}, 0
            else:
                records[record.pop("key")] = record
            sound += len(line)
    return records, sound


def in_chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive slices of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def resume(
    journal: Journal,
    items: list[Any],
    key: Callable[[Any], str],
    chunk: int,
    work: Callable[[list[Any]], list[dict[str, Any]]],
    desc: str,
) -> None:
    """Do ``work`` on the items that the journal does not hold yet, a chunk at a time, with a bar.

    Args:
        journal: receives one record an item.
        items: all items, done or not.
        key: the journal key of an item.
        chunk: items a call of ``work``; at most so many are done again after a kill.
        work: items -> one record each, in order.
        desc: text of the progress bar.
    """
    from tqdm import tqdm

    todo = [item for item in items if key(item) not in journal]
    with tqdm(total=len(items), initial=len(items) - len(todo), desc=desc, unit="question") as bar:
        for part in in_chunks(todo, chunk):
            for item, record in zip(part, work(part), strict=True):
                journal.append(key(item), record)
            bar.update(len(part))
