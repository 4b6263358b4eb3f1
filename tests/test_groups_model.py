"""The coordinator of one group against a model that knows nothing of plans: who is a member, who uses what, and what is
committed. After every step the log, read from its start, says what memory holds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from memory_broker import MemoryBroker
from test_group_coordinator import GROUP, Group, Processes, expel, ready

from node.core.groups import records
from node.core.groups.group import Group as Core
from node.handlers.coordinator import partition_of
from shmlog.clock import NS_PER_S, ManualClock
from shmlog.records import batch as batches
from shmlog.settings import ClusterConfig

SESSION_S, RETENTION_S = 5, 20
TOPICS = ("t", "u")
Part = tuple[str, int]

subscriptions = st.sampled_from((["t"], ["u"], ["t", "u"], ["*"]))


class Member:
    """What the model knows of one. `watched`: its second heartbeat has proven its process."""

    def __init__(self, name: str, topics: list[str], pid: int, instance: str, now: int) -> None:
        self.name, self.topics, self.pid, self.instance = name, topics, pid, instance
        self.epoch = 0
        self.using: set[Part] = set()
        self.releasing: set[Part] = set()
        self.contact = now
        self.is_watched = self.is_gone = False


def parts_of(listed: list[dict[str, Any]]) -> set[Part]:
    return {(entry["topic"], index) for entry in listed for index in entry["partitions"]}


def listed(parts: set[Part]) -> dict[str, list[int]]:
    return {topic: sorted(i for t, i in parts if t == topic) for topic in {t for t, _ in parts}}


class GroupMachine(RuleBasedStateMachine):
    """Members by name. Time is in seconds since the broker's start."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.processes = Processes()
        self.clock = ManualClock(NS_PER_S)
        self.incarnation = 1
        self.members: dict[str, Member] = {}
        self.committed: dict[Part, int] = {}
        self.counts = dict.fromkeys(TOPICS, 2)
        self.now = self.empty_since = self.last_commit = 0
        self.numbers = self.names = 0
        self.storage: Any = None

    @initialize()
    def begin(self) -> None:
        self._start()
        for topic in TOPICS:
            self.broker.ask({"op": "create_topic", "topic": topic, "partition_count": 2})

    def _start(self) -> None:
        config = ClusterConfig(
            session_timeout=SESSION_S * 1000, offsets_retention=RETENTION_S * 1000
        )
        self.broker = ready(
            MemoryBroker(
                Path(self.directory.name),
                storage=self.storage,
                incarnation=self.incarnation,
                kernel=self.processes,
                clock=self.clock,
                settings=config,
            )
        )
        self.storage = self.broker.storage
        self.group = Group(self.broker)

    def teardown(self) -> None:
        if hasattr(self, "broker"):
            self._settle()
        self.directory.cleanup()

    def _pick(self, data: st.DataObject, *, gone: bool = False) -> Member:
        names = [m.name for m in self.members.values() if m.is_gone == gone]
        return self.members[data.draw(st.sampled_from(names))]

    def _living(self) -> list[Member]:
        return [m for m in self.members.values() if not m.is_gone]

    def _gone(self, member: Member) -> None:
        del self.members[member.name]
        if not self.members:
            self.empty_since = self.now

    def _hear(self, member: Member, answer: dict[str, Any]) -> None:
        assert answer["error"] == 0, answer
        assigned, releasing = parts_of(answer["assigned"]), parts_of(answer["releasing"])
        wanted = {(t, i) for t, count in self.counts.items() for i in range(count)}
        if "*" not in member.topics:
            wanted = {part for part in wanted if part[0] in member.topics}
        assert assigned <= wanted, "it gets what it wants only"
        assert answer["member_epoch"] >= member.epoch, "epochs grow"
        others = set().union(
            *(m.using | m.releasing for m in self.members.values() if m is not member)
        )
        assert not assigned & others, "one member has it, and has not released it"
        member.epoch, member.using, member.releasing = answer["member_epoch"], assigned, releasing

    def _beat(self, member: Member, *, keep: bool = False, **fields: Any) -> None:
        owned = member.using | (member.releasing if keep else set())
        if not keep:
            member.releasing = set()
        answer = self.group.beat(
            member.name,
            member.epoch,
            listed(owned),
            pid=member.pid,
            instance=member.instance,
            max_wait_ms=0,
            **fields,
        )
        member.contact, member.is_watched = self.now, member.pid > 0
        member.releasing = owned - member.using
        self._hear(member, answer)

    # -- members ----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.members) < 5)
    @rule(topics=subscriptions, watched=st.booleans(), static=st.booleans())
    def join(self, topics: list[str], watched: bool, static: bool) -> None:
        self.names += 1
        name, pid = f"m{self.names}", 0
        if watched:
            pid = 1000 + self.names
            self.processes.started[pid] = self.names
        instance = f"i{self.names}" if static else ""
        member = Member(name, topics, pid, instance, self.now)
        self._join(member)

    def _join(self, member: Member) -> None:
        self.members[member.name] = member
        answer = self.group.settle(
            self.group.post(
                member.name,
                0,
                {},
                topics=member.topics,
                pid=member.pid,
                instance=member.instance,
                max_wait_ms=0,
            )
        )
        self._hear(member, answer)

    @precondition(lambda self: self._living())
    @rule(data=st.data(), keep=st.booleans())
    def heartbeat(self, data: st.DataObject, keep: bool) -> None:
        self._beat(self._pick(data), keep=keep)

    @precondition(lambda self: self._living())
    @rule(data=st.data(), topics=subscriptions)
    def subscribe(self, data: st.DataObject, topics: list[str]) -> None:
        member = self._pick(data)
        member.topics = topics
        self._beat(member, keep=True, topics=topics)

    @precondition(lambda self: self._living())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        member = self._pick(data)
        assert self.group.ask("group_leave", member=member.name)["error"] == 0
        self._gone(member)

    @precondition(lambda self: any(m.pid and not m.is_gone for m in self.members.values()))
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        names = [m.name for m in self._living() if m.pid]
        member = self.members[data.draw(st.sampled_from(names))]
        del self.processes.started[member.pid]
        expel(self.broker, member.pid)
        if member.instance:
            member.is_gone, member.contact, member.is_watched = True, self.now, False
        else:
            self._gone(member)

    @precondition(lambda self: any(m.instance for m in self.members.values()))
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """With its instance id: refused while the one before lives, else all that it had is its own again."""
        names = [m.name for m in self.members.values() if m.instance]
        before = self.members[data.draw(st.sampled_from(names))]
        self.names += 1
        member = Member(f"m{self.names}", before.topics, 0, before.instance, self.now)
        if not before.is_gone:
            number = self.group.post(
                member.name, 0, {}, topics=member.topics, instance=member.instance, max_wait_ms=0
            )
            assert self.group.settle(number)["error"] == 111
            return
        del self.members[before.name]
        epoch = self._describe()["group_epoch"]
        self._join(member)
        assert self._describe()["group_epoch"] == epoch, "nothing moves"
        stale = self.group.beat(before.name, before.epoch, {}, instance=before.instance)
        assert stale["error"] == 82

    @rule(seconds=st.integers(1, 9))
    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            self.broker.clock.advance(NS_PER_S)
            self.broker.turn()
        there = {m["member"] for m in self._describe()["members"]}
        for member in list(self.members.values()):
            silent = self.now - member.contact
            if (
                member.is_watched or silent < SESSION_S
            ):  # each request takes some hundredths of a second, too
                assert member.name in there, "it is heard, or its process lives"
            elif silent > SESSION_S + 2:
                assert member.name not in there, "it was silent for a session"
            if member.name not in there:
                self._gone(member)
        idle = self.now - max(self.empty_since, self.last_commit)
        if not self.members and self.committed:
            left = self.group.ask("committed")["partitions"]
            if idle > RETENTION_S + 2:
                assert not left
            elif idle <= RETENTION_S:
                assert left
            if not left:
                self.committed.clear()

    @rule()
    def restart(self) -> None:
        """Another broker reads the group: it remembers all; the silence of members begins anew."""
        self.incarnation += 1
        self._start()
        self.group.ask("committed")
        for member in self.members.values():
            member.contact = self.now
            member.is_watched = member.pid > 0 and not member.is_gone

    # -- topics and offsets -----------------------------------------------------------------------

    @rule(topic=st.sampled_from(TOPICS))
    def grow(self, topic: str) -> None:
        if self.counts[topic] < 5:
            self.counts[topic] += 1
            count = self.counts[topic]
            answer = self.broker.ask(
                {"op": "add_partitions", "topic": topic, "partition_count": count}
            )
            assert answer[0]["error"] == 0

    @rule(
        data=st.data(),
        topic=st.sampled_from(TOPICS),
        index=st.integers(0, 4),
        offset=st.integers(0, 99),
        copy=st.booleans(),
    )
    def commit(self, data: st.DataObject, topic: str, index: int, offset: int, copy: bool) -> None:
        """By a member, or by nobody; of what it has, or of what it has not."""
        part = (topic, index % self.counts[topic])
        who = data.draw(st.sampled_from([None, *(m.name for m in self._living())]))
        self.numbers += 1
        fields: dict[str, Any] = {"number": self.numbers}
        if who is None:
            expected = 25 if self.members else 0
        else:
            member = self.members[who]
            mine = part in member.using | member.releasing
            expected = 0 if mine else 113
            fields |= {"member": who, "member_epoch": member.epoch}
        assert self._commit(part, offset, **fields) == expected
        if expected == 0:
            self.committed[part] = offset
            self.last_commit = self.now
            if copy:
                assert self._commit(part, offset + 1, **fields) == 0, "a late copy, and ignored"

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def commit_of_a_stranger(self, data: st.DataObject) -> None:
        part = data.draw(st.sampled_from(sorted(self.committed)))
        assert self._commit(part, 0, member="nobody", member_epoch=1, number=1 << 40) == 25
        for member in self._living():
            assert self._commit(part, 0, member=member.name, member_epoch=1 << 20) == 110

    def _commit(self, part: Part, offset: int, **fields: Any) -> int:
        wanted = {"topic": part[0], "partition": part[1], "offset": offset}
        answer = self.group.ask("commit", offsets=[wanted], **fields)
        return int(answer["error"] or answer["partitions"][0]["error"])

    # -- what must be so --------------------------------------------------------------------------

    def _describe(self) -> dict[str, Any]:
        answer = self.group.ask("describe_group")
        if answer["error"] == 69:
            return {"members": [], "partitions": [], "group_epoch": 0}
        assert answer["error"] == 0, answer
        return answer

    @invariant()
    def is_as_the_model(self) -> None:
        if not hasattr(self, "broker"):
            return
        self.broker.wire.sent.clear()  # each look at the answers goes through all of them
        found = self._describe()
        assert {m["member"] for m in found["members"]} == self.members.keys()
        offsets = {
            (p["topic"], p["partition"]): p["committed"]
            for p in found["partitions"]
            if p["committed"] >= 0
        }
        assert offsets == self.committed
        owners = {(p["topic"], p["partition"]): p["owner"] for p in found["partitions"]}
        for member in self.members.values():
            for part in member.using | member.releasing:
                assert owners[part] == member.name, "it was told so, and has not released it"

    @invariant()
    def the_log_says_what_memory_holds(self) -> None:
        if not hasattr(self, "broker"):
            return
        index = partition_of(GROUP)
        shard = self.broker.context.coordinator._shards[index]
        replayed: dict[str, Core] = {}
        data = memoryview(shard.partition.read_for_replica(0, 64 << 20))
        for position, header in batches.iterate(data):
            batch = batches.RecordBatch(data[position:], header)
            for key, value in zip(batch.keys(), batch.values(), strict=True):
                records.read(replayed, bytes(key), None if value is None else bytes(value))
        assert _states(replayed) == _states(shard.groups)

    def _settle(self) -> None:
        """Once all members tell what they do, everything is read by one of them, evenly."""
        for member in self._living():
            if not member.is_watched and self.now - member.contact >= SESSION_S - 1:
                assert self.group.ask("group_leave", member=member.name)["error"] in (0, 25)
                self._gone(member)
        for _ in range(8):
            for member in self._living():
                self._beat(member)
        if any(m.is_gone for m in self.members.values()):
            return
        wanted = {
            (topic, i)
            for topic, count in self.counts.items()
            for i in range(count)
            if any(topic in m.topics or "*" in m.topics for m in self.members.values())
        }
        using = sorted(part for m in self.members.values() for part in m.using)
        assert using == sorted(wanted)
        sizes = [len(m.using) for m in self.members.values()]
        if sizes and len({tuple(m.topics) for m in self.members.values()}) == 1:
            assert max(sizes) - min(sizes) <= 1


def _states(groups: dict[str, Core]) -> dict[str, Any]:
    """All that is stored of groups, whatever was said to be dirty; but for the epoch that a member's last heartbeat
    told, which is not stored with every heartbeat: a reader knows an older one, and takes more for just late.
    """
    found = {}
    for name, group in groups.items():
        core = records._record_of(group)
        core.members = [msgspec.structs.replace(m, epoch_before=0) for m in core.members]
        offsets = {part: records._offset_of(offset) for part, offset in group.offsets.items()}
        found[name] = (core, offsets)
    return found


TestGroups = GroupMachine.TestCase
TestGroups.settings = settings(
    deadline=None, max_examples=60, stateful_step_count=30, derandomize=True
)
