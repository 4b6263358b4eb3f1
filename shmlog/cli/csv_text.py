r"""A record as a row of CSV, both ways.

    partition,offset,timestamp_ns,key,value,headers

Bytes stand as their text if they are UTF-8. A backslash at the beginning tells what text cannot: `\N` is null,
`\b` and base64 are other bytes, and text that begins with a backslash has one more. Headers are JSON, a list of
[name, value] as in `consume -f json`; nothing where there are none.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import msgspec

from shmlog.cli.bytes_text import JsonValue, Octets, from_json_value, int64, to_json_value
from shmlog.cli.printing import Columns

COLUMNS = ("partition", "offset", "timestamp_ns", "key", "value", "headers")
_NULL, _BINARY = "\\N", "\\b"
_HEADERS = msgspec.json.Decoder(list[tuple[str, JsonValue]])

Row = tuple[int, int, int, str, str, str]


def cell(data: Octets) -> str:
    """What stands for `data`."""
    if data is None:
        return _NULL
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return _BINARY + base64.b64encode(data).decode()
    return "\\" + text if text.startswith("\\") else text


def octets(text: str) -> Octets:
    """The bytes (or null) that `cell` was given. Raises ValueError."""
    if not text.startswith("\\"):
        return text.encode()
    if text == _NULL:
        return None
    if text.startswith(_BINARY):
        return base64.b64decode(text[len(_BINARY) :], validate=True)
    if text.startswith("\\\\"):
        return text[1:].encode()
    raise ValueError(f"{text[:20]!r}: behind a backslash there is N, b or another one")


def rows_of(columns: Columns) -> list[Row]:
    """The rows of records."""
    fields = (columns.rows, columns.offsets, columns.timestamps, columns.keys, columns.values)
    return [
        (
            columns.partition,
            offset,
            timestamp,
            cell(key),
            cell(value),
            _headers(columns.header_of(row)),
        )
        for row, offset, timestamp, key, value in zip(*fields, strict=True)
    ]


def _headers(headers: Sequence[tuple[str, Octets]]) -> str:
    if not headers:
        return ""
    return msgspec.json.encode([(name, to_json_value(value)) for name, value in headers]).decode()


def record_of(
    row: Mapping[str, str],
) -> tuple[Octets, Octets, int | None, list[tuple[str, Octets]], int | None]:
    """Key, value, timestamp (ns or None), headers and partition of a row. Raises ValueError, msgspec.DecodeError."""
    headers = _HEADERS.decode(row["headers"]) if row["headers"] else []
    timestamp = int64(int(row["timestamp_ns"])) if row["timestamp_ns"] else None
    return (
        octets(row["key"]),
        octets(row["value"]),
        timestamp,
        [(name, from_json_value(value)) for name, value in headers],
        int(row["partition"]) if row["partition"] else None,
    )
