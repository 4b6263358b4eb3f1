"""What a group is: members, the plan, and offsets. Values only; group.py has the steps.

    G  group epoch: rises with every change of members, subscriptions or partitions
    T  target epoch: the G for which the plan was made
    M  member epoch: the T that the member has reached; 0 while it has reached none
    A  assignment epoch of a partition: the M of its owner when it was given to it

A partition's owner is the member that has it as *assigned* or *releasing*; it has at most one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from node.core.groups.assignor import Part


class GroupState(enum.Enum):
    """As describe shows it."""

    EMPTY = "empty"
    ASSIGNING = "assigning"
    RECONCILING = "reconciling"
    STABLE = "stable"


class MemberState(enum.Enum):
    """Has it all of its target; has it something to give up; or do others have what it is to get?"""

    STABLE = "stable"
    RELEASING = "releasing"
    WAITING = "waiting"


@dataclass(slots=True)
class Process:
    """Which process a local member is; pid 0: not known, or none of this machine's."""

    pid: int = 0
    started: int = 0  # as /proc says: tells two processes of one pid apart
    boot: str = ""


@dataclass(slots=True)
class Member:
    """One member. `is_gone`: a static one whose process is; its partitions wait for its return."""

    id: str
    instance: str
    client: str
    topics: tuple[str, ...]
    assignor: str
    process: Process
    epoch: int = 0
    epoch_before: int = 0
    state: MemberState = MemberState.STABLE
    assigned: dict[Part, int] = field(default_factory=dict)  # with A
    releasing: dict[Part, int] = field(default_factory=dict)
    is_gone: bool = False
    reason: str = ""

    @property
    def owned(self) -> dict[Part, int]:
        """All partitions that it owns, with A."""
        return {**self.assigned, **self.releasing}


@dataclass(slots=True)
class Offset:
    """A committed offset. `number`: of the member's commits, -1: not numbered."""

    offset: int
    leader_epoch: int
    metadata: str
    time_ns: int
    number: int = -1
    member: str = ""


@dataclass(slots=True)
class Move:
    """A partition on its way. `since_ns`: monotonic, of the plan."""

    part: Part
    source: str
    target: str
    since_ns: int
