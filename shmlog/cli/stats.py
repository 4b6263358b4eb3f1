"""`shmlog stats`: the counters of each broker, out of its stats page; no broker is asked."""

from __future__ import annotations

from typing import Any

import click

from shmlog import clock, directory, stats
from shmlog.cli.render import Column, write_object, write_rows
from shmlog.cli.run import found_directory
from shmlog.cli.settings import Settings
from shmlog.errors import ClusterNotFound

COLUMNS = (Column("broker", right=True), Column("counter"), Column("value", right=True))


@click.command("stats")
@click.argument("broker", type=int, required=False)
@click.pass_obj
def show(settings: Settings, broker: int | None) -> None:
    """Counters since each broker's start, read in shared memory."""
    path = found_directory(settings)
    living = directory.read_brokers(path)
    if not living:
        raise directory.nobody_lives(path)
    if broker is not None and broker not in living:
        raise ClusterNotFound(f"broker {broker} is not running")
    pages = [_of(living[b]) for b in (sorted(living) if broker is None else [broker])]
    if settings.wants_json:
        write_object(pages)
        return
    shown = ("age_ms", *stats.NAMES, "turn_p50_us", "turn_p99_us")
    rows = [
        {"broker": page["broker"], "counter": n, "value": page[n]} for page in pages for n in shown
    ]
    write_rows(rows, COLUMNS, settings.output)


def _of(entry: directory.BrokerEntry) -> dict[str, Any]:
    """What --json prints of a broker; `age_ms`: since its values were written."""
    page = stats.read(stats.Identity(entry.cluster, entry.broker, entry.incarnation))
    age_ns = clock.SYSTEM_CLOCK.monotonic_ns() - page.written_ns
    return {
        "kind": "stats",
        "v": 1,
        "broker": entry.broker,
        "incarnation": entry.incarnation,
        "age_ms": age_ns // clock.NS_PER_MS,
        **page.values,
        "turn_p50_us": stats.quantile_us(page.turn_counts, 0.5),
        "turn_p99_us": stats.quantile_us(page.turn_counts, 0.99),
        "turn_counts": page.turn_counts,
    }
