"""Records to bytes: a format compiled into steps, each making a column for a whole batch.

A step takes `Columns` and yields one piece per record; the pieces are interleaved and joined
once. So the cost per record is a few C calls, not a walk over the format.

Invariant: every step yields exactly `len(columns.rows)` pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress, count, islice, repeat

from shmlog.cli import record_json
from shmlog.cli.bytes_text import ENCODE, Octets, escape, format_iso, format_strftime
from shmlog.cli.formats import Field, Headers, Literal, Token, tokens_of

HeaderList = Sequence[tuple[str, Octets]]


@dataclass(frozen=True, slots=True)
class Columns:
    """Records of one batch, as the printing steps want them; all sequences have the same length.

    `rows` are the records' indexes in the batch, which `header_of` is asked by.
    """

    topic: str
    partition: int
    leader_epoch: int
    rows: Sequence[int]
    offsets: Sequence[int]
    timestamps: Sequence[int]
    keys: Sequence[Octets]
    values: Sequence[Octets]
    header_of: Callable[[int], HeaderList]
    codec: str = "none"
    producer_id: int = -1
    producer_epoch: int = -1
    high_watermark: int = -1
    log_start: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def cut(self, start: int, stop: int) -> Columns:
        """The records with indexes start..stop-1 of these."""
        return self._changed(lambda column: column[start:stop])

    def keep(self, wanted: Sequence[bool]) -> Columns:
        """The records whose flag is set."""
        return self._changed(lambda column: list(compress(column, wanted)))

    def _changed(self, f: Callable[[Sequence[object]], object]) -> Columns:
        names = ("rows", "offsets", "timestamps", "keys", "values")
        changes = {name: f(getattr(self, name)) for name in names}
        return replace(self, **changes)  # type: ignore[arg-type]


Step = Callable[[Columns, int], Iterable[bytes]]  # the batch, how many records were printed before
_number = b"%d".__mod__


class Printer:
    """Formats batches; counts its records for `%i`. One thread."""

    def __init__(self, text: str, *, terminal: bool = False) -> None:
        """Raises InvalidConfig if the format cannot be read."""
        self.printed = 0
        self._steps = _compile(text, terminal)
        self.wants_ends = text != "json" and any(
            isinstance(token, Field) and token.letter in "[]" for token in tokens_of(text)
        )

    def format(self, columns: Columns) -> bytes:
        """The text of all these records."""
        if not len(columns):
            return b""
        pieces = [step(columns, self.printed) for step in self._steps]
        self.printed += len(columns)
        if len(pieces) == 1:
            return b"".join(pieces[0])
        return b"".join(chain.from_iterable(zip(*pieces, strict=False)))


def _compile(text: str, terminal: bool) -> list[Step]:
    if text == "json":
        return [_json_step(terminal)]
    return [_step(token, terminal) for token in tokens_of(text)]


def _json_step(terminal: bool) -> Step:
    shown = escape if terminal else bytes
    return lambda c, _: (shown(line) + b"\n" for line in record_json.encode_lines(c))


def _step(token: Token, terminal: bool) -> Step:
    if isinstance(token, Literal):
        return lambda c, _: repeat(token.data, len(c))
    if isinstance(token, Headers):
        return _headers_step(token, terminal)
    if token.letter in "kv":
        return _bytes_step(token, terminal)
    if token.letter == "d":
        return _time_step(token)
    return _PLAIN[token.letter]


def _shown(encode: Callable[[Octets], bytes], terminal: bool) -> Callable[[Octets], bytes]:
    return (lambda data: escape(encode(data))) if terminal else encode


def _bytes_step(field: Field, terminal: bool) -> Step:
    encode = _shown(ENCODE[field.modifier], terminal)
    if field.letter == "k":
        return lambda c, _: map(encode, c.keys)
    return lambda c, _: map(encode, c.values)


def _headers_step(token: Headers, terminal: bool) -> Step:
    def one(name: str, value: Octets) -> bytes:
        return b"".join(
            part.data
            if isinstance(part, Literal)
            else _shown(ENCODE[part.modifier], terminal)(
                name.encode() if part.letter == "k" else value
            )
            for part in token.inner
        )

    return lambda c, _: (b"".join(one(k, v) for k, v in c.header_of(row)) for row in c.rows)


def _time_step(field: Field) -> Step:
    if field.modifier == "iso":
        return lambda c, _: (format_iso(t).encode() for t in c.timestamps)
    if field.modifier == "strftime":
        return lambda c, _: (format_strftime(t, field.pattern).encode() for t in c.timestamps)
    unit_ns = {"": 1, "us": 1000, "ms": 10**6}[field.modifier]
    return lambda c, _: (b"%d" % (t // unit_ns) for t in c.timestamps)


def _length(data: Octets) -> int:
    return -1 if data is None else len(data)


def _same(value: Callable[[Columns], bytes]) -> Step:
    return lambda c, _: repeat(value(c), len(c))


_PLAIN: dict[str, Step] = {
    "t": _same(lambda c: c.topic.encode()),
    "T": _same(lambda c: _number(len(c.topic.encode()))),
    "p": _same(lambda c: _number(c.partition)),
    "e": _same(lambda c: _number(c.leader_epoch)),
    "x": _same(lambda c: _number(c.producer_id)),
    "y": _same(lambda c: _number(c.producer_epoch)),
    "a": _same(lambda c: c.codec.encode()),
    "[": _same(lambda c: _number(c.log_start)),
    "]": _same(lambda c: _number(c.high_watermark)),
    "o": lambda c, _: map(_number, c.offsets),
    "K": lambda c, _: (_number(_length(k)) for k in c.keys),
    "V": lambda c, _: (_number(_length(v)) for v in c.values),
    "H": lambda c, _: (_number(len(c.header_of(row))) for row in c.rows),
    "i": lambda c, printed: map(_number, islice(count(printed + 1), len(c))),
}
