"""Who is to read which partition. Pure: the same input gives the same plan.

`uniform` (the model is KIP-848's): numbers of partitions differ by at most one among members with equal
subscriptions, and a partition stays with its member where that permits. `range`: of each topic every member gets a
block of neighbours, so that equal partitions of topics with equal keys meet at one member.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Part = tuple[bytes, int]  # topic id and partition
Wants = Mapping[str, Sequence[bytes]]  # member -> the ids of the topics that it subscribes to
Counts = Mapping[bytes, int]  # topic id -> number of partitions
Plan = dict[str, set[Part]]


def uniform(wants: Wants, counts: Counts, current: Mapping[str, set[Part]]) -> Plan:
    """Balanced and sticky. `current`: the plan before."""
    plan = _kept(wants, counts, current)
    eligible = _eligible(wants, counts)
    taken = set().union(*plan.values()) if plan else set()
    free = [
        part
        for topic in sorted(eligible, key=lambda t: (len(eligible[t]), t))
        for part in _parts(topic, counts)
        if part not in taken
    ]
    if len({frozenset(topics) for topics in wants.values()}) == 1:
        _fill_quotas(plan, free)
        return plan
    for part in free:
        plan[min(eligible[part[0]], key=lambda m: (len(plan[m]), m))].add(part)
    _level(plan, eligible)
    return plan


def _kept(wants: Wants, counts: Counts, current: Mapping[str, set[Part]]) -> Plan:
    """What each member may keep; a partition stands with one of them only."""
    taken: set[Part] = set()
    plan: Plan = {}
    for member in sorted(wants):
        topics = set(wants[member])
        kept = {
            part
            for part in current.get(member, ())
            if part[0] in topics and part[1] < counts.get(part[0], 0) and part not in taken
        }
        taken |= kept
        plan[member] = kept
    return plan


def _eligible(wants: Wants, counts: Counts) -> dict[bytes, list[str]]:
    eligible: dict[bytes, list[str]] = {}
    for member in sorted(wants):
        for topic in wants[member]:
            if topic in counts:
                eligible.setdefault(topic, []).append(member)
    return eligible


def _parts(topic: bytes, counts: Counts) -> list[Part]:
    return [(topic, index) for index in range(counts[topic])]


def _fill_quotas(plan: Plan, free: list[Part]) -> None:
    """All may have all: who has most already gets the larger quota, so as few as possible move."""
    total = len(free) + sum(map(len, plan.values()))
    size, larger = divmod(total, len(plan))
    quotas = {
        member: size + (place < larger)
        for place, member in enumerate(sorted(plan, key=lambda m: (-len(plan[m]), m)))
    }
    for member, quota in quotas.items():
        surplus = sorted(plan[member])[quota:]
        plan[member].difference_update(surplus)
        free += surplus
    remaining = iter(free)
    for member in sorted(quotas):
        while len(plan[member]) < quotas[member]:
            plan[member].add(next(remaining))


def _level(plan: Plan, eligible: Mapping[bytes, Sequence[str]]) -> None:
    """Move partitions one by one from who has two more than somebody who may have it."""
    moved = True
    while moved:
        moved = False
        for member in sorted(plan, key=lambda m: (-len(plan[m]), m)):
            for part in sorted(plan[member]):
                least = min(eligible[part[0]], key=lambda m: (len(plan[m]), m))
                if len(plan[member]) - len(plan[least]) > 1:
                    plan[member].remove(part)
                    plan[least].add(part)
                    moved = True


def ranges(wants: Wants, counts: Counts, current: Mapping[str, set[Part]]) -> Plan:
    """Blocks of neighbours; `current` does not matter."""
    plan: Plan = {member: set() for member in wants}
    for topic, members in _eligible(wants, counts).items():
        size, larger = divmod(counts[topic], len(members))
        first = 0
        for place, member in enumerate(members):
            end = first + size + (place < larger)
            plan[member].update((topic, index) for index in range(first, end))
            first = end
    return plan


ASSIGNORS = {"uniform": uniform, "range": ranges}
