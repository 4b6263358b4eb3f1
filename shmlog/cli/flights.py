"""The demo's data, and what has to be true of it afterwards. Pure: no cluster, no clock.

The key of a record is the airport of origin, the value the file's line, the timestamp the
flight's date (taken as UTC). The file is in the order of the dates.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from typing import NamedTuple

import msgspec

FLIGHTS_MIN = 100  # an airport with fewer says little


class Flight(NamedTuple):
    """One record."""

    origin: bytes
    line: bytes
    time_ns: int


class _Line(msgspec.Struct):
    date: str
    delay: int
    origin: str


_DECODE = msgspec.json.Decoder(_Line).decode


def load() -> list[Flight]:
    """All flights, in the order of the file."""
    flights = []
    for line in files("shmlog").joinpath("data/flights-20k.jsonl").read_bytes().splitlines():
        read = _DECODE(line)
        moment = datetime.strptime(read.date, "%Y/%m/%d %H:%M").replace(tzinfo=UTC)
        flights.append(Flight(read.origin.encode(), line, int(moment.timestamp()) * 10**9))
    return flights


@dataclass(slots=True)
class Delays:
    """Sum of delays and number of flights per airport."""

    minutes: Counter[str] = field(default_factory=Counter)
    flights: Counter[str] = field(default_factory=Counter)

    def add(self, lines: Iterable[bytes]) -> None:
        """Take more flights in."""
        for line in lines:
            read = _DECODE(line)
            self.minutes[read.origin] += read.delay
            self.flights[read.origin] += 1

    def worst(self, count: int) -> list[tuple[str, int, float]]:
        """(airport, flights, mean delay in minutes) of the airports with the longest delays."""
        often = [origin for origin, n in self.flights.items() if n >= FLIGHTS_MIN]
        rows = [(o, self.flights[o], self.minutes[o] / self.flights[o]) for o in often]
        return sorted(rows, key=lambda row: (-row[2], row[0]))[:count]


class Finding(NamedTuple):
    """One thing that was checked."""

    holds: bool
    text: str


def check_complete(sent: Sequence[Flight], read: Sequence[tuple[bytes, bytes]]) -> Finding:
    """Is every record there, and exactly once? `read` holds (key, value)."""
    wanted, found = Counter((f.origin, f.line) for f in sent), Counter(read)
    missing, extra = (wanted - found).total(), (found - wanted).total()
    if missing or extra:
        text = f"{len(sent):,} records sent: {missing:,} missing, {extra:,} too many or different"
        return Finding(False, text)
    return Finding(True, f"{len(sent):,} of {len(sent):,} records are there, each exactly once")


def check_order(sent: Sequence[Flight], read: Sequence[tuple[bytes, bytes]]) -> Finding:
    """Does each key have its records in the order of sending?"""
    wanted, found = _by_key((f.origin, f.line) for f in sent), _by_key(read)
    wrong = [key.decode() for key in wanted if wanted[key] != found[key]]
    if wrong:
        text = f"{len(wrong)} of {len(wanted)} keys are not in the order of sending: {wrong[:3]}"
        return Finding(False, text)
    return Finding(True, f"{len(wanted)} keys, the records of each in the order of sending")


def _by_key(pairs: Iterable[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    lines: dict[bytes, list[bytes]] = defaultdict(list)
    for key, line in pairs:
        lines[key].append(line)
    return lines


def check_replay(sent: Sequence[Flight], since_ns: int, lines: Sequence[bytes]) -> Finding:
    """Did reading from a point in time give the flights from then on, and only those?"""
    wanted = Counter(f.line for f in sent if f.time_ns >= since_ns)
    day = f"{datetime.fromtimestamp(since_ns // 10**9, UTC):%Y-%m-%d}"
    text = f"replay from {day}: {len(lines):,} of {wanted.total():,} records"
    return Finding(Counter(lines) == wanted, text)


def check_delays(sent: Sequence[Flight], live: Delays) -> Finding:
    """Are the sums made while the records flowed those of the file?"""
    whole = Delays()
    whole.add(f.line for f in sent)
    verb = "are" if live == whole else "are NOT"
    seen = live.flights.total()
    text = f"sums made on the way, over {seen:,} records, {verb} those of the file"
    return Finding(live == whole, text)
