r"""Bytes to records: a format compiled into one expression, matched once a record.

How the input is cut into pieces follows from the format's last literal:

    ends in \n           a record is as many lines as the format has \n
    ends in other text   a record ends at each whole occurrence of that text
    ends in a field      the whole input is one record

A field ends at the first occurrence of the literal behind it, the last field at the end of its
piece. The separator of the pieces cannot be inside a field; {json}, {hex} and {base64} write
any bytes without it. A piece that does not fit stops the reading with the number of its first
line (or of the record).

Only what a producer may choose can be read: k, v, h, p and d (not strftime, which loses
digits). A field without {json} is never null: nothing between two delimiters is empty bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from shmlog.cli import record_json
from shmlog.cli.bytes_text import DECODE, Octets, int64, parse_iso
from shmlog.cli.formats import Field, Headers, Literal, Token, tokens_of
from shmlog.errors import InvalidConfig, SerializationError

PIECE_BYTES_MAX = 64 << 20  # far over any record; input without its delimiter ends there


@dataclass(slots=True)
class Rows:
    """Records read, in columns; a column that the format has no field for is None."""

    values: list[Octets] = field(default_factory=list)
    keys: list[Octets] | None = None
    headers: list[list[tuple[str, Octets]]] | None = None
    timestamps: list[int | None] | None = None
    partitions: list[int] | None = None
    error: SerializationError | None = None  # of the piece behind these rows

    def __len__(self) -> int:
        return len(self.values)

    def cut(self, start: int, stop: int) -> Rows:
        """The rows with indexes start..stop-1."""
        return self._picked(range(start, min(stop, len(self))))

    def of_partition(self, partition: int) -> Rows:
        """The rows for one partition, in order."""
        assert self.partitions is not None
        return self._picked([i for i, p in enumerate(self.partitions) if p == partition])

    def _picked(self, indexes: Sequence[int]) -> Rows:
        return Rows(
            values=[self.values[i] for i in indexes],
            keys=_picked(self.keys, indexes),
            headers=_picked(self.headers, indexes),
            timestamps=_picked(self.timestamps, indexes),
            partitions=_picked(self.partitions, indexes),
        )


_T = TypeVar("_T")


def _picked(column: list[_T] | None, indexes: Sequence[int]) -> list[_T] | None:
    return None if column is None else [column[i] for i in indexes]


class Parser:
    """Reads the records of one input: `feed` each chunk, then `finish`. One thread."""

    def __init__(self, text: str) -> None:
        """Raises InvalidConfig for a format that cannot be read, or has what cannot be parsed."""
        self._text = text
        self._read = _json_lines if text == "json" else _compile(text)
        self._cut = _Cut(b"\n", 1) if text == "json" else _cut_of(tokens_of(text))
        self._tail = b""
        self._count = 0  # pieces read

    def check_free(self, *, key: bool, partition: bool) -> None:
        """Refuse a key or partition for all records if the format brings one of each.

        Raises: InvalidConfig.
        """
        tokens = (Field("k"),) if self._text == "json" else tokens_of(self._text)
        letters = {token.letter for token in tokens if isinstance(token, Field)}
        for given, letter, option in ((key, "k", "-k"), (partition, "p", "-p")):
            if given and letter in letters:
                raise InvalidConfig(f"format {self._text!r} brings %{letter}: leave out {option}")

    def feed(self, chunk: bytes) -> Rows:
        """The records that `chunk` completes.

        What does not fit is in the result's `error`, behind the records before it.
        """
        separator = self._cut.separator
        pieces: list[bytes] = []
        if separator is None or separator not in self._tail[-len(separator) :] + chunk:
            self._tail += chunk
        else:
            pieces, self._tail = self._cut.split(self._tail + chunk)
        rows = self._read_pieces(pieces)
        if len(self._tail) > PIECE_BYTES_MAX and rows.error is None:
            rows.error = self._wrong(
                0, self._tail, f"no record ends within {PIECE_BYTES_MAX} bytes"
            )
        return rows

    def finish(self) -> Rows:
        """The last record, if the input did not end with its delimiter."""
        tail, self._tail = self._tail, b""
        return self._read_pieces([tail] if tail or self._cut.separator is None else [])

    def _read_pieces(self, pieces: list[bytes]) -> Rows:
        rows = Rows()
        try:
            self._read(pieces, rows)
        except ValueError as error:
            rows.error = self._wrong(len(rows), pieces[len(rows)], str(error))
        self._count += len(pieces)
        return rows

    def _wrong(self, index: int, piece: bytes, why: str) -> SerializationError:
        number = self._count + index
        if self._cut.separator == b"\n":
            line = number * self._cut.count + 1
            return SerializationError(f"line {line}: {why}: {piece[:80]!r}", line=line)
        return SerializationError(f"record {number + 1}: {why}: {piece[:80]!r}", record=number + 1)


class _Cut:
    """Where a record's piece ends: at every `count`-th `separator`."""

    def __init__(self, separator: bytes | None, count: int) -> None:
        self.separator = separator
        self.count = count

    def split(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Complete pieces (without their last separator), and the rest."""
        assert self.separator is not None
        parts = data.split(self.separator)
        if self.count == 1:
            return parts[:-1], parts[-1]
        whole = (len(parts) - 1) // self.count * self.count
        steps = range(0, whole, self.count)
        pieces = [self.separator.join(parts[i : i + self.count]) for i in steps]
        return pieces, self.separator.join(parts[whole:])


def _cut_of(tokens: tuple[Token, ...]) -> _Cut:
    last = tokens[-1] if tokens else None
    if not isinstance(last, Literal):
        return _Cut(None, 1)
    separator = b"\n" if last.data.endswith(b"\n") else last.data
    return _Cut(separator, sum(t.data.count(separator) for t in tokens if isinstance(t, Literal)))


_Read = Callable[[list[bytes], Rows], None]  # appends a row a piece; ValueError at the first misfit
_Columns = list[tuple[str, Callable[[bytes], object]]]  # letter and decoder of each group


def _compile(text: str) -> _Read:
    tokens = tokens_of(text)
    cut = _cut_of(tokens)
    expression, columns = _expression(tokens, cut, text)
    if [letter for letter, _ in columns] == ["v"] and text in ("value", r"%v\n", "raw", "%v"):
        return lambda pieces, rows: rows.values.extend(pieces)
    fits = re.compile(expression, re.DOTALL).fullmatch
    return lambda pieces, rows: _read_matching(pieces, rows, fits, columns, text)


def _expression(tokens: tuple[Token, ...], cut: _Cut, text: str) -> tuple[bytes, _Columns]:
    """The expression of one piece, and what each of its groups is."""
    columns: _Columns = []
    parts: list[tuple[bytes, bool]] = []
    for index, token in enumerate(tokens):
        if isinstance(token, Literal):
            last = index == len(tokens) - 1
            data = token.data[: -len(cut.separator or b"")] if last else token.data
            parts.append((re.escape(data), False))
        else:
            letter, decode, inner = _column(token, _anything_but(cut), text)
            if letter in [seen for seen, _ in columns]:
                raise InvalidConfig(f"format {text!r}: %{letter} twice cannot be parsed")
            columns.append((letter, decode))
            parts.append((b"(" + inner + b")", True))
    if not columns:
        raise InvalidConfig(f"format {text!r}: to be parsed it needs a field, such as %v")
    if any(a[1] and b[1] for a, b in pairwise(parts)):
        raise InvalidConfig(f"format {text!r}: two fields with nothing between cannot be parsed")
    return _first_occurrences(parts), columns


def _first_occurrences(parts: list[tuple[bytes, bool]]) -> bytes:
    """Join expressions; a field (flagged) but the last ends at the first place of its literal."""
    fields = [index for index, (_, is_field) in enumerate(parts) if is_field]
    out = [expression for expression, _ in parts]
    for index in fields[:-1]:
        # An atomic group never gives back what it took, so a later misfit moves no delimiter.
        out[index] = b"(?>" + out[index]
        out[index + 1] += b")"
    return b"".join(out)


def _anything_but(cut: _Cut) -> bytes:
    if cut.separator is None or cut.count == 1:
        return b"."
    if len(cut.separator) == 1:
        return b"[^" + re.escape(cut.separator) + b"]"
    return b"(?:(?!" + re.escape(cut.separator) + b").)"


def _column(
    token: Field | Headers, anything: bytes, text: str
) -> tuple[str, Callable[[bytes], object], bytes]:
    """Letter, decoder and expression of one field."""
    if isinstance(token, Headers):
        return _headers(token, anything, text)
    if token.letter in "kv":
        return token.letter, DECODE[token.modifier], anything + b"*?"
    if token.letter == "p":
        return "p", int, rb"\d{1,9}"
    if token.letter == "d" and token.modifier != "strftime":
        if token.modifier == "iso":
            return "d", lambda piece: parse_iso(piece.decode()), rb"[0-9TZ:.-]+"
        unit_ns = {"": 1, "us": 1000, "ms": 10**6}[token.modifier]
        return "d", lambda piece: int64(int(piece) * unit_ns), rb"-?\d{1,19}"
    raise InvalidConfig(
        f"format {text!r}: %{token.letter} cannot be parsed; a record brings %k %v %h %p and %d "
        "(not strftime)"
    )


def _headers(
    token: Headers, anything: bytes, text: str
) -> tuple[str, Callable[[bytes], list[tuple[str, Octets]]], bytes]:
    """Letter, decoder and expression of a block of headers."""
    fields = [t for t in token.inner if isinstance(t, Field)]
    ends_well = bool(token.inner) and isinstance(token.inner[-1], Literal)
    beside = any(isinstance(a, Field) and isinstance(b, Field) for a, b in pairwise(token.inner))
    if sorted(t.letter for t in fields) != ["k", "v"] or not ends_well or beside:
        raise InvalidConfig(
            f"format {text!r}: to be parsed, a header is one %k, one %v and a delimiter behind "
            "each: %h{%k=%v;}"
        )
    one = b""
    for t in token.inner:
        if isinstance(t, Literal):
            one += re.escape(t.data) + (b")" if one.endswith(b"*?)") else b"")
        else:
            one += b"(?>(" + anything + b"*?)"
    find = re.compile(one, re.DOTALL).finditer
    order = "kv".index(fields[0].letter)

    def decode(piece: bytes) -> list[tuple[str, Octets]]:
        found = []
        for match in find(piece):
            got = [DECODE[f.modifier](g) for f, g in zip(fields, match.groups(), strict=True)]
            found.append(((got[order] or b"").decode(), got[1 - order]))
        return found

    capture = b"(" + anything + b"*?)"
    return "h", decode, b"(?:" + one.replace(capture, anything + b"*?") + b")*?"


def _read_matching(
    pieces: list[bytes],
    rows: Rows,
    fits: Callable[[bytes], re.Match[bytes] | None],
    columns: _Columns,
    text: str,
) -> None:
    lists: dict[str, list[object]] = {letter: [] for letter, _ in columns}
    decoders = [(lists[letter].append, decode) for letter, decode in columns]
    done = 0
    try:
        for piece in pieces:
            match = fits(piece)
            if match is None:
                raise ValueError(f"does not fit the format {text!r}")
            for (append, decode), got in zip(decoders, match.groups(), strict=True):
                append(decode(got))
            done += 1
    finally:
        _fill(rows, {letter: column[:done] for letter, column in lists.items()}, done)


def _fill(rows: Rows, lists: dict[str, list[object]], count: int) -> None:
    names = {"k": "keys", "v": "values", "h": "headers", "p": "partitions", "d": "timestamps"}
    rows.values = [b""] * count
    for letter, column in lists.items():
        setattr(rows, names[letter], column)


def _json_lines(pieces: list[bytes], rows: Rows) -> None:
    rows.keys, rows.headers, rows.timestamps = [], [], []
    for piece in pieces:
        key, value, timestamp, headers = record_json.decode_line(piece)
        rows.keys.append(key)
        rows.values.append(value)
        rows.timestamps.append(timestamp)
        rows.headers.append(headers)


def read_rows(chunks: Iterable[bytes], text: str) -> Iterator[Rows]:
    """Rows of a whole input. Raises SerializationError behind the records before the misfit."""
    parser = Parser(text)
    for chunk in chunks:
        yield from _handed_out(parser.feed(chunk))
    yield from _handed_out(parser.finish())


def _handed_out(rows: Rows) -> Iterator[Rows]:
    if len(rows):
        yield rows
    if rows.error is not None:
        raise rows.error
