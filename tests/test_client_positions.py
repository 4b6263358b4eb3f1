"""The position grammar."""

from __future__ import annotations

import datetime

import pytest

from shmlog.client.positions import EARLIEST, LATEST, Kind, Position, parse, parse_range
from shmlog.errors import InvalidConfig

HOUR = 3600 * 10**9


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("earliest", EARLIEST),
        ("end", LATEST),
        ("123", Position(Kind.OFFSET, 123)),
        (7, Position(Kind.OFFSET, 7)),
        ("+10", Position(Kind.AFTER_FIRST, 10)),
        ("-10", Position(Kind.LAST, 10)),
        ("@1970-01-01T00:00:01.5Z", Position(Kind.TIME, 1_500_000_000)),
        ("@-1h30m", Position(Kind.AGE, HOUR * 3 // 2)),
        (datetime.timedelta(hours=1), Position(Kind.AGE, HOUR)),
        (datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC), Position(Kind.TIME, 24 * HOUR)),
    ],
)
def test_every_form_has_its_meaning(text: object, position: Position) -> None:
    assert parse(text) == position


@pytest.mark.parametrize(
    "text", ["", "soon", "1.5", "@", "@yesterday", "--3", -1, True, None, "1:2"]
)
def test_anything_else_is_refused_with_the_grammar(text: object) -> None:
    with pytest.raises(InvalidConfig):
        parse(text)


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [
        ("5:10", Position(Kind.OFFSET, 5), Position(Kind.OFFSET, 10)),
        (":latest", None, LATEST),
        ("-10:", Position(Kind.LAST, 10), None),
        ("5", Position(Kind.OFFSET, 5), None),
        (
            "@1970-01-01T00:00:01Z:@1970-01-01T00:00:02Z",
            Position(Kind.TIME, 10**9),
            Position(Kind.TIME, 2 * 10**9),
        ),
        ("@1970-01-01T00:00:01Z:+3", Position(Kind.TIME, 10**9), Position(Kind.AFTER_FIRST, 3)),
        (None, None, None),
    ],
)
def test_a_range_is_split_where_both_sides_are_positions(
    text: str | None, start: Position | None, stop: Position | None
) -> None:
    assert parse_range(text) == (start, stop)


@pytest.mark.parametrize(
    ("position", "offset"),
    [("earliest", 100), ("latest", 200), ("150", 150), ("+5", 105), ("+500", 200), ("-5", 195),
     ("-500", 100), ("@-1h", 160)],
)  # fmt: skip
def test_positions_resolve_within_the_log(position: str, offset: int) -> None:
    assert parse(position).resolve(100, 200, 160) == offset


def test_a_time_without_a_record_is_the_end() -> None:
    assert parse("@-1h").resolve(100, 200, -1) == 200
