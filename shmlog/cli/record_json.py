"""A record as one line of JSON, both ways.

    {"kind": "record", "v": 1, "topic": ..., "partition": ..., "offset": ..., "leader_epoch": ...,
     "timestamp_ns": ..., "key": ..., "value": ..., "headers": [[name, value], ...]}

Reading takes key, value, headers and timestamp_ns, each optional; where the record lay before
(topic, partition, offset, leader_epoch) may be there and has no meaning for where it goes. Any
other name is a mistake and is said so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import msgspec

from shmlog.cli.bytes_text import JsonValue, Octets, from_json_value, int64, to_json_value

if TYPE_CHECKING:
    from shmlog.cli.printing import Columns


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """What a line may hold."""

    kind: Literal["record"] = "record"
    v: Literal[1] = 1
    topic: str = ""
    partition: int = 0
    offset: int = 0
    leader_epoch: int = 0
    timestamp_ns: int | None = None
    key: JsonValue = None
    value: JsonValue = None
    headers: list[tuple[str, JsonValue]] = []


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Line)


def encode_lines(columns: Columns) -> Iterator[bytes]:
    """One object a record, without the line's end."""
    fields = (columns.rows, columns.offsets, columns.timestamps, columns.keys, columns.values)
    for row, offset, timestamp, key, value in zip(*fields, strict=True):
        line = _Line(
            topic=columns.topic,
            partition=columns.partition,
            offset=offset,
            leader_epoch=columns.leader_epoch,
            timestamp_ns=timestamp,
            key=to_json_value(key),
            value=to_json_value(value),
            headers=[(name, to_json_value(v)) for name, v in columns.header_of(row)],
        )
        yield _ENCODER.encode(line)


def decode_line(line: bytes) -> tuple[Octets, Octets, int | None, list[tuple[str, Octets]]]:
    """Key, value, timestamp (ns or None) and headers. Raises ValueError, msgspec.DecodeError."""
    key, value, timestamp, headers, _ = decode_placed(line)
    return key, value, timestamp, headers


def decode_placed(
    line: bytes,
) -> tuple[Octets, Octets, int | None, list[tuple[str, Octets]], int]:
    """The same, and the partition where the record lay."""
    read = _DECODER.decode(line)
    headers = [(name, from_json_value(value)) for name, value in read.headers]
    timestamp = None if read.timestamp_ns is None else int64(read.timestamp_ns)
    return (
        from_json_value(read.key),
        from_json_value(read.value),
        timestamp,
        headers,
        read.partition,
    )
