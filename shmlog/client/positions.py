"""Where reading begins and ends: one grammar for the command line and for strings in Python.

    earliest | latest | 123 | +10 after the first | -10 the last ten | @2026-11-22T10:00:00Z | @-1h
    A:B   a half-open range of these, either side may be empty

In Python an int is an exact offset, a datetime a time, a timedelta an age.
"""

from __future__ import annotations

import datetime
import enum
import re
from dataclasses import dataclass

from shmlog.clock import NS_PER_S
from shmlog.errors import InvalidConfig
from shmlog.settings import parse_duration_ns

_NUMBER = re.compile(r"[+-]?\d{1,18}")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)  # noqa: UP017


class Kind(enum.Enum):
    """What a position counts from."""

    EARLIEST = "earliest"
    LATEST = "latest"
    OFFSET = "offset"  # value: the offset
    AFTER_FIRST = "after first"  # value: records after the log start
    LAST = "last"  # value: records before the high watermark
    TIME = "time"  # value: wall ns
    AGE = "age"  # value: ns before now


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a partition, to be resolved against its ends or its timestamps."""

    kind: Kind
    value: int = 0

    def resolve(self, log_start: int, high_watermark: int, by_time: int) -> int:
        """The offset. `by_time`: the answer to the question `timestamp_ns` asks, -1: no such
        record.
        """
        match self.kind:
            case Kind.EARLIEST:
                return log_start
            case Kind.LATEST:
                return high_watermark
            case Kind.OFFSET:
                return self.value
            case Kind.AFTER_FIRST:
                return min(log_start + self.value, high_watermark)
            case Kind.LAST:
                return max(log_start, high_watermark - self.value)
        return high_watermark if by_time < 0 else by_time

    def timestamp_ns(self, now_ns: int) -> int | None:
        """The time to ask for, None if this is no time; `now_ns` is the wall clock."""
        if self.kind is Kind.TIME:
            return self.value
        if self.kind is Kind.AGE:
            return max(now_ns - self.value, 0)
        return None


EARLIEST = Position(Kind.EARLIEST)
LATEST = Position(Kind.LATEST)
Positionable = str | int | datetime.datetime | datetime.timedelta | Position


def parse(value: Positionable) -> Position:
    """One position. Raises InvalidConfig with the grammar."""
    if isinstance(value, Position):
        return value
    if isinstance(value, datetime.datetime):
        return Position(Kind.TIME, _wall_ns(value))
    if isinstance(value, datetime.timedelta):
        return Position(Kind.AGE, int(value.total_seconds() * NS_PER_S))
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise InvalidConfig(f"offset {value} is negative; the last ten are '-10', as text")
        return Position(Kind.OFFSET, value)
    if isinstance(value, str):
        return _parse_text(value.strip())
    raise _wrong(value)


def parse_range(value: Positionable | None) -> tuple[Position | None, Position | None]:
    """(start, stop) of "A:B", of "A" (stop None), or of None. Raises InvalidConfig."""
    if value is None:
        return None, None
    if not isinstance(value, str):
        return parse(value), None
    start, stop = _split(value)
    return (parse(start) if start else None), (parse(stop) if stop else None)


def _split(text: str) -> tuple[str, str]:
    # A time has colons too: of all the places to split, the one where both sides are positions.
    for place in (i for i, letter in enumerate(text) if letter == ":"):
        start, stop = text[:place].strip(), text[place + 1 :].strip()
        if (not start or _is_position(start)) and (not stop or _is_position(stop)):
            return start, stop
    return text.strip(), ""


def _is_position(text: str) -> bool:
    try:
        _parse_text(text)
    except InvalidConfig:
        return False
    return True


def _parse_text(text: str) -> Position:
    if text in ("earliest", "start"):
        return EARLIEST
    if text in ("latest", "end"):
        return LATEST
    if text.startswith("@-"):
        return Position(Kind.AGE, parse_duration_ns(text[2:]))
    if text.startswith("@"):
        try:
            return Position(Kind.TIME, _wall_ns(datetime.datetime.fromisoformat(text[1:])))
        except ValueError:
            raise _wrong(text) from None
    if not _NUMBER.fullmatch(text):
        raise _wrong(text)
    number = abs(int(text))
    kind = {"+": Kind.AFTER_FIRST, "-": Kind.LAST}.get(text[0], Kind.OFFSET)
    return Position(kind, number)


def _wall_ns(moment: datetime.datetime) -> int:
    if moment.tzinfo is None:
        moment = moment.astimezone()  # as the user's clock shows it
    since = moment - _EPOCH
    ns = (since.days * 86_400 + since.seconds) * NS_PER_S + since.microseconds * 1000
    if ns < 0:
        raise InvalidConfig(f"{moment} is before 1970")
    return ns


def _wrong(value: object) -> InvalidConfig:
    return InvalidConfig(
        f"not a position: {value!r}; write earliest, latest, 123, +10, -10, "
        "@2026-11-22T10:00:00Z, @-1h, or A:B"
    )
