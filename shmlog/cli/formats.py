r"""The record format language: one grammar for printing and for parsing.

A format is text with escapes, read once into tokens; `printing` and `parsing` compile tokens
into steps:

    literal     any character; %% %{ %} \n \t \\ \xNN
    field       % letter, then an optional {modifier}
                  bytes    k v s          {hex} {base64} {json}
                  time     d              {ms} {us} {iso} {strftime[...]}; ns without one
                  codec    a              {codec} or nothing
                  others   t p o e T K V S H x y i [ ]
    headers     %h{ inner }               inner: literals, k and v with their modifiers

The set is rpk's; `%s` and `%S` are kcat's spellings of `%v` and `%V`. A brace right after a
field opens its modifier, so a literal one there is written `%{`. Four formats have names;
`json` is no text format but one object a line (`record_json`). What is wrong with a format is
said with its column.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from shmlog.errors import InvalidConfig

NAMED = {"value": r"%v\n", "raw": "%v", "hex": r"%v{hex}\n"}  # and json

BYTES_MODIFIERS = ("hex", "base64", "json")
TIME_MODIFIERS = ("ms", "us", "iso")
_LETTERS = frozenset("tpoekvdTKVHxyai[]")
_KCAT = {"s": "v", "S": "V"}
_PUNCTUATION = frozenset("%{}")
_ESCAPES = {"n": b"\n", "t": b"\t", "\\": b"\\"}
_STRFTIME = re.compile(r"strftime\[(.*?)\]\}", re.DOTALL)
_MODIFIER = re.compile(r"([^{}]*)\}")


class Literal(NamedTuple):
    """Bytes that stand for themselves."""

    data: bytes


class Field(NamedTuple):
    """One property of a record; `pattern` belongs to the modifier strftime only."""

    letter: str
    modifier: str = ""
    pattern: str = ""


class Headers(NamedTuple):
    """Every header through the inner tokens; there `k` is the name and `v` the value."""

    inner: tuple[Literal | Field, ...]


Token = Literal | Field | Headers


def tokens_of(text: str) -> tuple[Token, ...]:
    """Read a format (or its name) into tokens, neighbouring literals merged.

    Raises: InvalidConfig with the column of what cannot be read.
    """
    return _merge(_Reader(NAMED.get(text, text)).outer())


class _Reader:
    """One pass over the text of a format."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def outer(self) -> list[Token]:
        """Tokens up to the end."""
        found: list[Token] = []
        while self._at < len(self._text):
            found.append(self._token())
        return found

    def _token(self) -> Token:
        char = self._take()
        if char == "%":
            return self._percent()
        if char == "\\":
            return Literal(self._backslash())
        return Literal(char.encode())

    def _take(self) -> str:
        char = self._text[self._at : self._at + 1]
        if not char:
            raise self._wrong("ends in the middle of an escape")
        self._at += 1
        return char

    def _backslash(self) -> bytes:
        char = self._take()
        if char in _ESCAPES:
            return _ESCAPES[char]
        if char == "x":
            digits = self._text[self._at : self._at + 2]
            if re.fullmatch("[0-9a-fA-F]{2}", digits):
                self._at += 2
                return bytes.fromhex(digits)
            raise self._wrong(r"\x wants two hexadecimal digits")
        raise self._wrong(rf"unknown escape \{char}; there are \n \t \\ \xNN")

    def _percent(self) -> Token:
        char = self._take()
        if char in _PUNCTUATION:
            return Literal(char.encode())
        if char == "h":
            return self._headers()
        letter = _KCAT.get(char, char)
        if letter not in _LETTERS:
            raise self._wrong(f"unknown field %{char}; a percent sign itself is %%")
        return self._modified(letter)

    def _modified(self, letter: str) -> Field:
        if self._text[self._at : self._at + 1] != "{":
            return Field(letter)
        self._at += 1
        strftime = _STRFTIME.match(self._text, self._at)
        if letter == "d" and strftime:
            self._at = strftime.end()
            return Field(letter, "strftime", strftime.group(1))
        match = _MODIFIER.match(self._text, self._at)
        if match is None:
            raise self._wrong("a modifier is not closed; a literal brace is %{")
        allowed = _modifiers(letter)
        if match.group(1) not in allowed:
            there = " ".join(f"{{{m}}}" for m in allowed) or "none; a literal brace is %{"
            raise self._wrong(
                f"unknown modifier {{{match.group(1)}}} of %{letter}; there are {there}"
            )
        self._at = match.end()
        return Field(letter, match.group(1))

    def _headers(self) -> Headers:
        if self._take() != "{":
            raise self._wrong("%h wants a format for one header: %h{%k=%v;}")
        inner: list[Token] = []
        while self._text[self._at : self._at + 1] != "}":
            token = self._token()
            if isinstance(token, Headers) or (
                isinstance(token, Field) and token.letter not in "kv"
            ):
                raise self._wrong("of a header there are %k and %v")
            inner.append(token)
        self._at += 1
        return Headers(tuple(t for t in _merge(inner) if not isinstance(t, Headers)))

    def _wrong(self, what: str) -> InvalidConfig:
        return InvalidConfig(f"format {self._text!r}, column {self._at}: {what}")


def _modifiers(letter: str) -> tuple[str, ...]:
    if letter in "kv":
        return BYTES_MODIFIERS
    if letter == "d":
        return TIME_MODIFIERS
    return ("codec",) if letter == "a" else ()


def _merge(tokens: list[Token]) -> tuple[Token, ...]:
    merged: list[Token] = []
    for token in tokens:
        last = merged[-1] if merged else None
        if isinstance(token, Literal) and isinstance(last, Literal):
            merged[-1] = Literal(last.data + token.data)
        else:
            merged.append(token)
    return tuple(merged)
