"""The controller: random lives of a cluster, the invariants checked after each record set; planted bugs are caught."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest
from controller_support import ID, MS, Cluster

from node.core.cluster import elections, replicas
from node.core.cluster.controller import Controller
from node.core.cluster.image import (
    Image,
    PartitionRecord,
    Record,
)
from shmlog.errors import ShmlogError
from shmlog.protocol import peers
from shmlog.settings import ClusterConfig

# -- any order of anything ----------------------------------------------------------------------------


class Violated(AssertionError):
    """An invariant does not hold."""


def ensure(holds: object, what: str, *facts: object) -> None:
    if not holds:
        raise Violated(what, *facts)


class Life(Cluster):
    """A cluster that is treated badly, with a model of what its replicas really hold.

    `logs[key][broker]`: (epoch of the last batch, end). `holds[key]`: the replicas that hold all that is committed, or
    all that a recovery or unclean election has left.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        super().__init__(
            self.rng.choice([1, 2, 3, 3, 4]), settings=ClusterConfig(recovery_wait=5000)
        )
        self.incarnations = dict.fromkeys(self.brokers, 0)
        self.up: set[int] = set()
        self.hung: set[int] = set()
        self.logs: dict[int, dict[int, tuple[int, int]]] = {}
        self.holds: dict[int, set[int]] = {}
        self.in_flight: list[peers.Change] = []
        self.leaders: dict[tuple[int, int], tuple[int, int]] = {}
        self.restart()
        factor = self.rng.randint(1, len(self.brokers))
        self.change(
            peers.CreateTopic(
                name="t",
                topic_id=ID,
                partition_count=2,
                replication_factor=factor,
                configs={"min_insync_replicas": self.rng.randint(1, factor)},
            )
        )

    # What is checked.

    def commit(self, records: list[Record]) -> list[Record]:
        before = self.image
        super().commit(records)
        for new in self.partitions():
            old = before.partition(ID, new.partition)
            minimum = self.image.topics["t"].config.minimum_isr(len(new.replicas))
            self.check(before, old, new, minimum)
            self.serve(new, minimum)
        return records

    def check(
        self, before: Image, old: PartitionRecord | None, new: PartitionRecord, minimum: int
    ) -> None:
        key = new.partition
        is_recovery = old is not None and new.recovery_epoch > old.recovery_epoch
        if old is None or is_recovery:
            self.holds[key] = set(new.isr)
            self.logs.setdefault(key, dict.fromkeys(new.replicas, (-1, 0)))
        ensure(set(new.isr) <= set(new.replicas), "ISR beyond the replicas", new)
        ensure(new.isr or new.lossy, "ISR emptied by nobody lossy", new)
        ensure(new.leader == -1 or new.leader in new.isr, "E1: the leader is no member", new)
        ensure(new.leader not in self.image.fenced, "E5: a fenced broker leads", new)
        ensure(set(new.isr) <= self.holds[key], "J5, J7: a member lacks what is committed", new)
        if new.leader != -1:
            led = new.leader, self.image.brokers[new.leader].incarnation
            known = self.leaders.setdefault((key, new.leader_epoch), led)
            ensure(known == led, "an epoch of two leaders", new)
        if old is None or new == old:
            return
        ensure(new.partition_epoch == old.partition_epoch + 1, "partition epoch", old, new)
        ensure(new.leader_epoch >= old.leader_epoch, "leader epoch fell", old, new)
        ensure(new.leader == old.leader or new.leader_epoch > old.leader_epoch, "epoch", old, new)
        ensure(not (new.started and new.leader_epoch > old.leader_epoch), "E8", old, new)
        if is_recovery:
            self.check_recovery(before, old, new)
            return
        left = set(old.isr) - set(new.isr)
        joined = set(new.isr) - set(old.isr)
        ensure(joined <= self.controller.alive(before), "J4: the dead or fenced joins", old, new)
        willingly = left - set(new.lossy)
        ensure(not willingly or len(new.isr) >= minimum, "J7: below the minimum", old, new)

    def check_recovery(self, before: Image, old: PartitionRecord, new: PartitionRecord) -> None:
        alive = self.controller.alive(self.image)
        ensure(not alive & set(old.isr), "recovery: a member lives", old, new)
        begun = old.last_leader[2] if old.last_leader else -1
        config = before.topics["t"].config
        boots = {before.brokers[b].boot_id for b in old.isr}
        ensure(
            not old.isr
            or old.recovery_epoch > begun
            or config.unclean_leader_election
            or (config.durability != "disk" and self.boot not in boots),
            "recovery: elected without need",
            old,
            new,
        )
        log = self.logs[new.partition]
        told = alive & self.up - self.hung
        furthest = max((log[b] for b in new.replicas if b in told), default=(-1, 0))
        ensure(log[new.leader] >= furthest, "recovery: not the furthest", old, new, log)

    # What happens.

    def partitions(self) -> tuple[PartitionRecord, ...]:
        topic = self.image.topics.get("t")
        return topic.partitions if topic else ()

    def serve(self, p: PartitionRecord, minimum: int) -> None:
        """The leader commits one more record, if all of the maximal ISR (J8) work; the others have it some day."""
        seen = p.leader_epoch, p.partition_epoch
        maximal = {peers.IsrMember(b, self.incarnations[b]) for b in p.isr}
        for change in self.in_flight:
            if not isinstance(change, peers.ProposeIsr) or change.partition != p.partition:
                continue
            if (change.leader_epoch, change.partition_epoch) == seen:
                maximal.update(change.isr)
        works = {peers.IsrMember(b, self.incarnations[b]) for b in self.up - self.hung}
        if p.started and len(p.isr) >= minimum and maximal <= works:
            log = self.logs[p.partition]
            committed = p.leader_epoch, log[p.leader][1] + 1
            self.holds[p.partition] = {member.broker for member in maximal}
            for broker in self.holds[p.partition]:
                log[broker] = committed

    def follow(self, p: PartitionRecord) -> list[int]:
        """Every living follower of a started leader reaches its end."""
        working = self.up - self.hung
        if not p.started or p.leader not in working:
            return []
        followers = [
            b for b in p.replicas if b in working and b in self.controller.alive(self.image)
        ]
        for broker in followers:
            self.logs[p.partition][broker] = self.logs[p.partition][p.leader]
            self.holds[p.partition].add(broker)
        return followers

    def submit(self, change: peers.Change) -> None:
        with contextlib.suppress(ShmlogError):
            self.change(change)

    def start_broker(self, broker: int, *, lossy: bool) -> None:
        if broker in self.up:
            return
        self.up.add(broker)
        self.hung.discard(broker)
        self.incarnations[broker] += 1
        for p in self.partitions():
            if broker in p.replicas and lossy:
                epoch, end = self.logs[p.partition][broker]
                self.logs[p.partition][broker] = epoch, self.rng.randint(0, end)
                self.holds[p.partition].discard(broker)
        self.submit(self.report(broker, lossy=lossy, is_first=True))

    def report(self, broker: int, *, lossy: bool = False, is_first: bool = False) -> peers.Change:
        return peers.RegisterBroker(
            id=broker,
            incarnation=self.incarnations[broker],
            boot_id=self.boot,
            pid=1,
            endpoints={"client": "c", "peer": "p"},
            replicas=tuple(
                peers.ReplicaReport(
                    ID,
                    p.partition,
                    *self.logs[p.partition][broker],
                    lossy,
                    -1 if is_first else p.leader_epoch,
                )
                for p in self.partitions()
                if broker in p.replicas
            ),
        )

    def kill(self, broker: int) -> None:
        self.up.discard(broker)
        self.hung.discard(broker)

    def stop(self, broker: int) -> None:
        self.submit(peers.StopBroker(id=broker, incarnation=self.incarnations[broker]))
        if self.rng.random() < 0.8:
            self.kill(broker)

    def bounce(self, broker: int) -> None:
        self.kill(broker)
        self.start_broker(broker, lossy=self.rng.random() < 0.5)

    def restart(self) -> None:
        for broker in self.brokers:
            self.start_broker(broker, lossy=False)

    def new_life(self) -> None:
        """Another broker becomes controller; all that live tell it where they are."""
        working = sorted(self.up - self.hung)
        if working:
            self.new_controller(self.rng.choice(working))
            self.tell()

    def new_controller(self, broker: int = 0, last_heard: Any = None) -> Controller:
        self.controller = Controller(
            broker,
            getattr(self, "incarnations", {}).get(broker, 1),
            self.brokers,
            self.settings,
            self.image,
            self.now,
            boot_id=self.boot,
        )
        return self.controller

    def tell(self) -> None:
        for broker in sorted(self.up - self.hung):
            self.submit(self.report(broker))

    def beat(self) -> None:
        for broker in sorted(self.up - self.hung):
            self.controller.beat(broker, self.incarnations[broker], self.image.offset, self.now)

    def learn_deaths(self) -> None:
        for broker in self.brokers:
            if broker not in self.up:
                self.controller.died(broker, self.incarnations[broker], self.now)

    def reboot(self) -> None:
        self.boot += "'"
        self.up.clear()
        self.hung.clear()
        self.new_controller(self.rng.choice(list(self.brokers)))

    def leaders_act(self) -> None:
        for p in self.partitions():
            if p.leader not in self.up - self.hung:
                continue
            if not p.started:
                at = peers.EpochStart(
                    ID, p.partition, p.leader_epoch, self.logs[p.partition][p.leader][1]
                )
                self.in_flight.append(
                    peers.StartEpochs(
                        leader=p.leader, incarnation=self.incarnations[p.leader], starts=(at,)
                    )
                )
                continue
            caught_up = self.follow(p)
            members = {*p.isr, *caught_up} if self.rng.random() < 0.6 else set(p.isr)
            if self.rng.random() < 0.4:
                members = {b for b in members if b == p.leader or self.rng.random() < 0.6}
            self.in_flight.append(self.proposal(*sorted(members), partition=p.partition))
            if self.rng.random() < 0.2:
                self.in_flight.append(
                    peers.HandOver(
                        topic_id=ID,
                        partition=p.partition,
                        leader=p.leader,
                        leader_epoch=p.leader_epoch,
                        target=self.rng.choice(p.replicas),
                    )
                )

    def deliver(self) -> None:
        """Some of what is in flight arrives: late, doubled, in any order."""
        self.rng.shuffle(self.in_flight)
        for change in self.in_flight[: self.rng.randint(0, 4)]:
            self.submit(change)
        if self.rng.random() < 0.7:
            self.in_flight = self.in_flight[4:]

    def configure(self) -> None:
        factor = len(self.partitions()[0].replicas)
        values = {
            "min_insync_replicas": self.rng.randint(1, factor),
            "durability": self.rng.choice(["os", "disk"]),
            "unclean_leader_election": self.rng.random() < 0.2,
        }
        key = self.rng.choice(sorted(values))
        self.submit(peers.AlterTopic(name="t", set_values={key: values[key]}))

    def step(self) -> None:
        rng = self.rng
        broker = rng.choice(list(self.brokers))
        one: Callable[[], object]
        one = rng.choices(
            [
                self.leaders_act,
                self.deliver,
                lambda: self.kill(broker),
                lambda: self.start_broker(broker, lossy=rng.random() < 0.3),
                lambda: self.hung.add(broker) if broker in self.up else None,
                lambda: self.hung.discard(broker),
                lambda: self.stop(broker),
                lambda: self.bounce(broker),
                self.configure,
                self.new_life,
                self.reboot,
                self.learn_deaths,
                lambda: self.controller.blocked(rng.sample(list(self.brokers), 1)),
            ],
            [30, 40, 8, 12, 3, 6, 2, 8, 5, 2, 1, 15, 2],
        )[0]
        one()
        for p in self.partitions():
            if rng.random() < 0.3:
                self.follow(p)
        self.now += rng.choice([1, 100, 250, 250, 600]) * MS
        if rng.random() < 0.8:
            self.beat()
        if rng.random() < 0.7:
            self.tell()
            self.tick()

    def live(self, steps: int = 150) -> None:
        for _ in range(steps):
            self.step()
        self.heal()

    def heal(self) -> None:
        """All come back: every partition must be led, and come to have all its replicas in sync."""
        self.in_flight.clear()
        self.hung.clear()
        self.learn_deaths()
        stopped = {b for b, why in self.image.fenced.items() if why == "stopping"}
        for broker in stopped:
            self.kill(broker)
        self.restart()
        for _ in range(100):
            self.now += 250 * MS
            self.beat()
            self.tell()
            self.tick()
            for p in self.partitions():
                if p.leader != -1 and not p.started:
                    self.start_of(p)
                elif p.started:
                    self.submit(self.proposal(*self.follow(p), partition=p.partition))
        for p in self.partitions():
            ensure(p.started and p.isr == p.replicas, "not in sync again", p)

    def start_of(self, p: PartitionRecord) -> None:
        at = peers.EpochStart(ID, p.partition, p.leader_epoch, self.logs[p.partition][p.leader][1])
        incarnation = self.incarnations[p.leader]
        self.submit(peers.StartEpochs(leader=p.leader, incarnation=incarnation, starts=(at,)))


def test_no_order_of_events_breaks_an_invariant_and_all_is_in_sync_again_when_they_end() -> None:
    for seed in range(150):
        Life(seed).live()


# Bugs planted here; each must be seen within the lives that the test above has.


def any_replica(old: PartitionRecord, isr: tuple[int, ...], alive: Any) -> int:
    return next((broker for broker in old.replicas if broker in alive), -1)


def below_the_minimum(old: Any, isr: tuple[int, ...], minimum: int, alive: Any) -> tuple[int, ...]:
    return tuple(broker for broker in isr if broker in alive)


def the_nearest(old: PartitionRecord, alive: Any, reports: Any) -> PartitionRecord:
    inverted = {
        b: peers.ReplicaReport(ID, 0, -r.last_epoch, -r.end_offset, False)
        for b, r in reports.items()
    }
    return RECOVERED(old, alive, inverted)


def same_epoch(*arguments: Any, **fields: Any) -> PartitionRecord:
    return SETTLE(*arguments, **{**fields, "deposed": -1})


def lossy_stays(*arguments: Any, **fields: Any) -> PartitionRecord:
    return SETTLE(*arguments, deposed=fields.get("deposed", -1))


def any_member(image: Image, member: peers.IsrMember, *, is_joining: bool, alive: Any) -> None:
    if is_joining and member.broker not in alive:
        CHECK_MEMBER(image, member, is_joining=is_joining, alive=alive)


def nothing(*_: Any, **__: Any) -> None:
    pass


def at_once(*_: Any, **__: Any) -> bool:
    return True


SETTLE, RECOVERED, CHECK_MEMBER = elections.settle, elections.recovered, replicas.check_member
PLANTED = {
    "E1: any replica is elected": (elections, "candidate", any_replica),
    "J7: dead members leave below the minimum": (elections, "without_missing", below_the_minimum),
    "J7: leaders shrink below the minimum": (replicas, "check_minimum", nothing),
    "J5: a stale partition epoch is accepted": (replicas, "check_partition_epoch", nothing),
    "J5, B05: a stale incarnation is accepted": (replicas, "check_member", any_member),
    "J4: the dead and fenced join": (replicas, "check_member", nothing),
    "E2: a new incarnation leads on at its old epoch": (elections, "settle", same_epoch),
    "B06: a lossy replica stays a member": (elections, "settle", lossy_stays),
    "recovery while members may come back": (elections, "may_recover", at_once),
    "the recovery election takes the nearest": (elections, "recovered", the_nearest),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_each_planted_bug_is_seen(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong = PLANTED[bug]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(Violated):
        for seed in range(150):
            Life(seed).live()
