"""Administration of consumer groups: what a group has read, and where it is to go on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from shmlog.client import positions
from shmlog.client.engine import Engine, Place
from shmlog.client.positions import Positionable
from shmlog.clock import SYSTEM_CLOCK
from shmlog.errors import InvalidRequest
from shmlog.ids import TopicPartition
from shmlog.protocol.group_messages import (
    DeleteGroup,
    DescribeGroup,
    DescribeGroupAnswer,
    GroupListing,
    GroupMember,
    GroupMove,
    ListGroups,
    ResetGroup,
    ResetPosition,
    ResetResult,
)

_LATEST, _EARLIEST = -1, -2


class PartitionLag(Struct, kw_only=True):
    """How far a group has read a partition. `committed` -1: nothing, so the lag counts from the log start.

    `lost`: records that were deleted before the group came to them. `owner` "": nobody reads it.
    """

    topic: str
    partition: int
    owner: str
    assignment_epoch: int
    committed: int
    log_start: int
    high_watermark: int
    lag: int
    lost: int
    metadata: str


class GroupDescription(Struct, kw_only=True):
    """A group, its members, and its lag."""

    group: str
    state: str
    coordinator: int
    group_epoch: int
    target_epoch: int
    assignor: str
    members: list[GroupMember]
    partitions: list[PartitionLag]
    moves: list[GroupMove]


class GroupAdmin:
    """The part of Admin that asks coordinators."""

    _engine: Engine
    _timeout_ns: int

    def list_groups(self) -> list[GroupListing]:
        """All groups, by name."""
        answers = self._engine.ask_brokers(
            lambda: ListGroups(op="list_groups", id=0), self._timeout_ns
        )
        found = {g.group: g for answer in answers for g in answer.groups}  # one that moves: once
        return [found[name] for name in sorted(found)]

    def describe_group(self, group: str) -> GroupDescription:
        """Members and lag. Raises InvalidRequest (69): there is no such group."""
        answer = self._describe(group)
        ends = self._ends([TopicPartition(p.topic, p.partition) for p in answer.partitions])
        lags = []
        for p in answer.partitions:
            start, end = ends[TopicPartition(p.topic, p.partition)]
            lags.append(
                PartitionLag(
                    topic=p.topic,
                    partition=p.partition,
                    owner=p.owner,
                    assignment_epoch=p.assignment_epoch,
                    committed=p.committed,
                    log_start=start.offset,
                    high_watermark=end.offset,
                    lag=max(end.offset - max(p.committed, start.offset), 0),
                    lost=max(start.offset - p.committed, 0) if p.committed >= 0 else 0,
                    metadata=p.metadata,
                )
            )
        return GroupDescription(
            group=answer.group,
            state=answer.state,
            coordinator=answer.coordinator,
            group_epoch=answer.group_epoch,
            target_epoch=answer.target_epoch,
            assignor=answer.assignor,
            members=answer.members,
            partitions=lags,
            moves=answer.moves,
        )

    def reset_group(
        self,
        group: str,
        to: Positionable | None = None,
        *,
        shift: int | None = None,
        topics: Iterable[str] = (),
        dry_run: bool = False,
    ) -> list[ResetResult]:
        """Set where a group without members goes on: at a position, or `shift` records from where it is; kept
        within what is there. All partitions of the topics that it has read; or of `topics`, also for a group
        that is not there yet. With `dry_run` nothing is changed.

        Raises: InvalidRequest: 68: it has members; 69: there is no such group, and no `topics`.
        """
        if (to is None) == (shift is None):
            raise InvalidRequest("say where to go on: a position, or by how much to shift")
        named = set(topics)
        committed = {}
        if shift is not None or not named:
            for p in self._describe(group).partitions:
                if not named or p.topic in named:
                    committed[TopicPartition(p.topic, p.partition)] = p.committed
        if shift is not None:
            old = {tp: offset for tp, offset in committed.items() if offset >= 0}
            found = self._shifted(old, shift)
        else:
            wanted = sorted(named or {tp.topic for tp in committed})
            found = self._placed(wanted, positions.parse(to if to is not None else "earliest"))
        message = ResetGroup(
            op="reset_group",
            id=0,
            group=group,
            partitions=[
                ResetPosition(topic=tp.topic, partition=tp.partition, offset=offset, leader_epoch=epoch)
                for tp, (offset, epoch) in sorted(found.items())
            ],
            dry_run=dry_run,
        )  # fmt: skip
        results: list[ResetResult] = self._engine.ask(message, self._timeout_ns).partitions
        return results

    def delete_group(self, group: str, topic: str = "") -> None:
        """Forget a group without members, or only its offsets of one topic.

        Raises: InvalidRequest: 68: it has members; 69: there is none; 86: a member subscribes to the topic.
        """
        self._engine.ask(
            DeleteGroup(op="delete_group", id=0, group=group, topic=topic), self._timeout_ns
        )

    def _describe(self, group: str) -> DescribeGroupAnswer:
        message = DescribeGroup(op="describe_group", id=0, group=group)
        answer: DescribeGroupAnswer = self._engine.ask(message, self._timeout_ns)
        return answer

    def _ends(
        self, tps: Sequence[TopicPartition], *times: int
    ) -> dict[TopicPartition, tuple[Place, ...]]:
        """Log start, high watermark, and what else is asked, of each partition."""
        if not tps:
            return {}
        asked = (_EARLIEST, _LATEST, *times)
        self._engine.refresh(sorted({tp.topic for tp in tps}), self._timeout_ns)
        questions = [(tp, t) for tp in tps for t in asked]
        found = self._engine.list_offsets(questions, self._timeout_ns)
        return {tp: tuple(found[tp, t] for t in asked) for tp in tps}

    def _shifted(
        self, old: dict[TopicPartition, int], shift: int
    ) -> dict[TopicPartition, tuple[int, int]]:
        ends = self._ends(sorted(old))
        return {tp: _within(old[tp] + shift, places) for tp, places in ends.items()}

    def _placed(
        self, topics: list[str], position: positions.Position
    ) -> dict[TopicPartition, tuple[int, int]]:
        infos = self._engine.refresh(topics, self._timeout_ns).topics if topics else []
        for info in infos:
            if info.error:
                raise self._engine.unknown_topic(info.topic)
        tps = [TopicPartition(t.topic, p.partition) for t in infos for p in t.partitions]
        time = position.timestamp_ns(SYSTEM_CLOCK.wall_ns())
        found: dict[TopicPartition, tuple[int, int]] = {}
        for tp, places in self._ends(tps, *([] if time is None else [time])).items():
            by_time = -1 if time is None else places[2].offset
            offset = position.resolve(places[0].offset, places[1].offset, by_time)
            found[tp] = _within(offset, places)
        return found


def _within(offset: int, places: Sequence[Any]) -> tuple[int, int]:
    """An offset of those that are there, and the leader epoch of the record before it, if that is known."""
    offset = min(max(offset, places[0].offset), places[1].offset)
    return offset, next((place.last_epoch for place in places if place.offset == offset), -1)
