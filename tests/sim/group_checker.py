"""What is true of consumer groups: the committed records of the internal topic, taken in batch by batch.

A batch is one step of the groups in it, so each step is judged: who owns what before and after it, and who commits.
What brokers answer to members is compared with the steps up to then. A shard whose records were given up by a recovery
election (the disks lost them) is judged no more, and neither is the reading of such a partition.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from node.core.cluster.topics import OFFSETS_TOPIC
from node.core.groups import records
from node.core.groups.group import Group
from node.core.groups.state import GroupState
from node.handlers.coordinator import partition_of
from shmlog.clock import NS_PER_MS

from .ports import WALL_NS
from .truth import Batch, Truth
from .world import Process, Violation

if TYPE_CHECKING:
    from .checkers import Checker
    from .members import Member

Part = tuple[bytes, int]
MemberKey = tuple[str, str]  # group and member


class GroupAnswer:
    """A request of a member, whose answer is judged."""

    def __init__(self, checker: GroupChecker, message: dict[str, Any]) -> None:
        self._checker = checker
        self._message = message
        self._asked_ns = checker.now_ns

    def judge(self, process: Process, result: dict[str, Any]) -> None:
        """`result`: the answer, or its entry for one partition, without an error."""
        check = getattr(self._checker, "check_" + self._message["op"])
        check(process, self._message, result, self._asked_ns)


class GroupChecker:
    """See above. Raises Violation."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self.world = checker.world
        self.groups: dict[str, Group] = {}
        self.members: dict[MemberKey, Member] = {}  # all there ever were
        self.removed: dict[MemberKey, int] = defaultdict(int)  # how often
        self.frontiers: dict[tuple[str, Part], int] = defaultdict(int)  # end of what was handed out
        self._offsets: dict[tuple[str, Part], list[tuple[int, int]]] = defaultdict(list)
        self._numbers: dict[tuple[str, Part, str], int] = {}
        self._owned: set[tuple[str, str, Part]] = set()
        self._epochs: dict[MemberKey, int] = {}
        self._heard: dict[MemberKey, list[int]] = defaultdict(list)
        self._left: set[MemberKey] = set()
        self._joins: dict[MemberKey, int] = defaultdict(int)
        self._excused: set[int] = set()  # shards
        self._session_ns = checker.world.settings.session_timeout * NS_PER_MS

    @property
    def now_ns(self) -> int:
        return self.world.now_ns

    def _is_excused(self, group: str) -> bool:
        return partition_of(group) in self._excused

    def _has_lost(self, part: Part) -> bool:
        truth = self._checker.truths.get(part)
        return truth is None or bool(truth.losses)

    # -- what is committed ----------------------------------------------------------------------------

    def committed(self, key: Part, batch: Batch) -> None:
        """One more batch of any partition."""
        if self._checker.image.names.get(key[0]) != OFFSETS_TOPIC:
            return
        rows = [batch.rows[offset] for offset in sorted(batch.rows)]
        if key[1] in self._excused:
            self._take(rows)
            return
        names = {records._keys.decode(key_ or b"")[1] for _, key_, _ in rows}
        before = {name: deepcopy(self.groups.get(name, Group(name))) for name in sorted(names)}
        self._take(rows)
        for name, old in before.items():
            new = self.groups.get(name, Group(name))
            self._judge_members(old, new, batch)
            for part in old.offsets.keys() | new.offsets.keys():
                if old.offsets.get(part) != new.offsets.get(part):
                    self._judge_offset(old, new, part)

    def _take(self, rows: list[Any]) -> None:
        for _, key, value in rows:
            records.read(self.groups, key or b"", value)

    def lost(self, truth: Truth) -> None:
        """Committed records of a partition were given up."""
        name, _, index = truth.name.rpartition("-")
        if name == OFFSETS_TOPIC:
            self._excused.add(int(index))
            for group in [g for g in self.groups if partition_of(g) == int(index)]:
                del self.groups[group]
            for batch in truth.batches:
                self._take([batch.rows[offset] for offset in sorted(batch.rows)])

    def _judge_members(self, old: Group, new: Group, batch: Batch) -> None:
        name = new.name
        owners: dict[Part, str] = {}
        for member in new.members.values():
            for part in member.owned:
                if part in owners:
                    raise Violation(f"I23 {name}: {part} is {owners[part]}'s and {member.id}'s")
                owners[part] = member.id
                self._owned.add((name, member.id, part))
        is_there = bool(new.members or new.offsets)
        if is_there and (new.epoch < old.epoch or new.target_epoch < old.target_epoch):
            raise Violation(
                f"I26 {name}: epochs {old.epoch}, {old.target_epoch} -> {new.epoch}, {new.target_epoch}"
            )
        for id_, member in new.members.items():
            key = (name, id_)
            if id_ in old.members and member.epoch < old.members[id_].epoch:
                raise Violation(
                    f"I26 {name}: {id_} {old.members[id_].epoch} -> {member.epoch}, {new.target_epoch}"
                )
            if member.epoch > new.target_epoch or new.target_epoch > new.epoch:
                raise Violation(f"I26 {name}: {member}, {new.target_epoch}, {new.epoch}")
            self._epochs[key] = max(self._epochs.get(key, 0), member.epoch)
        for member in old.members.values():
            for part in member.assigned:
                taken = owners.get(part, member.id) != member.id and member.id in new.members
                if taken and self._joins[name, member.id] < 2:
                    raise Violation(f"I23 {name}: {part} goes from {member.id} to {owners[part]}")
            if member.id not in new.members:
                self.removed[name, member.id] += 1
                self._judge_removal(name, member, new, batch)

    def _judge_removal(self, name: str, member: Any, new: Group, batch: Batch) -> None:
        """A member goes only if it left, is dead, was replaced, or was silent for a session."""
        key = (name, member.id)
        one = self.members[key]
        replaced = member.instance in {m.instance for m in new.members.values()} - {""}
        if (
            key in self._left
            or not one.host.alive
            or replaced
            or self.world.counts.get("faults: wall clock")
        ):
            return
        at_ns = batch.header.append_time_ns - WALL_NS
        heard = self._heard[key]
        place = bisect_right(heard, at_ns) - 1
        silent_ns = at_ns - heard[place] if place >= 0 else 1 << 62
        if silent_ns < self._session_ns:
            raise Violation(
                f"I27 {name}: {member.id} was removed, {silent_ns // NS_PER_MS} ms after it was heard"
            )

    def _judge_offset(self, old: Group, new: Group, part: Part) -> None:
        name = new.name
        before, after = old.offsets.get(part), new.offsets.get(part)
        self._offsets[name, part].append((self.now_ns, -1 if after is None else after.offset))
        if part[0] not in self._checker.image.names:
            return
        what = f"{name} {part}: {before} -> {after}"
        if after is None:
            raise Violation(f"I24 {what}")
        if not any(
            part in group.members[after.member].owned
            for group in (old, new)
            if after.member in group.members
        ):
            raise Violation(f"I24 {what}: not its owner")
        if before is not None and not self._has_lost(part):
            late = before.member == after.member and after.number <= before.number
            if late or after.offset < before.offset:
                raise Violation(f"I24 {what}: it goes back")
        self._numbers[name, part, after.member] = after.number
        if after.offset > self.frontiers[name, part] and not self._has_lost(part):
            raise Violation(f"I25 {what}: handed out was {self.frontiers[name, part]}")

    # -- what members do and are told -----------------------------------------------------------------

    def heard(self, process: Process, header: dict[str, Any]) -> None:
        """A request has reached a broker."""
        key = (header["group"], header.get("member", ""))
        if header["op"] == "group_leave":
            self._left.add(key)
        topic = self._checker.image.topics.get(OFFSETS_TOPIC)
        index = partition_of(header["group"])
        if header["op"] != "group_heartbeat" or topic is None:
            return
        if header.get("member_epoch", 0) == 0:
            self._joins[key] += 1
        if topic.partitions[index].leader == process.broker:
            self._heard[key].append(self.now_ns)

    def takes(self, member: Member, tp: Any, topic_id: str) -> None:
        """I23: nobody else may be using it, unless the group knows him no more."""
        group = member.membership.group
        for (name, _), other in self.members.items():
            if name != group or other is member or not other.uses(tp, topic_id):
                continue
            if self._is_excused(group) or other.readers[tp].removed < self.removed[other.name]:
                self.world.count("groups: two use a partition, one was removed")
                continue
            raise Violation(f"I23 {member} takes {tp}, {other} uses it")

    def handed(self, group: str, part: Part, start: int, end: int) -> None:
        """I25: records were given to a member, or are no more."""
        frontier = self.frontiers[group, part]
        if start > frontier and not self._has_lost(part) and not self._is_excused(group):
            raise Violation(f"I25 {group} {part}: reads from {start}, handed out was {frontier}")
        self.frontiers[group, part] = max(frontier, end)

    def check_group_heartbeat(
        self, process: Process, message: Any, result: Any, asked_ns: int
    ) -> None:
        """I23: nobody is told what is not committed."""
        group, member = message["group"], message["member"]
        if self._is_excused(group):
            return
        if result["member_epoch"] > self._epochs.get((group, member), 0):
            raise Violation(f"I23 {process} tells {member} what is not committed: {result}")
        for entry in (*result["assigned"], *result["releasing"]):
            for index in entry["partitions"]:
                part = (bytes.fromhex(entry["topic_id"]), index)
                if (group, member, part) not in self._owned:
                    raise Violation(f"I23 {process} tells {member} of {part}: {result}")

    def check_group_leave(self, process: Process, message: Any, result: Any, asked_ns: int) -> None:
        """I23: who was told that he has left is no member."""
        group = self.groups.get(message["group"])
        is_there = group is not None and message["member"] in group.members
        if is_there and not self._is_excused(message["group"]):
            raise Violation(f"I23 {process}: {message['member']} has left, and is a member")

    def check_commit(self, process: Process, message: Any, result: Any, asked_ns: int) -> None:
        """I24: an offset that was acked is committed."""
        group = message["group"]
        for wanted in message["offsets"]:
            if (wanted["topic"], wanted["partition"]) != (result["topic"], result["partition"]):
                continue
            part = (bytes.fromhex(wanted["topic_id"]), wanted["partition"])
            number = self._numbers.get((group, part, message["member"]), -1)
            is_there = part[0] in self._checker.image.names and not self._is_excused(group)
            if is_there and number < message["number"]:
                raise Violation(f"I24 {process} acks {message}, committed is number {number}")

    def check_committed(self, process: Process, message: Any, result: Any, asked_ns: int) -> None:
        """I24: who asks is told what is committed at a moment between question and answer."""
        if not result["topic_id"] or self._is_excused(message["group"]):
            return
        part = (bytes.fromhex(result["topic_id"]), result["partition"])
        topic = self._checker.image.topics[OFFSETS_TOPIC]
        if topic.partitions[partition_of(message["group"])].leader != process.broker:
            asked_ns -= self._checker.hang_ns  # deposed, and has not heard of it
        steps = self._offsets[message["group"], part]
        place = bisect_right(steps, (asked_ns, 1 << 62))
        was = steps[place - 1][1] if place else -1
        allowed = {was, *(offset for _, offset in steps[place:])}
        if part[0] in self._checker.image.names and result["offset"] not in allowed:
            raise Violation(f"I24 {process} says {result}, committed was one of {sorted(allowed)}")

    # -- the end --------------------------------------------------------------------------------------

    def why_not_stable(self, group: str, wanted: set[Part]) -> str:
        """Does the assignment cover all of it, each exactly once (I26)?"""
        found = self.groups.get(group)
        if found is None or found.state is not GroupState.STABLE:
            state = None if found is None else found.state
            return f"{group} is {state}: {found and found.members}"
        assigned = [part for member in found.members.values() for part in member.assigned]
        if len(assigned) != len(wanted) or set(assigned) != wanted:
            return f"{group}: assigned {sorted(assigned)}, wanted {sorted(wanted)}"
        return ""

    def final(self) -> None:
        """I28: what coordinators have in memory is what the log says."""
        for process in self.world.living():
            assert process.node is not None
            for index, shard in process.node.context.coordinator._shards.items():
                if not shard.leads or shard.is_active or not shard.is_loaded:
                    continue
                if shard.partition.high_watermark != shard.end:
                    continue
                there = {n: g for n, g in self.groups.items() if partition_of(n) == index}
                if sorted(there) != sorted(shard.groups):
                    raise Violation(f"I28 {process}: {sorted(shard.groups)}, log {sorted(there)}")
                for name, group in there.items():
                    mine, theirs = _state(shard.groups[name]), _state(group)
                    if mine != theirs:
                        raise Violation(f"I28 {process} {name}: {mine}, log {theirs}")


def _state(group: Group) -> Any:
    """All but `epoch_before`, which heartbeats raise and nobody is shown."""
    record = records._record_of(group)
    for member in record.members:
        member.epoch_before = 0
    return record, dict(sorted(group.offsets.items()))
