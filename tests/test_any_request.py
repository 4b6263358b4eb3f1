"""Requests of every operation, of the right types and with any values, in any order: each is answered exactly once,
never with an internal error, and the broker turns on.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from memory_broker import MemoryBroker

from shmlog.clock import NS_PER_MS
from shmlog.errors import Code
from shmlog.protocol.operations import OPERATIONS
from shmlog.records.builder import build

REQUESTS = 150
USUAL = {
    "topic": ["t", "u"],
    "topics": ["t", "u", "t*"],
    "member": ["a", "a", "b"],
    "group": ["g", "g", "g", "h"],
    "assignor": ["uniform", "range"],
    "acks": ["all", "1", "0"],
    "partition": [0, 1],
    "partitions": [0, 1],
    "member_epoch": [0, 0, 1, 1, 2, 3],
    "count": [1, 2, 3],
    "max_wait_ms": [0, 100, 500],
    "max_bytes": [0, 1 << 20],
}
ODD = {
    "topic": ["log", "__consumer_offsets", "__cluster_metadata", "", "no/name", "n" * 300],
    "topics": ["*", "log", "", "n" * 1000, "__consumer_offsets"],
    "member": ["c", "", "m" * 1000],
    "instance": ["", "", "i1", "i2"],
    "group": ["", "g" * 300],
    "assignor": ["", "other"],
    "acks": ["2", ""],
    "metadata": ["", "m", "m" * 5000],
}
NAMES = [
    "retention",
    "retention_bytes",
    "durability",
    "segment_bytes",
    "cleanup_policy",
    "min_insync_replicas",
    "x",
]
SETTINGS = ["1s", "1MiB", 0, -1, 1, 3, "compact", "delete", "disk", "os", 1.5, True, "x", 1 << 62]
NUMBERS = [0, 0, 0, 1, 1, 2, 3, 5, 100, 10_000, 1 << 31, (1 << 53) - 1]


# What a seed asks for most.
FAVOURED = [
    ("group_heartbeat",),
    ("group_heartbeat", "commit", "group_leave"),
    ("produce", "fetch"),
    tuple(op for op, _ in OPERATIONS),
]


class Maker:
    """Values of the types of the protocol's messages, most of them plausible."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def struct(self, kind: type[msgspec.Struct]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for field in msgspec.structs.fields(kind):
            if field.required or self.rng.random() < 0.6:
                made[field.encode_name] = self.value(
                    msgspec.inspect.type_info(field.type), field.name
                )
        return made

    def value(self, info: msgspec.inspect.Type, name: str) -> Any:
        rng = self.rng
        simple = isinstance(info, msgspec.inspect.StrType | msgspec.inspect.IntType)
        if simple and name in USUAL and rng.random() < 0.97:
            return rng.choice(USUAL[name])
        match info:
            case msgspec.inspect.Metadata():
                return self.value(info.type, name)
            case msgspec.inspect.UnionType():
                return self.value(rng.choice(info.types), name)
            case msgspec.inspect.StructType():
                return self.struct(info.cls)
            case msgspec.inspect.ListType() | msgspec.inspect.CollectionType():
                return [
                    self.value(info.item_type, name) for _ in range(rng.choice((0, 1, 1, 2, 4)))
                ]
            case msgspec.inspect.TupleType():
                return [self.value(one, name) for one in info.item_types]
            case msgspec.inspect.DictType():
                return {
                    rng.choice(NAMES): rng.choice(SETTINGS) for _ in range(rng.choice((0, 1, 2)))
                }
            case msgspec.inspect.StrType():
                return "" if info.pattern else rng.choice(ODD.get(name, ["", "x"]))
            case msgspec.inspect.IntType():
                return self.number(info)
            case msgspec.inspect.BoolType():
                return rng.random() < 0.5
            case msgspec.inspect.FloatType():
                return rng.choice((0.0, -1.0, 1.5))
            case msgspec.inspect.NoneType():
                return None
        return rng.choice(
            (0, "0", "1", "-1", "", "x")
        )  # of the protocol's own types: text or number

    def number(self, info: msgspec.inspect.IntType) -> int:
        low = info.ge if info.ge is not None else -(1 << 53)
        high = info.le if info.le is not None else (info.lt - 1 if info.lt is not None else 1 << 53)
        wanted = self.rng.choice((*NUMBERS, -1, low, high))
        return min(max(wanted, low), high)

    def frames(self, message: dict[str, Any], mode: str) -> list[bytes]:
        rng = self.rng
        if rng.random() < 0.1:
            return [
                rng.randbytes(rng.choice((0, 1, 70, 200))) for _ in range(rng.choice((1, 2, 5)))
            ]
        if mode == "simple":
            return [
                rng.randbytes(rng.choice((0, 3)))
                for _ in range(2 * min(message.get("count", 1), 20))
            ]
        identity = {
            "producer_id": rng.choice((-1, -1, 7)),
            "producer_epoch": 0,
            "base_sequence": rng.choice((0, 1)),
        }
        if identity["producer_id"] < 0:
            identity = {}
        entries = message.get("partitions") or message.get("entries") or [0]
        return [
            bytes(build([b"v", b"w"], keys=[b"k", b"l"], timestamps=1000, **identity))
            for _ in entries
        ]


def go_on(message: dict[str, Any], told: dict[str, Any] | None, rng: random.Random) -> None:
    """A heartbeat that follows the last answer, or a join that names topics."""
    if told is None or rng.random() < 0.3:
        message |= {"member_epoch": 0, "topics": ["t"]}
        return
    message |= {"member_epoch": told["member_epoch"], "owned": told["assigned"], "max_wait_ms": 500}
    message.pop("topics", None)


@pytest.mark.parametrize("seed", range(24))
def test_any_request_is_answered_once_and_is_never_an_internal_error(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    maker = Maker(rng)
    broker = MemoryBroker(tmp_path)
    for topic, configs in (("t", {}), ("u", {"cleanup_policy": "compact"})):
        broker.create(topic, 2, **configs)
    asked: dict[int, str] = {}
    members: dict[int, str] = {}
    told: dict[str, dict[str, Any] | None] = {}
    operations = sorted(OPERATIONS.items())
    few = [one for one in operations if one[0][0] in FAVOURED[seed % len(FAVOURED)]]
    for _ in range(REQUESTS):
        (op, mode), operation = rng.choice(rng.choice((operations, few, few, few)))
        if op == "delete_topic" and rng.random() < 0.8:
            continue
        message = {
            **maker.struct(operation.request),
            "op": op,
            "timeout_ms": rng.choice((0, 100, 1000)),
        }
        message["min_metadata"] = 1 << 40 if rng.random() < 0.03 else 0
        del message["id"]
        if mode:
            message["mode"] = mode
        if op == "group_heartbeat" and rng.random() < 0.7:
            go_on(message, told.get(message["member"]), rng)
        frames = maker.frames(message, mode) if op == "produce" else []
        number = broker.post(message, *frames, client=rng.choice((b"c1", b"c2", b"a")))
        if message.get("acks") != "0" or op != "produce":
            asked[number] = op
        if op == "group_heartbeat":
            members[number] = message["member"]
        for _ in range(rng.choice((0, 0, 1, 2))):
            broker.clock.advance(rng.choice((0, 1, 30, 300)) * NS_PER_MS)
            broker.turn()
        for number in list(members):
            found = broker.answer(number)
            if found is not None:
                member = members.pop(number)
                told[member] = found[0] if found[0]["error"] == 0 else None
    for _ in range(60):
        broker.clock.advance(300 * NS_PER_MS)
        broker.turn()
    answers = Counter(broker._id_of(frames) for _, frames in broker.wire.sent)
    assert not [asked[number] for number in asked if answers[number] != 1]
    wrong = [broker.answer(number) for number in asked]
    assert not [one for one in wrong if one and one[0]["error"] == Code.UNKNOWN_SERVER_ERROR]
    assert sum(one[0]["error"] == 0 for one in wrong if one) > REQUESTS // 20
