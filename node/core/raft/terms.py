"""Which term wrote which offsets of a log.

A term has one leader, which appends in one order; so two logs that hold the same term at the same offset are equal up
to there (log matching), and where two logs part can be found by comparing terms, never entry by entry.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class Terms:
    """The terms of a log's records, as the offsets where each begins.

    Invariants: terms and starts both rise; the first start is 0; every start is below `end_offset`.
    """

    def __init__(self, starts: Iterable[tuple[int, int]], end_offset: int) -> None:
        self.end_offset = end_offset
        # A term whose start is known but which wrote nothing that is left, is none of this log.
        self._starts = [(term, start) for term, start in starts if start < end_offset]

    @property
    def last_term(self) -> int:
        """The term of the last record; 0 if there is none."""
        return self._starts[-1][0] if self._starts else 0

    def term_before(self, offset: int) -> int:
        """The term of the record before `offset`; 0 at the start of the log, -1 beyond its end."""
        if offset > self.end_offset:
            return -1
        place = bisect_left(self._starts, offset, key=lambda entry: entry[1])
        return self._starts[place - 1][0] if place else 0

    def newest_up_to(self, term: int) -> tuple[int, int]:
        """The largest term here that is at most `term`, and its end; (0, 0) if there is none."""
        place = bisect_right(self._starts, term, key=lambda entry: entry[0])
        if place == 0:
            return 0, 0
        last = place == len(self._starts)
        return self._starts[place - 1][0], self.end_offset if last else self._starts[place][1]

    def append(self, term: int, end_offset: int) -> None:
        """Records of `term` now follow, up to `end_offset`."""
        assert term >= self.last_term, (term, self)
        assert end_offset > self.end_offset, (end_offset, self)
        if term > self.last_term:
            self._starts.append((term, self.end_offset))
        self.end_offset = end_offset

    def truncate(self, offset: int) -> None:
        """Forget all from `offset` on."""
        self.end_offset = min(self.end_offset, offset)
        while self._starts and self._starts[-1][1] >= self.end_offset:
            self._starts.pop()

    def __repr__(self) -> str:
        return f"<Terms {self._starts} end={self.end_offset}>"
