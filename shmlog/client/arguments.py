"""How arguments of the public calls are written: durations, sizes, names."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable

from shmlog.clock import NS_PER_S
from shmlog.errors import InvalidConfig, UnknownTopic
from shmlog.settings import parse_duration_ns, parse_size

Duration = float | datetime.timedelta | str


def duration_ns(value: Duration, name: str) -> int:
    """Nanoseconds of seconds (a number), a timedelta, or text ("5ms"). Raises InvalidConfig."""
    if isinstance(value, datetime.timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InvalidConfig(f"{name} = {value!r}: give seconds, a timedelta or text such as '5ms'")
    ns = parse_duration_ns(value) if isinstance(value, str) else int(value * NS_PER_S)
    if ns < 0:
        raise InvalidConfig(f"{name} = {value!r}: a duration is not negative")
    return ns


def optional_ns(value: Duration | None, name: str) -> int | None:
    """As `duration_ns`; None stays None."""
    return None if value is None else duration_ns(value, name)


def size_in(value: int | str, name: str, low: int, high: int) -> int:
    """Bytes of 1048576 or "1MiB", within inclusive bounds. Raises InvalidConfig."""
    size = parse_size(value)
    if not low <= size <= high:
        raise InvalidConfig(f"{name} = {value!r}: must be {low}..{high} bytes")
    return size


def no_topic(topic: str, known: Iterable[str]) -> UnknownTopic:
    """The error for a topic that does not exist, with the nearest name."""
    near = difflib.get_close_matches(topic, [name for name in known if name != topic], 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownTopic(f"no topic {topic!r}{hint}", topic=topic)
