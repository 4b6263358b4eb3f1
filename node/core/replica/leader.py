"""The ledger of a partition's leader: stored ends in, high watermark and ISR proposals out. Sans-IO.

What counts as *stored* is the topic's durability: the end that is written to the file (`os`) or synced
(`disk`). This is the only place where durability enters. The high watermark is the smallest stored end over
the maximal ISR, the leader's own included (H1), and moves only while the confirmed ISR has the effective
minimum of members (H2). With one replica that is the leader's own end.

One ledger is one leader epoch of one incarnation; it is made once the image shows the epoch started (E8).

    proposal    none -> open            plan_isr: its members count from now on (J8)
                open -> unknown         no answer: they go on counting, and the same is proposed again
                open -> none            refused for good; or the image shows a later partition epoch, so it is
                                        committed or never will be

Invariants: synced_end <= written_end; log_start <= high_watermark <= written_end; the high watermark never goes
back (H3); at most one proposal is open (J4). H, J: docs/rules.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from node.core.replica import isr as rules
from node.core.replica.isr import BrokerFact, Replica
from shmlog.protocol.peers import IsrMember

# INVALID_UPDATE_VERSION, NEW_LEADER_ELECTED: the partition has moved on. Whether an earlier copy of the proposal
# has moved it, only the image can say.
_MOVED = (95, 108)
_NOBODY = BrokerFact(rules.UNKNOWN, fit=False)


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """An ISR to ask the controller for, with what the leader saw (J5). Two of them are never equal."""

    partition_epoch: int
    isr: tuple[IsrMember, ...]


class Leader:
    """The ends of one partition that this broker leads."""

    def __init__(
        self,
        *,
        written_end: int,
        synced_end: int,
        high_watermark: int,
        durability: str,
        broker: int = 0,
        leader_epoch: int = 0,
        epoch_start: int = 0,
        replicas: Sequence[int] = (),
        isr: Sequence[int] = (),
        partition_epoch: int = 0,
        minimum_isr: int = 1,
        log_start: int = 0,
        lag_time_ns: int = 10**10,
        now_ns: int = 0,
    ) -> None:
        self.broker = broker
        self.leader_epoch = leader_epoch
        self.epoch_start = epoch_start
        self.replicas = tuple(replicas) or (broker,)
        self.written_end = written_end
        self.synced_end = synced_end
        # H7: it starts with the one it knew.
        self.high_watermark = max(min(high_watermark, written_end), log_start)
        self.durability = durability
        self.isr = tuple(isr) or (broker,)
        self.partition_epoch = partition_epoch
        self.proposal: Proposal | None = None
        self.present: tuple[int, ...] = ()  # J9
        self._followers = {b: Replica(b, now_ns) for b in self.replicas if b != broker}
        self._counted: tuple[Replica, ...] = ()  # the maximal ISR without the leader
        self._incarnation, self._fit = rules.UNKNOWN, True
        self._lag_time_ns = lag_time_ns
        self._target_end, self._target_since_ns = written_end, now_ns
        self._again = False  # the open proposal has to be sent again
        self._refused = False
        self.confirm(self.isr, partition_epoch, minimum_isr, durability)

    def __repr__(self) -> str:
        ends = ", ".join(f"{r.broker}: {r.stored_end}" for r in self._followers.values())
        return (
            f"<Leader {self.broker} epoch {self.leader_epoch} hw {self.high_watermark} "
            f"stored {self.stored_end} ({ends}) isr {self.isr} proposal {self.proposal}>"
        )

    # -- ends -----------------------------------------------------------------------------------------

    @property
    def stored_end(self) -> int:
        """The end that counts at this topic's durability."""
        return self.written_end if self.durability == "os" else self.synced_end

    @property
    def latest_known(self) -> bool:
        """H7: until then "latest" is answered 78."""
        return self.high_watermark >= self.epoch_start

    def written(self, end_offset: int) -> bool:
        """The file now holds all below `end_offset`; True if the high watermark moved."""
        if end_offset > self.written_end:
            self.written_end = end_offset
        return self._settle()

    def synced(self, end_offset: int) -> bool:
        """A sync that covers all below `end_offset` is done; True if the high watermark moved."""
        self.synced_end = max(self.synced_end, min(end_offset, self.written_end))
        return self._settle()

    def trimmed(self, log_start: int) -> bool:
        """The log begins at `log_start` now; True if the high watermark moved (H3: never below it)."""
        moved = log_start > self.high_watermark
        if moved:
            assert log_start <= self.written_end, (log_start, self.written_end)
            self.high_watermark = log_start
        return moved

    def report(
        self,
        broker: int,
        incarnation: int,
        leader_epoch: int,
        stored_end: int,
        durability: str,
        now_ns: int,
        can_append: bool = True,
    ) -> bool:
        """A follower says how far it has stored; True if the high watermark moved.

        What another epoch or an incarnation that is not current says changes nothing (H1, J1).
        """
        replica = self._followers.get(broker)
        if (
            replica is None
            or leader_epoch != self.leader_epoch
            or incarnation != replica.incarnation
        ):
            return False
        replica.reported(stored_end, durability)
        replica.count_by(self.durability)
        ought_before = rules.ought_to_leave(replica)
        replica.can_append = can_append
        if replica.stored_end >= replica.target_end:
            replica.target_end, replica.target_since_ns = self.written_end, now_ns
            replica.lagging = False
        if ought_before != rules.ought_to_leave(replica):
            self._look_who_is_present()
        return self._settle()

    def _settle(self) -> bool:
        if not self._may_move:
            return False
        end = self.written_end if self.durability == "os" else self.synced_end
        for replica in self._counted:
            if replica.stored_end < end:
                end = replica.stored_end
        if end <= self.high_watermark:
            return False
        self.high_watermark = end
        return True

    @property
    def lowest_end(self) -> int:
        """Every follower that lives has written all below it, as far as is known."""
        ends = [r.written_end for r in self._followers.values() if r.fit]
        return max(0, min([self.written_end, *ends]))

    def has_stored(self, broker: int, end_offset: int) -> bool:
        """Is `broker` a confirmed member with all below `end_offset` stored? (A hand-over's target.)"""
        replica = self._followers.get(broker)
        return replica is not None and broker in self.isr and replica.stored_end >= end_offset

    def holds_back(self, now_ns: int) -> bool:
        """J6: others have stored what this broker could not for too long; it should hand over."""
        stored_end = self.stored_end
        return (
            stored_end < self.written_end
            and now_ns - self._target_since_ns > self._lag_time_ns
            and bool(self._counted)
            and all(replica.stored_end > stored_end for replica in self._counted)
        )

    # -- facts ----------------------------------------------------------------------------------------

    def see_brokers(self, facts: Mapping[int, BrokerFact], now_ns: int) -> None:
        """Incarnations as the image knows them, and who is fit. Whom it does not know is not."""
        for broker, replica in self._followers.items():
            fact = facts.get(broker, _NOBODY)
            if fact.incarnation != replica.incarnation:
                replica.start(fact.incarnation, now_ns)
            replica.fit = fact.fit
        self._incarnation, self._fit = facts.get(self.broker, _NOBODY)
        self._look_who_is_present()

    def confirm(
        self, isr: Sequence[int], partition_epoch: int, minimum_isr: int, durability: str
    ) -> bool:
        """What one image says of the partition and its topic (H2); True if the high watermark moved."""
        assert partition_epoch >= self.partition_epoch, (partition_epoch, self.partition_epoch)
        self.isr, self.partition_epoch = tuple(isr), partition_epoch
        self.minimum = min(minimum_isr, len(self.replicas))
        if self.proposal is not None and partition_epoch > self.proposal.partition_epoch:
            self.proposal, self._again = None, False
        self._refused = False
        self._recount()
        return self.set_durability(durability)

    def set_durability(self, durability: str) -> bool:
        """The topic's setting changed; True if the high watermark moved (it never goes back)."""
        self.durability = durability
        for replica in self._followers.values():
            replica.count_by(durability)
        return self._settle()

    def _recount(self) -> None:
        proposed = () if self.proposal is None else (m.broker for m in self.proposal.isr)
        members = rules.maximal(self.isr, proposed)
        self._counted = tuple(r for b, r in self._followers.items() if b in members)
        self._may_move = len(self.isr) >= self.minimum
        self._look_who_is_present()

    def _look_who_is_present(self) -> None:
        self.present = tuple(b for b in self.isr if self._is_present(b))

    def _is_present(self, broker: int) -> bool:
        if broker == self.broker:
            return self._fit
        replica = self._followers[broker]
        return replica.fit and not rules.ought_to_leave(replica)

    @property
    def has_minimum(self) -> bool:
        """Are as many members present as `acks=all` needs? Else 19, 20 (J9)."""
        return len(self.present) >= self.minimum

    # -- proposals ------------------------------------------------------------------------------------

    @property
    def wants_plan(self) -> bool:
        """Does somebody wait to join, or a proposal to be sent again? Else `plan_isr` can wait for its second."""
        if self.proposal is not None:
            return self._again
        return not self._refused and len(self.isr) < len(self.replicas) and bool(self._joining())

    def plan_isr(self, now_ns: int) -> Proposal | None:
        """What to propose to the controller now. To be asked each second (J6), and when `wants_plan`."""
        self._test_lag(now_ns)
        if self.proposal is not None:
            again, self._again = self._again, False
            return self.proposal if again else None
        leaving = [
            replica
            for broker, replica in self._followers.items()
            if broker in self.isr and rules.ought_to_leave(replica)
        ]
        members = rules.change(self.isr, self._joining(), leaving, self.minimum)
        if members == set(self.isr):
            return None
        self.proposal = Proposal(
            self.partition_epoch,
            tuple(IsrMember(b, self._incarnation_of(b)) for b in self.replicas if b in members),
        )
        self._recount()
        return self.proposal

    def proposal_refused(self, proposal: Proposal, code: int) -> bool:
        """A definite answer; True if the high watermark moved.

        After 95 and 108 the partition has moved on, maybe by an earlier copy of this very proposal: its members
        count until the image is here.
        """
        if proposal is not self.proposal or code in _MOVED:
            return False
        self.proposal, self._again, self._refused = None, False, True
        self._recount()
        return self._settle()

    def proposal_unknown(self, proposal: Proposal) -> None:
        """No answer, so it may be committed at any time (J8): it stays, to be sent again.

        The copy is another object, so that a late answer to the first one says nothing about it.
        """
        if proposal is self.proposal:
            self.proposal, self._again = Proposal(proposal.partition_epoch, proposal.isr), True

    def _joining(self) -> list[int]:
        return [
            broker
            for broker, replica in self._followers.items()
            if broker not in self.isr
            and rules.may_join(replica, self.high_watermark, self.epoch_start)
        ]

    def _incarnation_of(self, broker: int) -> int:
        if broker == self.broker:
            return self._incarnation
        return self._followers[broker].incarnation

    def _test_lag(self, now_ns: int) -> None:
        if self.stored_end >= self._target_end:
            self._target_end, self._target_since_ns = self.written_end, now_ns
        for replica in self._followers.values():
            replica.lagging = (
                replica.stored_end < self.written_end
                and now_ns - replica.target_since_ns > self._lag_time_ns
            )
        self._look_who_is_present()
