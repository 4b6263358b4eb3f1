"""One group: who is in it, who reads what, and what it has committed.

    join, leave, death, news of topics -> G + 1 -> plan (T = G) -> settle: per member
                                                      drop = owned - target      to be released first
                                                      free = target without an owner
    heartbeat -> released -> settle

`settle` never gives a partition to a member while another one owns it, and takes none from a member before that one
says that it has stopped. So members that are not concerned go on reading.

Invariants: a partition has at most one owner; T <= G; the epoch of a member is at most T and never falls while it is
a member; A(p) <= epoch of p's owner. Every change of what is stored makes the group dirty (`is_dirty`), and every
change of what a member is told raises `version`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from node.core.groups import subscription
from node.core.groups.assignor import ASSIGNORS, Counts, Part, Plan
from node.core.groups.state import GroupState, Member, MemberState, Move, Offset, Process
from shmlog.errors import Code, InvalidRequest, MemberFenced, PartitionMoved, RecordTooLarge
from shmlog.protocol.group_messages import MEMBERS_MAX, OFFSET_METADATA_MAX

Topics = Mapping[str, tuple[bytes, int]]  # name -> id and number of partitions


class Group:
    """See above. Time is an argument; nothing here waits."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = 0  # G
        self.target_epoch = 0  # T
        self.members: dict[str, Member] = {}
        self.target: Plan = {}
        self.counts: dict[bytes, int] = {}  # of the topics for which the plan was made
        self.offsets: dict[Part, Offset] = {}
        self.empty_since_ns = 0  # wall clock
        self.moves: dict[Part, Move] = {}
        self.version = 0
        self.is_dirty = False
        self.dirty_offsets: dict[Part, None] = {}
        self._news = ""

    # -- views ----------------------------------------------------------------------------------------

    @property
    def state(self) -> GroupState:
        """As a whole."""
        if not self.members:
            return GroupState.EMPTY
        if self.target_epoch < self.epoch:
            return GroupState.ASSIGNING
        settled = all(
            m.epoch == self.target_epoch and m.state is MemberState.STABLE
            for m in self.members.values()
        )
        return GroupState.STABLE if settled else GroupState.RECONCILING

    @property
    def assignor(self) -> str:
        """The one that most members want; of two wanted equally the first by name."""
        wanted = [member.assignor for member in self.members.values()]
        return min(ASSIGNORS, key=lambda name: (-wanted.count(name), name))

    def owners(self) -> dict[Part, Member]:
        """Who owns each partition that has an owner."""
        return {part: member for member in self.members.values() for part in member.owned}

    def wanted(self, topics: Topics) -> Counts:
        """The topics that any member subscribes to, as they are now."""
        named = {
            name for m in self.members.values() for name in subscription.matching(m.topics, topics)
        }
        return {topics[name][0]: topics[name][1] for name in sorted(named)}

    # -- members --------------------------------------------------------------------------------------

    def join(
        self,
        member: str,
        *,
        instance: str,
        client: str,
        topics: Iterable[str],
        assignor: str,
        process: Process,
    ) -> Member:
        """A new member, or one that begins anew. A static one takes over the target of its instance.

        Raises: InvalidRequest: the group is full (81), no such assignor (112), the instance lives (111).
        """
        if assignor not in ASSIGNORS:
            raise InvalidRequest(
                f'assignor {assignor[:40]!r}: must be "uniform" or "range"',
                code=Code.UNSUPPORTED_ASSIGNOR,
            )
        before = self._instance(instance, member)
        old = self.members.get(member)
        if before is None and old is None and len(self.members) >= MEMBERS_MAX:
            raise InvalidRequest(
                f"group {self.name!r} has {MEMBERS_MAX} members", code=Code.GROUP_MAX_SIZE_REACHED
            )
        new = Member(member, instance, client, tuple(topics), assignor, process)
        if before is not None:
            self.members = {
                **{id_: m for id_, m in self.members.items() if id_ != before.id},
                member: new,
            }
            self.target[member] = self.target.pop(before.id, set())
            same = (before.topics, before.assignor) == (new.topics, new.assignor)
        else:
            self.members[member] = new
            same = old is not None and (old.topics, old.assignor) == (new.topics, new.assignor)
        if same:
            self.changed()
            self.settle()
        else:
            self._next_epoch(f"{member} joined")
        return new

    def _instance(self, instance: str, member: str) -> Member | None:
        """The member of that instance id which the new one replaces. Raises InvalidRequest (111): it lives."""
        if not instance:
            return None
        for other in self.members.values():
            if other.instance == instance and other.id != member:
                if not other.is_gone:
                    raise InvalidRequest(
                        f"instance {instance[:60]!r} of group {self.name!r} is member {other.id}, which lives",
                        code=Code.UNRELEASED_INSTANCE_ID,
                    )
                return other
        return None

    def check(self, member: str, epoch: int, instance: str = "") -> Member:
        """The member of a request of that epoch.

        Raises: MemberFenced (82): its instance was taken over. PartitionMoved: no such member (25), or it was left
        behind (110).
        """
        found = self.members.get(member)
        if found is None:
            if instance and any(m.instance == instance for m in self.members.values()):
                raise MemberFenced(f"another member has taken over instance {instance[:60]!r}")
            raise PartitionMoved(
                f"group {self.name!r} has no member {member[:60]!r}", code=Code.UNKNOWN_MEMBER_ID
            )
        if not found.epoch_before <= epoch <= found.epoch:
            raise PartitionMoved(
                f"member {member[:60]!r} is at epoch {found.epoch}, the request at {epoch}",
                code=Code.FENCED_MEMBER_EPOCH,
            )
        return found

    def heard(
        self, member: Member, epoch: int, owned: Iterable[Part], topics: Iterable[str] | None
    ) -> None:
        """A heartbeat of a member that has been checked: what it uses now, and what it wants. Its epoch may be an
        older one, if news have crossed it on its way: any from the last one that it has said on.

        Raises: PartitionMoved (110): it uses what it does not own, or did not yet own in the epoch that it knows.
        """
        using = set(owned)
        if not using <= {part for part, given in member.owned.items() if given <= epoch}:
            raise PartitionMoved(
                f"member {member.id} uses partitions that it does not own",
                code=Code.FENCED_MEMBER_EPOCH,
            )
        member.is_gone = False
        member.epoch_before = epoch
        if topics is not None and tuple(topics) != member.topics:
            member.topics = tuple(topics)
            self._next_epoch(f"{member.id} subscribes to other topics")
        given_up = member.releasing.keys() - using
        if given_up:
            for part in given_up:
                del member.releasing[part]
            self.changed()
            self.settle()

    def remove(self, member: str, why: str, now_wall_ns: int) -> None:
        """It leaves, or is dead: its partitions are free."""
        del self.members[member]
        self.target.pop(member, None)
        if not self.members:
            self.empty_since_ns = now_wall_ns
        self._next_epoch(f"{member} {why}")

    def gone(self, member: Member) -> None:
        """A static member's process is dead: its partitions wait for its return."""
        member.is_gone = True
        self.changed()

    # -- plan -----------------------------------------------------------------------------------------

    def topics_changed(self, topics: Topics) -> None:
        """Topics or partitions came or went: does that concern this group?"""
        if self.members and self.wanted(topics) != self.counts:
            self._next_epoch("topics have changed")

    def plan(self, topics: Topics, now_ns: int) -> None:
        """Make the plan of the newest group epoch, if there is none."""
        if self.target_epoch == self.epoch:
            return
        self.counts = dict(self.wanted(topics))
        wants = {
            m.id: [topics[name][0] for name in subscription.matching(m.topics, topics)]
            for m in self.members.values()
        }
        self.target = ASSIGNORS[self.assignor](wants, self.counts, self.target) if wants else {}
        self.target_epoch = self.epoch
        for member in self.members.values():
            # A topic that is no more has nothing to be given up.
            for parts in (member.assigned, member.releasing):
                for part in [p for p in parts if p[1] >= self._count(p, topics)]:
                    del parts[part]
        self.settle(now_ns)

    def _count(self, part: Part, topics: Topics) -> int:
        known = self.counts.get(part[0])
        return known if known is not None else dict(topics.values()).get(part[0], 0)

    def settle(self, now_ns: int = 0) -> None:
        """Take from each member what is not its own any more, and give it what is free."""
        for member in self.members.values():
            target = self.target.get(member.id, set())
            for part in [p for p in member.assigned if p not in target]:
                member.releasing[part] = member.assigned.pop(part)
        owners = self.owners()
        for member in self.members.values():
            target = self.target.get(member.id, set())
            if member.releasing:
                self._tell(member, MemberState.RELEASING, member.epoch)
                continue
            for part in sorted(target - member.assigned.keys()):
                if part not in owners:
                    member.assigned[part] = self.target_epoch
                    owners[part] = member
            all_there = len(member.assigned) == len(target)
            state = MemberState.STABLE if all_there else MemberState.WAITING
            self._tell(member, state, self.target_epoch)
        self._note_moves(owners, now_ns)

    def _tell(self, member: Member, state: MemberState, epoch: int) -> None:
        if epoch != member.epoch:
            member.epoch = epoch
            member.reason = self._news
        member.state = state
        self.changed()

    def _note_moves(self, owners: Mapping[Part, Member], now_ns: int) -> None:
        moves = {}
        for id_, parts in self.target.items():
            for part in parts:
                owner = owners.get(part)
                if owner is not None and owner.id != id_:
                    since = self.moves[part].since_ns if part in self.moves else now_ns
                    moves[part] = Move(part, owner.id, id_, since)
        self.moves = moves

    def _next_epoch(self, news: str) -> None:
        self.epoch += 1
        self._news = news
        self.changed()

    def changed(self) -> None:
        """What is stored has changed."""
        self.version += 1
        self.is_dirty = True

    # -- offsets --------------------------------------------------------------------------------------

    def check_commit(self, member: str, epoch: int) -> Member | None:
        """Who commits; None: nobody's member. Raises PartitionMoved: members there are, and it is none (25).

        Which epochs may commit is a matter of each partition: news that have crossed the request cost nothing.
        """
        found = self.members.get(member)
        if found is not None:
            return found if epoch <= found.epoch else self.check(member, epoch)
        if member or self.members:
            raise PartitionMoved(
                f"group {self.name!r} has members: only they commit", code=Code.UNKNOWN_MEMBER_ID
            )
        return None

    def commit(self, member: Member | None, epoch: int, part: Part, offset: Offset) -> None:
        """Keep an offset. One that is numbered and not above the member's last for the partition is ignored.

        Raises: PartitionMoved (113): another member has the partition by now. RecordTooLarge (12).
        """
        size = len(offset.metadata.encode())
        if size > OFFSET_METADATA_MAX:
            raise RecordTooLarge(
                f"{size} bytes of metadata beside an offset, the limit is {OFFSET_METADATA_MAX}",
                code=Code.OFFSET_METADATA_TOO_LARGE,
                size=size,
                limit=OFFSET_METADATA_MAX,
            )
        if member is not None:
            given = member.owned.get(part)
            if given is None or not given <= epoch <= member.epoch:
                raise PartitionMoved(f"the partition is not assigned to {member.id}")
        before = self.offsets.get(part)
        late = (
            before is not None
            and offset.number >= 0
            and before.member == offset.member
            and offset.number <= before.number
        )
        if not late:
            self.set_offset(part, offset)

    def set_offset(self, part: Part, offset: Offset | None) -> None:
        """Keep an offset, or (None) forget the one there is."""
        if offset is None:
            self.offsets.pop(part, None)
        else:
            self.offsets[part] = offset
        self.dirty_offsets[part] = None

    def check_empty(self) -> None:
        """Raises InvalidRequest (68) if there are members."""
        if self.members:
            raise InvalidRequest(
                f"group {self.name!r} has {len(self.members)} members", code=Code.NON_EMPTY_GROUP
            )
