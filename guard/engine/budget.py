"""How many bytes of KV cache there are, and who has them."""

from __future__ import annotations


class KvBudget:
    """A count of reserved bytes that never passes ``total``. Not thread-safe: the engine holds its lock."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._peak = 0

    @property
    def used(self) -> int:
        """Bytes reserved now."""
        return self._used

    @property
    def peak(self) -> int:
        """The most bytes that were ever reserved at once."""
        return self._peak

    def take(self, size: int) -> bool:
        """Reserve ``size`` bytes, if they are free."""
        if self._used + size > self.total:
            return False
        self._used += size
        self._peak = max(self._peak, self._used)
        return True

    def give(self, size: int) -> None:
        """Give back what ``take`` reserved."""
        if size > self._used:
            raise ValueError("more bytes given back than were taken")
        self._used -= size
