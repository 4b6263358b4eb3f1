"""Log-linear histogram, as HdrHistogram: nanoseconds, 128 sub-buckets per power of two (below 0.8 %).

For v >= 128 with e = bit_length(v) - 1 the index is (e - 7) * 128 + (v >> (e - 7)); below 128 it is v.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_COUNTERS = 3840  # up to 68.7 s


class Histogram:
    """Counters and the exact maximum. Histograms are merged by addition, percentiles never averaged."""

    def __init__(self) -> None:
        self.counts = np.zeros(_COUNTERS, np.int64)
        self.maximum_ns = 0

    def add(self, values_ns: NDArray[np.int64]) -> None:
        """Count many values at once; negative ones count as 0."""
        if not len(values_ns):
            return
        values = np.maximum(values_ns, 0)
        exponent = np.frexp(values.astype(np.float64))[1] - 1
        shift = np.maximum(exponent - 7, 0)
        index = np.minimum(shift * 128 + (values >> shift), _COUNTERS - 1)
        self.counts += np.bincount(index, minlength=_COUNTERS)
        self.maximum_ns = max(self.maximum_ns, int(values.max()))

    def percentile(self, percent: float) -> int:
        """The value, in ns, that `percent` of all are at or below (upper edge of its bucket)."""
        total = int(self.counts.sum())
        if total == 0:
            return 0
        rank = int(np.searchsorted(np.cumsum(self.counts), np.ceil(total * percent / 100)))
        if rank < 256:
            return rank
        shift = rank // 128 - 1
        return min(self.maximum_ns, ((rank - shift * 128 + 1) << shift) - 1)

    def summary_us(self) -> dict[str, float]:
        """Count, percentiles and maximum; no percentile that too few samples carry."""
        total = int(self.counts.sum())
        wanted = {"p50": 50.0, "p90": 90.0, "p99": 99.0}
        if total >= 10_000:
            wanted["p99.9"] = 99.9
        found: dict[str, float] = {k: self.percentile(v) / 1000 for k, v in wanted.items()}
        return {"count": total, **found, "max": self.maximum_ns / 1000}
