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
from typing import Any

import msgspec

from shmlog.cli import record_json
from shmlog.cli.bytes_text import DECODE, Octets, int64, parse_iso
from shmlog.cli.formats import UNIT_NS, Field, Headers, Literal, Token, tokens_of
from shmlog.errors import InvalidConfig, SerializationError

PIECE_BYTES_MAX = 64 << 20  # far over any record; input without its delimiter ends there
_ANYTHING, _INTEGER = b".*?", rb"-?\d{1,19}"
_COLUMNS = {"k": "keys", "v": "values", "h": "headers", "p": "partitions", "d": "timestamps"}


def _scaled(unit_ns: int) -> Callable[[bytes], int]:
    return lambda text: int64(int(text) * unit_ns)


# Field -> the expression of its text, and what makes of the text the field.
_READABLE: dict[Field, tuple[bytes, Callable[[bytes], Any]]] = {
    **{Field(k, modifier): (_ANYTHING, f) for modifier, f in DECODE.items() for k in "kv"},
    **{Field("d", modifier): (_INTEGER, _scaled(ns)) for modifier, ns in UNIT_NS.items()},
    Field("d", "iso"): (rb"[0-9TZ:.-]+", lambda text: parse_iso(text.decode())),
    Field("p"): (rb"\d{1,9}", int),
}


@dataclass(slots=True)
class Rows:
    """Records read, in columns; a column that the format has no field for is None."""

    values: Sequence[Octets] = field(default_factory=list)
    keys: Sequence[Octets] | None = None
    headers: Sequence[list[tuple[str, Octets]]] | None = None
    timestamps: Sequence[int | None] | None = None
    partitions: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.values)


def read_rows(chunks: Iterable[bytes], text: str) -> Iterator[Rows]:
    """Rows of a whole input, those of a chunk as soon as it is there.

    Raises: InvalidConfig for the format; SerializationError behind the records before a misfit.
    """
    parser = Parser(text)
    tail = b""
    for chunk in chunks:
        pieces, tail = parser.split(tail + chunk)
        yield from parser.read(pieces)
        if len(tail) > PIECE_BYTES_MAX:
            raise parser.misfit(tail, f"no record ends within {PIECE_BYTES_MAX} bytes")
    if tail or parser.separator is None:
        yield from parser.read([tail])


class Parser:
    """A format compiled for reading one input; counts its pieces. One thread.

    Attributes: `letters` of the fields, in their order; `separator` of the pieces, None if the
    whole input is one.
    """

    def __init__(self, text: str) -> None:
        """Raises InvalidConfig for a format that cannot be read, or has what cannot be parsed."""
        self._done = 0  # pieces that became records
        self._per_piece = 1  # separators
        self.separator: bytes | None = b"\n"
        if text == "json":
            self.letters = "kvdh"
            self._decode: Callable[[bytes], Iterable[Any]] | None = record_json.decode_line
            return
        tokens = list(tokens_of(text))
        self.letters = "".join(_letter(t) for t in tokens if not isinstance(t, Literal))
        self._cut_at_last(tokens)
        try:
            self._decode = _compile(tokens)
        except ValueError as error:
            raise InvalidConfig(f"format {text!r}: {error}") from None

    def _cut_at_last(self, tokens: list[Token]) -> None:
        """Find the separator, and take it off the last token."""
        last = tokens[-1] if tokens else None
        if not isinstance(last, Literal):
            self.separator = None
            return
        end = self.separator = b"\n" if last.data.endswith(b"\n") else last.data
        self._per_piece = sum(t.data.count(end) for t in tokens if isinstance(t, Literal))
        rest = last.data.removesuffix(end)
        tokens[-1:] = [Literal(rest)] if rest else []

    def split(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Complete pieces (without their last separator), and the rest."""
        if self.separator is None:
            return [], data
        parts, step = data.split(self.separator), self._per_piece
        if step == 1:
            return parts[:-1], parts[-1]
        whole = (len(parts) - 1) // step * step
        pieces = [self.separator.join(parts[i : i + step]) for i in range(0, whole, step)]
        return pieces, self.separator.join(parts[whole:])

    def read(self, pieces: list[bytes]) -> Iterator[Rows]:
        """The records of all pieces before the first that does not fit, which is then raised."""
        if self._decode is None:
            self._done += len(pieces)
            yield Rows(values=pieces)
            return
        records: list[Iterable[Any]] = []
        wrong = None
        try:
            for piece in pieces:
                records.append(self._decode(piece))
        except (ValueError, msgspec.DecodeError) as error:
            wrong = error
        self._done += len(records)
        if records:
            columns = dict(zip(self.letters, zip(*records, strict=True), strict=True))
            columns.setdefault("v", (b"",) * len(records))
            yield Rows(**{_COLUMNS[letter]: column for letter, column in columns.items()})
        if wrong is not None:
            raise self.misfit(pieces[len(records)], str(wrong))

    def misfit(self, piece: bytes, why: str) -> SerializationError:
        """What is wrong with the next piece, with its number."""
        why = f"{why}: {piece[:80]!r}"
        if self.separator == b"\n":
            line = self._done * self._per_piece + 1
            return SerializationError(f"line {line}: {why}", line=line, hint="")
        return SerializationError(f"record {self._done + 1}: {why}", record=self._done + 1, hint="")


def _letter(token: Field | Headers) -> str:
    return token.letter if isinstance(token, Field) else "h"


def _compile(tokens: Sequence[Token]) -> Callable[[bytes], Iterable[Any]] | None:
    """What decodes a piece into its fields; None: a piece is a value as it is.

    Raises: ValueError if the format cannot be parsed.
    """
    if tokens == [Field("v")]:
        return None
    fields = [token for token in tokens if not isinstance(token, Literal)]
    letters = [_letter(token) for token in fields]
    decoders = [_readable(token)[1] for token in fields]
    if not fields:
        raise ValueError("to be parsed it needs a field, such as %v")
    if twice := [letter for letter in letters if letters.count(letter) > 1]:
        raise ValueError(f"%{twice[0]} twice cannot be parsed")
    if _touching(tokens):
        raise ValueError("two fields with nothing between cannot be parsed")
    fits = re.compile(_expression(tokens, b"(", fields[-1]), re.DOTALL).fullmatch

    def decode(piece: bytes) -> Iterable[Any]:
        match = fits(piece)
        if match is None:
            raise ValueError("does not fit the format")
        return [decode(text) for decode, text in zip(decoders, match.groups(), strict=True)]

    return decode


def _touching(tokens: Sequence[Token]) -> bool:
    return any(Literal not in map(type, pair) for pair in pairwise(tokens))


def _expression(tokens: Sequence[Token], group: bytes, last: Token | None = None) -> bytes:
    """The expression of a piece or a header; `group` opens a field's group.

    A field ends at the first place of the literal behind it: an atomic group never gives back
    what it took, so a later misfit moves no delimiter. `last` has no end of its own.
    """
    out = b""
    for before, token in pairwise([None, *tokens]):
        if isinstance(token, Literal):
            out += re.escape(token.data) + (b")" if before not in (None, last) else b"")
        elif token is not None:
            out += (b"" if token is last else b"(?>") + group + _readable(token)[0] + b")"
    return out


def _readable(token: Field | Headers) -> tuple[bytes, Callable[[bytes], Any]]:
    """Expression and decoder of a field. Raises ValueError if it cannot be parsed."""
    if isinstance(token, Headers):
        return _readable_headers(token)
    if token not in _READABLE:
        raise ValueError(
            f"%{token.letter} cannot be parsed; a record brings %k %v %h %p and %d (not strftime)"
        )
    return _READABLE[token]


def _readable_headers(token: Headers) -> tuple[bytes, Callable[[bytes], Any]]:
    fields = [t for t in token.inner if isinstance(t, Field)]
    letters = "".join(field.letter for field in fields)
    if letters not in ("kv", "vk") or _touching(token.inner) or token.inner[-1] is fields[-1]:
        raise ValueError(
            "to be parsed, a header is one %k, one %v and a delimiter behind each: %h{%k=%v;}"
        )
    find = re.compile(_expression(token.inner, b"("), re.DOTALL).findall
    decoders = [DECODE[field.modifier] for field in fields]
    name, value = letters.index("k"), letters.index("v")

    def decode(text: bytes) -> list[tuple[str, Octets]]:
        pairs = [[f(part) for f, part in zip(decoders, found, strict=True)] for found in find(text)]
        return [((pair[name] or b"").decode(), pair[value]) for pair in pairs]

    return b"(?:" + _expression(token.inner, b"(?:") + b")*?", decode
