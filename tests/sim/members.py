"""Members of consumer groups: the shipped membership, in an application that reads, finishes and commits.

A *host* is a process of this machine, or (pid 0) of another one, and holds one or two members. Hosts are killed, and
stopped for a while; members fall silent while their host lives, leave, and come back as the same instance. Once the
faults are over nobody goes any more, and each group must come to rest and to the end of what it reads (L6).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from shmlog.client.membership import Asked, Mark, Membership
from shmlog.client.session import Backoff, Outcome, error_of
from shmlog.errors import Code, LeaderUnavailable
from shmlog.ids import TopicPartition
from shmlog.protocol.group_messages import CommitAnswer, GroupHeartbeatAnswer

from .group_checker import GroupAnswer, GroupChecker, Part
from .network import Link
from .ports import MS, US
from .workload import Answer, Callback, Client, Workload
from .world import Process, Violation, _tell

ANSWERS = {"group_heartbeat": GroupHeartbeatAnswer, "commit": CommitAnswer}
MEMBERS_MAX = 4  # of a group that live at once
# What ends a membership: the instance is another's (82), or the one before lives (111).
TAKEN = (Code.FENCED_INSTANCE_ID, Code.UNRELEASED_INSTANCE_ID)


def settings_of(seed: int) -> dict[str, int]:
    """Settings of the cluster, so that sessions end within a life."""
    rng = random.Random(f"sessions {seed}")
    return {"session_timeout": 6000, "stalled_member_timeout": rng.choice((8000, 15_000))}


class Host:
    """A process. `exited`: the kernel says so."""

    def __init__(self, groups: Groups, pid: int) -> None:
        self.world = groups.world
        self.pid = pid
        self.started = next(self.world.numbers)
        self.alive = True
        self.exited = False
        self.stopped = False
        self.watchers: list[tuple[Process, int]] = []
        self.members: list[Member] = []
        self._held: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        if pid:
            self.world.hosts[pid] = self

    def run(self, action: Callable[..., None], *args: Any) -> None:
        """Now, or once it goes on; not at all if it is dead."""
        if self.stopped:
            self._held.append((action, args))
        elif self.alive:
            action(*args)

    def resume(self) -> None:
        self.stopped = False
        held, self._held = self._held, []
        for action, args in held:
            self.world.after(self.world.rng.randrange(1, 200 * US), self.run, action, *args)

    def die(self) -> None:
        """SIGKILL; what it has sent may still arrive."""
        if not self.alive:
            return
        self.world.trace("host died", self.pid)
        self.alive = False
        self._held.clear()
        for member in self.members:
            for link in member.links.values():
                if link.open:
                    link.close()
        self.world.after(self.world.linger_ns(), self._exit)

    def _exit(self) -> None:
        self.exited = True
        for watcher, descriptor in self.watchers:
            self.world.after(
                self.world.rng.randrange(20 * US, 300 * US), _tell, watcher, descriptor
            )
        self.watchers = []

    def crash_now(self) -> None:
        """With the machine."""
        self.alive, self.exited, self.watchers = False, True, []
        self._held.clear()


class _Reader:
    """A partition that the application has taken."""

    __slots__ = ("going", "part", "position", "removed", "topic_id", "tp")

    def __init__(self, tp: TopicPartition, topic_id: str, removed: int) -> None:
        self.tp, self.topic_id = tp, topic_id
        self.part: Part = (bytes.fromhex(topic_id), tp.partition)
        self.position = -1  # not known yet
        self.removed = removed  # how often its member had been, when it was taken
        self.going = False


class Member(Client):
    """One consumer."""

    def __init__(self, groups: Groups, number: int, host: Host, group: str, instance: str) -> None:
        super().__init__(groups.load, number)
        self.groups, self.host, self.instance = groups, host, instance
        self.is_over = False
        self.muted = False
        self.auto = self.rng.random() < 0.6
        self.work_ms = self.rng.choice((2, 20, 200))
        self.max_bytes = self.rng.choice((1, 2000, 1 << 20))
        self.name = (group, f"m{number}")
        self.membership = Membership(
            group,
            self.rng.choice((["t*"], ["t*"], ["t0", "t1", "t2"])),
            self.name[1],
            Backoff(self.rng),
            instance=instance,
            assignor=self.rng.choice(("uniform", "uniform", "range")),
            commit_interval_ns=self.rng.choice((20, 200, 1000)) * MS,
        )
        self.readers: dict[TopicPartition, _Reader] = {}
        self._due_ns = 1 << 62
        host.members.append(self)
        groups.checker.members[self.name] = self
        self.after(1, self._pump)

    def __repr__(self) -> str:
        return f"<member {self.name} epoch {self.membership.epoch}>"

    @property
    def pid(self) -> int:  # type: ignore[override]
        """As brokers see it."""
        return self.host.pid

    @property
    def is_in(self) -> bool:
        """Is it, or does it want to be, a member?"""
        return self.host.alive and not self.is_over

    def uses(self, tp: TopicPartition, topic_id: str) -> bool:
        """Has the application taken it, and does it know of no loss?"""
        reader = self.readers.get(tp)
        taken = reader is not None and reader.topic_id == topic_id and self.membership.has(tp)
        return self.is_in and taken

    def after(self, delay_ns: int, action: Callable[..., None], *args: Any) -> None:
        """In this process."""
        self.world.after(delay_ns, self.host.run, action, *args)

    def ask(
        self,
        broker: int,
        message: dict[str, Any],
        callback: Callback,
        frames: Sequence[bytes] = (),
        info: Any = None,
        timeout_ms: int | None = None,
    ) -> None:
        def told(answer: Answer | None, more: list[bytes]) -> None:
            self.host.run(callback, answer, more)

        super().ask(broker, message, told, frames, info, timeout_ms)

    def disconnected(self, link: Link) -> None:
        if self.host.alive:
            super().disconnected(link)

    # -- the thread of the member -----------------------------------------------------------------------

    def _pump(self) -> None:
        """What the membership asks, as `shmlog.client.member_thread` does it."""
        if self.is_over or self.muted:
            return
        membership, now = self.membership, self.world.now_ns
        for asked in membership.requests(now):
            self._submit(asked)
        due_ns = membership.due_ns()
        if due_ns < 1 << 62 and not now < self._due_ns <= due_ns:
            self._due_ns = due_ns
            self.after(max(due_ns - now, 1), self._pump)

    def _submit(self, asked: Asked) -> None:
        message = msgspec.to_builtins(asked.message)

        def told(answer: Answer | None, _: list[bytes]) -> None:
            if self.is_over:
                return
            asked.on_done(_outcome(message["op"], answer), self.world.now_ns)
            self._follow()
            self._pump()

        self._send(asked.endpoint, message, told)

    def _send(self, endpoint: str | None, message: dict[str, Any], told: Callback) -> None:
        brokers = self.world.brokers
        broker = self.rng.choice(brokers) if endpoint is None else int(endpoint[len("ipc://c") :])
        fields = {k: v for k, v in message.items() if k not in ("id", "timeout_ms")}
        info = GroupAnswer(self.groups.checker, fields)
        timeout_ms = self.timeout_ms + fields.get("max_wait_ms", 0)
        self.ask(broker, fields, told, (), info, timeout_ms)

    def hurry(self) -> None:
        """What is left to read is to be read within a bound."""
        self.work_ms, self.max_bytes = 2, 1 << 20

    def mute(self, muted: bool) -> None:
        self.muted = muted
        self._pump()

    # -- the application ----------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Take and give up what there is news of."""
        membership = self.membership
        if not membership.has_news:
            return
        news = membership.news()
        for tp in news.lost:
            self.readers.pop(tp, None)
        membership.release(list(news.lost))
        if membership.fatal is not None:
            if membership.fatal.code not in TAKEN:
                raise Violation(f"L6 {self} is refused for good: {membership.fatal!r}")
            self.is_over = True
            self.groups.refused(self)
            return
        going = [self.readers[tp] for tp in news.releasing if not self.readers[tp].going]
        if going:
            for reader in going:
                reader.going = True
            self.after(self.rng.randrange(1, self.work_ms * MS), self._give_up, going)
        mine = membership.take(news.assigned)
        for tp, topic_id in mine.items():
            self.groups.checker.takes(self, tp, topic_id)
            removed = self.groups.checker.removed[self.name]
            self.readers[tp] = _Reader(tp, topic_id, removed)
        if mine:
            self._place([self.readers[tp] for tp in mine])

    def _has(self, reader: _Reader) -> bool:
        return not self.is_over and self.readers.get(reader.tp) is reader

    def _give_up(self, readers: list[_Reader]) -> None:
        def release(_: bool = True) -> None:
            for reader in readers:
                if self._has(reader):
                    del self.readers[reader.tp]
                    self.membership.release([reader.tp])
            self._follow()
            self._pump()

        if self.auto:
            self._commit(self.membership.unsaved(), release)
        else:
            release()

    def _commit(self, marks: dict[TopicPartition, Mark], then: Callable[[bool], None]) -> None:
        """`then` is told whether it was answered."""
        mine = {tp: mark for tp, mark in marks.items() if self.membership.has(tp)}
        if not mine:
            then(True)
            return
        message = msgspec.to_builtins(self.membership.commit(mine))
        tries = iter(range(4))

        def told(answer: Answer | None, _: list[bytes]) -> None:
            error = _outcome("commit", answer).error
            if error is None:
                assert answer is not None
                self.membership.stored(mine, answer["partitions"])
            elif error.retriable and next(tries, None) is not None and not self.is_over:
                self.after(self.rng.randrange(MS, 200 * MS), again)
                return
            then(error is None)

        def again() -> None:
            self._send(self.membership.coordinator, message, told)

        again()

    def _place(self, readers: list[_Reader]) -> None:
        """Where does the group go on?"""
        readers = [reader for reader in readers if self._has(reader)]
        if not readers:
            return
        partitions = [{"topic": r.tp.topic, "partition": r.tp.partition} for r in readers]
        message = {"op": "committed", "group": self.name[0], "partitions": partitions}

        def told(answer: Answer | None, _: list[bytes]) -> None:
            if answer is None or answer["error"]:
                self.after(self.rng.randrange(MS, 100 * MS), self._place, readers)
                return
            for reader, found in zip(readers, answer["partitions"], strict=True):
                if not self._has(reader):
                    continue
                reader.position = 0
                if found["offset"] >= 0 and found["topic_id"] == reader.topic_id:
                    reader.position = found["offset"]
                    self.membership.begin({reader.tp: Mark(found["offset"])})
                self._read(reader)

        self._send(self.membership.coordinator, message, told)

    def _read(self, reader: _Reader) -> None:
        if not self._has(reader) or reader.going:
            return
        leader = self.leaders.get(reader.part, -1)
        if leader < 0:
            self.after(self.rng.randrange(MS, 50 * MS), self.find, lambda: self._later(reader))
            return

        def told(answer: Answer | None, _: list[bytes]) -> None:
            if not self._has(reader) or reader.going:
                return
            if answer is not None and not answer["error"]:
                self._take(reader, answer["next_offset"])
            elif answer is not None and answer["error"] == Code.OFFSET_OUT_OF_RANGE:
                self._out_of_range(reader, answer)
            else:
                self.leaders.pop(reader.part, None)
                self._later(reader)

        message = {
            "op": "fetch",
            "mode": "simple",
            "topic": reader.tp.topic,
            "partition": reader.tp.partition,
            "topic_id": reader.topic_id,
            "offset": reader.position,
            "max_bytes": self.max_bytes,
            "max_wait_ms": 300,
        }
        self.ask(leader, message, told)

    def _later(self, reader: _Reader) -> None:
        self.after(self.rng.randrange(MS, 100 * MS), self._read, reader)

    def _take(self, reader: _Reader, end: int) -> None:
        """Records are in the application's hands; a while later they are finished."""
        if end <= reader.position:
            self._later(reader)
            return
        self._hand(reader, end)
        self.groups.handed += 1
        self.after(self.rng.randrange(1, self.work_ms * MS), self._finish, reader, Mark(end))

    def _hand(self, reader: _Reader, end: int) -> None:
        self.groups.checker.handed(self.name[0], reader.part, reader.position, end)
        reader.position = end

    def _finish(self, reader: _Reader, mark: Mark) -> None:
        if not self._has(reader):
            return
        if self.auto:
            self.membership.finish(reader.tp, mark, self.world.now_ns)
            self._pump()
            self._read(reader)
        else:

            def then(done: bool) -> None:
                if done:
                    self._read(reader)
                else:
                    self.after(self.rng.randrange(100 * MS), self._finish, reader, mark)

            self._commit({reader.tp: mark}, then)

    def _out_of_range(self, reader: _Reader, answer: Answer) -> None:
        truth = self.checker.truths[reader.part]
        log_start = answer.get("log_start", -1)
        if log_start > reader.position:
            self._hand(reader, log_start)
        elif truth.losses:
            reader.position = min(reader.position, truth.end)
        elif reader.part[0] in self.checker.image.names:
            raise Violation(f"I18 {self} is out of range: {answer}")
        self.leaders.pop(reader.part, None)
        self._later(reader)

    def leave(self) -> None:
        """Close the consumer: commit, give up everything, leave; the request is sent once."""
        if self.is_over:
            return
        for reader in self.readers.values():
            reader.going = True

        def go(_: bool) -> None:
            if self.is_over:
                return
            self.is_over = True
            if self.membership.epoch > 0:
                message = msgspec.to_builtins(self.membership.leave())
                self._send(self.membership.coordinator, message, lambda *_: None)

        self._commit(self.membership.unsaved() if self.auto else {}, go)

    def why_not_done(self) -> str:
        """L6: has it read and committed everything of what it has?"""
        if self.membership.unsaved():
            return f"{self} has {self.membership.unsaved()} to commit"
        for reader in self.readers.values():
            end = self.checker.truths[reader.part].end
            if reader.position < end:
                return f"{self} is at {reader.position} of {reader.tp}, which ends at {end}"
        return ""


def _outcome(op: str, answer: Answer | None) -> Outcome:
    if answer is None:
        return Outcome(None, (), LeaderUnavailable("no answer"), False)
    if answer["error"]:
        return Outcome(None, (), error_of(msgspec.msgpack.encode(answer)), True)
    return Outcome(msgspec.convert(answer, ANSWERS[op]), (), None, True)


class Groups:
    """The groups of one life, and what befalls their members."""

    def __init__(self, load: Workload) -> None:
        self.load, self.world = load, load.world
        self.rng = random.Random(f"members {load.world.seed}")
        self.checker = load.checker.groups = GroupChecker(load.checker)
        self.names = [f"g{i}" for i in range(self.rng.choice((1, 1, 2)))]
        self.hosts: list[Host] = []
        self.numbers = iter(range(10_000, 20_000))  # of clients
        self.every_ms = self.rng.choice((150, 400, 1200))
        self.remote = self.rng.choice((0.0, 0.3, 1.0))  # share of hosts
        self.static = self.rng.choice((0.0, 0.4, 1.0))  # share of members
        kinds = ("kill", "stop", "mute", "leave")
        self.kinds = [kind for kind in kinds if self.rng.random() < 0.6]
        self.calm = False
        self.handed = 0

    def start(self) -> None:
        self.world.after(self.rng.randrange(1000 * MS), self._tick)

    def _members(self, group: str = "") -> list[Member]:
        members = [member for host in self.hosts for member in host.members if member.is_in]
        return [member for member in members if group in ("", member.name[0])]

    def _host(self) -> Host:
        rng = self.rng
        old = [h for h in self.hosts if h.alive and not h.stopped and len(h.members) < 2]
        if old and rng.random() < 0.3:
            return rng.choice(old)
        pid = 0
        hosts = self.world.hosts
        if rng.random() >= self.remote:
            free = [h.pid for h in self.hosts if h.exited and h.pid and hosts.get(h.pid, h) is h]
            pid = rng.choice(free) if free and rng.random() < 0.3 else next(self.world.numbers)
        self.hosts.append(Host(self, pid))
        return self.hosts[-1]

    def _add(self, group: str, instance: str = "") -> None:
        number = next(self.numbers)
        if not instance and self.rng.random() < self.static:
            instance = f"i{number}"
        member = Member(self, number, self._host(), group, instance)
        if self.calm:
            member.hurry()

    def _come_back(self, group: str, instance: str) -> None:
        others = [m for m in self._members(group) if m.instance == instance]
        if len(self._members(group)) < MEMBERS_MAX and not others:
            self._add(group, instance)

    def refused(self, member: Member) -> None:
        """Its instance is another's, or the one before lives, or seems to: it may come again."""
        self._after(3000, self._come_back, member.name[0], member.instance)

    def _after(self, high_ms: int, action: Callable[..., Any], *args: Any) -> None:
        self.world.after(self.rng.randrange(high_ms * MS // 20, high_ms * MS), action, *args)

    def _tick(self) -> None:
        self._after(self.every_ms * 2, self._tick)
        if self.calm:
            for group in self.names:  # the last one may have been about to leave
                if not self._members(group):
                    self._add(group)
            return
        group = self.rng.choice(self.names)
        members = self._members(group)
        if len(members) < self.rng.randrange(1, MEMBERS_MAX + 1):
            self._add(group)
        elif self.kinds:
            kind = self.rng.choice(self.kinds)
            self.world.count(f"groups: {kind}")
            member = self.rng.choice(members)
            self.world.trace("group", kind, *member.name)
            getattr(self, "_" + kind)(member)

    def _kill(self, member: Member) -> None:
        self._killed([member.host])

    def _killed(self, hosts: Iterable[Host]) -> None:
        for host in hosts:
            lost = [m for m in host.members if m.is_in and m.instance]
            host.die()
            for one in lost:
                if self.rng.random() < 0.8:
                    self._after(self.rng.choice((200, 3000)), self._come_back, *_again(one))

    def _stop(self, member: Member) -> None:
        member.host.stopped = True
        self._after(self.rng.choice((500, 3000, 12_000)), member.host.resume)

    def _mute(self, member: Member) -> None:
        member.muted = True
        self._after(self.rng.choice((500, 3000, 12_000)), member.host.run, member.mute, False)

    def _leave(self, member: Member) -> None:
        member.host.run(member.leave)
        if member.instance and self.rng.random() < 0.7:
            self._after(3000, self._come_back, *_again(member))
        if self.rng.random() < 0.5:
            self._after(2000, member.host.die)

    def rebooted(self) -> None:
        """Those on this machine are gone."""
        for host in self.hosts:
            if host.pid and host.alive:
                host.crash_now()
                for member in host.members:
                    for link in member.links.values():
                        if link.open:
                            link.close()
        self.world.hosts.clear()

    def heal(self) -> None:
        """From now on nobody goes, and every group has a member."""
        self.calm = True
        for host in self.hosts:
            if host.alive and not any(member.is_in for member in host.members):
                host.die()
            host.resume()
            for member in host.members:
                member.hurry()
                host.run(member.mute, False)

    def why_not_done(self) -> str:
        """L6: each group is stable, its members have what it wants, and have read it to the end."""
        image = self.load.checker.image
        for group in self.names:
            members = self._members(group)
            names = {name for m in members for name in self._wanted(m)}
            wanted = {
                (image.topics[name].topic_id, index)
                for name in names
                for index in range(len(image.topics[name].partitions))
            }
            why = self.checker.why_not_stable(group, wanted)
            if why:
                return why
            found = self.checker.groups[group].members
            if sorted(found) != sorted(m.name[1] for m in members):
                return f"{group} has {sorted(found)}, living are {members}"
            for member in members:
                assigned = set(found[member.name[1]].assigned)
                if {r.part for r in member.readers.values() if not r.going} != assigned:
                    return f"{member} reads {list(member.readers)}, assigned is {assigned}"
                if why := member.why_not_done():
                    return why
        return ""

    def _wanted(self, member: Member) -> list[str]:
        topics = self.load.checker.image.topics
        given = member.membership._topics
        return [t for t in topics if not t.startswith("__") and (given == ["t*"] or t in given)]


def _again(member: Member) -> tuple[str, str]:
    return member.name[0], member.instance
