"""The coordinator of groups in a broker: joins, moves, deaths, commits, and what a restart remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memory_broker import MemoryBroker
from node.io.liveness import Opened
from shmlog.clock import NS_PER_S

GROUP = "billing"


class Processes:
    """The processes of this machine, as a test says."""

    def __init__(self) -> None:
        self.started = {100: 1, 200: 2}

    def open_process(self, pid: int) -> Opened | None:
        return Opened(pid, self.started[pid]) if pid in self.started else None

    def close(self, descriptor: int) -> None:
        pass


class Group:
    """Members of one group at a broker in memory."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        while (found := self.broker.ask({"op": op, "group": GROUP, **fields})[0])["error"] == 14:
            self.broker.turn()
        return found

    def post(self, member: str, epoch: int, owned: dict[str, list[int]], **fields: Any) -> int:
        listed = [{"topic": t, "partitions": p} for t, p in owned.items()]
        pid = fields.pop("pid", 0)
        number = self.broker.post(
            {
                "op": "group_heartbeat",
                "group": GROUP,
                "member": member,
                "member_epoch": epoch,
                "owned": listed,
                **fields,
            },
            client=member.encode(),
        )
        if pid:
            self.broker.wire.waiting[-1] = self.broker.wire.waiting[-1]._replace(sender=pid)
        return number

    def settle(self, number: int) -> dict[str, Any]:
        self.broker.until(lambda: self.broker.answer(number) is not None)
        found = self.broker.answer(number)
        assert found is not None
        return found[0]

    def join(self, member: str, *topics: str, **fields: Any) -> dict[str, Any]:
        return self.settle(self.post(member, 0, {}, topics=list(topics or ("t",)), **fields))

    def beat(
        self, member: str, epoch: int, owned: dict[str, list[int]], **f: Any
    ) -> dict[str, Any]:
        return self.settle(self.post(member, epoch, owned, **f))


def ready(broker: MemoryBroker) -> MemoryBroker:
    """A broker whose coordinator has read its groups."""
    Group(broker).ask("committed")
    broker.turn()
    return broker


def assigned(answer: dict[str, Any]) -> dict[str, list[int]]:
    assert answer["error"] == 0, answer
    return {entry["topic"]: entry["partitions"] for entry in answer["assigned"]}


@pytest.fixture
def broker(tmp_path: Path) -> MemoryBroker:
    made = MemoryBroker(tmp_path)
    made.ask({"op": "create_topic", "topic": "t", "partition_count": 4})
    return ready(made)


@pytest.fixture
def group(broker: MemoryBroker) -> Group:
    return Group(broker)


def test_the_first_member_gets_all_a_second_one_its_half_once_it_was_given_up(group: Group) -> None:
    first = group.join("a")
    assert (assigned(first), first["member_epoch"], first["state"]) == (
        {"t": [0, 1, 2, 3]},
        1,
        "stable",
    )
    waiting = group.post("a", 1, {"t": [0, 1, 2, 3]})
    group.broker.turn()
    assert group.broker.answer(waiting) is None, "a heartbeat without news waits"
    second = group.join("b")
    assert (assigned(second), second["state"]) == ({}, "waiting")
    told = group.settle(waiting)
    assert (assigned(told), told["state"], told["member_epoch"]) == ({"t": [0, 1]}, "releasing", 1)
    assert told["releasing"][0]["partitions"] == [2, 3]
    waiting = group.post("b", 2, {})
    released = group.beat("a", 1, {"t": [0, 1]})
    assert (released["state"], released["member_epoch"]) == ("stable", 2)
    assert assigned(group.settle(waiting)) == {"t": [2, 3]}


def test_a_commit_is_taken_from_the_owner_only_and_is_there_after_a_restart(
    group: Group, tmp_path: Path
) -> None:
    group.join("a")
    offset = {"topic": "t", "partition": 1, "offset": 7, "metadata": "m"}
    done = group.ask("commit", member="a", member_epoch=1, number=1, offsets=[offset])
    assert done["partitions"] == [{"topic": "t", "partition": 1, "error": 0}]
    late = {**offset, "offset": 3}
    group.ask("commit", member="a", member_epoch=1, number=1, offsets=[late])
    other = group.ask("commit", member="b", member_epoch=1, offsets=[offset])
    assert other["error"] == 25
    assert group.ask("commit", offsets=[offset])["error"] == 25
    assert group.ask("commit", member="a", member_epoch=9, offsets=[offset])["error"] == 110
    unknown = group.ask("commit", member="a", member_epoch=1, offsets=[{**offset, "topic": "no"}])
    assert unknown["partitions"][0]["error"] == 3
    assert group.ask("group_leave", member="a")["error"] == 0
    again = ready(MemoryBroker(tmp_path, storage=group.broker.storage, incarnation=2))
    found = Group(again).ask("committed")["partitions"]
    assert [(p["topic"], p["partition"], p["offset"], p["metadata"]) for p in found] == [
        ("t", 1, 7, "m")
    ]


def test_members_are_there_after_a_restart_and_those_that_nobody_hears_go_after_a_session(
    group: Group, tmp_path: Path
) -> None:
    group.join("a")
    again = ready(MemoryBroker(tmp_path, storage=group.broker.storage, incarnation=2))
    after = Group(again)
    told = after.beat("a", 1, {"t": [0, 1, 2, 3]})
    assert (assigned(told), told["member_epoch"]) == ({"t": [0, 1, 2, 3]}, 1)
    for _ in range(46):
        again.clock.advance(NS_PER_S)
        again.turn()
    assert after.beat("a", 1, {})["error"] == 25
