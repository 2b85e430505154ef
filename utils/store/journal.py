"""A phase's finished work while the phase runs, so that a kill costs only what was in flight."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import orjson
from tqdm import tqdm

from utils.config import UsageError
from utils.store.files import locked
from utils.store.jsonlines import dump_line
from utils.store.manifest import digest

MORE = "more"  # marks a record of a group that goes on in the next line
SYNC_SECONDS = 1.0  # between fsyncs: the most that a power cut costs


class Records(Mapping[str, dict[str, Any]]):
    """The records of a journal by key; memory holds the keys and offsets, the records stay on disk.

    Each line is ``{"key": ..., **record}``. A torn last line is dropped; damaged lines are skipped, and their number is
    printed. ``made_with`` are the settings that the records depend on: a file made with others counts as empty. Where
    it is None, the keys tell all settings, and a damaged first line is refused: the answers below may have cost money.
    """

    def __init__(self, path: str | os.PathLike[str], made_with: Any = None) -> None:
        self.path = Path(path)
        self._lines = open(self.path, "rb")
        self._offsets: dict[str, int] = {}
        self._size = 0  # bytes up to the end of the last whole group
        group: dict[str, int] = {}
        offset = damaged = 0
        for line in self._lines:
            if not line.endswith(b"\n"):
                break
            row = _parse(line)
            if offset == 0 and row.get("made_with") != digest(made_with):
                if made_with is None:
                    raise UsageError(f"{path} is no journal, or its first line is damaged; mend it or move it away")
                print(f"{path}: left by other inputs or settings; begun anew", file=sys.stderr)
                break
            if isinstance(key := row.get("key"), str):
                group[key] = offset
            elif offset:
                damaged += 1
            offset += len(line)
            if MORE not in row:
                self._offsets |= group
                self._size, group = offset, {}
        if damaged:
            print(f"{path}: {damaged} damaged lines skipped", file=sys.stderr)

    def __getitem__(self, key: str) -> dict[str, Any]:
        self._lines.seek(self._offsets[key])
        row = orjson.loads(self._lines.readline())
        return {name: value for name, value in row.items() if name not in ("key", MORE)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._offsets)

    def __contains__(self, key: object) -> bool:
        return key in self._offsets  # Mapping's own would read the record

    def __len__(self) -> int:
        return len(self._offsets)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Journal(Records):
    """Records that one run at a time appends to; a file made with other settings is begun anew."""

    def __init__(self, path: str | os.PathLike[str], made_with: Any = None) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(Path(path)))
            self._file = stack.enter_context(open(path, "ab", buffering=0))
            super().__init__(path, made_with)
            self._synced = time.monotonic()
            self._file.truncate(self._size)
            if self._size == 0:
                self._write({"made_with": digest(made_with)})
            self._open = stack.pop_all()

    def append(self, key: str, record: dict[str, Any]) -> None:
        """Write one finished record."""
        offset = self._size
        self._write({"key": key, **record})
        self._offsets[key] = offset

    def append_all(self, records: dict[str, dict[str, Any]]) -> None:
        """Write a group of finished records: after a kill all of them are found, or none."""
        last = next(reversed(records), None)
        for key, record in records.items():
            self.append(key, record if key == last else record | {MORE: True})

    def _write(self, row: dict[str, Any]) -> None:
        line = memoryview(dump_line(row))
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError:
            # A full disk may take half a line, which would damage the next one.
            self._file.truncate(self._size)
            raise
        self._size += written
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Bring every record to the disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close the file, and let other runs have it."""
        if not self._file.closed:
            self.sync()
            self._open.close()
        super().close()

    def delete(self) -> None:
        """Remove the file, once its records are in a finished output."""
        self.path.unlink(missing_ok=True)
        self.close()


def _parse(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(orjson.JSONDecodeError):
        if isinstance(row := orjson.loads(line), dict):
            return row
    return {}


def in_chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Yield consecutive slices of at most ``size`` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def resume(
    journal: Journal,
    items: list[Any],
    key: Callable[[Any], str],
    chunk: int,
    work: Callable[[Iterable[list[Any]]], Iterator[tuple[int, list[dict[str, Any]]]]],
    desc: str,
) -> None:
    """Do ``work`` on the items that are not in the journal yet, and append one record per item.

    ``work`` takes chunks of items, and yields the number of each chunk with its records, in any order. A chunk is kept
    whole or not at all, so that a resumed run forms the same chunks: the last digits of what a model says about an item
    depend on the other items in its batch.
    """
    todo = [item for item in items if key(item) not in journal]
    with tqdm(total=len(items), initial=len(items) - len(todo), desc=desc, unit="question") as bar:
        chunks = list(in_chunks(todo, chunk))
        for number, records in work(chunks):
            journal.append_all(dict(zip(map(key, chunks[number]), records, strict=True)))
            bar.update(len(records))
