"""The groups of one partition of the internal topic, while this broker leads it.

    request -> change in memory --+
    death, time, news of topics --+--> flush: plan, settle --> one batch --> appended, written with the turn
                                                                  |
            answer, as things stood at the flush  <---- high watermark >= end of that batch

So nobody is shown what is not stored on enough brokers, and everything that one turn has brought costs one batch.
What memory holds is exactly what the log says up to `end`. Where an append fails that is not so any more: all that
wait are told, and the shard is read anew.

A heartbeat is a long poll: it is parked until its member has to be told something, or its time is up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from node import journal
from node.core.groups import records
from node.core.groups.group import Group, Topics
from node.core.groups.state import Member
from node.handlers.exchange import COMMITTED, Context, Exchange
from node.handlers.lookup import not_coordinator
from node.partition import Partition
from shmlog.clock import NS_PER_S
from shmlog.errors import (
    Code,
    CorruptLog,
    LeaderUnavailable,
    RequestTimedOut,
    ShmlogError,
)
from shmlog.records import batch as batches
from shmlog.records.builder import build

LOAD_BYTES = 256 << 10  # in one turn
BATCH_BYTES = 4 << 20  # a larger flush takes several batches; what belongs together stays together
RELOAD_NS = NS_PER_S  # after an append that failed
NEWS = "news"  # the channel of a group's `version`

MemberKey = tuple[str, str]  # group and member


@dataclass(slots=True, eq=False)
class Heard:
    """What the coordinator knows of a member beside what is stored. Times are monotonic."""

    at_ns: int
    client: bytes = b""
    told: object = None  # what the last answer said
    beat: Beat | None = None  # the heartbeat that waits
    is_watched: bool = False  # its process is, so that silence means nothing
    releasing_ns: int = 0  # since when it has something to give up; 0: it has not
    gone_ns: int = 0  # when the process of a static member died


class Shard:
    """See above. One owner: the loop. `topics` gives the topics as the image has them now."""

    def __init__(
        self, context: Context, partition: Partition, topics: Callable[[], Topics], now_ns: int
    ) -> None:
        self.partition = partition
        self.leader_epoch = partition.leader_epoch
        self.groups: dict[str, Group] = {}
        self.heard: dict[MemberKey, Heard] = {}
        self.is_loaded = False
        self.is_active = False  # has something changed, or somebody asked, since the last flush?
        self.is_over = False
        self.end = 0  # of what memory holds
        self._context = context
        self._topics = topics
        self._position = partition.log_start
        self._load_ns: int | None = now_ns  # when to go on; None: damage stands in the way
        self._changed: dict[str, None] = {}  # groups
        self._beats: list[Beat] = []
        self._replies: list[tuple[Exchange, Callable[[], Any]]] = []

    # -- who leads ------------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Is this still the coordinator?"""
        partition = self.partition
        return (
            not self.is_over
            and partition.leader is not None
            and partition.leader_epoch == self.leader_epoch
            and self._context.partitions.get(partition.name) is partition
        )

    def not_coordinator(self) -> ShmlogError:
        """Another broker is, or will be; or this one reads anew."""
        return not_coordinator(self._context, self.partition.state)

    def stop(self) -> None:
        """Another broker leads, or the log is read anew: all that wait are told."""
        self.is_over = True
        parked = [
            waiter
            for group in self.groups.values()
            for waiter in self._context.purgatory.drop_key((group, NEWS))
        ]
        waiting = [beat.exchange for beat in (*parked, *self._beats) if isinstance(beat, Beat)]
        for exchange in (*waiting, *(exchange for exchange, _ in self._replies)):
            exchange.fail(self.not_coordinator())
        self._beats, self._replies = [], []

    # -- loading --------------------------------------------------------------------------------------

    def load_due_ns(self) -> int | None:
        """When to go on reading; None: all is read, or the rest cannot be."""
        return None if self.is_loaded else self._load_ns

    def load(self, now_ns: int) -> bool:
        """Read on, a bounded step; True once all that was committed before this epoch is here."""
        partition = self.partition
        if self._load_ns is None or now_ns < self._load_ns:
            return False
        end = partition.log.log_end_offset
        if self._position < end:
            try:
                self._take(partition.read_for_replica(self._position, LOAD_BYTES))
            except CorruptLog as error:
                journal.failure("groups cannot be read", error, partition=str(partition.name))
                self._load_ns = None
            return False
        assert partition.leader is not None
        if not partition.leader.latest_known:
            self._load_ns = now_ns + NS_PER_S // 100
            return False
        self.is_loaded, self.end = True, end
        return True

    def _take(self, data: bytes) -> None:
        view = memoryview(data)
        for position, header in batches.iterate(view):
            if header.end_offset <= self._position:
                continue
            batch = batches.RecordBatch(view[position:], header)
            keys, values = batch.keys(), batch.values()
            for key, value in zip(keys, values, strict=True):
                self._take_record(bytes(key or b""), None if value is None else bytes(value))
            self._position = header.end_offset

    def _take_record(self, key: bytes, value: bytes | None) -> None:
        try:
            records.read(self.groups, key, value)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptLog(
                f"{self.partition.name}: a record of groups cannot be read ({error}): "
                "it was written by another version"
            ) from None

    # -- changes --------------------------------------------------------------------------------------

    def changed(self, group: Group) -> None:
        """A group has been changed: it is planned and stored by the next flush."""
        self._changed[group.name] = None
        self.is_active = True

    def reply(self, exchange: Exchange, message: Callable[[], Any]) -> None:
        """Answer with what `message` makes right after the next flush, once all that it shows is stored."""
        self._replies.append((exchange, message))
        self.is_active = True

    def park(self, beat: Beat) -> None:
        """A heartbeat, to be answered when there is something to say."""
        self._beats.append(beat)
        self.is_active = True

    def flush(self, now_ns: int) -> None:
        """Plan what needs a plan, append what has changed, and let those who wait see how it is now."""
        self.is_active = False
        if self.partition.next_offset != self.end:
            # The disk was full and took back what stood in memory.
            self.stop()
            return
        names, self._changed = list(self._changed), {}
        groups = [self.groups[name] for name in names if name in self.groups]
        topics = self._topics()
        for group in groups:
            group.plan(topics, now_ns)
        try:
            self._append([self._rows(group) for group in groups])
        except ShmlogError as error:
            journal.warning(
                "groups not stored", partition=str(self.partition.name), reason=str(error)
            )
            self.stop()
            return
        for group in groups:
            for waiter in self._context.purgatory.advance((group, NEWS), group.version):
                waiter.resume()
        beats, self._beats = self._beats, []
        for beat in beats:
            beat.resume()
        replies, self._replies = self._replies, []
        for exchange, message in replies:
            _Stored(self._context, self, exchange, message()).resume()

    def _rows(self, group: Group) -> list[records.Row]:
        if group.members or group.offsets:
            return records.rows_of(group)
        # Nothing is left of it. Offsets that went in this very turn need their tombstones, too.
        del self.groups[group.name]
        return [*records.rows_of(group), *records.rows_without(group)]

    def _append(self, rows_of_groups: list[list[records.Row]]) -> None:
        """Raises ShmlogError: it is not in the log, or not all of it."""
        pending: list[records.Row] = []
        size = 0
        for rows in rows_of_groups:
            added = sum(len(key) + len(value or b"") for key, value in rows)
            if pending and size + added > BATCH_BYTES:
                self._append_batch(pending)
                pending, size = [], 0
            pending += rows
            size += added
        if pending:
            self._append_batch(pending)

    def _append_batch(self, rows: list[records.Row]) -> None:
        frame = build(
            [value for _, value in rows],
            keys=[key for key, _ in rows],
            timestamps=self._context.clock.wall_ns(),
        )
        if not self._context.has_lease:
            raise LeaderUnavailable("this broker has not heard from the controller for a session")
        self.end = self.partition.append(bytes(frame), "all").end_offset
        self._context.dirty[self.partition] = None


class _Stored:
    """An answer that waits until all that it shows is stored."""

    def __init__(self, context: Context, shard: Shard, exchange: Exchange, message: Any) -> None:
        self._context = context
        self._shard = shard
        self._end = shard.end
        self._exchange = exchange
        self._message = message

    def resume(self) -> None:
        partition = self._shard.partition
        if not self._shard.leads:
            self._exchange.fail(self._shard.not_coordinator())
        elif partition.high_watermark >= self._end:
            self._exchange.answer(self._message)
        elif partition.next_offset < self._end:
            self._exchange.fail(
                LeaderUnavailable(
                    "the coordinator's disk is full", code=Code.COORDINATOR_NOT_AVAILABLE
                )
            )
        else:
            threshold = ((partition, COMMITTED), self._end)
            self._context.purgatory.wait(self, [threshold], self._exchange.deadline_ns)

    def expire(self) -> None:
        self._exchange.fail(
            RequestTimedOut("the group's change was not stored in time; it may be later")
        )


class Beat:
    """A heartbeat that waits for news."""

    def __init__(
        self,
        context: Context,
        shard: Shard,
        group: Group,
        member: str,
        instance: str,
        exchange: Exchange,
        until_ns: int,
        answer: Callable[[Exchange, Group, Member], Any],
    ) -> None:
        self.exchange = exchange
        self._context = context
        self._shard = shard
        self._group = group
        self._member = member
        self._instance = instance
        self._until_ns = until_ns
        self._answer = answer

    def resume(self) -> None:
        """Answer if there is something to say."""
        member, heard = self._find()
        if member is None or heard is None:
            return
        if told_of(member) != heard.told:
            self._tell(member, heard)
        else:
            heard.beat = self
            threshold = ((self._group, NEWS), self._group.version + 1)
            self._context.purgatory.wait(self, [threshold], self._until_ns)

    def expire(self) -> None:
        """Time is up: say how it is, which is how it was."""
        member, heard = self._find()
        if member is not None and heard is not None:
            self._tell(member, heard)

    def supersede(self) -> None:
        """A newer heartbeat of the member has come: it gets the news."""
        self._context.purgatory.remove(self)
        self.expire()

    def _find(self) -> tuple[Member | None, Heard | None]:
        heard = self._shard.heard.get((self._group.name, self._member))
        member = self._group.members.get(self._member)
        if heard is not None and heard.beat is self:
            heard.beat = None
        if member is None or heard is None:
            try:
                self._group.check(self._member, 0, self._instance)
            except ShmlogError as error:
                self.exchange.fail(error)
            else:
                raise AssertionError(f"member {self._member} is not known to its shard")
        return member, heard

    def _tell(self, member: Member, heard: Heard) -> None:
        heard.told = told_of(member)
        self._shard.reply(self.exchange, lambda: self._answer(self.exchange, self._group, member))


def told_of(member: Member) -> object:
    """What a member has to be told anew if it is another value than the last time."""
    return (member.epoch, member.state, tuple(member.assigned), tuple(member.releasing))
