"""A consumer's membership in a group, as the application's thread uses it."""

from __future__ import annotations

import functools
import random
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from shmlog.client.bootstrap import Where
from shmlog.client.engine import API_TIMEOUT_NS, Engine
from shmlog.client.member_thread import MemberThread
from shmlog.client.membership import Mark, Membership, News, Parts
from shmlog.clock import NS_PER_S
from shmlog.errors import PartitionMoved, RequestTimedOut, ShmlogError
from shmlog.ids import TopicPartition
from shmlog.protocol.group_messages import Committed, CommittedOffset, GroupPartition

_CLOSE_NS = 5 * NS_PER_S  # for the last commit
_CLOSE_S = 3.0


class OnRevoke(Protocol):
    """Told which partitions go; `lost`: they are another member's already, nothing can be committed."""

    def __call__(self, partitions: list[TopicPartition], /, *, lost: bool) -> object:
        """The member stops using the partitions when this returns."""
        ...


OnAssign = Callable[[list[TopicPartition]], object]


class GroupMember:
    """Joins at once, and stays until `close`, or until it is collected."""

    def __init__(
        self,
        engine: Engine,
        where: Where,
        group: str,
        topics: Iterable[str],
        *,
        instance: str,
        assignor: str,
        commit_interval_ns: int,
        request_timeout_ns: int,
        rng: random.Random | None,
    ) -> None:
        self.group = group
        self._engine = engine
        self._thread = MemberThread(
            where,
            functools.partial(
                _membership, group, tuple(topics), instance, assignor, commit_interval_ns
            ),
            engine.check().wake,  # of the sockets: the engine knows the consumer, which the thread must not keep
            request_timeout_ns=request_timeout_ns,
            rng=rng,
        )
        self._lock = self._thread.lock
        self.membership = self._thread.membership
        self._thread.start()

    @property
    def has_news(self) -> bool:
        """Is there something for `news`?"""
        return self.membership.has_news

    @property
    def is_abandoned(self) -> bool:
        """This is a copy made by fork: the member is the parent's."""
        return self._thread.is_abandoned

    @property
    def is_settled(self) -> bool:
        """Nothing is about to change, as far as is known."""
        with self._lock:
            return self.membership.is_settled

    def wait_joined(self) -> None:
        """Raises: RequestTimedOut; what the coordinator refused."""
        member = self.membership
        now = self._engine.now()
        if not self._engine.wait(
            lambda: bool(member.state) or member.fatal is not None, now + API_TIMEOUT_NS
        ):
            raise RequestTimedOut(f"group {self.group!r}: no coordinator answered in time")

    def news(self) -> News:
        """What has changed. Raises what ended the membership, once all that was lost is released."""
        with self._lock:
            news = self.membership.news()
            if self.membership.fatal is not None and not news.lost:
                raise self.membership.fatal
            return news

    def take(self, parts: Parts) -> Parts:
        """From now on these are read; those that still may be."""
        with self._lock:
            return self.membership.take(parts)

    def begin(self, marks: Mapping[TopicPartition, Mark]) -> None:
        """Reading begins at committed offsets."""
        with self._lock:
            self.membership.begin(marks)

    def release(self, parts: Iterable[TopicPartition]) -> None:
        """These are not read any more."""
        with self._lock:
            self.membership.release(parts)
        self._thread.wake()

    def finish(self, tp: TopicPartition, mark: Mark) -> None:
        """All before `mark` is finished, to be committed by and by."""
        now = self._engine.now()
        with self._lock:
            due = self.membership.finish(tp, mark, now)
        if due:
            self._thread.wake()

    def save(self, timeout_ns: int = API_TIMEOUT_NS) -> None:
        """Commit what is finished, now. Raises as `commit`."""
        with self._lock:
            marks = self.membership.unsaved()
        self.commit(marks, timeout_ns)

    def commit(
        self, marks: Mapping[TopicPartition, Mark], timeout_ns: int = API_TIMEOUT_NS
    ) -> None:
        """Returns when the offsets are stored, durably.

        Raises: PartitionMoved: a partition is another member's by now; the others were stored.
        """
        member = self.membership
        errors: list[ShmlogError] = []
        with self._lock:
            mine = {tp: mark for tp, mark in marks.items() if member.has(tp)}
            message, endpoint = member.commit(mine) if mine else None, member.coordinator
        if message is not None:
            answer = self._engine.ask(message, timeout_ns, endpoint=endpoint)
            with self._lock:
                errors = member.stored(mine, answer.partitions)
        for tp in sorted(marks.keys() - mine.keys()):
            text = f"{tp} is no partition of this member (any more)"
            errors.append(PartitionMoved(text, topic=tp.topic, partition=tp.partition))
        if errors:
            raise errors[0]

    def committed(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, CommittedOffset]:
        """The group's committed offsets of these partitions, as far as there are any."""
        asked = [GroupPartition(topic=tp[0], partition=tp[1]) for tp in tps]
        message = Committed(op="committed", id=0, group=self.group, partitions=asked)
        answer = self._engine.ask(message, endpoint=self.membership.coordinator)
        return {
            TopicPartition(found.topic, found.partition): found
            for found in answer.partitions
            if found.offset >= 0
        }

    def save_last(self) -> None:
        """`save`, within the time that a close may take."""
        self.save(_CLOSE_NS)

    def close(self, wait: bool = True) -> None:
        """Leave the group. Idempotent."""
        self._thread.stop()
        if wait and not self._thread.is_abandoned:
            self._thread.join(_CLOSE_S)


def _membership(
    group: str,
    topics: tuple[str, ...],
    instance: str,
    assignor: str,
    interval_ns: int,
    engine: Engine,
) -> Membership:
    return Membership(
        group,
        topics,
        str(uuid.uuid4()),
        engine.session.backoff,
        instance=instance,
        assignor=assignor,
        client=Path(sys.argv[0]).name[:100] if sys.argv else "",
        commit_interval_ns=interval_ns,
    )
