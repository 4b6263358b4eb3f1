"""`shmlog demo`: a leader is killed with -9 while records flow, and everything is there, once and
in order.

    main thread     sends the flights at an even pace, each slice as it is due
    consumer        follows from the start and sums up delays per airport meanwhile
    killer          midway: kill -9 of a leader, then waits until its partition is led again and
                    the supervisor has every broker serving

Afterwards one consumer replays from a date in the middle, another reads everything, and both
are compared with the file. The cluster is a LocalCluster: it leaves nothing behind, however the
demo ends.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import NamedTuple

import click

from shmlog import clock
from shmlog.cli import flights as checks
from shmlog.cli.bytes_text import format_iso
from shmlog.cli.flights import Delays, Finding, Flight
from shmlog.cli.render import Column, plural, write_rows
from shmlog.cli.run import brokers_option
from shmlog.cli.settings import Settings
from shmlog.client.admin import Admin
from shmlog.client.consumer import Consumer
from shmlog.client.producer import Producer
from shmlog.errors import RequestTimedOut
from shmlog.testing.cluster import LocalCluster

TOPIC = "flights"
PARTITIONS = 8
SLICE = 200  # records
PACE_NS = 20 * clock.NS_PER_MS  # a slice: 20,000 records take two seconds
KILL_AFTER_SLICES = 40
READ_DEADLINE_S = 30.0
DAY_NS = 86_400 * clock.NS_PER_S
WORST = 8
COLUMNS = (
    Column("airport"),
    Column("flights", lambda row: f"{row['flights']:,}", right=True),
    Column("mean delay, minutes", lambda row: f"{row['delay']:.1f}", right=True),
)
_now = clock.SYSTEM_CLOCK.monotonic_ns


class Kill(NamedTuple):
    """What happened to `broker`, leader of partition 0: `acked` records had their ack when it died;
    it was `leaderless_ns` until `leader` led, and `away_ns` until a new process served."""

    acked: int
    broker: int
    old_pid: int
    new_pid: int
    leader: int
    leaderless_ns: int
    away_ns: int


@click.command()
@brokers_option(default=3)
@click.pass_obj
def demo(settings: Settings, brokers: int) -> int:
    """Stream 20,000 flights, kill a leader midway, check every record."""
    flights = checks.load()
    started_ns = _now()
    with LocalCluster(brokers) as cluster:
        ready = f"{plural(brokers, 'broker')}, ready in {_ms(_now() - started_ns)}"
        settings.say(f"throw-away cluster in {cluster.dir}: {ready}")
        play = _Play(cluster, flights, settings)
        kill = play.stream()
        findings = play.check(kill)
    worst = [{"airport": o, "flights": n, "delay": d} for o, n, d in play.delays.worst(WORST)]
    click.echo()
    write_rows(worst, COLUMNS, "table")
    click.echo()
    for finding in findings:
        word, color = ("ok    ", "green") if finding.holds else ("FAILED", "red")
        word = click.style(word, fg=color) if settings.color else word
        click.echo(f"{word}  {finding.text}")
    settings.say(f"{_ms(_now() - started_ns)} in all. Your own:  shmlog dev")
    return 0 if all(finding.holds for finding in findings) else 1


class _Play:
    """One run over one cluster; its three threads tell what happens on stderr."""

    def __init__(self, cluster: LocalCluster, flights: list[Flight], settings: Settings) -> None:
        self.delays = Delays()
        self._cluster = cluster
        self._flights = flights
        self._stop = Event()
        self._say = settings.say
        self._clear = "\r\x1b[K" if sys.stderr.isatty() and not settings.quiet else ""

    def stream(self) -> Kill:
        """Send everything, kill the broker midway, and follow to the end meanwhile."""
        with Admin(self._cluster.dir) as admin:
            admin.create_topic(TOPIC, PARTITIONS)
        self._tell(f"topic {TOPIC}: {PARTITIONS} partitions, keyed by airport; sending ...")
        with ThreadPoolExecutor(2) as pool:
            follower = pool.submit(self._follow)
            try:
                with Producer(where=self._cluster.dir) as producer:
                    killing = self._send(producer, pool)
                    producer.flush()
                kill = killing.result()
                follower.result()
            finally:
                self._stop.set()  # nobody waits for a consumer whose records will never come
        seen = self.delays.flights.total()
        self._tell(f"sent {len(self._flights):,} records, failed 0, read {seen:,}")
        return kill

    def check(self, kill: Kill) -> list[Finding]:
        """Read again, and compare with the file."""
        flights = self._flights
        middle_ns = flights[len(flights) // 2].time_ns // DAY_NS * DAY_NS
        replayed = self._read("@" + format_iso(middle_ns))
        everything = self._read("earliest")
        killed = (
            f"leader (broker {kill.broker}, pid {kill.old_pid}) killed with -9 after "
            f"{kill.acked:,} of {len(flights):,} acks; broker {kill.leader} leads after "
            f"{_ms(kill.leaderless_ns)}, broker {kill.broker} is back after {_ms(kill.away_ns)}"
        )
        return [
            checks.check_complete(flights, everything),
            checks.check_order(flights, everything),
            Finding(0 < kill.acked < len(flights) and kill.new_pid != kill.old_pid, killed),
            checks.check_delays(flights, self.delays),
            checks.check_replay(flights, middle_ns, [value for _, value in replayed]),
        ]

    def _send(self, producer: Producer, pool: ThreadPoolExecutor) -> Future[Kill]:
        """Send all flights in slices; the killing, which goes on in the pool."""
        promises = []
        started_ns = _now()
        for number, start in enumerate(range(0, len(self._flights), SLICE)):
            clock.sleep(max(0, started_ns + number * PACE_NS - _now()) / clock.NS_PER_S)
            keys, lines, times = zip(*self._flights[start : start + SLICE], strict=True)
            promises.append(producer.send_many(TOPIC, lines, keys=keys, timestamps=times))
            sent = start + SLICE
            if number == KILL_AFTER_SLICES:
                acked = sum(len(p) for p in promises if p.done())
                self._tell(f"{acked:,} records have their ack, {sent - acked:,} are on the way")
                killing = pool.submit(self._kill, acked)
            if self._clear:  # a line that changes
                text = f"{self._clear}sent {sent:,}  read {self.delays.flights.total():,}"
                click.echo(text, err=True, nl=False)
        return killing

    def _kill(self, acked: int) -> Kill:
        """Kill a leader; wait for the next one, and for the broker's next process."""
        cluster = self._cluster
        broker = cluster.leader(TOPIC, 0)
        self._tell(
            f"kill -9 {cluster.pids[broker]}: broker {broker}, leader of {TOPIC}-0, is dead, "
            "nobody stops sending"
        )
        started_ns = _now()
        old_pid = cluster.kill(broker)
        leader = cluster.wait_leader(TOPIC, 0)
        leaderless_ns = _now() - started_ns
        cluster.wait_ready()
        new_pid, away_ns = cluster.pids[broker], _now() - started_ns
        self._tell(
            f"broker {leader} leads {TOPIC}-0 {_ms(leaderless_ns)} later; "
            f"broker {broker} is back: pid {new_pid}, {_ms(away_ns)} later"
        )
        return Kill(acked, broker, old_pid, new_pid, leader, leaderless_ns, away_ns)

    def _follow(self) -> None:
        """Sum up delays until all records have come. Raises RequestTimedOut if they do not."""
        count = len(self._flights)
        deadline_ns = _now() + int(READ_DEADLINE_S * clock.NS_PER_S)
        with Consumer(TOPIC, where=self._cluster.dir) as consumer:
            for batch in consumer.batches(timeout=0.2):
                self.delays.add(batch.values)
                seen = self.delays.flights.total()
                if seen >= count or self._stop.is_set():
                    return
                if _now() > deadline_ns:
                    raise RequestTimedOut(f"{seen:,} of {count:,} after {READ_DEADLINE_S:g} s")

    def _read(self, start: str) -> list[tuple[bytes, bytes]]:
        """(key, value) of every record from a position to the ends."""
        where = self._cluster.dir
        with Consumer(TOPIC, where=where, start=start, stop="latest") as consumer:
            return [(record.key, record.value) for record in consumer]

    def _tell(self, text: str) -> None:
        """A line that stays."""
        self._say(self._clear + text)


def _ms(ns: int) -> str:
    return f"{ns / clock.NS_PER_MS:,.0f} ms"
