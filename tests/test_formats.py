r"""The format language: what prints, what parses, and that parse(print(records)) == records."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmlog.cli.bytes_text import escape, format_iso, parse_iso
from shmlog.cli.formats import Field, Headers, Literal, tokens_of
from shmlog.cli.parsing import Parser, Rows, read_rows
from shmlog.cli.printing import Columns, Printer
from shmlog.errors import InvalidConfig, SerializationError

PROFILE = settings(
    deadline=None,
    max_examples=80,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TIME_NS = 1_795_341_731_184_512_000

octets = st.binary(max_size=12)
header_lists = st.lists(st.tuples(st.text(min_size=1, max_size=5), st.none() | octets), max_size=3)
times = st.integers(0, (1 << 63) - 1)
records = st.lists(
    st.tuples(st.none() | octets, st.none() | octets, times, header_lists), max_size=8
)


def columns_of(rows, **changes):
    keys, values, timestamps, headers = (
        (list(c) for c in zip(*rows, strict=True))
        if rows
        else (
            [],
            [],
            [],
            [],
        )
    )
    columns = Columns(
        topic="orders",
        partition=3,
        leader_epoch=2,
        rows=range(len(rows)),
        offsets=range(100, 100 + len(rows)),
        timestamps=timestamps,
        keys=keys,
        values=values,
        header_of=lambda row: headers[row],
        codec="zstd",
        producer_id=77,
        producer_epoch=1,
        high_watermark=500,
        log_start=10,
    )
    return replace(columns, **changes)


ONE = columns_of([(b"k1", b"v\xff\n", TIME_NS, [("a", b"1"), ("b", None)])])


def printed(text, columns=ONE, **kw):
    return Printer(text, **kw).format(columns)


def parsed(text, data, chunk_bytes=1 << 20):
    """All rows of an input given in chunks, as one Rows."""
    chunks = (data[i : i + chunk_bytes] for i in range(0, len(data), chunk_bytes))
    whole = Rows()
    for rows in read_rows(chunks, text):
        for name in ("values", "keys", "headers", "timestamps", "partitions"):
            column = getattr(rows, name)
            if column is not None:
                setattr(whole, name, [*(getattr(whole, name) or []), *column])
    return whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%t-%p @ %o", b"orders-3 @ 100"),
        ("%e %x %y %a %a{codec}", b"2 77 1 zstd zstd"),
        ("%k=%v", b"k1=v\xff\n"),
        ("%s %S", b"v\xff\n 3"),
        ("%T %K %V %H", b"6 2 3 2"),
        ("%[ %] %i", b"10 500 1"),
        ("%v{hex} %v{base64} %k{json}", b'76ff0a dv8K "k1"'),
        ("%v{json}", b'{"base64":"dv8K"}'),
        ("%h{%k=%v;}", b"a=1;b=;"),
        ("%h{[%k:%v{json}]}", b'[a:"1"][b:null]'),
        ("%d %d{us} %d{ms}", b"1795341731184512000 1795341731184512 1795341731184"),
        ("%d{iso}", b"2026-11-22T10:02:11.184512Z"),
        ("%d{strftime[%F %T]}", b"2026-11-22 10:02:11"),
        (r"%% %{ %} \t \n \\ \x41\xff", b"% { } \t \n \\ A\xff"),
        ("{plain} ü", "{plain} ü".encode()),
        ("", b""),
        ("hex", b"76ff0a\n"),
        ("raw", b"v\xff\n"),
        ("value", b"v\xff\n\n"),
    ],
)
def test_every_escape_prints_what_the_table_says(text, expected):
    assert printed(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("%q", "column 2: unknown field %q"),
        ("100%", "ends in the middle"),
        ("\\", "ends in the middle"),
        (r"\q", r"unknown escape \q"),
        (r"\x4", "two hexadecimal digits"),
        ("%v{hax}", "there are {hex} {base64} {json}"),
        ("%v{hex", "not closed"),
        ("%o{hex}", "literal brace is %{"),
        ("%h", "ends in the middle"),
        ("%h{%k=%v", "ends in the middle"),
        ("%h %k", "wants a format for one header"),
        ("%h{%o}", "of a header there are %k and %v"),
    ],
)
def test_a_format_that_cannot_be_read_says_where_and_why(text, complaint):
    with pytest.raises(InvalidConfig) as caught:
        tokens_of(text)
    assert complaint in str(caught.value)
    assert caught.value.exit_status == 2


def test_a_format_is_read_once_into_few_steps():
    assert tokens_of(r"a%%b\t%v{hex}%h{%k}\n") == (
        Literal(b"a%b\t"),
        Field("v", "hex"),
        Headers((Field("k"),)),
        Literal(b"\n"),
    )


def test_the_running_count_goes_on_over_batches():
    printer = Printer(r"%i\n")
    two = columns_of([(None, b"", 0, [])] * 2)
    assert printer.format(two) + printer.format(two.cut(0, 1)) == b"1\n2\n3\n"


def test_a_batch_can_be_cut_and_thinned_and_keeps_its_headers():
    columns = columns_of([(None, b"%d" % i, i, [("n", b"%d" % i)]) for i in range(6)])
    kept = columns.cut(1, 5).keep([True, False, False, True])
    assert printed("%o %v %h{%v};", kept) == b"101 1 1;104 4 4;"
    assert printed("%v", columns.cut(2, 2)) == b""


def test_on_a_terminal_nothing_unprintable_gets_through():
    columns = columns_of(
        [(b"\x1b[31m", b"a\tb\n\xff\x80 \xc3\xbc \xc2\x9b", 0, [("\x07", b"\x00")])]
    )
    assert printed(r"%k %v|%h{%k%v}\n", columns, terminal=True).decode() == (
        "\\x1b[31m a\\tb\\n\\xff\\x80 ü \\x9b|\\x07\\x00\n"
    )
    assert b"\x9b" not in printed("json", columns, terminal=True)
    assert escape(b"plain text") == b"plain text"


def test_lengths_tell_null_from_empty():
    assert printed("%K %V;", columns_of([(None, b"", 0, []), (b"", None, 0, [])])) == b"-1 0;0 -1;"


def test_json_lines_carry_kind_and_version_and_say_null_and_base64():
    line = json.loads(printed("json"))
    assert line == {
        "kind": "record",
        "v": 1,
        "topic": "orders",
        "partition": 3,
        "offset": 100,
        "leader_epoch": 2,
        "timestamp_ns": TIME_NS,
        "key": "k1",
        "value": {"base64": base64.b64encode(b"v\xff\n").decode()},
        "headers": [["a", "1"], ["b", None]],
    }


@PROFILE
@given(records, st.integers(1, 40))
def test_json_gives_back_every_record_with_nulls_bytes_headers_and_times(rows, chunk_bytes):
    got = parsed("json", printed("json", columns_of(rows)), chunk_bytes)
    assert (got.values, got.keys or [], got.timestamps or []) == (
        [r[1] for r in rows],
        [r[0] for r in rows],
        [r[2] for r in rows],
    )
    assert (got.headers or []) == [r[3] for r in rows]


@pytest.mark.parametrize(
    "text",
    [
        # JSON writes control characters as escapes only, so these delimiters are in no field.
        r"%k{json}\t%v{json}\t%d\t%h{%k{json}\x01%v{json}\x02}\n",
        r"%d %k{json}\n%h{%k{hex}:%v{json}\x02}\n%v{json}\n",
        r"%k{json}\x00%d%{%h{%k{base64}-%v{json}\x02}\x01%v{json}\x00\x00",
        r"%d{iso} [%v{json}\x01%h{%v{json}\t%k{hex}\t}\x02%k{json}\n",
    ],
)
@PROFILE
@given(rows=records, chunk_bytes=st.integers(1, 60))
def test_what_a_format_with_safe_modifiers_prints_it_parses(text, rows, chunk_bytes):
    got = parsed(text, printed(text, columns_of(rows)), chunk_bytes)
    assert len(got) == len(rows)
    if rows:
        assert list(zip(got.keys, got.values, got.timestamps, got.headers, strict=True)) == rows


plain = st.binary(max_size=12).map(lambda b: b.translate(None, b"\t\n;"))


@pytest.mark.parametrize("text", [r"%k\t%v\n", "%k\t%v;", r"%k\n%v\n", r"%k\t%v\t;\n", "%v;%k;"])
@PROFILE
@given(rows=st.lists(st.tuples(plain, plain), max_size=8), chunk_bytes=st.integers(1, 9))
def test_plain_fields_come_back_as_long_as_they_lack_the_delimiters(text, rows, chunk_bytes):
    columns = columns_of([(k, v, 0, []) for k, v in rows])
    got = parsed(text, printed(text, columns), chunk_bytes)
    assert list(zip(got.keys or [], got.values, strict=True)) == rows


def test_a_field_ends_at_the_first_delimiter_and_the_last_at_the_line():
    got = parsed(r"%k,%v\n", b"a,b,c\nd,,\n")
    assert got.keys == [b"a", b"d"]
    assert got.values == [b"b,c", b","]
    with pytest.raises(SerializationError):
        parsed(r"%k,%p,%v\n", b"a,b,3,x\n")  # not key "a,b": the first comma ends it


def test_a_partition_and_times_of_every_unit_parse():
    got = parsed(r"%p %d{ms} %v\n", b"3 1500 x\n0 2 y\n")
    assert (got.partitions, got.timestamps) == ([3, 0], [1_500_000_000, 2_000_000])
    got = parsed(r"%d{iso} %v\n", b"1970-01-01T00:00:01Z x\n1970-01-01T00:00:00.000000001Z y\n")
    assert got.timestamps == [10**9, 1]


def test_the_last_line_needs_no_newline_and_an_empty_line_is_an_empty_record():
    assert parsed("value", b"a\n\nb").values == [b"a", b"", b"b"]
    assert parsed("value", b"a\n").values == [b"a"]
    assert len(parsed("value", b"")) == 0


def test_raw_is_one_record_whatever_is_in_it():
    assert parsed("raw", b"a\nb\n\x00", 2).values == [b"a\nb\n\x00"]


@pytest.mark.parametrize(
    ("text", "data", "good", "line"),
    [
        (r"%k\t%v\n", b"a\tb\nc\td\nno tab\ne\tf\n", 2, 3),
        (r"%k\n%v{hex}\n", b"a\n00\nb\n0x\n", 1, 3),
        (r"%k\n%v\n", b"a\nb\nc", 1, 3),
        ("hex", b"00\nzz\n", 1, 2),
        ("json", b'{"value":"a"}\n{"value":1}\n', 1, 2),
        ("json", b'{"value":"a"}\n{"valeu":"b"}\n', 1, 2),
        ("json", b'{"kind":"topic"}\n', 0, 1),
        ("json", b"\n", 0, 1),
        ("json", b'{"timestamp_ns":9223372036854775808}\n', 0, 1),
        (r"%d %v\n", b"9999999999999999999 x\n", 0, 1),
        (r"%h{%k=%v;}\n", b"a=b;\nab;\n", 1, 2),
        (r"%h{%k{hex}=%v;}\n", b"ff=1;\n", 0, 1),
    ],
)
def test_a_line_that_does_not_fit_stops_with_its_number_behind_the_good_ones(
    text, data, good, line
):
    for chunk_bytes in (1, 5, 1000):
        seen = 0
        chunks = (data[i : i + chunk_bytes] for i in range(0, len(data), chunk_bytes))
        found = read_rows(chunks, text)
        with pytest.raises(SerializationError) as caught:
            for rows in found:
                seen += len(rows)
        assert (seen, caught.value.line) == (good, line)
        assert str(caught.value).startswith(f"line {line}: ")


def test_without_lines_it_is_the_record_that_is_counted():
    with pytest.raises(SerializationError, match=r"^record 2: "):
        parsed("%v{hex};", b"00;zz;")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (r"%o %v\n", "%o cannot be parsed"),
        (r"%d{strftime[%F]} %v\n", "%d cannot be parsed"),
        (r"%k%v\n", "nothing between"),
        (r"%v %v\n", "twice"),
        (r"%h{%k=%v}\n", "delimiter behind"),
        (r"%h{%k%v;}\n", "delimiter behind"),
        (r"%h{x}\n", "delimiter behind"),
        (r"\n", "needs a field"),
        ("", "needs a field"),
    ],
)
def test_what_prints_but_cannot_be_parsed_is_refused_before_any_input(text, complaint):
    with pytest.raises(InvalidConfig, match=complaint):
        Parser(text)


@PROFILE
@given(times)
def test_iso_times_lose_nothing(time_ns):
    assert parse_iso(format_iso(time_ns)) == time_ns


@pytest.mark.parametrize("text", ["", "2026-11-22", "2026-13-01T00:00:00Z", "2026-11-22T10:00:00"])
def test_what_is_no_iso_time_is_refused(text):
    with pytest.raises(ValueError, match=r"time|month"):
        parse_iso(text)
