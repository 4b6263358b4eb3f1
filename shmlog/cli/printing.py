"""Records to bytes: a format compiled into steps, each making a column for a whole batch.

A step takes `Columns` and yields one piece per record; the pieces are interleaved and joined
once. So the cost per record is a few C calls, not a walk over the format. A block of headers is
printed by the same means: the headers of a record are `Columns` of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress, count, islice, repeat

from shmlog.cli import record_json
from shmlog.cli.bytes_text import ENCODE, Octets, escape, format_iso, moment
from shmlog.cli.formats import UNIT_NS, Field, Headers, Literal, Token, tokens_of


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
    header_of: Callable[[int], Sequence[tuple[str, Octets]]]
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

    def headers_at(self, row: int) -> Columns:
        """The headers of one record, a row each: names as keys, values as values."""
        found = self.header_of(row)
        names, values = [name.encode() for name, _ in found], [value for _, value in found]
        return replace(self, rows=range(len(found)), keys=names, values=values)


Step = Callable[[Columns, int], Iterable[bytes]]  # the batch, how many records were printed before
_number = b"%d".__mod__


class Printer:
    """Formats batches; counts its records for `%i`. One thread."""

    def __init__(self, text: str, *, terminal: bool = False) -> None:
        """Raises InvalidConfig if the format cannot be read."""
        shown = escape if terminal else bytes
        self._printed = 0
        if text == "json":
            self._steps: list[Step] = [
                lambda c, _: (shown(line) + b"\n" for line in record_json.encode_lines(c))
            ]
            self.wants_ends = False
        else:
            tokens = tokens_of(text)
            self._steps = [_step(token, shown) for token in tokens]
            self.wants_ends = any(isinstance(t, Field) and t.letter in "[]" for t in tokens)

    def format(self, columns: Columns) -> bytes:
        """The text of all these records."""
        text = _join(self._steps, columns, self._printed)
        self._printed += len(columns)
        return text


def _join(steps: Sequence[Step], columns: Columns, printed: int) -> bytes:
    pieces = [step(columns, printed) for step in steps]
    return b"".join(chain.from_iterable(zip(*pieces, strict=False)))


def _step(token: Token, shown: Callable[[bytes], bytes]) -> Step:
    if isinstance(token, Literal):
        return lambda c, _: repeat(token.data, len(c))
    if isinstance(token, Headers):
        inner = [_step(t, shown) for t in token.inner]
        return lambda c, _: (_join(inner, c.headers_at(row), 0) for row in c.rows)
    if token.letter == "k":
        return _bytes_step(lambda c: c.keys, token, shown)
    if token.letter == "v":
        return _bytes_step(lambda c: c.values, token, shown)
    if token.letter == "d":
        return _time_step(token)
    return _PLAIN[token.letter]


def _bytes_step(
    column: Callable[[Columns], Sequence[Octets]], field: Field, shown: Callable[[bytes], bytes]
) -> Step:
    encode = ENCODE[field.modifier]
    if shown is bytes:
        return lambda c, _: map(encode, column(c))
    return lambda c, _: map(shown, map(encode, column(c)))


def _time_step(field: Field) -> Step:
    if field.modifier == "iso":
        return lambda c, _: (format_iso(t).encode() for t in c.timestamps)
    if field.modifier == "strftime":
        return lambda c, _: (moment(t).strftime(field.pattern).encode() for t in c.timestamps)
    unit_ns = UNIT_NS[field.modifier]
    return lambda c, _: (_number(t // unit_ns) for t in c.timestamps)


def _lengths(column: Sequence[Octets]) -> Iterable[bytes]:
    return (_number(-1 if data is None else len(data)) for data in column)


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
    "K": lambda c, _: _lengths(c.keys),
    "V": lambda c, _: _lengths(c.values),
    "H": lambda c, _: (_number(len(c.header_of(row))) for row in c.rows),
    "i": lambda c, printed: map(_number, islice(count(printed + 1), len(c))),
}
