"""The coordinator of consumer groups: which shards this broker has, who of their members lives, and what time does.

A group belongs to partition crc32(name) % 8 of the internal topic, and the broker that leads that partition is its
coordinator. A shard begins with the leadership and ends with it; in between it reads what the partition holds.

A member is dead when the kernel says that its process is, or, where there is no pidfd that proves anything, when it
has been silent for a session. A member whose process is watched may be silent for very long: slow work costs nobody
its partitions.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from node import journal
from node.core.cluster.image import Image
from node.core.cluster.topics import OFFSETS_PARTITIONS, OFFSETS_TOPIC
from node.core.groups.group import Group
from node.core.groups.state import Member, Process
from node.handlers.exchange import Context
from node.handlers.lookup import not_coordinator
from node.handlers.shard import RELOAD_NS, Heard, Shard
from node.io.members import Members
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.errors import Code, LeaderUnavailable

STALLED_NS, SLOW_RELEASE_NS = 45 * NS_PER_S, 10 * NS_PER_S  # shown, no more
TICK_NS = NS_PER_S
PAUSE_NS = 5 * NS_PER_S  # a tick that is so late tells of this broker, not of members


def partition_of(group: str) -> int:
    """The partition of the internal topic that a group belongs to."""
    return zlib.crc32(group.encode()) % OFFSETS_PARTITIONS


class Coordinator:
    """See above. One owner: the loop."""

    def __init__(self, context: Context, members: Members, boot_id: str) -> None:
        self._context = context
        self._members = members
        self._boot_id = boot_id
        self._shards: dict[int, Shard] = {}
        self._retry_ns: dict[int, int] = {}  # when a shard that failed begins again
        self._topics: dict[str, tuple[bytes, int]] = {}
        self._is_there = False  # the internal topic
        self._tick_ns = context.clock.monotonic_ns()
        context.coordinator = self

    def counts(self) -> dict[str, int]:
        """For the stats page."""
        shards = self._shards.values()
        return {
            "groups": sum(len(shard.groups) for shard in shards),
            "members": sum(len(shard.heard) for shard in shards),
        }

    # -- finding --------------------------------------------------------------------------------------

    def shard_of(self, group: str) -> Shard | None:
        """The shard of a group, ready; None: there is no internal topic yet.

        Raises: NotLeader (16): another broker is the coordinator. LeaderUnavailable (14, 15): wait.
        """
        return self._ready(partition_of(group)) if self._is_there else None

    def shards(self) -> list[Shard]:
        """All shards of this broker, ready. Raises LeaderUnavailable (14): one is being read."""
        me = self._context.identity.broker
        topic = self._context.metadata.image.topics.get(OFFSETS_TOPIC)
        led = [p.partition for p in topic.partitions if p.leader == me] if topic else []
        return [self._ready(index) for index in led]

    def _ready(self, index: int) -> Shard:
        state = self._context.metadata.image.topics[OFFSETS_TOPIC].partitions[index]
        if state.leader != self._context.identity.broker:
            raise not_coordinator(self._context, state)
        shard = self._shards.get(index)
        if shard is None or not shard.leads or not shard.is_loaded:
            raise LeaderUnavailable(
                "this broker has just become the group's coordinator",
                code=Code.COORDINATOR_LOAD_IN_PROGRESS,
            )
        if not self._can_store(shard):
            raise LeaderUnavailable(
                "too few brokers live to store what a group changes",
                code=Code.COORDINATOR_NOT_AVAILABLE,
            )
        return shard

    def _can_store(self, shard: Shard) -> bool:
        leader = shard.partition.leader
        return leader is not None and self._context.has_lease and leader.has_minimum

    # -- the turn -------------------------------------------------------------------------------------

    def follow(self, image: Image) -> None:
        """The image is new: what is led no more ends at once, and groups may read topics that have changed."""
        self._is_there = OFFSETS_TOPIC in image.topics
        for index in list(self._shards):
            self._end_unless_led(index, self._context.clock.monotonic_ns())
        topics = {
            name: (topic.topic_id, len(topic.partitions))
            for name, topic in image.topics.items()
            if not name.startswith("__")
        }
        if topics != self._topics:
            self._topics = topics
            for shard in self._shards.values():
                if shard.is_loaded:
                    self._news(shard)

    def _news(self, shard: Shard) -> None:
        there = {topic_id for topic_id, _ in self._topics.values()}
        for group in shard.groups.values():
            for part in [part for part in group.offsets if part[0] not in there]:
                group.set_offset(part, None)
                shard.changed(group)
            epoch = group.epoch
            group.topics_changed(self._topics)
            if group.epoch != epoch:
                shard.changed(group)

    def flush(self, now_ns: int) -> None:
        """Store and answer what this turn has brought."""
        for shard in self._shards.values():
            while shard.is_active and not shard.is_over:
                shard.flush(now_ns)

    def turn(self, now_ns: int) -> None:
        """Begin and end shards, read on, let time pass."""
        if not self._is_there:
            return
        for index in range(OFFSETS_PARTITIONS):
            self._follow(index, now_ns)
        if now_ns >= self._tick_ns:
            self._tick(now_ns)
        self.flush(now_ns)

    def next_deadline_ns(self) -> int | None:
        """When to turn next though nobody asks; None: there is nothing here."""
        if not self._shards:
            return None
        due = [due for s in self._shards.values() if (due := s.load_due_ns()) is not None]
        return min((self._tick_ns, *due))

    def _end_unless_led(self, index: int, now_ns: int) -> None:
        shard = self._shards[index]
        if shard.leads:
            return
        if not shard.is_over:
            shard.stop()
        else:
            self._retry_ns[index] = now_ns + RELOAD_NS
        for group, member in shard.heard:
            self._members.remove((group, member))
        del self._shards[index]

    def _follow(self, index: int, now_ns: int) -> None:
        if index in self._shards:
            self._end_unless_led(index, now_ns)
        shard = self._shards.get(index)
        if shard is None:
            partition = self._context.partitions.get((OFFSETS_TOPIC, index))
            if partition is None or partition.leader is None:
                self._retry_ns.pop(index, None)
                return
            begin_ns = self._retry_ns.pop(index, now_ns)
            shard = Shard(self._context, partition, lambda: self._topics, begin_ns)
            self._shards[index] = shard
        if not shard.is_loaded and shard.load(now_ns):
            self._loaded(shard, now_ns)

    def _loaded(self, shard: Shard, now_ns: int) -> None:
        """Who of the members lives? Those that nobody watches have one session from now on."""
        for group in list(shard.groups.values()):
            for member in list(group.members.values()):
                key = (group.name, member.id)
                heard = shard.heard[key] = Heard(now_ns, gone_ns=now_ns if member.is_gone else 0)
                process = member.process
                if not process.pid or member.is_gone:
                    continue
                same = process.boot == self._boot_id
                started = self._members.add(key, process.pid) if same else None
                heard.is_watched = started == process.started
                if not heard.is_watched:
                    self._died(shard, group, member, now_ns)
        journal.event("coordinating", partition=str(shard.partition.name), groups=len(shard.groups))
        self._news(shard)

    # -- members --------------------------------------------------------------------------------------

    def process_of(self, key: tuple[str, str], pid: int) -> Process:
        """The process of a member that joins, watched from now on if it can be."""
        started = self._members.add(key, pid)
        return Process() if started is None else Process(pid, started, self._boot_id)

    def forget(self, shard: Shard, key: tuple[str, str]) -> None:
        """A member is no more."""
        shard.heard.pop(key, None)
        self._members.remove(key)

    def readable(self, descriptors: Iterable[int], now_ns: int) -> None:
        """These descriptors have become readable: whose process is dead?"""
        for key in self._members.readable(descriptors):
            group_name, member_name = key
            for shard in self._shards.values():
                group = shard.groups.get(group_name)
                if group is not None and member_name in group.members and shard.is_loaded:
                    self._died(shard, group, group.members[member_name], now_ns)

    def _died(self, shard: Shard, group: Group, member: Member, now_ns: int) -> None:
        key = (group.name, member.id)
        self._members.remove(key)
        if member.instance:
            shard.heard[key].gone_ns, shard.heard[key].is_watched = now_ns, False
            group.gone(member)
            shard.changed(group)
        else:
            self.remove(shard, group, member, "died")

    def remove(self, shard: Shard, group: Group, member: Member, why: str) -> None:
        """Its partitions are free."""
        journal.event("member gone", group=group.name, member=member.id, why=why)
        group.remove(member.id, why, self._context.clock.wall_ns())
        self.forget(shard, (group.name, member.id))
        shard.changed(group)

    def _tick(self, now_ns: int) -> None:
        late_ns = now_ns - self._tick_ns
        self._tick_ns = now_ns + TICK_NS
        for shard in self._shards.values():
            if late_ns > PAUSE_NS:
                for heard in shard.heard.values():
                    heard.at_ns += late_ns
            elif shard.is_loaded and not self._can_store(shard):
                for heard in shard.heard.values():  # whoever spoke was refused: that was no silence
                    heard.at_ns, heard.gone_ns = now_ns, heard.gone_ns and now_ns
            elif shard.is_loaded:
                self._judge(shard, now_ns)
                self._expire_offsets(shard)

    def _judge(self, shard: Shard, now_ns: int) -> None:
        settings = self._context.settings
        session_ns = settings.session_timeout * NS_PER_MS
        stalled_ns = settings.stalled_member_timeout * NS_PER_MS
        for (group_name, member_name), heard in list(shard.heard.items()):
            group = shard.groups[group_name]
            member = group.members[member_name]
            silent_ns = now_ns - heard.at_ns
            if heard.beat is not None:
                heard.at_ns = now_ns  # it waits here
            elif member.is_gone:
                if now_ns - heard.gone_ns > session_ns:
                    self.remove(shard, group, member, "did not come back")
            elif silent_ns > session_ns and not heard.is_watched:
                self.remove(shard, group, member, "was silent")
            elif silent_ns > stalled_ns >= 0:
                self.remove(shard, group, member, "was silent for very long")

    def _expire_offsets(self, shard: Shard) -> None:
        retention_ns = self._context.settings.offsets_retention * NS_PER_MS
        if retention_ns < 0:
            return
        now_ns = self._context.clock.wall_ns()
        for group in shard.groups.values():
            if group.members or not group.offsets:
                continue
            newest_ns = max(offset.time_ns for offset in group.offsets.values())
            if now_ns - max(group.empty_since_ns, newest_ns) > retention_ns:
                for part in list(group.offsets):
                    group.set_offset(part, None)
                shard.changed(group)

    def is_stalled(self, member: Member, heard: Heard, now_ns: int) -> bool:
        """Is it silent, or slow to give something up?"""
        silent = heard.beat is None and now_ns - heard.at_ns > STALLED_NS
        slow = heard.releasing_ns > 0 and now_ns - heard.releasing_ns > SLOW_RELEASE_NS
        return not member.is_gone and (silent or slow)
