"""The time line of kills as a picture: acks per ms around them, and each trial's silence with what the brokers said.

Needs matplotlib: the extra `perf`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_MS = 1e6
_MARKS = {"death": "tab:red", "controller": "tab:purple", "leading": "tab:green"}


class Picture(NamedTuple):
    """One writer: rows of trials (perf/failover.py), and the times of each partition's acks."""

    name: str
    rows: list[dict[str, Any]]
    acks: list[NDArray[np.int64]]


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise SystemExit(
            "--png needs matplotlib: pip install 'shmlog[perf]' (the extra `perf`)"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def check() -> None:
    """Raises SystemExit if nothing can be drawn: before the measuring, not after it."""
    _pyplot()


def draw(file: Path, pictures: list[Picture]) -> None:
    """Write the PNG: a column for each writer."""
    plt = _pyplot()
    shown = [picture for picture in pictures if picture.rows]
    if not shown:
        return
    figure, axes = plt.subplots(
        2,
        len(shown),
        figsize=(7 * len(shown), 8),
        squeeze=False,
        sharex="col",
        height_ratios=(1, 2),
    )
    for column, picture in enumerate(shown):
        _draw_one(axes[0][column], axes[1][column], picture)
    figure.suptitle("kill -9 of a leader at 0: acks of the partitions that it led")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _draw_one(above: Any, below: Any, picture: Picture) -> None:
    rows = sorted(picture.rows, key=lambda row: row["silence"])
    end_ms = max(100.0, 1.2 * max(row["next ack"] for row in rows))
    start_ms = -end_ms / 4
    edges = np.arange(start_ms, end_ms + 1)
    counts = np.zeros(len(edges) - 1)
    for row in rows:
        after_ms = (picture.acks[row["partition"]] - row["at_ns"]) / _MS
        counts += np.histogram(after_ms, edges)[0]
    above.step(edges[:-1], counts / len(rows), where="post", linewidth=0.8)
    above.axvline(0, color="black", linewidth=0.8)
    above.set_ylim(bottom=0)
    above.set_ylabel("acks per ms, mean of all trials")
    above.set_title(f"{picture.name} writer, {len(rows)} silences")
    for place, row in enumerate(rows):
        last_ms = row["next ack"] - row["silence"]
        below.hlines(place, last_ms, row["next ack"], color="tab:blue", linewidth=1.2)
        for name, color in _MARKS.items():
            if row[name] is not None:
                label = name if place == 0 else None
                below.plot(row[name], place, "|", color=color, markersize=7, label=label)
    below.axvline(0, color="black", linewidth=0.8)
    below.set_xlim(start_ms, end_ms)
    below.set_xlabel("ms after the kill")
    below.set_ylabel("trials, by length of silence")
    for name, color in _MARKS.items():
        below.plot([], [], "|", color=color, label=name)
    handles, labels = below.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    below.legend(unique.values(), unique.keys(), loc="lower right")
