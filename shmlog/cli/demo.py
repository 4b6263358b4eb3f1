"""`shmlog demo`: a broker is killed with -9 while records flow, and everything is there, once and
in order.

    main thread     sends the flights at an even pace, each slice as it is due
    consumer        follows from the start and sums up delays per airport meanwhile
    killer          midway: kill -9, then waits until the supervisor has a new broker serving

Afterwards one consumer replays from a date in the middle, another reads everything, and both
are compared with the file. The cluster is a LocalCluster: it leaves nothing behind, however the
demo ends.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, NamedTuple

import click

from shmlog import clock
from shmlog.cli.render import Column, table
from shmlog.errors import RequestTimedOut

if TYPE_CHECKING:
    from shmlog.cli.flights import Delays, Finding, Flight
    from shmlog.cli.settings import Settings
    from shmlog.client.producer import Producer
    from shmlog.testing.cluster import LocalCluster

TOPIC = "flights"
PARTITIONS = 8
SLICE = 200  # records
PACE_NS = 20 * clock.NS_PER_MS  # a slice: 20,000 records take two seconds
KILL_AFTER_SLICES = 40
READ_DEADLINE_S = 30.0
WORST = 8
_now = clock.SYSTEM_CLOCK.monotonic_ns


class Kill(NamedTuple):
    """What happened to the broker. `away_ns`: from the signal until a new one serves."""

    old_pid: int
    new_pid: int
    away_ns: int


@click.command()
@click.pass_obj
def demo(settings: Settings) -> int:
    """Stream 20,000 flights, kill the broker midway, check every record."""
    from shmlog.cli.flights import load
    from shmlog.testing.cluster import LocalCluster

    flights = load()
    started_ns = _now()
    with LocalCluster() as cluster:
        settings.say(
            f"throw-away cluster in {cluster.dir}: broker 0, pid {cluster.pids[0]}, "
            f"ready in {_ms(_now() - started_ns)}"
        )
        delays, findings = _play(cluster, flights, _Line(settings))
    click.echo(_delay_table(delays))
    click.echo(_verdict(findings, settings))
    settings.say(f"{_ms(_now() - started_ns)} in all. Your own:  shmlog dev")
    return 0 if all(finding.holds for finding in findings) else 1


def _play(
    cluster: LocalCluster, flights: Sequence[Flight], line: _Line
) -> tuple[Delays, list[Finding]]:
    """Stream, kill, read again: the delays, and what was found."""
    from shmlog.cli import flights as checks
    from shmlog.cli.bytes_text import format_iso
    from shmlog.client.admin import Admin
    from shmlog.client.producer import Producer

    with Admin(cluster.dir) as admin:
        admin.create_topic(TOPIC, PARTITIONS)
    line.tell(f"topic {TOPIC}: {PARTITIONS} partitions, keyed by airport; sending ...")
    delays = checks.Delays()
    stop = Event()
    with ThreadPoolExecutor(2) as pool:
        follower = pool.submit(_follow, cluster, delays, len(flights), stop)
        try:
            with Producer(where=cluster.dir) as producer:
                acked, killing = _send(cluster, producer, flights, pool, line, delays)
                producer.flush()
            kill = killing.result()
            follower.result()
        finally:
            stop.set()  # nobody waits for a consumer whose records will never come
    line.tell(f"sent {len(flights):,} records, failed 0, read {delays.flights.total():,}")
    middle_ns = _midnight(flights[len(flights) // 2].time_ns)
    replayed = _read(cluster, "@" + format_iso(middle_ns))
    everything = _read(cluster, "earliest")
    return delays, [
        checks.check_complete(flights, everything),
        checks.check_order(flights, everything),
        _check_kill(kill, acked, len(flights)),
        checks.check_delays(flights, delays),
        checks.check_replay(flights, middle_ns, [value for _, value in replayed]),
    ]


def _send(
    cluster: LocalCluster,
    producer: Producer,
    flights: Sequence[Flight],
    pool: ThreadPoolExecutor,
    line: _Line,
    delays: Delays,
) -> tuple[int, Future[Kill]]:
    """Send all flights in slices; (records acked before the kill, the killing)."""
    promises = []
    killing: Future[Kill] | None = None
    acked = 0
    started_ns = _now()
    for number, start in enumerate(range(0, len(flights), SLICE)):
        clock.sleep(max(0, started_ns + number * PACE_NS - _now()) / clock.NS_PER_S)
        keys, lines, times = zip(*flights[start : start + SLICE], strict=True)
        promises.append(producer.send_many(TOPIC, lines, keys=keys, timestamps=times))
        if number == KILL_AFTER_SLICES:
            acked = sum(len(p) for p in promises if p.done())
            line.tell(f"{acked:,} records have their ack, {start + SLICE - acked:,} are on the way")
            killing = pool.submit(_kill, cluster, line)
        line.show(f"sent {start + SLICE:,}  read {delays.flights.total():,}")
    assert killing is not None
    return acked, killing


def _kill(cluster: LocalCluster, line: _Line) -> Kill:
    """Kill the broker and wait for the next."""
    line.tell(f"kill -9 {cluster.pids[0]}: broker 0 is dead, nobody stops sending")
    started_ns = _now()
    old_pid = cluster.kill(0)
    cluster.wait_ready()
    kill = Kill(old_pid, cluster.pids[0], _now() - started_ns)
    line.tell(f"broker 0 is back: pid {kill.new_pid}, {_ms(kill.away_ns)} later")
    return kill


def _follow(cluster: LocalCluster, delays: Delays, count: int, stop: Event) -> None:
    """Sum up delays until so many records have come. Raises RequestTimedOut if they do not."""
    from shmlog.client.consumer import Consumer

    deadline_ns = _now() + int(READ_DEADLINE_S * clock.NS_PER_S)
    with Consumer(TOPIC, where=cluster.dir) as consumer:
        for batch in consumer.batches(timeout=0.2):
            delays.add(batch.values)
            seen = delays.flights.total()
            if seen >= count or stop.is_set():
                return
            if _now() > deadline_ns:
                raise RequestTimedOut(f"{seen:,} of {count:,} records after {READ_DEADLINE_S:g} s")


def _read(cluster: LocalCluster, start: str) -> list[tuple[bytes, bytes]]:
    """(key, value) of every record from a position to the ends."""
    from shmlog.client.consumer import Consumer

    with Consumer(TOPIC, where=cluster.dir, start=start, stop="latest") as consumer:
        return [pair for b in consumer.batches() for pair in zip(b.keys, b.values, strict=True)]


def _check_kill(kill: Kill, acked: int, sent: int) -> Finding:
    from shmlog.cli.flights import Finding

    text = (
        f"broker killed with -9 after {acked:,} of {sent:,} acks (pid {kill.old_pid}), "
        f"serving again after {_ms(kill.away_ns)} (pid {kill.new_pid})"
    )
    return Finding(0 < acked < sent and kill.new_pid != kill.old_pid, text)


def _midnight(time_ns: int) -> int:
    day_ns = 86_400 * clock.NS_PER_S
    return time_ns // day_ns * day_ns


def _ms(ns: int) -> str:
    return f"{ns / clock.NS_PER_MS:,.0f} ms"


def _delay_table(delays: Delays) -> str:
    columns = (
        Column("airport"),
        Column("flights", right=True),
        Column("mean delay, minutes", right=True),
    )
    cells = [[origin, f"{n:,}", f"{mean:.1f}"] for origin, n, mean in delays.worst(WORST)]
    return "\n" + table(cells, columns)


def _verdict(findings: Sequence[Finding], settings: Settings) -> str:
    lines = []
    for finding in findings:
        word = "ok    " if finding.holds else "FAILED"
        if settings.color:
            word = click.style(word, fg="green" if finding.holds else "red")
        lines.append(f"{word}  {finding.text}")
    return "\n".join(lines)


class _Line:
    """What is told on stderr: lasting lines, and on a terminal one that changes. Any thread."""

    def __init__(self, settings: Settings) -> None:
        self._say = settings.say
        self._clear = "\r\x1b[K" if sys.stderr.isatty() and not settings.quiet else ""

    def tell(self, text: str) -> None:
        """A line that stays."""
        self._say(self._clear + text)

    def show(self, text: str) -> None:
        """The line that changes."""
        if self._clear:
            click.echo(self._clear + text, err=True, nl=False)
