"""What is stored of groups on the internal topic, as keys and values in MessagePack.

    key                                    value                         null value
    ["group", GROUP]                       GroupRecord: all but offsets  the group is gone
    ["offset", GROUP, TOPIC ID, PARTITION] OffsetRecord                  the offset is gone

The record of a key that stands last holds. So a group is one record however it came to be as it is, and a batch of
records is one step.
"""

from __future__ import annotations

from typing import Any

import msgspec

from node.core.groups.assignor import Part
from node.core.groups.group import Group
from node.core.groups.state import Member, MemberState, Offset, Process

_encoder = msgspec.msgpack.Encoder()


class _Member(msgspec.Struct, array_like=True):
    id: str
    instance: str
    client: str
    topics: tuple[str, ...]
    assignor: str
    pid: int
    started: int
    boot: str
    epoch: int
    epoch_before: int
    state: str
    assigned: list[tuple[bytes, int, int]]
    releasing: list[tuple[bytes, int, int]]
    target: list[Part]
    is_gone: bool


class _Group(msgspec.Struct, array_like=True):
    epoch: int
    target_epoch: int
    counts: dict[bytes, int]
    empty_since_ns: int
    members: list[_Member]


class _Offset(msgspec.Struct, array_like=True):
    offset: int
    leader_epoch: int
    metadata: str
    time_ns: int
    number: int
    member: str


_groups = msgspec.msgpack.Decoder(_Group)
_offsets = msgspec.msgpack.Decoder(_Offset)
_keys = msgspec.msgpack.Decoder(tuple[Any, ...])

Row = tuple[bytes, bytes | None]


def group_key(name: str) -> bytes:
    """The key of a group."""
    return _encoder.encode(("group", name))


def offset_key(name: str, part: Part) -> bytes:
    """The key of a committed offset."""
    return _encoder.encode(("offset", name, *part))


def rows_of(group: Group) -> list[Row]:
    """What has changed since the last call, as records; the group is not dirty any more."""
    rows: list[Row] = []
    if group.is_dirty:
        rows.append((group_key(group.name), _encoder.encode(_record_of(group))))
    for part in group.dirty_offsets:
        offset = group.offsets.get(part)
        value = None if offset is None else _encoder.encode(_offset_of(offset))
        rows.append((offset_key(group.name, part), value))
    group.is_dirty = False
    group.dirty_offsets.clear()
    return rows


def rows_without(group: Group) -> list[Row]:
    """Tombstones for all there is of a group."""
    return [
        (group_key(group.name), None),
        *((offset_key(group.name, part), None) for part in group.offsets),
    ]


def read(groups: dict[str, Group], key: bytes, value: bytes | None) -> None:
    """Take in one record. Raises msgspec.MsgspecError: it is none of ours."""
    kind, name, *rest = _keys.decode(key)
    if kind == "group":
        if value is None:
            groups.pop(name, None)
        else:
            groups[name] = _group_of(name, _groups.decode(value), groups.get(name))
    elif kind == "offset":
        group = groups.setdefault(name, Group(name))
        part = (rest[0], rest[1])
        if value is None:
            group.offsets.pop(part, None)
        else:
            found = _offsets.decode(value)
            group.offsets[part] = Offset(
                found.offset,
                found.leader_epoch,
                found.metadata,
                found.time_ns,
                found.number,
                found.member,
            )


def _record_of(group: Group) -> _Group:
    return _Group(
        group.epoch,
        group.target_epoch,
        group.counts,
        group.empty_since_ns,
        [
            _Member(
                m.id,
                m.instance,
                m.client,
                m.topics,
                m.assignor,
                m.process.pid,
                m.process.started,
                m.process.boot,
                m.epoch,
                m.epoch_before,
                m.state.value,
                [(*part, given) for part, given in m.assigned.items()],
                [(*part, given) for part, given in m.releasing.items()],
                sorted(group.target.get(m.id, ())),
                m.is_gone,
            )
            for m in group.members.values()
        ],
    )


def _group_of(name: str, record: _Group, before: Group | None) -> Group:
    group = Group(name)
    group.epoch, group.target_epoch = record.epoch, record.target_epoch
    group.counts, group.empty_since_ns = record.counts, record.empty_since_ns
    if before is not None:
        group.offsets = before.offsets
    for m in record.members:
        group.members[m.id] = Member(
            m.id,
            m.instance,
            m.client,
            m.topics,
            m.assignor,
            Process(m.pid, m.started, m.boot),
            m.epoch,
            m.epoch_before,
            MemberState(m.state),
            {(topic, index): given for topic, index, given in m.assigned},
            {(topic, index): given for topic, index, given in m.releasing},
            m.is_gone,
        )
        group.target[m.id] = set(m.target)
    return group


def _offset_of(offset: Offset) -> _Offset:
    return _Offset(
        offset.offset,
        offset.leader_epoch,
        offset.metadata,
        offset.time_ns,
        offset.number,
        offset.member,
    )
