"""Who is in sync: who may join, who ought to leave, what a leader proposes. Pure. J: docs/rules.md.

The ISR is the cluster's memory of who holds everything committed: each member, dead or alive, may lead. So
joining is hard, and leaving is bounded:

    join    J1 reported in this epoch by the current incarnation    J2 stored end >= high watermark
            J3 stored end >= the epoch's start                      J4 its broker is fit
    leave   J6 its stored end does not get on, or it cannot append (a broker's death is the controller's business)
    bound   J7 never below the effective minimum: who ought to leave and may not stays, *missing*

The leader counts the *maximal* ISR (J8): what is confirmed and what is proposed. J5 is the controller's: it
refuses a proposal whose partition epoch or incarnations have moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

UNKNOWN = -1  # an end that nobody has reported


class BrokerFact(NamedTuple):
    """What is known of a broker. `fit`: it lives (pidfd), is not fenced and not stopping."""

    incarnation: int
    fit: bool


class Replica:
    """A follower as the leader of this epoch sees it: what its current incarnation has reported.

    Invariants: synced_end <= written_end; both only rise, until another incarnation takes its place.
    stored_end is the one of them that counts at the leader's durability.
    """

    __slots__ = (
        "broker",
        "can_append",
        "fit",
        "incarnation",
        "lagging",
        "stored_end",
        "synced_end",
        "target_end",
        "target_since_ns",
        "written_end",
    )

    def __init__(self, broker: int, now_ns: int) -> None:
        self.broker = broker
        self.fit = True
        self.start(UNKNOWN, now_ns)

    def start(self, incarnation: int, now_ns: int) -> None:
        """Another incarnation: nothing is known of it yet."""
        self.incarnation = incarnation
        self.written_end = self.synced_end = self.stored_end = UNKNOWN
        self.target_end, self.target_since_ns = 0, now_ns
        self.lagging, self.can_append = False, True

    def reported(self, stored_end: int, durability: str) -> None:
        """It has stored all below `stored_end`, counted by `durability`: what is synced is written too."""
        self.written_end = max(self.written_end, stored_end)
        if durability == "disk":
            self.synced_end = max(self.synced_end, stored_end)

    def count_by(self, durability: str) -> None:
        """H1: only what is counted by a durability not weaker than the leader's."""
        self.stored_end = self.written_end if durability == "os" else self.synced_end


def ought_to_leave(replica: Replica) -> bool:
    """J6, the leader's part of it."""
    return replica.lagging or not replica.can_append


def may_join(replica: Replica, high_watermark: int, epoch_start: int) -> bool:
    """J1 to J4; nobody joins to leave again. (J1: what is not reported in this epoch is below any offset.)"""
    return (
        replica.stored_end >= high_watermark
        and replica.stored_end >= epoch_start
        and replica.fit
        and not ought_to_leave(replica)
    )


def maximal(isr: Iterable[int], proposed: Iterable[int]) -> set[int]:
    """J8: the confirmed members and, while a proposal is not settled, those of the proposal."""
    return {*isr, *proposed}


def change(
    isr: Sequence[int], joining: Iterable[int], leaving: Iterable[Replica], minimum: int
) -> set[int]:
    """The ISR after both, never shrunk below `minimum` (J7): the least useful leave first."""
    members = {*isr, *joining}
    for replica in sorted(leaving, key=lambda r: (r.fit, r.stored_end, r.broker)):
        if len(members) <= minimum:
            break
        members.discard(replica.broker)
    return members
