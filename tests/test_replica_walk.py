"""Leader and follower of a replicated partition: thousands of lives.

The walk (replica_walk.py) runs the shipped code through random faults and checks the invariants of the replication
after every step; each planted bug below must turn it red.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from replica_walk import Broker, Controller, Violation, Walk

from node.core.replica import follower as following
from node.core.replica import isr as rules
from node.core.replica.follower import Follower, State, Truncation
from node.core.replica.leader import Leader, Proposal

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
