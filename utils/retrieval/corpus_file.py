"""The lines of a corpus on any filesystem that pyarrow knows, compressed or not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.config import UsageError

COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
BLOCK = 1 << 20


def is_remote(path: str) -> bool:
    """Whether a path is an address such as ``s3://bucket/corpus.jsonl``."""
    return "://" in path


def is_stream(path: str) -> bool:
    """Whether a corpus can be read through only, as one that is compressed or elsewhere."""
    return is_remote(path) or Path(path).suffix in COMPRESSED


class CorpusFile:
    """Reads a corpus line by line, or the bytes at a place.

    Args:
        path: a local path, or an address that pyarrow's filesystems know; gzip, bz2, zstd and lz4 by its suffix.

    Raises:
        UsageError: nothing is there, or something else than a file.
    """

    def __init__(self, path: str) -> None:
        from pyarrow import fs

        self._system: Any
        self._path: str
        self._compression = COMPRESSED.get(Path(path).suffix)
        try:
            self._system, self._path = fs.FileSystem.from_uri(path) if is_remote(path) else (fs.LocalFileSystem(), path)
            kind = self._system.get_file_info(self._path).type
        except (OSError, ValueError) as error:
            raise UsageError(f"corpus {path} cannot be reached: {error}") from None
        if kind != fs.FileType.File:
            fault = "is missing" if kind == fs.FileType.NotFound else "is a folder, not a file"
            raise UsageError(f"corpus {path} {fault}; give --corpus_path (JSON lines {{id, contents}})")
        self._stream: Any = None
        self._at = 0

    def lines(self) -> Iterator[bytes]:
        """All lines, with their ends."""
        with self._open() as stream:
            yield from io.BufferedReader(stream, BLOCK)

    def read(self, start: int, size: int) -> bytes:
        """Bytes at a place of the lines, which in a compressed file is reached by reading up to it.

        Places that only grow, as those of one worker's blocks do, cost one reading of the file in all.
        """
        if self._compression is None:
            with self._system.open_input_file(self._path) as file:
                return file.read_at(size, start)
        if self._stream is None or start < self._at:
            self._stream, self._at = io.BufferedReader(self._open(), BLOCK), 0
        while self._at < start:
            self._at += len(self._stream.read(min(BLOCK, start - self._at)))
        self._at += size
        return self._stream.read(size)

    def _open(self) -> Any:
        return self._system.open_input_stream(self._path, compression=self._compression, buffer_size=BLOCK)
