"""Files and folders that are written whole or not at all, by one run at a time."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
from filelock import FileLock, Timeout

from utils.config import UsageError


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file that takes its name only when it is whole: it is written aside, synced and renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_torn(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a whole file, or leave the old one."""
    with atomic(path) as handle:
        handle.write(content.encode() if isinstance(content, str) else content)


def remove_torn(path: Path) -> None:
    """Remove the half-written copies of ``path`` that killed processes left beside it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        process = left.name.split(".")[-2]
        if not (process.isdecimal() and psutil.pid_exists(int(process))):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a file or folder by ``PATH.lock`` until the block or process ends; refuse if another run has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"{path} is being written by another run; wait for it, or stop it first") from None
    try:
        yield
    finally:
        # Remove the file while the lock is held: filelock refuses a lock on a file that has been removed.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def require_file(path: str | os.PathLike[str], what: str, hint: str) -> None:
    """Refuse a path where no file is."""
    if not os.path.isfile(path):
        fault = "is a folder, not a file" if os.path.isdir(path) else "is missing"
        raise UsageError(f"{what} {path} {fault}; {hint}")


def require_space(folder: Path, size: float, what: str) -> None:
    """Refuse to write ``size`` bytes where the disk has less left; ``what`` names the files in the message."""
    if (free := free_space(folder)) < size:
        raise UsageError(f"{what} will take about {size / 1e9:.2f} GB, but {folder} has {free / 1e9:.2f} GB left")


def free_space(folder: Path) -> int:
    """Return the free bytes of the disk that holds a folder, or will hold it."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def reserve(path: Path) -> None:
    """Allocate the disk space of a file before it is written by a memory map, where a full disk ends the process."""
    with open(path, "r+b") as handle:
        os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)


def sync_folder(path: Path) -> None:
    """Make a rename inside ``path`` survive a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_name(name: str) -> str:
    """Return a model's name as a file name."""
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in name).lstrip(".") or "model"
