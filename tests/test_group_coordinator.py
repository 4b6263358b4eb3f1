"""The coordinator of groups in a broker: joins, moves, deaths, commits, and what a restart remembers."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from memory_broker import MemoryBroker, NoOthers

from node.core.replica.leader import Leader
from node.io.liveness import Opened
from node.io.workers import Lane
from shmlog.clock import NS_PER_S
from shmlog.settings import ClusterConfig

GROUP = "billing"


class Processes(NoOthers):
    """The processes of this machine, as a test says. Descriptor and pid are the same number."""

    def __init__(self) -> None:
        self.started = {100: 1, 200: 2}

    def open_process(self, pid: int) -> Opened | None:
        return Opened(pid, self.started[pid]) if pid in self.started else None


class Group:
    """Members of one group at a broker in memory."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        for _ in range(200):
            found = self.broker.ask({"op": op, "group": GROUP, **fields})[0]
            if found["error"] != 14:
                return found
            self.broker.clock.advance(NS_PER_S // 50)
        raise AssertionError("the groups were never read")

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
    made = MemoryBroker(tmp_path, kernel=Processes())
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


def test_who_joins_again_has_its_waiting_heartbeat_answered_too(group: Group) -> None:
    group.join("a")
    waiting = group.post("a", 1, {"t": [0, 1, 2, 3]})
    group.broker.turn()
    again = group.join("a")
    assert assigned(again) == {"t": [0, 1, 2, 3]}
    assert assigned(group.settle(waiting)) == {"t": [0, 1, 2, 3]}


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


def expel(broker: MemoryBroker, pid: int) -> None:
    """A process dies."""
    broker.wire.readable = (pid,)
    broker.turn()


def test_the_partitions_of_a_process_that_dies_are_the_others_at_once(group: Group) -> None:
    group.join("a", pid=100)
    group.join("b", pid=200)
    group.beat("a", 1, {"t": [0, 1]})
    waiting = group.post("b", 2, {"t": [2, 3]}, pid=200)
    assert assigned(group.settle(waiting)) == {"t": [2, 3]}
    waiting = group.post("b", 2, {"t": [2, 3]}, pid=200)
    group.broker.turn()
    expel(group.broker, 100)
    told = group.settle(waiting)
    assert (assigned(told), told["member_epoch"]) == ({"t": [0, 1, 2, 3]}, 3)
    assert told["reason"] == "a died"


def test_a_silent_member_whose_process_lives_keeps_its_partitions(group: Group) -> None:
    group.join("a", pid=100)
    group.join("x", "other")
    group.beat("a", 1, {"t": [0, 1, 2, 3]}, pid=100, max_wait_ms=0)
    for _ in range(60):
        group.broker.clock.advance(NS_PER_S)
        group.broker.turn()
    found = group.ask("describe_group")
    assert [(m["member"], m["pid"], m["stalled"]) for m in found["members"]] == [("a", 100, True)]


def test_a_member_that_was_refused_for_want_of_replicas_was_not_silent(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    group.join("a")

    def pass_seconds(count: int) -> None:
        for _ in range(count):
            group.broker.clock.advance(NS_PER_S)
            group.broker.turn()

    with monkeypatch.context() as few:
        few.setattr(Leader, "has_minimum", False)
        pass_seconds(60)
        assert group.beat("a", 1, {"t": [0, 1, 2, 3]})["error"] == 15
    pass_seconds(40)
    assert [m["member"] for m in group.ask("describe_group")["members"]] == ["a"]
    pass_seconds(10)
    assert group.ask("describe_group")["error"] == 69


def test_a_static_member_has_a_session_to_come_back_and_then_nothing_moves(group: Group) -> None:
    group.join("a1", pid=100, instance="i1")
    group.join("b1", pid=200, instance="i2")
    group.beat("a1", 1, {"t": [0, 1]})
    waiting = group.post("b1", 2, {"t": [2, 3]})
    group.settle(waiting)
    assert group.join("a2", pid=100, instance="i1")["error"] == 111
    expel(group.broker, 100)
    back = group.join("a2", instance="i1")
    assert (assigned(back), back["member_epoch"]) == ({"t": [0, 1]}, 2)
    assert group.beat("a1", 2, {}, instance="i1")["error"] == 82
    found = group.ask("describe_group")
    assert (found["group_epoch"], found["state"]) == (2, "stable")
    expel(group.broker, 200)
    for _ in range(46):
        group.broker.clock.advance(NS_PER_S)
        group.post("a2", 2, {"t": [0, 1]}, max_wait_ms=0)
        group.broker.turn()
    told = group.beat("a2", 2, {"t": [0, 1]}, max_wait_ms=0)
    assert assigned(told) == {"t": [0, 1, 2, 3]}


def test_topics_that_come_grow_and_go_change_assignments_and_offsets(group: Group) -> None:
    group.join("a", "t", "or*")
    waiting = group.post("a", 1, {"t": [0, 1, 2, 3]})
    group.broker.ask({"op": "create_topic", "topic": "orders", "partition_count": 1})
    told = group.settle(waiting)
    assert assigned(told) == {"t": [0, 1, 2, 3], "orders": [0]}
    group.ask(
        "commit",
        member="a",
        member_epoch=2,
        offsets=[{"topic": "orders", "partition": 0, "offset": 0}],
    )
    waiting = group.post("a", 2, {"t": [0, 1, 2, 3], "orders": [0]})
    group.broker.ask({"op": "delete_topic", "topic": "orders"})
    assert assigned(group.settle(waiting)) == {"t": [0, 1, 2, 3]}
    group.broker.ask({"op": "create_topic", "topic": "orders", "partition_count": 1})
    assert group.ask("committed")["partitions"] == []


def test_an_answer_that_was_lost_is_sent_again(group: Group) -> None:
    group.join("a")
    group.join("b")
    group.beat("a", 1, {"t": [0, 1, 2, 3]})
    lost = group.beat("a", 1, {"t": [0, 1]})
    assert (lost["member_epoch"], lost["state"]) == (2, "stable")
    assert group.beat("a", 1, {"t": [0, 1]})["member_epoch"] == 2, (
        "of the epoch before, within what it has"
    )
    behind = group.post("b", 2, {})
    assert assigned(group.settle(behind)) == {"t": [2, 3]}
    again = group.post("b", 2, {}, max_wait_ms=60_000)
    group.broker.turn()
    group.broker.clock.advance(NS_PER_S // 2)
    assert assigned(group.settle(again)) == {"t": [2, 3]}, "it does not use them: was it told?"
    using_others = group.beat("b", 2, {"t": [0]})
    assert using_others["error"] == 110


def test_reset_and_delete_want_a_group_without_members(group: Group) -> None:
    group.join("a")
    offset = {"topic": "t", "partition": 0, "offset": 5}
    group.ask("commit", member="a", member_epoch=1, offsets=[offset])
    assert group.ask("reset_group", partitions=[offset])["error"] == 68
    assert group.ask("delete_group")["error"] == 68
    assert group.ask("delete_group", topic="t")["error"] == 86
    group.ask("group_leave", member="a")
    dry = group.ask("reset_group", partitions=[{**offset, "offset": 2}], dry_run=True)
    assert (dry["partitions"][0]["before"], dry["partitions"][0]["after"]) == (5, 2)
    assert group.ask("committed")["partitions"][0]["offset"] == 5
    bad = [{**offset, "offset": 1}, {**offset, "partition": 9}]
    assert group.ask("reset_group", partitions=bad)["error"] == 3
    assert group.ask("committed")["partitions"][0]["offset"] == 5, "all or none"
    group.ask("reset_group", partitions=[{**offset, "offset": 2}])
    assert group.ask("committed")["partitions"][0]["offset"] == 2
    assert [g["group"] for g in group.ask("list_groups")["groups"]] == [GROUP]
    assert group.ask("delete_group")["error"] == 0
    assert group.ask("delete_group")["error"] == 69
    assert group.ask("describe_group")["error"] == 69
    assert group.ask("list_groups")["groups"] == []


def test_what_is_asked_wrongly_is_refused_and_changes_nothing(group: Group) -> None:
    for fields, code in (
        ({"member": "", "topics": ["t"]}, 42),
        ({"member": "a"}, 42),
        ({"member": "a", "topics": ["t["]}, 128),
        ({"member": "a", "topics": []}, 42),
        ({"member": "a", "topics": ["t"], "assignor": "best"}, 112),
        ({"member": "a", "member_epoch": 3}, 25),
        ({"member": "a", "member_epoch": -1}, 42),
        ({"member": "a", "topics": ["t"], "group": ""}, 24),
        ({"member": "a", "topics": ["t"], "group": "x" * 300}, 24),
    ):
        assert group.ask("group_heartbeat", **fields)["error"] == code, fields
    assert group.ask("list_groups")["groups"] == []
    group.join("a")
    long = {"topic": "t", "partition": 0, "offset": 1, "metadata": "m" * 5000}
    done = group.ask("commit", member="a", member_epoch=1, offsets=[long])
    assert done["partitions"][0]["error"] == 12


def test_nobody_is_shown_what_is_not_stored(broker: MemoryBroker) -> None:
    group = Group(broker)
    group.join("a")
    broker.workers.held.add(Lane.SYNC)
    offset = {"topic": "t", "partition": 0, "offset": 5}
    commit = broker.post(
        {"op": "commit", "group": GROUP, "member": "a", "member_epoch": 1, "offsets": [offset]}
    )
    broker.turn()
    asked = broker.post({"op": "committed", "group": GROUP})
    for _ in range(5):
        broker.turn()
    assert broker.answer(commit) is None
    assert broker.answer(asked) is None
    broker.workers.held.clear()
    assert group.settle(commit)["error"] == 0
    assert group.settle(asked)["partitions"][0]["offset"] == 5


def test_a_full_disk_takes_back_and_the_groups_are_read_anew(broker: MemoryBroker) -> None:
    group = Group(broker)
    group.join("a")
    broker.storage.fail("pwrite", 1, errno.ENOSPC)
    offset = {"topic": "t", "partition": 0, "offset": 5}
    failed = group.ask("commit", member="a", member_epoch=1, offsets=[offset])
    assert failed["error"] in (14, 15), failed
    broker.clock.advance(2 * NS_PER_S)
    assert group.ask("committed")["partitions"] == []
    done = group.ask("commit", member="a", member_epoch=1, offsets=[offset])
    assert done["partitions"] == [{"topic": "t", "partition": 0, "error": 0}]


def test_offsets_of_a_group_without_members_expire_where_that_is_set(tmp_path: Path) -> None:
    broker = ready(MemoryBroker(tmp_path, settings=ClusterConfig(offsets_retention=10_000)))
    broker.ask({"op": "create_topic", "topic": "t", "partition_count": 1})
    group = Group(broker)
    group.ask("commit", offsets=[{"topic": "t", "partition": 0, "offset": 5}])
    for seconds, left in ((9, 1), (3, 0)):
        broker.clock.advance(seconds * NS_PER_S)
        broker.turn()
        broker.clock.advance(NS_PER_S // 2)
        broker.turn()
        assert len(group.ask("committed")["partitions"]) == left
