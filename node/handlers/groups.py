"""Consumer groups: what members, committers and administrators ask of a group's coordinator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from node.core.cluster.topics import OFFSETS_TOPIC
from node.core.groups import subscription
from node.core.groups.assignor import Part
from node.core.groups.group import Group
from node.core.groups.state import Member, Move, Offset, Process
from node.handlers.exchange import Context, Exchange, error_fields
from node.handlers.lookup import find_topic
from node.handlers.shard import Beat, Heard, Shard
from shmlog.clock import NS_PER_MS
from shmlog.errors import Code, InvalidRequest, PartitionMoved, ShmlogError, UnknownTopic
from shmlog.protocol.group_messages import (
    GROUP_NAME_MAX,
    SUBSCRIPTIONS_MAX,
    Commit,
    CommitAnswer,
    CommitResult,
    Committed,
    CommittedAnswer,
    CommittedOffset,
    DeleteGroup,
    DeleteGroupAnswer,
    DescribeGroup,
    DescribeGroupAnswer,
    GroupHeartbeat,
    GroupHeartbeatAnswer,
    GroupLeave,
    GroupLeaveAnswer,
    GroupListing,
    GroupMember,
    GroupMove,
    GroupOffset,
    ListGroups,
    ListGroupsAnswer,
    OffsetCommit,
    ResetGroup,
    ResetGroupAnswer,
    ResetResult,
    TopicPartitions,
)
from shmlog.protocol.header import Big

BEHIND_NS = 250 * NS_PER_MS  # a member that does not use what it has: it may have missed an answer


def _shard(context: Context, exchange: Exchange, request: Any, frames: list[bytes]) -> Shard | None:
    """The shard of the request's group; None: the internal topic is made first, then the request goes on.

    Raises: InvalidRequest (24), and what says that this broker is not, or not yet, the coordinator (14, 15, 16).
    """
    name = request.group
    if not (0 < len(name) <= GROUP_NAME_MAX and name.isprintable()):
        raise InvalidRequest(
            f"group {name[:60]!r}: 1 to {GROUP_NAME_MAX} printable characters",
            code=Code.INVALID_GROUP_ID,
        )
    shard = context.coordinator.shard_of(name)
    if shard is None:
        again = partial(context.handle, exchange, request, frames)
        context.create_offsets_topic(exchange, again)
    return shard


def _known(shard: Shard, name: str) -> Group:
    """A group that there is. Raises InvalidRequest (69)."""
    group = shard.groups.get(name)
    if group is None:
        raise InvalidRequest(f"there is no group {name!r}", code=Code.GROUP_ID_NOT_FOUND)
    return group


def _topic_id(context: Context, topic: str, topic_id: str) -> bytes:
    """Raises UnknownTopic."""
    return find_topic(context, topic, topic_id).topic_id


def _listed(context: Context, parts: Iterable[Part]) -> list[TopicPartitions]:
    """Partitions by topic; what belongs to a topic that is no more is left out."""
    by_topic: dict[bytes, list[int]] = {}
    for topic_id, index in sorted(parts):
        by_topic.setdefault(topic_id, []).append(index)
    names = context.metadata.image.names
    return [
        TopicPartitions(topic=names[topic_id], topic_id=topic_id.hex(), partitions=indexes)
        for topic_id, indexes in by_topic.items()
        if topic_id in names
    ]


def _parts(context: Context, listed: list[TopicPartitions] | None) -> set[Part]:
    """Partitions as a member names them. A topic that is no more is nobody's, so it is left out."""
    parts: set[Part] = set()
    for entry in listed or ():
        try:
            topic_id = _topic_id(context, entry.topic, entry.topic_id)
        except UnknownTopic:
            continue
        parts.update((topic_id, index) for index in entry.partitions)
    return parts


# -- members --------------------------------------------------------------------------------------


def heartbeat(
    context: Context, exchange: Exchange, request: GroupHeartbeat, frames: list[bytes]
) -> None:
    """Join, live, take and give up: see GroupHeartbeat."""
    shard = _shard(context, exchange, request, frames)
    if shard is None:
        return
    if not request.member or request.member_epoch < 0:
        raise InvalidRequest("a heartbeat has a member's id, and an epoch of at least 0")
    if request.topics is not None and not 0 < len(request.topics) <= SUBSCRIPTIONS_MAX:
        raise InvalidRequest(f"{len(request.topics)} subscriptions: 1 to {SUBSCRIPTIONS_MAX}")
    for name in request.topics or ():
        subscription.check(name)
    now_ns = context.clock.monotonic_ns()
    until_ns = min(now_ns + request.max_wait_ms * NS_PER_MS, exchange.deadline_ns)
    if request.member_epoch == 0:
        group = _join(context, exchange, request, shard, now_ns)
    else:
        group = shard.groups.get(request.group) or Group(request.group)
        member = group.check(request.member, request.member_epoch, request.instance)
        using = _parts(context, request.owned)
        before = (group.version, group.epoch)
        group.heard(member, request.member_epoch, using, request.topics)
        if (group.version, group.epoch) != before:
            shard.changed(group)
        _heard(context, exchange, shard, group, member, now_ns)
        if request.member_epoch != member.epoch:
            shard.heard[group.name, member.id].told = None  # the answer with the new one was lost
        elif using != member.owned.keys():
            until_ns = min(until_ns, now_ns + BEHIND_NS)
    beat = Beat(
        context,
        shard,
        group,
        request.member,
        request.instance,
        exchange,
        until_ns,
        partial(_beat_answer, context),
    )
    shard.park(beat)


def _join(
    context: Context, exchange: Exchange, request: GroupHeartbeat, shard: Shard, now_ns: int
) -> Group:
    if not request.topics:
        raise InvalidRequest("a member that joins names the topics that it wants")
    group = shard.groups.get(request.group) or Group(request.group)
    known = set(group.members)
    key = (group.name, request.member)
    group.join(
        request.member,
        instance=request.instance,
        client=request.client,
        topics=request.topics,
        assignor=request.assignor,
        process=Process(),
    )
    shard.groups[group.name] = group
    for replaced in known - group.members.keys():
        context.coordinator.forget(shard, (group.name, replaced))
    before = shard.heard.get(key)
    if before is not None and before.beat is not None:
        before.beat.supersede()
    member = group.members[request.member]
    member.process = context.coordinator.process_of(key, context.pid_of(exchange.sender))
    shard.heard[key] = Heard(now_ns, exchange.client)
    shard.changed(group)
    return group


def _heard(
    context: Context, exchange: Exchange, shard: Shard, group: Group, member: Member, now_ns: int
) -> None:
    """It lives; does the kernel prove it from now on?"""
    key = (group.name, member.id)
    heard = shard.heard[key]
    heard.at_ns, heard.gone_ns = now_ns, 0
    if heard.beat is not None:
        heard.beat.supersede()
    if not member.releasing:
        heard.releasing_ns = 0
    elif not heard.releasing_ns:
        heard.releasing_ns = now_ns
    if heard.client == exchange.client:
        heard.is_watched = member.process.pid > 0
        return
    heard.client = exchange.client
    process = context.coordinator.process_of(key, context.pid_of(exchange.sender))
    heard.is_watched = process.pid > 0 and process == member.process
    if process != member.process:
        member.process = process
        group.changed()
        shard.changed(group)


def _beat_answer(
    context: Context, exchange: Exchange, group: Group, member: Member
) -> GroupHeartbeatAnswer:
    return GroupHeartbeatAnswer(
        id=exchange.id or 0,
        member_epoch=member.epoch,
        state=member.state.value,
        assigned=_listed(context, member.assigned),
        releasing=_listed(context, member.releasing),
        reason=member.reason,
        session_timeout_ms=context.settings.session_timeout,
    )


def leave(context: Context, exchange: Exchange, request: GroupLeave, frames: list[bytes]) -> None:
    """A member goes."""
    shard = _shard(context, exchange, request, frames)
    if shard is None:
        return
    group = shard.groups.get(request.group)
    member = group.members.get(request.member) if group is not None else None
    if group is None or member is None:
        raise PartitionMoved(
            f"group {request.group!r} has no member {request.member[:60]!r}",
            code=Code.UNKNOWN_MEMBER_ID,
        )
    context.coordinator.remove(shard, group, member, "left")
    shard.reply(exchange, lambda: GroupLeaveAnswer(id=exchange.id or 0))


# -- offsets --------------------------------------------------------------------------------------


def commit(context: Context, exchange: Exchange, request: Commit, frames: list[bytes]) -> None:
    """Store offsets."""
    shard = _shard(context, exchange, request, frames)
    if shard is None:
        return
    group = shard.groups.get(request.group) or Group(request.group)
    member = group.check_commit(request.member, request.member_epoch)
    time_ns = context.clock.wall_ns()
    results: list[Any] = []
    for wanted in request.offsets:
        try:
            part = _committed_part(context, wanted)
            offset = Offset(
                wanted.offset,
                wanted.leader_epoch,
                wanted.metadata,
                time_ns,
                request.number,
                request.member,
            )
            group.commit(member, request.member_epoch, part, offset)
            results.append(CommitResult(topic=wanted.topic, partition=wanted.partition))
        except ShmlogError as error:
            where = {"topic": wanted.topic, "partition": wanted.partition}
            results.append({**where, **error_fields(error)})
    if group.dirty_offsets:
        shard.groups[group.name] = group
        shard.changed(group)
        context.counters.commits += 1
    shard.reply(exchange, lambda: CommitAnswer(id=exchange.id or 0, partitions=results))


def _committed_part(context: Context, wanted: OffsetCommit) -> Part:
    """Raises UnknownTopic."""
    topic = find_topic(context, wanted.topic, wanted.topic_id)
    if not 0 <= wanted.partition < len(topic.partitions):
        raise UnknownTopic(
            f"topic {wanted.topic!r} has {len(topic.partitions)} partitions",
            topic=wanted.topic,
            partition=wanted.partition,
        )
    return topic.topic_id, wanted.partition


NONE = Offset(-1, -1, "", 0)


def committed(
    context: Context, exchange: Exchange, request: Committed, frames: list[bytes]
) -> None:
    """Committed offsets. Those of a group that is not there are -1."""
    shard = _shard(context, exchange, request, frames)
    if shard is None:
        return
    group = shard.groups.get(request.group) or Group(request.group)
    topics = context.metadata.image.topics
    names = context.metadata.image.names
    if request.partitions is None:
        wanted = [(names[t], index) for t, index in sorted(group.offsets) if t in names]
    else:
        wanted = [(entry.topic, entry.partition) for entry in request.partitions]

    def answer() -> CommittedAnswer:
        found = []
        for topic, index in wanted:
            topic_id = topics[topic].topic_id if topic in topics else b""
            offset = group.offsets.get((topic_id, index), NONE)
            found.append(
                CommittedOffset(
                    topic=topic,
                    partition=index,
                    topic_id=topic_id.hex(),
                    offset=offset.offset,
                    leader_epoch=offset.leader_epoch,
                    metadata=offset.metadata,
                    time=Big(offset.time_ns),
                )
            )
        return CommittedAnswer(id=exchange.id or 0, partitions=found)

    shard.reply(exchange, answer)


# -- administration -------------------------------------------------------------------------------


def list_groups(
    context: Context, exchange: Exchange, request: ListGroups, frames: list[bytes]
) -> None:
    """The groups of all shards led here."""
    me = context.identity.broker
    shards = context.coordinator.shards()

    def answer() -> ListGroupsAnswer:
        listed = [
            GroupListing(
                group=group.name,
                state=group.state.value,
                members=len(group.members),
                coordinator=me,
            )
            for shard in shards
            for group in shard.groups.values()
        ]
        listed.sort(key=lambda one: one.group)
        return ListGroupsAnswer(id=exchange.id or 0, groups=listed)

    if shards:
        # What the others have is shown as it is in memory: a state and a count promise nothing.
        shards[0].reply(exchange, answer)
    else:
        exchange.answer(answer())


def describe(
    context: Context, exchange: Exchange, request: DescribeGroup, frames: list[bytes]
) -> None:
    """A group as it is."""
    if OFFSETS_TOPIC not in context.metadata.image.topics:
        raise InvalidRequest(
            f"there is no group {request.group[:60]!r}", code=Code.GROUP_ID_NOT_FOUND
        )
    shard = _shard(context, exchange, request, frames)
    assert shard is not None
    group = _known(shard, request.group)
    shard.reply(exchange, lambda: _description(context, exchange, shard, group))


def _description(
    context: Context, exchange: Exchange, shard: Shard, group: Group
) -> DescribeGroupAnswer:
    now_ns = context.clock.monotonic_ns()
    members = [
        GroupMember(
            member=m.id,
            instance=m.instance,
            client=m.client,
            pid=m.process.pid,
            member_epoch=m.epoch,
            state=m.state.value,
            stalled=context.coordinator.is_stalled(m, shard.heard[group.name, m.id], now_ns),
            topics=list(m.topics),
            assigned=_listed(context, m.assigned),
            releasing=_listed(context, m.releasing),
        )
        for m in group.members.values()
    ]
    names = context.metadata.image.names
    return DescribeGroupAnswer(
        id=exchange.id or 0,
        group=group.name,
        state=group.state.value,
        coordinator=context.identity.broker,
        group_epoch=group.epoch,
        target_epoch=group.target_epoch,
        assignor=group.assignor,
        members=members,
        partitions=list(_offsets(group, names)),
        moves=[
            _move(move, names, now_ns) for move in group.moves.values() if move.part[0] in names
        ],
    )


def _offsets(group: Group, names: Mapping[bytes, str]) -> Iterable[GroupOffset]:
    owners = group.owners()
    parts = sorted(owners.keys() | group.offsets.keys(), key=lambda p: (names.get(p[0], ""), p))
    for part in parts:
        if part[0] not in names:
            continue
        owner, offset = owners.get(part), group.offsets.get(part, NONE)
        yield GroupOffset(
            topic=names[part[0]],
            partition=part[1],
            topic_id=part[0].hex(),
            owner=owner.id if owner is not None else "",
            assignment_epoch=owner.owned[part] if owner is not None else -1,
            committed=offset.offset,
            leader_epoch=offset.leader_epoch,
            metadata=offset.metadata,
        )


def _move(move: Move, names: Mapping[bytes, str], now_ns: int) -> GroupMove:
    return GroupMove(
        topic=names[move.part[0]],
        partition=move.part[1],
        source=move.source,
        target=move.target,
        age_ms=max(0, now_ns - move.since_ns) // NS_PER_MS,
    )


def reset(context: Context, exchange: Exchange, request: ResetGroup, frames: list[bytes]) -> None:
    """Set offsets of a group without members. All of the request are checked before the first is set."""
    shard = _shard(context, exchange, request, frames)
    if shard is None:
        return
    group = shard.groups.get(request.group) or Group(request.group)
    group.check_empty()
    time_ns = context.clock.wall_ns()
    results, offsets = [], {}
    for wanted in request.partitions:
        position = OffsetCommit(
            topic=wanted.topic,
            partition=wanted.partition,
            offset=wanted.offset,
            leader_epoch=wanted.leader_epoch,
        )
        part = _committed_part(context, position)
        offsets[part] = Offset(wanted.offset, wanted.leader_epoch, "", time_ns)
        results.append(
            ResetResult(
                topic=wanted.topic,
                partition=wanted.partition,
                before=group.offsets.get(part, NONE).offset,
                after=wanted.offset,
            )
        )
    if not request.dry_run and offsets:
        for part, offset in offsets.items():
            group.set_offset(part, offset)
        shard.groups[group.name] = group
        shard.changed(group)
    shard.reply(exchange, lambda: ResetGroupAnswer(id=exchange.id or 0, partitions=results))


def delete(context: Context, exchange: Exchange, request: DeleteGroup, frames: list[bytes]) -> None:
    """Forget a group, or its offsets of one topic."""
    if OFFSETS_TOPIC not in context.metadata.image.topics:
        raise InvalidRequest(
            f"there is no group {request.group[:60]!r}", code=Code.GROUP_ID_NOT_FOUND
        )
    shard = _shard(context, exchange, request, frames)
    assert shard is not None
    group = _known(shard, request.group)
    topic_id = None
    if request.topic:
        topic_id = _topic_id(context, request.topic, "")
        if topic_id in group.counts and group.members:
            raise InvalidRequest(
                f"a member of group {group.name!r} subscribes to {request.topic!r}",
                code=Code.GROUP_SUBSCRIBED_TO_TOPIC,
            )
    else:
        group.check_empty()
    for part in [p for p in group.offsets if topic_id in (None, p[0])]:
        group.set_offset(part, None)
    shard.changed(group)
    shard.reply(exchange, lambda: DeleteGroupAnswer(id=exchange.id or 0))
