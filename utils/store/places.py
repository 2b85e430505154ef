"""A number for each of very many texts, in a tenth of a dict's memory."""

from __future__ import annotations

import hashlib
import sqlite3


class Places:
    """Text -> number, as an SQLite table in memory of about 25 bytes a text; a dict takes 250.

    Texts are told apart by 64 bits of their hash: of a million texts two are taken for one once in 40 million times.
    """

    def __init__(self) -> None:
        self._table = sqlite3.connect(":memory:", isolation_level=None)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("CREATE TABLE places (hash INTEGER PRIMARY KEY, number INTEGER)")
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self.get(text) is not None

    def __getitem__(self, text: str) -> int:
        number = self.get(text)
        if number is None:
            raise KeyError(text)
        return number

    def __setitem__(self, text: str, number: int) -> None:
        self._count += text not in self
        self._table.execute("INSERT OR REPLACE INTO places VALUES (?, ?)", (_hash(text), number))

    def get(self, text: str) -> int | None:
        """The text's number, if it has one."""
        found = self._table.execute("SELECT number FROM places WHERE hash = ?", (_hash(text),)).fetchone()
        return found and found[0]

    def setdefault(self, text: str, number: int) -> int:
        """The text's number, which is now this one if it had none."""
        found = self.get(text)
        if found is None:
            self[text] = found = number
        return found


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
