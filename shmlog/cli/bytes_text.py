"""How bytes, times and nulls stand in text, both ways: in formats and in JSON.

In JSON a key or value is its text if it is UTF-8, else `{"base64": "..."}`; a null stays null.
Outside JSON a null prints as nothing, so it comes back as empty bytes. Times are wall-clock
nanoseconds since 1970 UTC.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

Octets = bytes | None

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ISO = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")
_ENCODER = msgspec.json.Encoder()


def to_json_value(data: Octets) -> Any:
    """What stands for `data` in a JSON document."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def from_json_value(value: Any) -> Octets:
    """The bytes (or null) that `to_json_value` was given. Raises ValueError."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and value.keys() == {"base64"} and isinstance(value["base64"], str):
        return _from_base64(value["base64"].encode())
    raise ValueError('a key or value is text, null or {"base64": "..."}')


def _to_json(data: Octets) -> bytes:
    return _ENCODER.encode(to_json_value(data))


def _from_json(text: bytes) -> Octets:
    try:
        return from_json_value(msgspec.json.decode(text))
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


def _from_base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None


def _from_hex(text: bytes) -> bytes:
    try:
        return binascii.unhexlify(text)
    except binascii.Error as error:
        raise ValueError(f"not hexadecimal: {error}") from None


def int64(number: int) -> int:
    """The number itself. Raises ValueError if a timestamp cannot hold it."""
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"not a time in ns: {number}")
    return number


def _plain(data: Octets) -> bytes:
    return b"" if data is None else data


ENCODE: dict[str, Callable[[Octets], bytes]] = {
    "": _plain,
    "hex": lambda data: binascii.hexlify(_plain(data)),
    "base64": lambda data: base64.b64encode(_plain(data)),
    "json": _to_json,
}
DECODE: dict[str, Callable[[bytes], Octets]] = {
    "": bytes,
    "hex": _from_hex,
    "base64": _from_base64,
    "json": _from_json,
}


def escape(data: bytes) -> bytes:
    r"""For a terminal: what does not print becomes \n, \x1b and the like; text stays readable."""
    text = data.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text.encode()
    return "".join(c if c.isprintable() else _visible(c) for c in text).encode()


def _visible(char: str) -> str:
    return char.encode("unicode_escape").decode()


def format_iso(time_ns: int) -> str:
    """`2026-11-22T10:02:11.184512Z`; nine digits where microseconds would lose something."""
    seconds, ns = divmod(time_ns, 10**9)
    fraction = f"{ns:09}" if ns % 1000 else f"{ns // 1000:06}"
    return f"{_moment(seconds * 10**9):%Y-%m-%dT%H:%M:%S}.{fraction}Z"


def parse_iso(text: str) -> int:
    """Nanoseconds of what `format_iso` writes; fewer digits are fine. Raises ValueError."""
    match = _ISO.fullmatch(text)
    if match is None:
        raise ValueError(f"not a time: {text!r}; write 2026-11-22T10:00:00Z")
    whole = datetime.fromisoformat(match.group(1)).replace(tzinfo=UTC) - _EPOCH
    seconds = whole.days * 86400 + whole.seconds
    return int64(seconds * 10**9 + int((match.group(2) or "0").ljust(9, "0")))


def format_strftime(time_ns: int, pattern: str) -> str:
    """The C library's strftime, in UTC."""
    return _moment(time_ns).strftime(pattern)


def _moment(time_ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_ns // 1000)
