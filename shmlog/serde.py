"""From objects to bytes and back: raw, text, json, msgspec(T), numpy(dtype).

A serde is any object with `encode(obj) -> bytes` and `decode(memoryview) -> obj`; where it has
`decode_batch(list of bytes or None) -> list` too, a batch costs one call. None stands for "no key"
and for a deleted value; it never reaches a serde.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec as _msgspec
import numpy as np
from numpy.typing import DTypeLike

from shmlog.errors import SerializationError

T = TypeVar("T")
Bytes = bytes | bytearray | memoryview


class Serde(Protocol):
    """What a serde has to have."""

    def encode(self, obj: Any) -> bytes:
        """The bytes of an object. May raise SerializationError."""

    def decode(self, data: memoryview) -> Any:
        """The object of some bytes. May raise SerializationError."""


class _Raw:
    """Bytes as they are."""

    def encode(self, obj: Any) -> bytes:
        if isinstance(obj, bytes):
            return obj
        if isinstance(obj, bytearray | memoryview):
            return bytes(obj)
        raise SerializationError(
            f"a value of type {type(obj).__name__} needs a serde: value=shmlog.serde.json, or text"
        )

    def decode(self, data: Bytes) -> bytes:
        return bytes(data)

    def decode_batch(self, items: list[bytes | None]) -> list[bytes | None]:
        return items


class _Text:
    """str, as UTF-8."""

    def encode(self, obj: str) -> bytes:
        try:
            return obj.encode()
        except (AttributeError, UnicodeEncodeError) as error:
            raise SerializationError(f"not text: {obj!r}: {error}") from None

    def decode(self, data: Bytes) -> str:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise SerializationError(f"not UTF-8: {error}") from None


class _Msgspec(Generic[T]):
    """JSON of one type: a msgspec.Struct, a dataclass, a TypedDict, list[int] ..."""

    def __init__(self, kind: type[T] | Any) -> None:
        self._encoder = _msgspec.json.Encoder()
        self._decoder = _msgspec.json.Decoder(kind)

    def encode(self, obj: T) -> bytes:
        try:
            return self._encoder.encode(obj)
        except (TypeError, ValueError, OverflowError) as error:
            raise SerializationError(f"no JSON for {type(obj).__name__}: {error}") from None

    def decode(self, data: Bytes) -> T:
        try:
            decoded: T = self._decoder.decode(data)
        except (_msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SerializationError(f"{error} in {bytes(data[:60])!r}") from None
        return decoded


class Numpy:
    """Fixed-width records: one item of `dtype` a value; a batch is one array without work per
    record.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype.hasobject or not self.dtype.itemsize:
            raise SerializationError(f"dtype {self.dtype} has no fixed width")

    def encode(self, obj: Any) -> bytes:
        try:
            return np.asarray(obj, self.dtype).reshape(()).tobytes()
        except (TypeError, ValueError) as error:
            raise SerializationError(f"not one item of {self.dtype}: {error}") from None

    def decode(self, data: Bytes) -> Any:
        if len(data) != self.dtype.itemsize:
            raise SerializationError(
                f"a value of {len(data)} bytes, {self.dtype} has {self.dtype.itemsize}"
            )
        return np.frombuffer(data, self.dtype)[0]


raw = _Raw()
text = _Text()
json: _Msgspec[Any] = _Msgspec(Any)
msgspec = _Msgspec
numpy = Numpy


def decode_all(serde: Serde, items: list[bytes | None]) -> Sequence[Any]:
    """Every item decoded, None kept."""
    batch = getattr(serde, "decode_batch", None)
    if batch is not None:
        decoded: Sequence[Any] = batch(items)
        return decoded
    decode = serde.decode
    return [None if item is None else decode(memoryview(item)) for item in items]
