r"""The record format language: one grammar for printing and for parsing.

A format is text with escapes, read once into tokens; `printing` and `parsing` compile tokens:

    literal     any character; %% %{ %} \n \t \\ \xNN
    field       % letter, then an optional {modifier}
                  bytes    k v s          {hex} {base64} {json}
                  time     d              {ms} {us} {iso} {strftime[...]}; ns without one
                  codec    a              {codec} or nothing
                  others   t p o e T K V S H x y i [ ]
    headers     %h{ inner }               inner: literals, k and v with their modifiers

The set is rpk's; `%s` and `%S` are kcat's spellings of `%v` and `%V`. A brace right after a
field opens its modifier, so a literal one there is written `%{`. Four formats have names;
`json` is no text format but one object a line (`record_json`).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import click

from shmlog.cli.settings import Settings
from shmlog.errors import InvalidConfig

FORMAT = click.option(
    "-f", "--format", "text", metavar="FMT", help=r"value, json, raw, hex, or such as '%k\t%v\n'."
)
NAMED = {"value": r"%v\n", "raw": "%v", "hex": r"%v{hex}\n"}  # and json
UNIT_NS = {"": 1, "us": 1000, "ms": 10**6}  # of %d

_KCAT = {"s": "v", "S": "V"}
_BYTES = ("hex", "base64", "json")
_MODIFIERS = dict.fromkeys("tpoeTKVHxyi[]", ()) | {
    "k": _BYTES,
    "v": _BYTES,
    "d": ("ms", "us", "iso"),
    "a": ("codec",),
}
_CONTROL = {"n": b"\n", "t": b"\t", "\\": b"\\"}
_TOKEN = re.compile(
    r"""(?P<text> [^%\\}]+ )
    | (?P<close> \} )
    | % (?P<sign> [%{}] )
    | \\ (?P<control> [nt\\] )
    | \\x (?P<byte> [0-9a-fA-F]{2} )
    | % (?P<open> h\{ )
    | % (?P<letter> [^h] ) (?: \{ (?P<modifier> strftime\[.*?\] | [^{}]* ) \} | (?!\{) )
    """,
    re.VERBOSE | re.DOTALL,
)


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


def given_or_default(text: str | None, settings: Settings) -> str:
    """The format of a command; `--json` stands for `-f json`."""
    if text is not None:
        return text
    return "json" if settings.wants_json else "value"


def tokens_of(text: str) -> tuple[Token, ...]:
    """Read a format (or its name) into tokens, neighbouring literals merged.

    Raises: InvalidConfig with the column of what cannot be read.
    """
    text = NAMED.get(text, text)
    outer: list[Any] = []
    inner: list[Any] | None = None  # of the headers that are open
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _wrong(text, at + 1, _complaint(text[at:]))
        at = match.end()
        tokens = outer if inner is None else inner
        if match["open"] and inner is None:
            inner = []
        elif match["close"] and inner is not None:
            outer.append(Headers(tuple(inner)))
            inner = None
        elif inner is not None and (match["open"] or (match["letter"] or "k") not in "kvs"):
            raise _wrong(text, at, "of a header there are %k and %v")
        elif match["letter"]:
            tokens.append(_field(match, text))
        else:
            _append_literal(tokens, match)
    if inner is not None:
        raise _wrong(text, at, "ends in the middle of %h{...}")
    return tuple(outer)


def _field(match: re.Match[str], text: str) -> Field:
    letter, modifier = _KCAT.get(match["letter"], match["letter"]), match["modifier"]
    if letter not in _MODIFIERS:
        what = f"unknown field %{letter}; a percent sign itself is %%"
        raise _wrong(text, match.end("letter"), what)
    if letter == "d" and modifier is not None and modifier.startswith("strftime["):
        return Field("d", "strftime", modifier[len("strftime[") : -1])
    if modifier is not None and modifier not in _MODIFIERS[letter]:
        there = " ".join(f"{{{m}}}" for m in _MODIFIERS[letter]) or "none; a literal brace is %{"
        what = f"unknown modifier {{{modifier}}} of %{letter}; there are {there}"
        raise _wrong(text, match.end(), what)
    return Field(letter, modifier or "")


def _append_literal(tokens: list[Any], match: re.Match[str]) -> None:
    if match["byte"]:
        data = bytes.fromhex(match["byte"])
    elif match["control"]:
        data = _CONTROL[match["control"]]
    else:
        data = (match["text"] or match["sign"] or match["close"]).encode()
    if tokens and isinstance(tokens[-1], Literal):
        data = tokens.pop().data + data
    tokens.append(Literal(data))


def _complaint(rest: str) -> str:
    """What is wrong with an escape that is none."""
    if rest in ("%", "\\", "%h"):
        return "ends in the middle of an escape"
    if rest.startswith("\\x"):
        return r"\x wants two hexadecimal digits"
    if rest.startswith("\\"):
        return rf"unknown escape {rest[:2]}; there are \n \t \\ \xNN"
    if rest.startswith("%h"):
        return "%h wants a format for one header: %h{%k=%v;}"
    return "a modifier is not closed; a literal brace is %{"


def _wrong(text: str, column: int, what: str) -> InvalidConfig:
    return InvalidConfig(f"format {text!r}, column {column}: {what}")
