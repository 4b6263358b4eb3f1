"""The tables of docs/protocol.md and docs/peers.md, generated from the message definitions (docs/generate.py)."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from shmlog.errors import TABLE, Code
from shmlog.protocol import peers
from shmlog.protocol.header import Big, Octets
from shmlog.protocol.messages import Request
from shmlog.protocol.operations import OPERATIONS, Operation
from shmlog.settings import CLUSTER_SETTINGS, TOPIC_SETTINGS, Setting

_NAMES = {
    int: "int",
    float: "number",
    str: "text",
    bool: "bool",
    bytes: "bytes",
    Big: "big",
    Octets: "bytes",
    Any: "any",
}


def _type_name(kind: Any) -> str:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is list:
        return f"[{_type_name(arguments[0])}]"
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"[{_type_name(arguments[0])}]"
    if origin is tuple:
        return f"[{', '.join(_type_name(a) for a in arguments)}]"
    if origin is dict:
        return f"map of {_type_name(arguments[1])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if a is type(None) else _type_name(a) for a in arguments)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return f"`{kind.__name__}`"
    if arguments == typing.get_args(peers.ChangeUnion):
        return "a change, see below"
    return _NAMES[kind]


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return "[]" if field.default_factory is list else "{}"
    if field.default is msgspec.NODEFAULT:
        return "required"
    if field.default is None:
        return "absent"
    return str(field.default) if not isinstance(field.default, str) else f'"{field.default}"'


def _table(kind: type[msgspec.Struct], skip: set[str], *, defaults: bool) -> list[str]:
    rows = []
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        if field.name in skip:
            continue
        cells = [f"`{field.name}`", _type_name(hints[field.name])]
        if defaults:
            cells.append(_default(field))
        rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return ["no field of its own", ""]
    head = ["field", "type", "default"] if defaults else ["field", "type"]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *rows, ""]


def _parts(kind: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """The structs that a message is made of, itself left out."""
    found: list[type[msgspec.Struct]] = []
    for hint in typing.get_type_hints(kind).values():
        for argument in (hint, *typing.get_args(hint)):
            if isinstance(argument, type) and issubclass(argument, msgspec.Struct):
                found += [argument, *_parts(argument)]
    return found


def _says(kind: type[msgspec.Struct]) -> str:
    return inspect.cleandoc(kind.__doc__ or "")


def _operation(mode: str, operation: Operation) -> list[str]:
    title = f"### {operation.name}" + (f", {mode}" if mode else "")
    base = {f.name for f in msgspec.structs.fields(Request)}
    lines = [title, "", _says(operation.request), ""]
    lines += [f"Request frames: {operation.frames}.", "", "Request:", ""]
    lines += _table(operation.request, base, defaults=True)
    lines += ["Answer:", "", *_table(operation.answer, {"id", "error"}, defaults=False)]
    seen = set()
    for part in [*_parts(operation.request), *_parts(operation.answer)]:
        if part not in seen:
            seen.add(part)
            lines += [f"`{part.__name__}`: {_says(part)}", ""]
            lines += _table(part, set(), defaults=False)
    return lines


def operations() -> str:
    """Every operation: request, answer, field by field."""
    lines: list[str] = []
    for (_, mode), operation in OPERATIONS.items():
        lines += _operation(mode, operation)
    return "\n".join(lines)


def peer_messages() -> str:
    """What brokers say to each other, field by field; the changes that a Propose carries last."""
    lines: list[str] = []
    seen: set[type[msgspec.Struct]] = set()
    base = {f.name for f in msgspec.structs.fields(peers.PeerMessage)}
    for message in (*typing.get_args(peers.PeerUnion), *typing.get_args(peers.ChangeUnion)):
        tag = message.__struct_config__.tag
        lines += [f"### {tag}", "", _says(message), ""]
        lines += _table(
            message, base if issubclass(message, peers.PeerMessage) else set(), defaults=True
        )
        for part in _parts(message):
            if part not in seen and not issubclass(part, peers.Change):
                seen.add(part)
                lines += [f"`{part.__name__}`: {_says(part)}", ""]
                lines += _table(part, set(), defaults=False)
    return "\n".join(lines)


def errors() -> str:
    """The error table."""
    lines = ["| error | name | retriable | Python | what to do |", "|---|---|---|---|---|"]
    for code in Code:
        if code is Code.NONE:
            continue
        entry = TABLE[code]
        retriable = "yes" if entry.raises.retriable else "no"
        lines.append(
            f"| {int(code)} | {code.name} | {retriable} | `{entry.raises.__name__}` | {entry.hint} |"
        )
    return "\n".join([*lines, ""])


def _settings(table: dict[str, Setting]) -> str:
    lines = ["| setting | Kafka's spelling | default | meaning |", "|---|---|---|---|"]
    for setting in table.values():
        lines.append(
            f"| `{setting.native}` | `{setting.kafka}` | {setting.default} | {setting.meaning} |"
        )
    return "\n".join([*lines, ""])


def topic_settings() -> str:
    """The settings of a topic."""
    return _settings(TOPIC_SETTINGS)


def cluster_settings() -> str:
    """The settings of a cluster."""
    return _settings(CLUSTER_SETTINGS)


SECTIONS: dict[str, Callable[[], str]] = {
    "operations": operations,
    "peer-messages": peer_messages,
    "errors": errors,
    "topic-settings": topic_settings,
    "cluster-settings": cluster_settings,
}
