"""Leader and follower of a replicated partition: each rule of SEMANTICS 6 as a story, then thousands of lives.

The stories name the rule they guard. The walk (replica_walk.py) runs the shipped code through random faults and
checks the invariants of the replication after every step; each planted bug below must turn it red.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from replica_walk import Broker, Controller, Violation, Walk

from node.core.replica import follower as following
from node.core.replica import isr as rules
from node.core.replica.follower import Follower, State, Truncation, may_cut, plan_truncation
from node.core.replica.isr import BrokerFact
from node.core.replica.leader import Leader, Proposal

LAG = 10
SOUND = {b: BrokerFact(100 + b, fit=True) for b in range(4)}


def leader(
    *,
    end: int = 10,
    hw: int = 0,
    isr: tuple[int, ...] = (0, 1, 2),
    minimum: int = 2,
    durability: str = "os",
    epoch_start: int = 0,
    synced_end: int | None = None,
) -> Leader:
    ledger = Leader(
        broker=0,
        leader_epoch=5,
        epoch_start=epoch_start,
        replicas=(0, 1, 2),
        isr=isr,
        partition_epoch=7,
        minimum_isr=minimum,
        durability=durability,
        written_end=end,
        synced_end=end if synced_end is None else synced_end,
        high_watermark=hw,
        lag_time_ns=LAG,
    )
    ledger.see_brokers(SOUND, 0)
    return ledger


def report(ledger: Leader, broker: int, end: int, durability: str = "os", now: int = 0) -> bool:
    return ledger.report(broker, 100 + broker, 5, end, durability, now)


def members(proposal: Proposal | None) -> list[int]:
    assert proposal is not None
    return [member.broker for member in proposal.isr]


# -- high watermark -----------------------------------------------------------------------------------


def test_h1_the_high_watermark_is_the_smallest_stored_end_over_the_isr() -> None:
    ledger = leader()
    assert not report(ledger, 1, 8)
    assert report(ledger, 2, 6)
    assert ledger.high_watermark == 6
    assert report(ledger, 2, 10)
    assert ledger.high_watermark == 8


def test_h1_a_report_of_another_epoch_or_incarnation_changes_nothing() -> None:
    ledger = leader(isr=(0, 1))
    assert not ledger.report(1, 101, 4, 9, "disk", 0)
    assert not ledger.report(1, 100, 5, 9, "disk", 0)
    assert not ledger.report(9, 109, 5, 9, "disk", 0)
    assert ledger.high_watermark == 0
    assert report(ledger, 1, 9)


def test_h1_what_an_incarnation_reported_is_forgotten_with_it() -> None:
    ledger = leader()
    report(ledger, 1, 10)
    ledger.see_brokers({**SOUND, 1: BrokerFact(201, fit=True)}, 0)
    assert not report(ledger, 2, 10)
    assert ledger.report(1, 201, 5, 4, "os", 0)
    assert ledger.high_watermark == 4


def test_h1_an_end_counted_by_a_weaker_durability_does_not_count() -> None:
    ledger = leader(isr=(0, 1), durability="disk")
    assert not report(ledger, 1, 10, "os")
    assert report(ledger, 1, 4, "disk")
    assert ledger.high_watermark == 4
    assert ledger.set_durability("os")
    assert ledger.high_watermark == 10


def test_h1_a_stronger_durability_counts_from_the_change_on_and_takes_nothing_back() -> None:
    ledger = leader(isr=(0, 1))
    report(ledger, 1, 9, "os")
    assert not ledger.confirm((0, 1), 7, 2, "disk")
    assert ledger.high_watermark == 9
    assert not report(ledger, 1, 8, "disk")
    assert report(ledger, 1, 10, "disk")


def test_h2_below_the_minimum_the_high_watermark_stands_still() -> None:
    ledger = leader(isr=(0,), minimum=2)
    assert not ledger.written(20)
    assert ledger.high_watermark == 0
    assert ledger.confirm((0,), 8, 1, "os")
    assert ledger.high_watermark == 20


def test_h2_the_minimum_is_never_more_than_the_replicas() -> None:
    ledger = Leader(written_end=3, synced_end=3, high_watermark=0, durability="os", minimum_isr=2)
    assert ledger.high_watermark == 3


def test_h2_a_proposed_member_makes_no_minimum() -> None:
    ledger = leader(isr=(0,), minimum=2)
    report(ledger, 1, 10)
    assert members(ledger.plan_isr(0)) == [0, 1]
    assert not ledger.written(11)
    assert ledger.high_watermark == 0
    assert ledger.confirm((0, 1), 8, 2, "os")
    assert ledger.high_watermark == 10


def test_h3_the_high_watermark_is_never_below_the_log_start_and_never_goes_back() -> None:
    ledger = leader()
    assert ledger.trimmed(4)
    assert not ledger.trimmed(3)
    assert not report(ledger, 1, 2)
    assert not report(ledger, 2, 2)
    assert ledger.high_watermark == 4


def test_h7_a_new_leader_starts_with_the_one_it_knew_and_knows_the_latest_later() -> None:
    ledger = leader(hw=6, end=10, epoch_start=10)
    assert ledger.high_watermark == 6
    assert not ledger.latest_known
    report(ledger, 1, 10)
    report(ledger, 2, 10)
    assert ledger.latest_known


def test_one_replica_costs_nothing() -> None:
    ledger = Leader(written_end=0, synced_end=0, high_watermark=0, durability="os")
    ends = [1000 + 300 * n for n in range(1000)]
    moved = [False] * 1000
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for n in range(1000):
        moved[n] = ledger.written(ends[n])
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert all(moved)
    assert grown < 1000
    assert ledger.present == (0,)
    assert ledger.has_minimum
    assert ledger.plan_isr(10**12) is None


# -- joining ------------------------------------------------------------------------------------------


def test_j1_nobody_joins_who_has_not_reported_in_this_epoch() -> None:
    ledger = leader(isr=(0, 1), end=0)
    assert ledger.plan_isr(0) is None
    assert not ledger.wants_plan
    report(ledger, 2, 0)
    assert ledger.wants_plan
    assert members(ledger.plan_isr(0)) == [0, 1, 2]


@pytest.mark.parametrize(("end", "joins"), [(5, False), (6, True)])
def test_j2_nobody_joins_below_the_high_watermark(end: int, joins: bool) -> None:
    ledger = leader(isr=(0, 1), hw=6)
    report(ledger, 2, end)
    assert (ledger.plan_isr(0) is not None) == joins


@pytest.mark.parametrize(("end", "joins"), [(9, False), (10, True)])
def test_j3_nobody_joins_below_the_start_of_the_epoch(end: int, joins: bool) -> None:
    ledger = leader(isr=(0,), hw=6, epoch_start=10)
    report(ledger, 2, end)
    assert (ledger.plan_isr(0) is not None) == joins


def test_j4_who_is_not_fit_does_not_join_and_one_proposal_is_open_at_most() -> None:
    ledger = leader(isr=(0,))
    report(ledger, 1, 10)
    report(ledger, 2, 10)
    ledger.see_brokers({**SOUND, 2: BrokerFact(102, fit=False)}, 0)
    assert members(ledger.plan_isr(0)) == [0, 1]
    ledger.see_brokers(SOUND, 0)
    assert ledger.plan_isr(0) is None
    ledger.confirm((0, 1), 8, 2, "os")
    assert members(ledger.plan_isr(0)) == [0, 1, 2]


def test_j5_a_proposal_names_what_the_leader_saw() -> None:
    ledger = leader(isr=(0, 1))
    report(ledger, 2, 10)
    proposal = ledger.plan_isr(0)
    assert proposal is not None
    assert proposal.partition_epoch == 7
    assert [(m.broker, m.incarnation) for m in proposal.isr] == [(0, 100), (1, 101), (2, 102)]


def test_j5_after_a_refusal_nobody_is_proposed_before_something_has_changed() -> None:
    ledger = leader(isr=(0, 1))
    report(ledger, 1, 10)
    report(ledger, 2, 10)
    proposal = ledger.plan_isr(0)
    assert proposal is not None
    ledger.proposal_refused(proposal, 107)
    assert ledger.proposal is None
    assert not ledger.wants_plan
    ledger.confirm((0, 1), 7, 2, "os")
    assert ledger.wants_plan


# -- leaving ------------------------------------------------------------------------------------------


def test_j6_who_does_not_reach_the_end_of_its_last_report_in_time_leaves() -> None:
    ledger = leader()
    for now in range(0, 2 * LAG, 2):  # 2 gets on, 1 does not
        report(ledger, 1, 5, now=now)
        report(ledger, 2, ledger.written_end, now=now)
        ledger.written(ledger.written_end + 1)
    assert members(ledger.plan_isr(2 * LAG)) == [0, 2]


def test_j6_who_is_always_a_little_behind_stays() -> None:
    ledger = leader(durability="disk", end=0)
    for now in range(1, 10 * LAG):
        ledger.written(now)
        ledger.synced(now)
        for broker in (1, 2):
            report(ledger, broker, max(0, now - 3), "disk", now)
        assert ledger.plan_isr(now) is None


def test_j6_an_idle_partition_expels_nobody() -> None:
    ledger = leader()
    report(ledger, 1, 10)
    report(ledger, 2, 10)
    assert ledger.plan_isr(100 * LAG) is None


def test_j6_who_cannot_append_leaves_and_does_not_join() -> None:
    ledger = leader()
    ledger.report(1, 101, 5, 10, "os", 0, can_append=False)
    assert ledger.present == (0, 2)
    assert members(ledger.plan_isr(0)) == [0, 2]
    ledger.confirm((0, 2), 8, 2, "os")
    assert not ledger.wants_plan
    report(ledger, 1, 10)
    assert ledger.wants_plan


def test_j6_a_leader_whose_sync_hangs_hands_over() -> None:
    ledger = leader(durability="disk", synced_end=4)
    report(ledger, 1, 10, "disk")
    report(ledger, 2, 3, "disk")
    assert not ledger.holds_back(2 * LAG)  # 2 is behind too
    report(ledger, 2, 10, "disk")
    assert not ledger.holds_back(LAG)
    assert ledger.holds_back(LAG + 1)
    ledger.synced(10)
    assert not ledger.holds_back(LAG + 1)


def test_j7_the_leader_proposes_no_isr_below_the_minimum_and_keeps_the_best() -> None:
    ledger = leader()
    report(ledger, 1, 4)
    report(ledger, 2, 6)
    assert members(ledger.plan_isr(LAG + 1)) == [0, 2]
    assert ledger.present == (0,)
    assert not ledger.has_minimum


def test_j7_a_join_lets_a_missing_one_go() -> None:
    ledger = leader(isr=(0, 1))
    assert ledger.plan_isr(LAG + 1) is None
    report(ledger, 2, 10, now=LAG + 1)
    assert members(ledger.plan_isr(LAG + 1)) == [0, 2]


def test_j8_a_proposed_member_counts_at_once() -> None:
    ledger = leader(isr=(0, 1))
    report(ledger, 1, 10)
    report(ledger, 2, 10)
    ledger.plan_isr(0)
    report(ledger, 1, 12)
    assert not ledger.written(12)
    assert report(ledger, 2, 11)
    assert ledger.high_watermark == 11


def test_j8_a_removed_member_counts_until_the_removal_is_committed() -> None:
    ledger = leader()
    report(ledger, 1, 4)
    report(ledger, 2, 10)
    assert members(ledger.plan_isr(LAG + 1)) == [0, 2]
    assert ledger.high_watermark == 4
    assert ledger.confirm((0, 2), 8, 2, "os")
    assert ledger.high_watermark == 10


def test_j8_after_an_unknown_answer_both_count_and_the_same_is_proposed_again() -> None:
    ledger = leader(isr=(0, 1))
    report(ledger, 2, 10)
    first = ledger.plan_isr(0)
    assert first is not None
    ledger.proposal_unknown(first)
    assert ledger.wants_plan
    report(ledger, 1, 12)
    assert not ledger.written(12)
    again = ledger.plan_isr(0)
    assert again is not None
    assert again.isr == first.isr
    assert not ledger.proposal_refused(first, 107)  # of the first copy: it settles nothing
    assert ledger.high_watermark == 10
    assert ledger.proposal_refused(again, 107)
    assert ledger.high_watermark == 12


@pytest.mark.parametrize("code", [95, 108])
def test_j8_a_proposal_overtaken_by_the_partition_counts_until_the_image_shows_it(
    code: int,
) -> None:
    ledger = leader(isr=(0, 1))
    report(ledger, 2, 10)
    proposal = ledger.plan_isr(0)
    assert proposal is not None
    report(ledger, 1, 12)
    ledger.written(12)
    assert not ledger.proposal_refused(proposal, code)
    assert ledger.high_watermark == 10
    assert ledger.confirm((0, 1), 8, 2, "os")
    assert ledger.high_watermark == 12


def test_j9_present_are_the_members_that_are_fit_and_get_on() -> None:
    ledger = leader()
    assert ledger.present == (0, 1, 2)
    ledger.see_brokers({**SOUND, 1: BrokerFact(101, fit=False)}, 0)
    assert ledger.present == (0, 2)
    assert ledger.has_minimum
    report(ledger, 2, 4)
    ledger.plan_isr(LAG + 1)
    assert ledger.present == (0,)
    assert not ledger.has_minimum
    report(ledger, 2, 10, now=LAG + 2)
    assert ledger.present == (0, 2)


def test_66_a_hand_overs_target_is_a_member_that_has_stored_all() -> None:
    ledger = leader(isr=(0, 1))
    report(ledger, 1, 9)
    report(ledger, 2, 10)
    assert not ledger.has_stored(1, 10)
    assert not ledger.has_stored(2, 10)
    report(ledger, 1, 10)
    assert ledger.has_stored(1, 10)


# -- truncation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("story", "mine", "my_end", "theirs", "their_end", "their_start", "plan"),
    [
        ("equal", [(1, 0), (2, 5)], 8, [(1, 0), (2, 5)], 8, 0, (8, False)),
        ("behind", [(1, 0), (2, 5)], 7, [(1, 0), (2, 5), (3, 9)], 12, 0, (7, False)),
        ("ahead in the same epoch", [(1, 0)], 9, [(1, 0), (2, 6)], 8, 0, (6, False)),
        (
            "B02: an epoch the leader never saw",
            [(1, 0), (2, 4)],
            9,
            [(1, 0), (3, 6)],
            9,
            0,
            (4, False),
        ),
        ("both have one the other lacks", [(1, 0), (2, 6)], 9, [(1, 0), (3, 4)], 9, 0, (4, False)),
        (
            "later entries are cut too",
            [(1, 0), (3, 5), (4, 7)],
            9,
            [(1, 0), (3, 5), (5, 6)],
            8,
            0,
            (6, False),
        ),
        ("an epoch without a batch", [(1, 0), (4, 7)], 7, [(1, 0), (5, 7)], 9, 0, (7, False)),
        ("none in common", [(2, 0)], 4, [(3, 0)], 9, 0, (0, True)),
        ("below the log start", [(1, 0)], 4, [(1, 6)], 9, 6, (6, True)),
        ("cut below the log start", [(2, 0), (3, 5)], 12, [(2, 8), (4, 10)], 14, 8, (8, True)),
        ("a fresh log", [], 0, [(1, 0)], 9, 0, (0, False)),
        ("an emptied log", [], 7, [(1, 0)], 9, 0, (7, False)),
        ("an emptied log that ends too late", [(5, 7)], 7, [(1, 0)], 6, 0, (0, True)),
    ],
)
def test_t1_a_log_is_cut_where_it_differs_by_epoch_history(
    story: str,
    mine: list[tuple[int, int]],
    my_end: int,
    theirs: list[tuple[int, int]],
    their_end: int,
    their_start: int,
    plan: tuple[int, bool],
) -> None:
    assert plan_truncation(mine, my_end, theirs, their_end, their_start) == plan, story


def test_t3_no_cut_below_the_own_high_watermark_but_where_a_recovery_gave_it_up() -> None:
    mine = [(1, 0), (2, 5)]
    assert may_cut(Truncation(6), 6, mine, 9, -1)
    assert not may_cut(Truncation(5), 6, mine, 9, -1)
    assert not may_cut(Truncation(5), 6, mine, 9, 2)
    assert may_cut(Truncation(5), 6, mine, 9, 3)
    assert may_cut(Truncation(6, anew=True), 6, mine, 9, -1)
    assert may_cut(Truncation(5), 6, [(1, 0), (4, 9)], 9, 3)  # an epoch without a batch is nothing


# -- follower -----------------------------------------------------------------------------------------


def follower(hw: int = 4, recovery_epoch: int = -1) -> Follower:
    replica = Follower(high_watermark=hw)
    replica.follow(1, 5, True, recovery_epoch)
    return replica


def reconcile(replica: Follower, end: int, seq: int = 1) -> Truncation | None:
    """The leader has epoch 1 up to `end`; the replica up to 9."""
    replica.asked(seq)
    epoch = replica.leader_epoch
    return replica.handle_epochs(seq, epoch, [(1, 0), (5, end)], end, 0, [(1, 0)], 9)


def test_e8_nobody_follows_an_epoch_whose_start_is_not_committed() -> None:
    replica = Follower(high_watermark=0)
    replica.follow(1, 5, False)
    assert replica.state is State.WAITING
    assert not replica.wants_epochs
    replica.follow(1, 5, True)
    assert replica.wants_epochs
    replica.follow(-1, 6, True)
    assert replica.state is State.WAITING


def test_t1_a_follower_reconciles_before_it_fetches() -> None:
    replica = follower()
    assert not replica.wants_records
    assert reconcile(replica, 7) == (7, False)
    assert replica.state is State.TRUNCATING
    assert not replica.wants_records
    replica.truncated()
    assert replica.wants_records
    assert replica.accepts(5)
    assert not replica.accepts(4)


def test_b04_a_rise_of_the_epoch_is_enough_be_it_the_same_leader() -> None:
    replica = follower()
    reconcile(replica, 9)
    replica.truncated()
    replica.follow(1, 6, True)
    assert replica.wants_epochs
    assert not replica.accepts(5)


def test_t1_only_the_answer_to_the_last_question_cuts() -> None:
    replica = follower()
    replica.asked(1)
    replica.reset()
    assert replica.wants_epochs
    replica.asked(2)
    assert replica.handle_epochs(1, 5, [(1, 0)], 6, 0, [(1, 0)], 9) is None
    assert replica.handle_epochs(2, 4, [(1, 0)], 6, 0, [(1, 0)], 9) is None
    assert replica.handle_epochs(2, 5, [(1, 0)], 6, 0, [(1, 0)], 9) == (6, False)
    assert replica.handle_epochs(2, 5, [(1, 0)], 5, 0, [(1, 0)], 9) is None


def test_t2_a_cut_in_progress_is_finished_before_the_next_epoch_is_reconciled() -> None:
    replica = follower()
    reconcile(replica, 7)
    replica.follow(2, 6, True)
    assert replica.state is State.TRUNCATING
    replica.truncated()
    assert replica.wants_epochs


def test_t3_a_replica_asked_to_cut_what_is_committed_stops() -> None:
    replica = follower(hw=8)
    assert reconcile(replica, 7) is None
    assert replica.state is State.STOPPED
    assert replica.truncation == (7, False)
    replica.follow(2, 6, True)
    assert replica.state is State.STOPPED


def test_t3_after_a_recovery_election_it_cuts_and_its_high_watermark_follows() -> None:
    replica = follower(hw=8, recovery_epoch=5)
    assert reconcile(replica, 7) == (7, False)
    assert replica.high_watermark == 8
    replica.truncated()
    assert replica.high_watermark == 7


def test_b08_a_replica_that_begins_anew_has_its_high_watermark_at_the_log_start() -> None:
    replica = follower(hw=4)
    replica.asked(1)
    assert replica.handle_epochs(1, 5, [(5, 20)], 30, 20, [(1, 0)], 9) == (20, True)
    replica.truncated()
    assert replica.high_watermark == 20


def test_h7_b07_a_followers_high_watermark_moves_only_while_it_fetches() -> None:
    replica = follower(hw=4)
    assert not replica.fetched(5, 9, 9)
    reconcile(replica, 9)
    assert not replica.fetched(5, 9, 9)
    replica.truncated()
    assert not replica.fetched(4, 9, 9)
    assert replica.fetched(5, 9, 7)
    assert replica.high_watermark == 7
    assert not replica.fetched(5, 6, 7)
    assert replica.high_watermark == 7


def test_an_error_sends_a_follower_where_it_can_go_on() -> None:
    replica = follower()
    replica.asked(1)
    replica.refused(5, 75)  # the leader's image is older: ask again
    assert replica.wants_epochs
    replica.refused(4, 74)
    assert replica.wants_epochs
    reconcile(replica, 9, seq=2)
    replica.truncated()
    replica.refused(5, 6)
    assert replica.wants_records
    replica.refused(5, 1)
    assert replica.wants_epochs
    replica.refused(5, 74)  # the leader knows of a later epoch: so will the image
    assert replica.state is State.WAITING
    replica.follow(1, 5, True)
    assert replica.state is State.WAITING
    replica.follow(2, 6, True)
    assert replica.wants_epochs


# -- the walk -----------------------------------------------------------------------------------------


def walk(world: type[Walk], seed: int, steps: int) -> None:
    life = world(seed)
    try:
        life.run(steps)
    except AssertionError as error:
        raise Violation(
            f"{error}\nseed {seed}, {steps} steps, step {life.now}\n{life.describe()}"
        ) from error


@pytest.mark.parametrize("part", range(4))
def test_thousands_of_lives_violate_nothing_and_end_in_sync(part: int) -> None:
    for seed in range(part * 500, part * 500 + 500):
        walk(Walk, seed, 300)


def test_a_life_is_decided_by_its_seed() -> None:
    ends = []
    for _ in range(2):
        life = Walk(11)
        life.run(400)
        ends.append((life.describe(), life.committed))
    assert ends[0] == ends[1]


Patch = pytest.MonkeyPatch


def world(base: type[Walk] = Walk, **parts: Any) -> type[Walk]:
    """A walk with some of its parts replaced."""
    roles = {k: parts.pop(k) for k in ("leader_class", "follower_class") if k in parts}
    return type("Planted", (base,), {**parts, "broker_class": type("Planted", (Broker,), roles)})


class Impatient(Walk):
    """Its followers report to a new leader before they have reconciled, as of the epoch before."""

    back = 1

    def follow(self, broker: Broker) -> None:
        super().follow(broker)
        role = broker.follower
        if broker.runs and role is not None and role.state is State.RECONCILING:
            me = (broker.number, broker.incarnation, role.leader_epoch - self.back)
            self.send("fetch", role.leader, None, *me, len(broker.log), *broker.stored())


def without_j2(patch: Patch) -> type[Walk]:
    real = rules.may_join
    patch.setattr(rules, "may_join", lambda replica, _hw, start: real(replica, 0, start))
    return Walk


def without_j3(patch: Patch) -> type[Walk]:
    real = rules.may_join
    patch.setattr(rules, "may_join", lambda replica, hw, _start: real(replica, hw, 0))
    return Walk


def without_j5(_patch: Patch) -> type[Walk]:
    class Trusting(Controller):
        def eligible(self, image: object, proposal: Proposal) -> bool:
            return True

    class NewDisks(Walk):
        """For those who are about to join."""

        def may(self, name: str, broker: Broker) -> bool:
            fresh = name != "replace_disk" or broker.number not in self.controller.image.isr
            return fresh and super().may(name, broker)

    weights = {"propose": 1, "replace_disk": 4, "restart": 20}
    return world(NewDisks, controller_class=Trusting, weights=weights)


def without_j7(patch: Patch) -> type[Walk]:
    """Shrunk below the minimum by leader and controller, and whoever left may lead (B19)."""
    real = rules.change
    patch.setattr(rules, "change", lambda isr, joining, leaving, _m: real(isr, joining, leaving, 1))

    class Shrinking(Controller):
        def too_small(self, image: object, members: set[int]) -> bool:
            return False

        def candidates(self, draft: object) -> list[int]:
            fenced = self.image.fenced if draft is None else draft.fenced
            known = set(super().candidates(draft))
            return [*known, *(b for b in self.replicas if b not in fenced and b not in known)]

    return world(controller_class=Shrinking, check_size=False)


def without_j7_on_the_leaders_side(patch: Patch) -> type[Walk]:
    real = rules.change
    patch.setattr(rules, "change", lambda isr, joining, leaving, _m: real(isr, joining, leaving, 1))

    class Trusting(Controller):
        def too_small(self, image: object, members: set[int]) -> bool:
            return False

    return world(controller_class=Trusting)


def j8_proposed_does_not_count(patch: Patch) -> type[Walk]:
    patch.setattr(rules, "maximal", lambda isr, _proposed: set(isr))
    return Walk


def j8_removed_is_dropped_at_once(patch: Patch) -> type[Walk]:
    patch.setattr(rules, "maximal", lambda isr, proposed: set(proposed) or set(isr))
    return Walk


def j8_overtaken_is_forgotten(_patch: Patch) -> type[Walk]:
    class Forgetful(Leader):
        def proposal_refused(self, proposal: Proposal, code: int) -> bool:
            return super().proposal_refused(self.proposal or proposal, 107)

    weights = {"time_out": 6, "propose": 12, "look": 3, "append": 30, "plan": 20}
    weights.update(hang=3, wake=12)
    return world(leader_class=Forgetful, weights=weights)


def j8_unknown_is_forgotten(_patch: Patch) -> type[Walk]:
    class Forgetful(Leader):
        def proposal_unknown(self, proposal: Proposal) -> None:
            super().proposal_refused(proposal, 107)

    return world(leader_class=Forgetful)


def h1_weaker_reports_count(_patch: Patch) -> type[Walk]:
    class Generous(Leader):
        def report(self, broker, incarnation, epoch, end, durability, now, can_append=True):
            return super().report(broker, incarnation, epoch, end, "disk", now, can_append)

    return world(leader_class=Generous)


def h1_reports_of_another_epoch_count(_patch: Patch) -> type[Walk]:
    class Generous(Leader):
        def report(self, broker, incarnation, epoch, end, durability, now, can_append=True):
            epoch = self.leader_epoch
            return super().report(broker, incarnation, epoch, end, durability, now, can_append)

    class Late(Impatient):
        def error_for(self, broker: Broker, sender: int, incarnation: int, epoch: int) -> int:
            return 0 if broker.leader is not None else 6

    return world(Late, leader_class=Generous)


def h1_reported_before_it_has_reconciled(_patch: Patch) -> type[Walk]:
    return world(Impatient, back=0)


def h1_reports_of_another_incarnation_count(_patch: Patch) -> type[Walk]:
    class Generous(Leader):
        def report(self, broker, incarnation, epoch, end, durability, now, can_append=True):
            incarnation = self._followers[broker].incarnation
            return super().report(broker, incarnation, epoch, end, durability, now, can_append)

    class Late(Walk):
        def error_for(self, broker: Broker, sender: int, incarnation: int, epoch: int) -> int:
            known = broker.image.incarnations[sender]
            return super().error_for(broker, sender, known, epoch)

    weights = {"replace_disk": 2, "restart": 20, "look": 30, "plan": 20}
    return world(Late, leader_class=Generous, weights=weights)


def without_h2(_patch: Patch) -> type[Walk]:
    class Eager(Leader):
        _may_move = property(lambda self: True, lambda self, _value: None)

    return world(leader_class=Eager)


def b01_cut_to_the_high_watermark(patch: Patch) -> type[Walk]:
    class Old(Follower):
        def handle_epochs(self, seq, epoch, theirs, their_end, start, mine, my_end):
            plan = super().handle_epochs(seq, epoch, theirs, their_end, start, mine, my_end)
            return plan and Truncation(self.high_watermark)

    return world(follower_class=Old)


def b02_an_epoch_the_leader_does_not_know_is_answered_with_its_end(patch: Patch) -> type[Walk]:
    def plan(mine, my_end, theirs, their_end, _start):
        mine_last = following.last_epoch(mine, my_end)
        later = [start for epoch, start in theirs if epoch > mine_last]
        known = mine_last in dict(theirs)
        return Truncation(min(my_end, later[0] if known and later else their_end))

    patch.setattr(following, "plan_truncation", plan)
    return Walk


def b04_no_truncation_when_the_leader_stays(_patch: Patch) -> type[Walk]:
    class Lazy(Follower):
        fetched_from = -1

        def truncated(self) -> None:
            super().truncated()
            self.fetched_from = self.leader

        def follow(self, leader, epoch, started, recovery_epoch=-1):
            super().follow(leader, epoch, started, recovery_epoch)
            if self.state is State.RECONCILING and leader == self.fetched_from:
                self.state = State.FETCHING

    class ShortReigns(Walk):
        """Now and then another leads for a moment, and one broker does not hear of it."""

        def short_reign(self, broker: Broker) -> None:
            others = [b for b in self.brokers if b is not broker and b.runs]
            if broker.leader is None or len(others) < 2:
                return
            heir, late = self.rng.sample(others, 2)
            self.step(self.append, broker)
            self.talk(broker, late)
            self.reign(broker, heir)
            self.reign(heir, broker)
            self.step(self.append, broker)

        def reign(self, before: Broker, after: Broker) -> None:
            epoch = self.controller.image.leader_epoch
            self.controller.hand_over(before.number, epoch, after.number)
            self.talk(before, after)
            self.step(self.append, after)
            self.talk(before, after)

        def talk(self, *brokers: Broker) -> None:
            for _ in range(4):
                for broker in brokers:
                    for action in (self.see_newest, self.start, self.sync, self.follow):
                        self.step(action, broker)
                while self.net:
                    self.handle(self.net.pop(0))
                    self.check()

    return world(ShortReigns, follower_class=Lazy, weights={"short_reign": 2})


def b07_high_watermark_raised_before_truncation(_patch: Patch) -> type[Walk]:
    class Early(Follower):
        def fetched(self, epoch: int, leader_high_watermark: int, my_end: int) -> bool:
            end = min(leader_high_watermark, my_end)
            if epoch == self.leader_epoch and end > self.high_watermark:
                self.high_watermark = end
            return True

    class Asking(Impatient):
        def on_fetch(self, broker, sender, incarnation, epoch, position, end, durability):
            """Only the high watermark is wanted: what the follower has stored is not looked at."""
            role = self.brokers[sender].follower
            if role is not None and role.state is State.RECONCILING:
                end = -1
            super().on_fetch(broker, sender, incarnation, epoch, position, end, durability)

    return world(Asking, follower_class=Early, back=0)


def t1_any_answer_cuts(_patch: Patch) -> type[Walk]:
    class Trusting(Follower):
        def handle_epochs(self, seq, epoch, theirs, their_end, start, mine, my_end):
            if self.state is State.FETCHING and epoch == self.leader_epoch:
                self.state = State.RECONCILING
            self._asked = seq
            return super().handle_epochs(seq, epoch, theirs, their_end, start, mine, my_end)

    return world(follower_class=Trusting)


def lossy_stays_a_member(_patch: Patch) -> type[Walk]:
    class Lenient(Controller):
        def leave_as_lossy(self, draft: object, broker: int) -> None:
            pass

    return world(controller_class=Lenient)


def a_reboot_is_not_lossy(_patch: Patch) -> type[Walk]:
    class Careless(Walk):
        def is_lossy(self, broker: Broker) -> bool:
            return False

    return Careless


def e1_anybody_is_elected(_patch: Patch) -> type[Walk]:
    class Open(Controller):
        def candidates(self, draft):
            return [b for b in self.replicas if b not in draft.fenced]

    return world(controller_class=Open)


def e8_followed_before_the_start_is_committed(_patch: Patch) -> type[Walk]:
    class Hasty(Follower):
        def follow(self, leader, epoch, started, recovery_epoch=-1):
            super().follow(leader, epoch, True, recovery_epoch)

    class Serving(Walk):
        def error_for(self, broker: Broker, sender: int, incarnation: int, epoch: int) -> int:
            if broker.starting is not None and broker.starting[0] == epoch:
                return 0
            return super().error_for(broker, sender, incarnation, epoch)

        def on_fetch(self, broker, *content):
            if broker.leader is not None:
                super().on_fetch(broker, *content)

    return world(Serving, follower_class=Hasty)


PLANTED: list[Callable[[Patch], type[Walk]]] = [
    without_j2,
    without_j3,
    without_j5,
    without_j7,
    without_j7_on_the_leaders_side,
    j8_proposed_does_not_count,
    j8_removed_is_dropped_at_once,
    j8_overtaken_is_forgotten,
    j8_unknown_is_forgotten,
    h1_weaker_reports_count,
    h1_reports_of_another_epoch_count,
    h1_reported_before_it_has_reconciled,
    h1_reports_of_another_incarnation_count,
    without_h2,
    b01_cut_to_the_high_watermark,
    b02_an_epoch_the_leader_does_not_know_is_answered_with_its_end,
    b04_no_truncation_when_the_leader_stays,
    b07_high_watermark_raised_before_truncation,
    t1_any_answer_cuts,
    lossy_stays_a_member,
    a_reboot_is_not_lossy,
    e1_anybody_is_elected,
    e8_followed_before_the_start_is_committed,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_the_walk_catches_a_planted_bug(
    plant: Callable[[Patch], type[Walk]], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = plant(monkeypatch)
    for seed in range(3000):
        try:
            planted(seed).run(500)
        except Violation as violation:
            print(seed, violation)
            return
    pytest.fail(f"nobody noticed: {plant.__doc__ or plant.__name__}")
