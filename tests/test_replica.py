"""Leader and follower of a replicated partition: each rule as a story that names it (docs/replication.md)."""

from __future__ import annotations

import tracemalloc

import pytest

from node.core.replica.follower import (
    Compacted,
    Follower,
    Producers,
    State,
    Truncation,
    is_stale,
    may_cut,
    plan_truncation,
)
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
        ("none in common from the own start", [(2, 7)], 9, [(1, 0), (5, 7)], 9, 0, (7, False)),
        ("none in common, behind the end", [(2, 7)], 9, [(1, 0), (5, 5)], 6, 0, (0, True)),
        ("below the log start", [(1, 0)], 4, [(1, 6)], 9, 6, (6, True)),
        ("cut below the log start", [(2, 0), (3, 5)], 12, [(2, 8), (4, 10)], 14, 8, (8, True)),
        (
            "cut below the own log start",
            [(2, 50), (3, 60)],
            70,
            [(2, 0), (4, 40)],
            45,
            8,
            (8, True),
        ),
        ("cut at the own log start", [(2, 40), (3, 60)], 70, [(2, 0), (4, 40)], 45, 8, (40, False)),
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


def test_a_replica_that_begins_anew_first_gathers_what_the_leader_remembers_of_producers() -> None:
    replica = follower(hw=4)
    assert replica.producers_after is None

    def hear(seq: int, start: int, producers: Producers | None) -> Truncation | None:
        assert replica.wants_epochs
        replica.asked(seq)
        return replica.handle_epochs(
            seq, 5, [(5, start)], 30, start, [(1, 0)], 9, Compacted(), producers
        )

    assert hear(1, 20, None) is None
    assert replica.producers_after == -1
    assert hear(2, 20, Producers("ab", next_after=7)) is None
    assert hear(3, 20, None) is None, "no room for them in this answer"
    assert replica.producers_after == 7
    assert hear(4, 21, Producers("c")) is None, "of another log start: from the first on again"
    assert replica.producers_after == -1
    assert hear(5, 21, Producers("abc", next_after=9)) is None
    assert hear(6, 21, Producers("d")) == (21, True)
    assert replica.producers == ["a", "b", "c", "d"]
    replica.truncated()
    assert replica.state is State.FETCHING


def test_a_new_leader_tells_its_own_producers() -> None:
    replica = follower(hw=4)
    replica.asked(1)
    replica.handle_epochs(1, 5, [(5, 20)], 30, 20, [(1, 0)], 9, Compacted(), Producers("ab", 7))
    replica.follow(2, 6, True)
    assert replica.producers_after is None
    replica.asked(2)
    plan = replica.handle_epochs(2, 6, [(5, 20)], 30, 20, [(1, 0)], 9, Compacted(), Producers("c"))
    assert (plan, replica.producers) == ((20, True), ["c"])


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


def test_a_follower_that_missed_a_dropped_tombstone_begins_anew() -> None:
    replica = Follower(high_watermark=9)
    replica.follow(0, 5, True)
    replica.asked(1)
    plan = replica.handle_epochs(1, 5, [(1, 0)], 30, 2, [(1, 0)], 9, Compacted(10, 0))
    assert plan == Truncation(2, anew=True)
    assert replica.state is State.TRUNCATING
    assert replica.tombstones_known == 10
    replica.truncated()
    assert (replica.state, replica.high_watermark) == (State.FETCHING, 2)


def test_a_cut_that_would_miss_a_dropped_tombstone_begins_anew() -> None:
    replica = Follower(high_watermark=5)
    replica.follow(0, 5, True)
    replica.asked(1)
    plan = replica.handle_epochs(1, 5, [(1, 0), (3, 5)], 30, 2, [(1, 0), (2, 5)], 21, Compacted(11))
    assert plan == Truncation(2, anew=True), "its own to 5, then the leader's without the deletes"


def test_who_has_seen_every_tombstone_goes_on_where_it_was() -> None:
    replica = Follower(high_watermark=9)
    replica.follow(0, 5, True)
    replica.asked(1)
    plan = replica.handle_epochs(1, 5, [(1, 0)], 30, 0, [(1, 0)], 10, Compacted(10, 8))
    assert plan == Truncation(10)


def test_records_that_were_dropped_for_what_an_election_gave_up_are_copied_again() -> None:
    mine = [(1, 0), (2, 5)]
    assert is_stale(Truncation(6), Compacted(0, 7), mine, 9, recovery_epoch=3)
    assert not is_stale(Truncation(7), Compacted(0, 7), mine, 9, recovery_epoch=3)
    assert not is_stale(Truncation(6), Compacted(0, 7), mine, 9, recovery_epoch=-1)


def test_tombstones_wait_for_the_slowest_follower_that_lives() -> None:
    ledger = leader(isr=(0, 1))
    assert ledger.lowest_end == 0
    report(ledger, 1, 7)
    assert ledger.lowest_end == 0  # nothing is known of broker 2
    report(ledger, 2, 4)
    assert ledger.lowest_end == 4
    ledger.see_brokers({**SOUND, 2: BrokerFact(102, fit=False)}, 0)
    assert ledger.lowest_end == 7
