"""Consumer groups: what members, coordinators and those who look at groups say to each other.

A group's *coordinator* is the broker that leads its partition of the internal topic; any other answers 16 and names
it. One request carries a member's whole life: `group_heartbeat` joins, says that the member lives, takes new
partitions and gives others up; it is a long poll, answered when there is news. Epochs tell old from new: a member
whose `member_epoch` is not the coordinator's is answered 110 and joins again; a commit is accepted for a partition
only from the member to which it is assigned.

A topic in an assignment has its id: offsets are committed for this very topic, not for a later one of its name.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from shmlog.protocol.header import Big
from shmlog.protocol.messages import Count, Int32, Int53, Name, Request, TopicIdHex

GROUP_NAME_MAX = 249
MEMBERS_MAX = 1000  # of one group
SUBSCRIPTIONS_MAX = 1000  # names and patterns of one member
OFFSET_METADATA_MAX = 4096  # bytes of UTF-8
HEARTBEAT_MS = 5000

GroupName = Annotated[str, Meta(max_length=1024)]


class TopicPartitions(Struct, kw_only=True, omit_defaults=True):
    """Partitions of one topic."""

    topic: Name
    topic_id: TopicIdHex = ""
    partitions: list[Int32]


class GroupHeartbeat(Request, kw_only=True, omit_defaults=True):
    """Join a group, stay in it, take and give up partitions. Ask the group's coordinator (16).

    `member`: made by the client, for example a UUID, and kept. `member_epoch`: of the last answer; 0 joins.
    `topics`: names, or patterns with `*` and `?`; absent: as before (a join must name some). `owned`: what the
    member uses now, in full (absent: nothing); what was to be released is released once it is missing here.
    `instance`: a static member, whose partitions wait `session.timeout.ms` for its return. `assignor`: "uniform"
    or "range"; the group's is the one that most of its members want.

    Answered at once if the answer differs from the last one to this member, else after `max_wait_ms`.
    """

    group: GroupName
    member: Name
    member_epoch: Int32 = 0
    instance: Name = ""
    topics: list[Name] | None = None
    assignor: Name = "uniform"
    owned: list[TopicPartitions] | None = None
    client: Name = ""
    max_wait_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = HEARTBEAT_MS


class GroupHeartbeatAnswer(Struct, kw_only=True):
    """What the member may use, `assigned`, and what it has to give up, `releasing`: both in full.

    `state`: "stable"; "releasing" while it has something to give up; "waiting" while others have. `reason`: what has
    changed, in words. The next heartbeat is due at once, for it waits at the broker; a member without a pidfd is taken
    for dead after `session_timeout_ms` without one.
    """

    id: int
    error: int = 0
    member_epoch: int
    state: str
    assigned: list[TopicPartitions]
    releasing: list[TopicPartitions]
    reason: str
    session_timeout_ms: int


class GroupLeave(Request, kw_only=True, omit_defaults=True):
    """The member goes, static or not: its partitions are free at once. Ask the coordinator (16)."""

    group: GroupName
    member: Name


class GroupLeaveAnswer(Struct, kw_only=True):
    """Done; 25 if there was no such member."""

    id: int
    error: int = 0


class OffsetCommit(Struct, kw_only=True, omit_defaults=True):
    """A partition's next offset to be read. `leader_epoch`: of the last record read, -1: not known."""

    topic: Name
    partition: Int32
    topic_id: TopicIdHex = ""
    offset: Count
    leader_epoch: Int32 = -1
    metadata: str = ""


class Commit(Request, kw_only=True, omit_defaults=True):
    """Store offsets of a group. Ask the coordinator (16). Durable before it is answered.

    With `member` and its `member_epoch`; without, while the group has no members (25). `number`: of the member's
    commits, rising; one that is not above the last for a partition is answered and ignored, so that a copy that comes
    late takes no offset back. -1: not numbered.
    """

    group: GroupName
    member: Name = ""
    member_epoch: Int32 = -1
    number: Int53 = -1
    offsets: list[OffsetCommit]


class CommitResult(Struct, kw_only=True):
    """One partition's offset is stored."""

    topic: str
    partition: int
    error: int = 0


class CommitAnswer(Struct, kw_only=True):
    """One entry per offset, same order; one that failed is an error map instead (113: it is another member's)."""

    id: int
    error: int = 0
    partitions: list[Any]


class GroupPartition(Struct, kw_only=True, omit_defaults=True):
    """One partition that is asked for."""

    topic: Name
    partition: Int32


class Committed(Request, kw_only=True, omit_defaults=True):
    """A group's committed offsets; `partitions` absent: all there are. Ask the coordinator (16)."""

    group: GroupName
    partitions: list[GroupPartition] | None = None


class CommittedOffset(Struct, kw_only=True):
    """offset -1: none. `time`: of the commit."""

    topic: str
    partition: int
    topic_id: str
    offset: int
    leader_epoch: int
    metadata: str
    time: Big


class CommittedAnswer(Struct, kw_only=True):
    """One entry per partition asked, same order."""

    id: int
    error: int = 0
    partitions: list[CommittedOffset]


class ListGroups(Request, kw_only=True, omit_defaults=True):
    """The groups of which the broker asked is the coordinator."""


class GroupListing(Struct, kw_only=True):
    """`state`: empty, assigning, reconciling or stable."""

    group: str
    state: str
    members: int
    coordinator: int


class ListGroupsAnswer(Struct, kw_only=True):
    """All groups of this broker, by name; those of others are asked there."""

    id: int
    error: int = 0
    groups: list[GroupListing]


class DescribeGroup(Request, kw_only=True, omit_defaults=True):
    """All there is to say of a group. Ask the coordinator (16). 69: there is no such group."""

    group: GroupName


class GroupMember(Struct, kw_only=True):
    """A member. `pid` 0: not known, so it is watched by its heartbeats. `stalled`: silent, or slow to release."""

    member: str
    instance: str
    client: str
    pid: int
    member_epoch: int
    state: str
    stalled: bool
    topics: list[str]
    assigned: list[TopicPartitions]
    releasing: list[TopicPartitions]


class GroupOffset(Struct, kw_only=True):
    """A partition that a member has, or that has a committed offset (else -1). `owner` "": nobody.

    `assignment_epoch`: the member epoch from which on the owner has it, -1: nobody does.
    """

    topic: str
    partition: int
    topic_id: str
    owner: str
    assignment_epoch: int
    committed: int
    leader_epoch: int
    metadata: str


class GroupMove(Struct, kw_only=True):
    """A partition that is to go from one member to another; `age_ms`: since that was decided."""

    topic: str
    partition: int
    source: str
    target: str
    age_ms: int


class DescribeGroupAnswer(Struct, kw_only=True):
    """A group: its epoch, and the epoch for which the assignment was made."""

    id: int
    error: int = 0
    group: str
    state: str
    coordinator: int
    group_epoch: int
    target_epoch: int
    assignor: str
    members: list[GroupMember]
    partitions: list[GroupOffset]
    moves: list[GroupMove]


class ResetPosition(Struct, kw_only=True, omit_defaults=True):
    """Where a partition's reading is to go on. `leader_epoch`: of the record before, -1: not known."""

    topic: Name
    partition: Int32
    offset: Count
    leader_epoch: Int32 = -1


class ResetGroup(Request, kw_only=True, omit_defaults=True):
    """Set committed offsets of a group without members (else 68): all or none. Ask the coordinator (16)."""

    group: GroupName
    partitions: list[ResetPosition]
    dry_run: bool = False


class ResetResult(Struct, kw_only=True):
    """The committed offset before (-1: none) and after."""

    topic: str
    partition: int
    before: int
    after: int


class ResetGroupAnswer(Struct, kw_only=True):
    """What was set, or with `dry_run` would have been."""

    id: int
    error: int = 0
    partitions: list[ResetResult]


class DeleteGroup(Request, kw_only=True, omit_defaults=True):
    """Forget a group without members (else 68), or with `topic` its offsets of one topic that no member subscribes to
    (else 86). Ask the coordinator (16). 69: there is no such group.
    """

    group: GroupName
    topic: Name = ""


class DeleteGroupAnswer(Struct, kw_only=True):
    """It is gone, durably."""

    id: int
    error: int = 0
