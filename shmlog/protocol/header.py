"""Headers as bytes: a map with names, in MessagePack, or in JSON when its first byte is "{".

A MessagePack map never begins with 0x7b (it begins with 0x80-0x8f, 0xde or 0xdf), so "{" can only be JSON.
An answer is written in the codec of its request. Unknown names are ignored, missing ones take their default.

64-bit values travel as `Big`: a decimal string in JSON answers (JavaScript's numbers end at 2^53), both
forms in requests, an int64 in MessagePack. Bytes travel as `Octets`: text in JSON when they are UTF-8,
else {"base64": "..."}; MessagePack bin.
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
from typing import Any, TypeVar

import msgspec

from shmlog.errors import InvalidRequest

HEADER_SIZE_MAX = 1 << 20
_INT64 = 1 << 63
_DECIMAL = re.compile(r"-?[0-9]{1,19}")  # int() takes "1_0", " 1" and other digits, too
_S = TypeVar("_S")


class Codec(enum.Enum):
    """How a header is written."""

    JSON = "json"
    MSGPACK = "msgpack"


class Big(int):
    """An int64 that JSON carries as a decimal string."""

    __slots__ = ()


class Octets(bytes):
    """Bytes that JSON carries as text if they are UTF-8, else as {"base64": "..."}."""

    __slots__ = ()


def _to_json(value: Any) -> Any:
    if type(value) is Big:
        return str(int(value))
    if type(value) is Octets:
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    raise NotImplementedError(type(value))


def _to_msgpack(value: Any) -> Any:
    if type(value) is Big:
        return int(value)
    if type(value) is Octets:
        return bytes(value)
    raise NotImplementedError(type(value))


def _from_wire(wanted: type, value: Any) -> Any:
    if wanted is Big:
        if type(value) is str and _DECIMAL.fullmatch(value):
            value = int(value)
        if type(value) is int and -_INT64 <= value < _INT64:
            return Big(value)
        raise ValueError("expected an int64, as a number or a decimal string")
    if wanted is Octets:
        if type(value) is bytes:
            return Octets(value)
        if type(value) is str:
            return Octets(value.encode())
        if type(value) is dict and type(value.get("base64")) is str:
            try:
                return Octets(base64.b64decode(value["base64"], validate=True))
            except binascii.Error as error:
                raise ValueError(f"bad base64: {error}") from None
        raise ValueError('expected text, bytes or {"base64": "..."}')
    raise NotImplementedError(wanted)


_ENCODERS: dict[Codec, Any] = {
    Codec.JSON: msgspec.json.Encoder(enc_hook=_to_json),
    Codec.MSGPACK: msgspec.msgpack.Encoder(enc_hook=_to_msgpack),
}
_DECODERS: dict[tuple[Codec, Any], Any] = {}


def codec_of(header: bytes) -> Codec:
    """The codec of a header, by its first byte."""
    return Codec.JSON if header[:1] == b"{" else Codec.MSGPACK


def encode(message: Any, codec: Codec) -> bytes:
    """A message (struct or map) as the bytes of a header."""
    encoded: bytes = _ENCODERS[codec].encode(message)
    return encoded


def decode(header: bytes, kind: type[_S]) -> _S:
    """A header as a value of `kind`, every field checked against its type and bounds.

    Raises: InvalidRequest: not a map, too long, a wrong type or a value out of bounds; says where.
    """
    if len(header) > HEADER_SIZE_MAX:
        raise InvalidRequest(
            f"header of {len(header)} bytes, the limit is {HEADER_SIZE_MAX}", size=len(header)
        )
    key = (codec_of(header), kind)
    decoder = _DECODERS.get(key)
    if decoder is None:
        module = msgspec.json if key[0] is Codec.JSON else msgspec.msgpack
        decoder = _DECODERS[key] = module.Decoder(kind, dec_hook=_from_wire)
    try:
        decoded: _S = decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"header: {error}") from None
    return decoded
