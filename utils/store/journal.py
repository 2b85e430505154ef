"""A phase's finished work while the phase runs, so that a kill costs only what was in flight."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from utils.config import UsageError
from utils.ray_engine import MapParts
from utils.store.files import dump_line, locked
from utils.store.manifest import digest

MORE = "more"  # of a record with which others follow that were made together


class Records(Mapping[str, dict[str, Any]]):
    """The whole records of a journal by key; memory holds their places, the records stay on the disk.

    A torn last line, whatever the byte, is no record; a damaged line further up is passed over, and told.

    Args:
        path: the file.
        made_with: settings that the records depend on. If the file was made with others it holds nothing for us,
            and that is said. None: the keys alone say what a record depends on.

    Raises:
        UsageError: answers that somebody may have paid for stand behind a damaged beginning.
    """

    def __init__(self, path: str | os.PathLike[str], made_with: Any = None) -> None:
        self.path = Path(path)
        self._lines = open(self.path, "rb")
        self._places, self._size = _places(self.path, made_with)

    def __getitem__(self, key: str) -> dict[str, Any]:
        self._lines.seek(self._places[key])
        row: dict[str, Any] = orjson.loads(self._lines.readline())
        del row["key"]
        row.pop(MORE, None)
        return row

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        with open(self.path, "rb") as lines:
            start = 0
            for line in lines:
                key = _parse(line).get("key")
                if isinstance(key, str) and self._places.get(key) == start:
                    yield key
                start += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Journal(Records):
    """Append-only records of finished work, found again by key after a kill.

    Each line is ``{"key": ..., **record}``. What is torn or damaged costs that record and no other, or, of a group
    that `append_all` was writing, the whole group.

    Args:
        path: the file; made with its folder if missing.
        made_with: as for `Records`; a file made with other settings is begun anew.
        sync_every: seconds between fsyncs, the most a power cut can lose.

    Raises:
        UsageError: another run has the journal open (the kernel ends its claim with its process), or the file is
            no journal.
    """

    def __init__(self, path: str | os.PathLike[str], made_with: Any = None, sync_every: float = 1.0) -> None:
        self._sync_every, self._synced = sync_every, time.monotonic()
        self._file = locked(Path(path))
        super().__init__(path, made_with)
        self._file.truncate(self._size)
        if self._size == 0:
            self._write({"made_with": digest(made_with)})

    def append(self, key: str, record: dict[str, Any]) -> None:
        """Keep one finished record."""
        start = self._size
        self._write({"key": key, **record})
        self._places[key] = start

    def append_all(self, records: dict[str, dict[str, Any]]) -> None:
        """Keep finished records together: after a kill all of them are found, or none."""
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
            # A full disk takes half a line. Without it, what is appended later stays readable.
            self._file.truncate(self._size)
            raise
        self._size += written
        if time.monotonic() - self._synced >= self._sync_every:
            self.sync()

    def sync(self) -> None:
        """Bring every record to the disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close the file."""
        if not self._file.closed:
            self.sync()
            self._file.close()
        super().close()

    def delete(self) -> None:
        """Remove the journal once its records stand in a finished output."""
        self.path.unlink(missing_ok=True)
        self.close()


def _places(path: Path, made_with: Any) -> tuple[dict[str, int], int]:
    """Offsets of the whole records and groups by key, and the offset up to which they reach (0: begin anew)."""
    places, group = dict[str, int](), dict[str, int]()
    size, whole, damaged = 0, 0, 0
    with open(path, "rb") as handle:
        for line in handle:
            if not line.endswith(b"\n"):
                break
            row = _parse(line)
            if size == 0 and row.get("made_with") != digest(made_with):
                if made_with is None:
                    raise UsageError(f"{path} is no journal, or its first line is damaged; mend it or move it away")
                print(f"{path}: left by other inputs or settings; begun anew", file=sys.stderr)
                return {}, 0
            key = row.get("key")
            if isinstance(key, str):
                group[key] = size
            elif size:
                damaged += 1
            size += len(line)
            if MORE not in row:
                places |= group
                group, whole = {}, size
    if damaged:
        print(f"{path}: {damaged} damaged lines passed over", file=sys.stderr)
    return places, whole


def _parse(line: bytes) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return row if isinstance(row, dict) else {}


def in_chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive slices of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def resume(
    journal: Journal,
    items: list[Any],
    key: Callable[[Any], str],
    chunk: int,
    work: MapParts,
    desc: str,
) -> None:
    """Do ``work`` on the items that the journal does not hold yet, a chunk at a time, with a bar.

    A chunk is kept whole or not at all, so that a resumed run forms the same chunks: what a model says of an item
    depends, in its last digits, on the others in its batch.

    Args:
        journal: receives one record an item.
        items: all items, done or not.
        key: the journal key of an item.
        chunk: items a chunk; at most the chunks in work are done again after a kill.
        work: chunks -> for each one record an item.
        desc: text of the progress bar.
    """
    from tqdm import tqdm

    todo = [item for item in items if key(item) not in journal]
    with tqdm(total=len(items), initial=len(items) - len(todo), desc=desc, unit="question") as bar:
        chunks = list(in_chunks(todo, chunk))
        for number, records in work(chunks):
            journal.append_all(dict(zip(map(key, chunks[number]), records, strict=True)))
            bar.update(len(records))
