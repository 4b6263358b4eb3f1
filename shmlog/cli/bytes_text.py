"""How bytes, times and nulls stand in text, both ways: in formats and in JSON.

In JSON a key or value is its text if it is UTF-8, else `{"base64": "..."}`; a null stays null.
Outside JSON a null prints as nothing, so it comes back as empty bytes. Times are wall-clock
nanoseconds since 1970 UTC. What cannot be read is a ValueError, or msgspec's.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec

Octets = bytes | None

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ISO = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")


class Base64(msgspec.Struct, forbid_unknown_fields=True):
    """Bytes that are no text, in JSON."""

    base64: bytes


JsonValue = str | Base64 | None


def to_json_value(data: Octets) -> JsonValue:
    """What stands for `data` in a JSON document."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return Base64(data)


def from_json_value(value: JsonValue) -> Octets:
    """The bytes (or null) that `to_json_value` was given."""
    if isinstance(value, Base64):
        return value.base64
    return None if value is None else value.encode()


def int64(number: int) -> int:
    """The number itself. Raises ValueError if a timestamp cannot hold it."""
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"not a time in ns: {number}")
    return number


ENCODE: dict[str, Callable[[Octets], bytes]] = {
    "": lambda data: data or b"",
    "hex": lambda data: binascii.hexlify(data or b""),
    "base64": lambda data: base64.b64encode(data or b""),
    "json": lambda data: msgspec.json.encode(to_json_value(data)),
}
_JSON = msgspec.json.Decoder[JsonValue](JsonValue)
DECODE: dict[str, Callable[[bytes], Octets]] = {
    "": bytes,
    "hex": binascii.unhexlify,
    "base64": lambda text: base64.b64decode(text, validate=True),
    "json": lambda text: from_json_value(_JSON.decode(text)),
}


def escape(data: bytes) -> bytes:
    r"""For a terminal: what does not print becomes \n, \x1b and the like; text stays readable."""
    text = data.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text.encode()
    return b"".join(c.encode("utf-8" if c.isprintable() else "unicode_escape") for c in text)


def moment(time_ns: int) -> datetime:
    """The time in UTC; a datetime holds microseconds."""
    return _EPOCH + timedelta(microseconds=time_ns // 1000)


def format_iso(time_ns: int) -> str:
    """`2026-11-22T10:02:11.184512Z`; nine digits where microseconds would lose something."""
    ns = time_ns % 10**9
    fraction = f"{ns:09}" if ns % 1000 else f"{ns // 1000:06}"
    return f"{moment(time_ns):%Y-%m-%dT%H:%M:%S}.{fraction}Z"


def parse_iso(text: str) -> int:
    """Nanoseconds of what `format_iso` writes; fewer digits are fine. Raises ValueError."""
    match = _ISO.fullmatch(text)
    if match is None:
        raise ValueError(f"not a time: {text!r}; write 2026-11-22T10:00:00Z")
    whole = datetime.fromisoformat(match[1] + "Z") - _EPOCH
    seconds = whole.days * 86400 + whole.seconds
    return int64(seconds * 10**9 + int((match[2] or "0").ljust(9, "0")))
