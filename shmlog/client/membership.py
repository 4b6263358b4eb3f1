"""One member of one consumer group, without I/O: answers and time in, requests out.

    heartbeat (epoch 0: join) --answer--> assigned, releasing --> claimed --take--> taken, by the application
          ^                                   |                      |
          +--- at once, or when `owned` ------+                      +-- releasing and not taken: given up at once
               has changed                                           +-- releasing and taken: `news`, `release`

What is *claimed* is what heartbeats call `owned`: the member claims what it is assigned when it hears of it; the
application takes it when it asks for its next batch. So a slow application holds back only what it has in its hands.

A member that is fenced (25, 110) has *lost* all that was taken, and joins again. One that is refused for good, or
whose instance id is another process's (82), has `fatal`.

Automatic commits: the application tells what it has finished; one request at a time goes out, a commit interval
after the first news, with the newest offset of each partition. Commits are numbered, so a late copy changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from shmlog.client.session import Backoff, Outcome, entry_error
from shmlog.errors import Code, ShmlogError
from shmlog.ids import TopicPartition
from shmlog.protocol.group_messages import (
    HEARTBEAT_MS,
    Commit,
    GroupHeartbeat,
    GroupHeartbeatAnswer,
    GroupLeave,
    OffsetCommit,
    TopicPartitions,
)
from shmlog.protocol.messages import Request

_FENCED = frozenset({Code.UNKNOWN_MEMBER_ID, Code.FENCED_MEMBER_EPOCH})
_FOREVER_NS = 1 << 62

Parts = dict[TopicPartition, str]  # partitions, and the ids of their topics
OnDone = Callable[[Outcome, int], None]


class Mark(NamedTuple):
    """How far a partition's reading has come: the next offset, and the leader epoch of the record before it."""

    offset: int
    leader_epoch: int = -1
    metadata: str = ""


class News(NamedTuple):
    """What has changed for the application: partitions it has lost, has to give up, may read; and automatic commits
    that were refused.
    """

    lost: Parts
    releasing: Parts
    assigned: Parts
    refused: list[ShmlogError]


class Asked(NamedTuple):
    """A request to go out. `endpoint` None: the coordinator is not known, ask any broker."""

    endpoint: str | None
    message: Request
    on_done: OnDone


class Membership:
    """See above. Not thread-safe; times are monotonic ns."""

    def __init__(
        self,
        group: str,
        topics: Sequence[str],
        member: str,
        backoff: Backoff,
        *,
        instance: str = "",
        assignor: str = "uniform",
        client: str = "",
        commit_interval_ns: int = 0,
    ) -> None:
        self.group = group
        self.member = member
        self.epoch = 0
        self.state = ""  # of the last answer; "": not joined
        self.coordinator: str | None = None
        self.fatal: ShmlogError | None = None
        self.refused: list[ShmlogError] = []  # automatic commits that failed for good
        self.has_news = False
        self.report_ns = 0  # when the application is to tell its progress within a batch
        self._topics = list(topics)
        self._instance, self._assignor, self._client = instance, assignor, client
        self._backoff = backoff
        self._interval_ns = commit_interval_ns
        self._assigned: Parts = {}
        self._releasing: Parts = {}
        self._claimed: Parts = {}
        self._taken: Parts = {}
        self._lost: Parts = {}
        self._life = 0  # +1 when it is fenced: what was asked before does not count
        self._beats = 0  # in flight
        self._told: Parts = {}
        self._attempts = 0
        self._retry_at_ns = 0
        self._numbers = itertools.count(1)
        self._finished: dict[TopicPartition, Mark] = {}
        self._stored: dict[TopicPartition, Mark] = {}
        self._commit_at_ns = _FOREVER_NS
        self._committing = False
        self._commit_attempts = 0

    # --- requests

    def requests(self, now: int) -> list[Asked]:
        """What to ask now."""
        asked = []
        if self.fatal is None and now >= self._retry_at_ns:
            changed = self.epoch > 0 and self._told != self._claimed
            if not self._beats or changed:
                asked.append(self._heartbeat())
        if self._commit_at_ns <= now and not self._committing:
            marks = self.unsaved()
            self._commit_at_ns = _FOREVER_NS
            if marks and self.epoch > 0:
                self._committing = True
                done = partial(self._committed, self._life, marks)
                asked.append(Asked(self.coordinator, self.commit(marks), done))
        return asked

    def due_ns(self) -> int:
        """When `requests` has something to say next, if nothing happens before."""
        beat_ns = _FOREVER_NS
        if self.fatal is None and (not self._beats or self._told != self._claimed):
            beat_ns = self._retry_at_ns
        return min(beat_ns, _FOREVER_NS if self._committing else self._commit_at_ns)

    def commit(self, marks: Mapping[TopicPartition, Mark]) -> Commit:
        """A numbered commit of partitions that are taken; from now on no automatic one goes back behind it."""
        self._finished.update(marks)
        return Commit(
            op="commit",
            id=0,
            group=self.group,
            member=self.member,
            member_epoch=self.epoch,
            number=next(self._numbers),
            offsets=[
                OffsetCommit(
                    topic=tp.topic,
                    partition=tp.partition,
                    topic_id=self._taken[tp],
                    offset=mark.offset,
                    leader_epoch=mark.leader_epoch,
                    metadata=mark.metadata,
                )
                for tp, mark in marks.items()
            ],
        )

    def leave(self) -> GroupLeave:
        """The last request; nothing else is asked any more, so the caller sees to this one."""
        return GroupLeave(op="group_leave", id=0, group=self.group, member=self.member)

    def _heartbeat(self) -> Asked:
        self._beats += 1
        self._told = dict(self._claimed)
        message = GroupHeartbeat(
            op="group_heartbeat",
            id=0,
            group=self.group,
            member=self.member,
            member_epoch=self.epoch,
            instance=self._instance,
            topics=self._topics,
            assignor=self._assignor,
            owned=_listed(self._claimed) if self.epoch else None,
            client=self._client,
            max_wait_ms=HEARTBEAT_MS,
        )
        return Asked(self.coordinator, message, partial(self._beaten, self._life))

    # --- answers

    def _beaten(self, life: int, outcome: Outcome, now: int) -> None:
        if life != self._life:
            return
        self._beats -= 1
        error = outcome.error
        if error is None:
            self._attempts = self._retry_at_ns = 0
            if outcome.answer.member_epoch >= self.epoch:
                self._hear(outcome.answer)
        elif error.code in _FENCED:
            self._fenced()
        elif error.retriable:
            self._attempts += 1
            self._retry_at_ns = now + self._retry_ns(self._attempts, outcome)
        else:
            self._fenced()
            self.fatal = error
            self.has_news = True

    def _retry_ns(self, attempts: int, outcome: Outcome) -> int:
        """How long to wait; the coordinator is the one named, or has to be found anew."""
        error = outcome.error
        assert error is not None
        named = error.facts.get("endpoint") if outcome.answered else None
        if named is not None and named != self.coordinator:
            self.coordinator = named
            return 0 if attempts == 1 else self._backoff.ns(attempts)
        if error.code not in (Code.COORDINATOR_LOAD_IN_PROGRESS, Code.BUSY):
            self.coordinator = None
        return self._backoff.ns(attempts)

    def _hear(self, answer: GroupHeartbeatAnswer) -> None:
        self.epoch, self.state = answer.member_epoch, answer.state
        self._assigned, self._releasing = _parts(answer.assigned), _parts(answer.releasing)
        mine = self._assigned | self._releasing
        for tp in [tp for tp, topic_id in self._taken.items() if mine.get(tp) != topic_id]:
            self._lost[tp] = self._taken.pop(tp)  # its topic is no more, or another one
            self._forget(tp)
        held = {tp: topic_id for tp, topic_id in self._releasing.items() if tp in self._taken}
        self._claimed = self._assigned | held
        self._look()

    def _fenced(self) -> None:
        self._life += 1
        self._lost |= self._taken
        for parts in (self._assigned, self._releasing, self._claimed, self._taken):
            parts.clear()
        self._finished.clear()
        self._stored.clear()
        self.epoch, self.state = 0, ""
        self._beats = 0
        self._look()

    def _committed(
        self, life: int, marks: dict[TopicPartition, Mark], outcome: Outcome, now: int
    ) -> None:
        self._committing = False
        error = outcome.error
        if life != self._life:
            return
        if error is not None and error.retriable:
            self._commit_attempts += 1
            self._commit_at_ns = now + self._retry_ns(self._commit_attempts, outcome)
            return
        self._commit_attempts = 0
        if error is None:
            self.refused += self.stored(marks, outcome.answer.partitions)
        else:
            self.refused.append(error)
            for tp, mark in marks.items():
                self._stored[tp] = mark  # not again
        if self.unsaved():
            self._commit_at_ns = min(self._commit_at_ns, now + self._interval_ns)
        self._look()

    # --- the application's side

    @property
    def is_settled(self) -> bool:
        """Nothing is about to change, as far as the coordinator has told."""
        return self.state == "stable" and not self.has_news

    def news(self) -> News:
        """What there is to be done: `release` what is lost or releasing, `take` what is assigned."""
        refused, self.refused = self.refused, []
        self._look()
        return News(
            dict(self._lost),
            {tp: i for tp, i in self._taken.items() if tp in self._releasing},
            {tp: i for tp, i in self._assigned.items() if tp not in self._taken},
            refused,
        )

    def has(self, tp: TopicPartition) -> bool:
        """Has the application taken it, and not lost it since?"""
        return tp in self._taken

    def take(self, parts: Parts) -> Parts:
        """The application reads these from now on; those of them that still are the member's."""
        mine = {tp: i for tp, i in parts.items() if self._assigned.get(tp) == i}
        self._taken |= mine
        self._look()
        return mine

    def begin(self, marks: Mapping[TopicPartition, Mark]) -> None:
        """Where the reading of what was taken begins, and is committed."""
        for tp, mark in marks.items():
            if tp in self._taken:
                self._stored[tp] = self._finished[tp] = mark

    def release(self, parts: Iterable[TopicPartition]) -> None:
        """The application has stopped reading these."""
        for tp in parts:
            self._lost.pop(tp, None)
            self._taken.pop(tp, None)
            self._forget(tp)
            if tp in self._releasing:
                self._claimed.pop(tp, None)
        self._look()

    def finish(self, tp: TopicPartition, mark: Mark, now: int) -> bool:
        """All before `mark` is finished; True if a commit becomes due by this."""
        self.report_ns = now + self._interval_ns
        if tp not in self._taken:
            return False
        self._finished[tp] = mark
        if self._commit_at_ns != _FOREVER_NS or self._committing:
            return False
        self._commit_at_ns = now + self._interval_ns
        return True

    def unsaved(self) -> dict[TopicPartition, Mark]:
        """What is finished and not yet committed."""
        stored = self._stored
        return {tp: m for tp, m in self._finished.items() if stored.get(tp, _NO_MARK)[0] != m[0]}

    def stored(
        self, marks: Mapping[TopicPartition, Mark], entries: Sequence[dict[str, object]]
    ) -> list[ShmlogError]:
        """A commit was answered; what was refused, by partition."""
        errors = []
        for (tp, mark), entry in zip(marks.items(), entries, strict=True):
            if entry["error"]:
                errors.append(entry_error(entry))
            if tp in self._taken:
                self._stored[tp] = mark  # a refused one is not tried again either
        return errors

    def _forget(self, tp: TopicPartition) -> None:
        self._finished.pop(tp, None)
        self._stored.pop(tp, None)

    def _look(self) -> None:
        untaken = self._assigned.keys() - self._taken.keys()
        held = self._releasing.keys() & self._taken.keys()
        self.has_news = bool(self._lost or untaken or held or self.refused or self.fatal)


_NO_MARK = Mark(-1)


def _parts(listed: Iterable[TopicPartitions]) -> Parts:
    return {TopicPartition(t.topic, p): t.topic_id for t in listed for p in t.partitions}


def _listed(parts: Parts) -> list[TopicPartitions]:
    by_topic: dict[tuple[str, str], list[int]] = {}
    for tp, topic_id in sorted(parts.items()):
        by_topic.setdefault((tp.topic, topic_id), []).append(tp.partition)
    return [
        TopicPartitions(topic=topic, topic_id=topic_id, partitions=numbers)
        for (topic, topic_id), numbers in by_topic.items()
    ]
