"""A random walk through the lives of one partition: the shipped leader and follower in a world of toys.

One seed is one life. Real are `Leader`, `Follower` and the rules of `isr`; toys are the logs (lists of (epoch,
value), with a synced end, an epoch history, a level and a checkpoint of the high watermark), the network (late,
lost, doubled, out of order) and the controller (serial metadata: E1, E8, J5, J7, recovery). Every broker acts
on an image of its own, which may be old. After each step the invariants (docs/rules.md) are checked against one
list: what was ever committed. At the end all faults heal, and all replicas must be in sync.

A reboot is the machine's: all brokers at once. What a *lossy* replica lost at `os` may be gone for good; the
recovery election is the only place where the list of what is committed may become shorter.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from node.core.replica.follower import Follower, State, last_epoch
from node.core.replica.isr import BrokerFact
from node.core.replica.leader import Leader, Proposal
from shmlog.log.checkpoint import EpochHistory

LAG_TIME = 25  # steps
Record = tuple[int, int]


# How often what happens, if it can.
ORDINARY = {
    "append": 14,
    "deliver": 50,
    "follow": 36,
    "look": 12,
    "start": 8,
    "sync": 6,
    "save": 2,
    "plan": 6,
    "propose": 6,
    "beat": 4,
    "restart": 4,
    "notice": 6,
    "wake": 2,
}
FAULTS = {
    "time_out": 2,
    "kill": 1,
    "stop": 1,
    "reboot": 1,
    "replace_disk": 1,
    "hang": 1,
    "hand_over": 2,
    "configure": 1,
}


class Violation(AssertionError):
    """An invariant does not hold."""


class Image(NamedTuple):
    """The cluster at one moment: the partition's record, and what is known of the brokers."""

    leader: int
    leader_epoch: int
    partition_epoch: int
    isr: tuple[int, ...]
    started: bool
    epoch_start: int
    lossy: tuple[int, ...]
    recovery_epoch: int
    last_leader: int
    incarnations: tuple[int, ...]
    fenced: frozenset[int]
    minimum: int
    durability: str

    @property
    def effective_minimum(self) -> int:
        return min(self.minimum, len(self.incarnations))


class Draft:
    """An image being changed."""

    def __init__(self, image: Image) -> None:
        self.__dict__.update(image._asdict())

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Controller:
    """Serial metadata: each change is planned on the newest image and committed at once."""

    def __init__(self, count: int, minimum: int, durability: str, best: Callable[..., int]) -> None:
        self.replicas = tuple(range(count))
        self.best = best  # the highest (epoch of the last batch, end) of some brokers
        first = Image(
            0,
            1,
            0,
            self.replicas,
            False,
            0,
            (),
            -1,
            -1,
            (0,) * count,
            frozenset(),
            minimum,
            durability,
        )
        self.images = [first]

    @property
    def image(self) -> Image:
        return self.images[-1]

    def draft(self) -> Any:
        return Draft(self.image)

    def commit(self, draft: Any) -> None:
        self.elect_if_needed(draft)
        self.drop_missing(draft)
        image = Image(**draft.__dict__)
        before = self.image
        if image[:9] != before[:9]:
            image = image._replace(partition_epoch=before.partition_epoch + 1)
        if image != before:
            self.images.append(image)

    # -- elections ------------------------------------------------------------------------------------

    def candidates(self, draft: Any) -> list[int]:
        order = sorted(self.replicas, key=lambda b: b != draft.last_leader)
        return [b for b in order if b in draft.isr and b not in draft.fenced]

    def elect_if_needed(self, draft: Any) -> None:
        if draft.leader >= 0 and draft.leader not in draft.fenced:
            return
        candidates = self.candidates(draft)
        if candidates:
            self.elect(draft, candidates[0])
        elif not draft.isr and not draft.fenced.intersection(draft.lossy):
            living = [b for b in self.replicas if b not in draft.fenced]
            self.elect(draft, self.best(living))
            draft.recovery_epoch = draft.leader_epoch
        elif draft.leader >= 0:
            self.elect(draft, -1)

    def elect(self, draft: Any, broker: int) -> None:
        draft.leader, draft.started = broker, False
        draft.leader_epoch += 1

    def drop_missing(self, draft: Any) -> None:
        """J7: who ought to leave does so once the minimum admits it."""
        minimum = min(draft.minimum, len(self.replicas))
        for broker in self.replicas:
            ought = draft.leader >= 0 and broker in draft.isr and broker in draft.fenced
            if ought and len(draft.isr) > minimum:
                draft.isr = tuple(b for b in draft.isr if b != broker)

    # -- changes --------------------------------------------------------------------------------------

    def fence(self, broker: int) -> None:
        draft = self.draft()
        draft.fenced |= {broker}
        self.commit(draft)

    def unfence(self, broker: int) -> None:
        draft = self.draft()
        draft.fenced -= {broker}
        self.commit(draft)

    def register(self, broker: int, incarnation: int, lossy: bool) -> None:
        """E2: one record set registers, takes the lossy out of the ISR, and leads anew."""
        draft = self.draft()
        numbers = list(draft.incarnations)
        numbers[broker] = incarnation
        draft.incarnations = tuple(numbers)
        draft.fenced -= {broker}
        if lossy:
            self.leave_as_lossy(draft, broker)
        if draft.leader == broker:
            draft.leader = -1
            draft.leader_epoch += 1
            draft.started = False
        self.commit(draft)

    def leave_as_lossy(self, draft: Any, broker: int) -> None:
        if broker in draft.isr:
            draft.isr = tuple(b for b in draft.isr if b != broker)
            draft.lossy = tuple(sorted({*draft.lossy, broker}))

    def start(self, broker: int, incarnation: int, epoch: int, start: int) -> bool:
        image = self.image
        if (image.leader, image.leader_epoch, image.started) != (broker, epoch, False):
            return False
        if image.incarnations[broker] != incarnation:
            return False
        draft = self.draft()
        draft.started, draft.epoch_start, draft.lossy, draft.last_leader = True, start, (), broker
        draft.isr = draft.isr or (broker,)
        self.commit(draft)
        return True

    def propose(self, broker: int, incarnation: int, epoch: int, proposal: Proposal) -> int:
        """0, or the code of a refusal (J5, J7)."""
        image = self.image
        if (image.leader, image.leader_epoch, image.incarnations[broker]) != (
            broker,
            epoch,
            incarnation,
        ):
            return 108
        if image.partition_epoch != proposal.partition_epoch:
            return 95
        if not self.eligible(image, proposal):
            return 107
        members = {m.broker for m in proposal.isr}
        if self.too_small(image, members):
            return 87
        draft = self.draft()
        draft.isr = tuple(b for b in self.replicas if b in members)
        self.commit(draft)
        return 0

    def eligible(self, image: Image, proposal: Proposal) -> bool:
        return image.leader in {m.broker for m in proposal.isr} and all(
            m.broker in image.isr
            or (m.incarnation == image.incarnations[m.broker] and m.broker not in image.fenced)
            for m in proposal.isr
        )

    def too_small(self, image: Image, members: set[int]) -> bool:
        return len(members) < image.effective_minimum and not members.issuperset(image.isr)

    def hand_over(self, broker: int, epoch: int, target: int) -> None:
        image = self.image
        if (image.leader, image.leader_epoch, image.started) != (broker, epoch, True):
            return
        if target in image.isr and target not in image.fenced:
            draft = self.draft()
            self.elect(draft, target)
            self.commit(draft)

    def configure(self, minimum: int, durability: str) -> None:
        draft = self.draft()
        draft.minimum, draft.durability = minimum, durability
        self.commit(draft)


class Broker:
    """A process and its disk."""

    leader_class: type[Leader] = Leader
    follower_class: type[Follower] = Follower

    def __init__(self, number: int, replicas: tuple[int, ...]) -> None:
        self.number, self.replicas = number, replicas
        # The disk.
        self.log: list[Record] = []
        self.synced_end = 0
        self.history = EpochHistory()
        self.level = "disk"
        self.checkpoint = 0  # of the high watermark
        self.clean = self.lost = False
        # For the checks only.
        self.reconciled_epoch = 0
        self.shown: tuple[Leader | None, int] = (None, 0)
        # The process.
        self.alive, self.hung = True, False
        self.incarnation = 0
        self.seen = -1  # index of the image
        self.image: Image
        self.leader: Leader | None = None
        self.follower: Follower | None = None
        self.starting: tuple[int, int] | None = None
        self.seq = 0
        self._high_watermark = 0

    @property
    def high_watermark(self) -> int:
        if not self.alive:
            return self.checkpoint
        role = self.leader or self.follower
        return self._high_watermark if role is None else role.high_watermark

    @property
    def runs(self) -> bool:
        return self.alive and not self.hung

    # -- roles ----------------------------------------------------------------------------------------

    def see(self, image: Image, index: int, now: int) -> None:
        """A new image: be what it says."""
        self.seen, self.image = index, image
        self._high_watermark = self.high_watermark
        if image.leader == self.number:
            if not image.started:
                self.be_elected(image)
            else:
                self.lead(image, now)
        else:
            if self.follower is None:
                self.follower = self.follower_class(high_watermark=self._high_watermark)
            self.leader = self.starting = None
            self.follower.follow(
                image.leader, image.leader_epoch, image.started, image.recovery_epoch
            )

    def be_elected(self, image: Image) -> None:
        """E8: store, write the epoch's start, ask for it to be committed."""
        if self.starting and self.starting[0] == image.leader_epoch:
            return
        self.leader = self.follower = None
        if image.durability == "disk":
            self.sync()
        self.history.assign(image.leader_epoch, len(self.log))
        self.starting = (image.leader_epoch, len(self.log))

    def lead(self, image: Image, now: int) -> None:
        if self.leader is None:
            assert self.starting == (image.leader_epoch, image.epoch_start), (self.starting, image)
            self.leader = self.leader_class(
                broker=self.number,
                leader_epoch=image.leader_epoch,
                epoch_start=image.epoch_start,
                replicas=self.replicas,
                isr=image.isr,
                partition_epoch=image.partition_epoch,
                minimum_isr=image.minimum,
                durability=image.durability,
                written_end=len(self.log),
                synced_end=self.synced_end,
                high_watermark=self._high_watermark,
                lag_time_ns=LAG_TIME,
                now_ns=now,
            )
            self.reconciled_epoch = image.leader_epoch
        self.leader.see_brokers(
            {b: BrokerFact(image.incarnations[b], b not in image.fenced) for b in self.replicas},
            now,
        )
        if image.durability == "os":
            self.level = "os"  # before the first end at `os` counts
        self.leader.confirm(image.isr, image.partition_epoch, image.minimum, image.durability)

    # -- log ------------------------------------------------------------------------------------------

    def append(self, record: Record) -> None:
        self.history.assign(record[0], len(self.log))
        self.log.append(record)

    def sync(self) -> None:
        self.synced_end = len(self.log)
        if self.alive and self.image.durability == "disk":
            self.level = "disk"
        if self.leader is not None:
            self.leader.synced(self.synced_end)

    def cut(self, end: int) -> None:
        del self.log[end:]
        self.history.truncate_to(end)
        self.synced_end = min(self.synced_end, end)
        self.checkpoint = min(self.checkpoint, end)

    def stored(self) -> tuple[int, str]:
        """What a follower reports, counted by the setting of its own image."""
        if self.image.durability == "os":
            self.level = "os"
            return len(self.log), "os"
        return self.synced_end, "disk"

    def save(self) -> None:
        self.checkpoint = min(self.high_watermark, self.synced_end)

    def die(self) -> None:
        self.alive = self.hung = False
        self.leader = self.follower = self.starting = None


class Walk:
    """One life."""

    controller_class: type[Controller] = Controller
    broker_class: type[Broker] = Broker
    check_size = True
    weights: Mapping[str, int] = MappingProxyType({})  # of actions that make up these lives

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        count = rng.randrange(2, 5)
        self.brokers = [self.broker_class(b, tuple(range(count))) for b in range(count)]
        self.controller = self.controller_class(
            count, rng.randrange(1, count + 1), rng.choice(["os", "disk"]), self.best
        )
        self.net: list[tuple[Any, ...]] = []
        self.proposals: list[deque[tuple[int, int, Proposal]]] = [deque() for _ in range(count)]
        self.committed: list[Record] = []
        self.recovered_epoch = -1
        self.value = self.now = 0
        for broker in self.brokers:
            broker.see(self.controller.image, 0, 0)
        weights = dict(ORDINARY)
        weights.update({name: weight for name, weight in FAULTS.items() if rng.random() < 0.6})
        weights.update(self.weights)
        self.actions = [name for name, weight in weights.items() for _ in range(weight)]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            name = self.rng.choice(self.actions)
            able = [broker for broker in self.brokers if self.may(name, broker)]
            if able:
                self.step(getattr(self, name), self.rng.choice(able))
        self.heal()

    def may(self, name: str, broker: Broker) -> bool:
        """Can this happen to this broker now?"""
        match name:
            case "deliver":
                return bool(self.net)
            case "append" | "plan" | "time_out" | "hand_over":
                return broker.runs and broker.leader is not None
            case "follow":
                return broker.runs and broker.follower is not None
            case "look":
                return broker.runs and broker.seen < len(self.controller.images) - 1
            case "start":
                return broker.runs and broker.starting is not None and broker.leader is None
            case "propose":
                return bool(self.proposals[broker.number])
            case "beat":
                return broker.runs and broker.number in self.controller.image.fenced
            case "notice":
                return not broker.runs and broker.number not in self.controller.image.fenced
            case "restart":
                return not broker.alive
            case "wake":
                return broker.hung
            case "kill" | "replace_disk":
                return broker.alive
            case _:
                return broker.runs

    def step(self, action: Callable[[Broker], None], broker: Broker) -> None:
        self.now += 1
        action(broker)
        self.check()

    # -- what happens ---------------------------------------------------------------------------------

    def append(self, broker: Broker) -> None:
        if broker.leader is not None and len(broker.log) < 40:
            self.value += 1
            broker.append((broker.leader.leader_epoch, self.value))
            broker.leader.written(len(broker.log))

    def look(self, broker: Broker) -> None:
        """It sees a later image."""
        last = len(self.controller.images) - 1
        if broker.runs and broker.seen < last:
            index = self.rng.randint(broker.seen + 1, last)
            broker.see(self.controller.images[index], index, self.now)

    def start(self, broker: Broker) -> None:
        if broker.runs and broker.starting is not None and broker.leader is None:
            self.send("start", -1, 0, broker.number, broker.incarnation, *broker.starting)

    def sync(self, broker: Broker) -> None:
        if broker.runs:
            broker.sync()

    def save(self, broker: Broker) -> None:
        if broker.runs:
            broker.save()

    def follow(self, broker: Broker) -> None:
        """It asks its leader for what it wants."""
        follower = broker.follower
        if not broker.runs or follower is None:
            return
        if follower.state is State.RECONCILING and self.rng.random() < 0.3:
            follower.reset()
        me = (broker.number, broker.incarnation, follower.leader_epoch)
        if follower.wants_epochs:
            broker.seq += 1
            follower.asked(broker.seq)
            self.send("question", follower.leader, None, *me, broker.seq)
        elif follower.wants_records:
            self.send("fetch", follower.leader, None, *me, len(broker.log), *broker.stored())

    def plan(self, broker: Broker) -> None:
        if broker.runs and broker.leader is not None:
            proposal = broker.leader.plan_isr(self.now)
            if proposal is not None:
                self.proposals[broker.number].append(
                    (broker.incarnation, broker.leader.leader_epoch, proposal)
                )

    def propose(self, broker: Broker) -> None:
        """The controller gets what this broker has proposed, in order; its answer may be lost."""
        queue = self.proposals[broker.number]
        if queue:
            incarnation, epoch, proposal = queue.popleft()
            before = self.controller.image
            code = self.controller.propose(broker.number, incarnation, epoch, proposal)
            if code == 0 and self.check_size:
                self.check_isr_size(before)
            self.send("proposed", broker.number, incarnation, proposal, code)

    def beat(self, broker: Broker) -> None:
        """E5: a fenced broker that beats with an image that holds the fence is unfenced."""
        fenced = broker.number in self.controller.image.fenced
        if broker.runs and fenced and broker.number in broker.image.fenced:
            self.controller.unfence(broker.number)

    def notice(self, broker: Broker) -> None:
        """The controller sees a death, or a hang."""
        if not broker.runs and broker.number not in self.controller.image.fenced:
            self.controller.fence(broker.number)

    def restart(self, broker: Broker) -> None:
        if broker.alive:
            return
        broker.alive, broker.clean = True, False
        broker._high_watermark = broker.checkpoint
        broker.incarnation += 1
        lossy, broker.lost = self.is_lossy(broker), False
        self.controller.register(broker.number, broker.incarnation, lossy)
        last = len(self.controller.images) - 1
        broker.see(self.controller.image, last, self.now)

    def is_lossy(self, broker: Broker) -> bool:
        return broker.lost

    # -- faults ---------------------------------------------------------------------------------------

    def time_out(self, broker: Broker) -> None:
        if broker.runs and broker.leader is not None and broker.leader.proposal is not None:
            broker.leader.proposal_unknown(broker.leader.proposal)

    def kill(self, broker: Broker) -> None:
        if broker.alive:
            broker.die()

    def stop(self, broker: Broker) -> None:
        """A clean stop: leave, write and sync all, marker."""
        if broker.runs:
            broker.sync()
            self.check()
            self.controller.fence(broker.number)
            broker.save()
            broker.clean = True
            broker.die()

    def reboot(self, _broker: Broker) -> None:
        """All at once; what is not synced may be gone, and a replica at `os` is lossy."""
        if self.rng.random() < 0.6:
            return
        self.net.clear()
        for broker in self.brokers:
            broker.die()
            broker.cut(self.rng.randint(broker.synced_end, len(broker.log)))
            broker.lost |= broker.level == "os" and not broker.clean
            self.proposals[broker.number].clear()
            self.controller.fence(broker.number)

    def replace_disk(self, broker: Broker) -> None:
        if self.rng.random() < 0.5:
            broker.die()
            broker.cut(0)
            broker.history = EpochHistory()
            broker.lost, broker.level, broker.clean = True, "disk", False

    def hang(self, broker: Broker) -> None:
        broker.hung = broker.alive

    def wake(self, broker: Broker) -> None:
        broker.hung = False

    def hand_over(self, broker: Broker) -> None:
        if not broker.runs or broker.leader is None:
            return
        target = self.rng.choice(broker.replicas)
        if broker.leader.has_stored(target, len(broker.log)):
            self.send("hand_over", -1, 0, broker.number, broker.leader.leader_epoch, target)

    def configure(self, _broker: Broker) -> None:
        minimum = self.rng.randrange(1, len(self.brokers) + 1)
        durability = self.rng.choice(["os", "disk", self.controller.image.durability])
        self.controller.configure(minimum, durability)

    # -- network --------------------------------------------------------------------------------------

    def send(self, kind: str, to: int, incarnation: int | None, *content: Any) -> None:
        if len(self.net) > 12:
            self.net.pop(self.rng.randrange(len(self.net)))  # lost
        self.net.append((kind, to, incarnation, *content))

    def deliver(self, _broker: Broker) -> None:
        """Any message that is under way; some come again later."""
        if self.net:
            place = self.rng.randrange(len(self.net))
            message = self.net[place]
            if message[1] >= 0 and self.brokers[message[1]].hung:
                return
            if self.rng.random() > 0.1:
                self.net[place] = self.net[-1]
                self.net.pop()
            self.handle(message)

    def handle(self, message: tuple[Any, ...]) -> None:
        kind, to, incarnation, *content = message
        if to < 0:
            getattr(self, "on_" + kind)(*content)
            return
        broker = self.brokers[to]
        if broker.runs and incarnation in (None, broker.incarnation):
            getattr(self, "on_" + kind)(broker, *content)

    def on_start(self, broker: int, incarnation: int, epoch: int, start: int) -> None:
        if self.controller.start(broker, incarnation, epoch, start):
            winner = self.brokers[broker]
            if epoch == self.controller.image.recovery_epoch:
                self.recover(winner, epoch)
            elif not winner.lost and not self.holds(winner):
                raise Violation(f"I7: elected leader {broker} lacks committed records")

    def recover(self, winner: Broker, epoch: int) -> None:
        """What the winner of a recovery election has is what there is; a suffix may be gone."""
        self.recovered_epoch = epoch
        keep = 0
        for mine, theirs in zip(winner.log, self.committed, strict=False):
            if mine != theirs:
                break
            keep += 1
        self.committed = winner.log[: max(keep, winner.high_watermark)]

    def on_hand_over(self, broker: int, epoch: int, target: int) -> None:
        self.controller.hand_over(broker, epoch, target)

    def on_proposed(self, broker: Broker, proposal: Proposal, code: int) -> None:
        if broker.leader is not None and code:
            broker.leader.proposal_refused(proposal, code)

    def error_for(self, broker: Broker, sender: int, incarnation: int, epoch: int) -> int:
        if broker.leader is None or epoch != broker.leader.leader_epoch:
            known = broker.image.leader_epoch
            return 74 if epoch < known else 75 if epoch > known else 6
        return 0 if incarnation == broker.image.incarnations[sender] else 77

    def on_question(
        self, broker: Broker, sender: int, incarnation: int, epoch: int, seq: int
    ) -> None:
        error = self.error_for(broker, sender, incarnation, epoch)
        history = list(broker.history.entries)
        self.send("epochs", sender, incarnation, error, epoch, seq, history, len(broker.log))

    def on_epochs(
        self, broker: Broker, error: int, epoch: int, seq: int, theirs: list[Record], end: int
    ) -> None:
        follower = broker.follower
        if follower is None:
            return
        if error:
            follower.refused(epoch, error)
            return
        before = follower.high_watermark
        mine, my_end = broker.history.entries, len(broker.log)
        exempt = last_epoch(mine, my_end) < follower.recovery_epoch
        plan = follower.handle_epochs(seq, epoch, theirs, end, 0, mine, my_end)
        if follower.state is State.STOPPED:
            raise Violation(f"I9: {follower} was asked to cut below its high watermark")
        if plan is not None:
            if plan.end_offset < before and not exempt:
                raise Violation(f"I9: cut to {plan} below {before}")
            broker.cut(0 if plan.anew else plan.end_offset)
            follower.truncated()
            if follower.state is State.FETCHING:
                broker.reconciled_epoch = epoch

    def on_fetch(
        self,
        broker: Broker,
        sender: int,
        incarnation: int,
        epoch: int,
        position: int,
        stored_end: int,
        durability: str,
    ) -> None:
        error = self.error_for(broker, sender, incarnation, epoch)
        records, high_watermark = [], 0
        if not error:
            assert broker.leader is not None
            broker.leader.report(sender, incarnation, epoch, stored_end, durability, self.now)
            high_watermark = broker.leader.high_watermark
            error = int(position > len(broker.log))
            records = broker.log[position : position + self.rng.randrange(1, 5)]
        self.send("fetched", sender, incarnation, error, epoch, position, records, high_watermark)

    def on_fetched(
        self,
        broker: Broker,
        error: int,
        epoch: int,
        position: int,
        records: list[Record],
        high_watermark: int,
    ) -> None:
        follower = broker.follower
        if follower is None:
            return
        if error:
            follower.refused(epoch, error)
            return
        if position == len(broker.log) and follower.accepts(epoch):
            for record in records:
                broker.append(record)
        follower.fetched(epoch, high_watermark, len(broker.log))

    # -- checks ---------------------------------------------------------------------------------------

    def best(self, living: list[int]) -> int:
        return max(living, key=lambda b: self.rank(self.brokers[b]))

    def rank(self, broker: Broker) -> tuple[int, int]:
        return (broker.log[-1][0] if broker.log else -1, len(broker.log))

    def check(self) -> None:
        for broker in self.brokers:
            if broker.alive and broker.leader is not None:
                self.check_leader(broker, broker.leader)
        committed = self.committed
        image = self.controller.image
        for broker in self.brokers:
            high_watermark = broker.high_watermark
            if high_watermark > len(broker.log):
                raise Violation(f"I3: {broker.number}'s high watermark is beyond its end")
            if (
                broker.reconciled_epoch >= self.recovered_epoch
                and broker.reconciled_epoch >= image.recovery_epoch
                and broker.log[:high_watermark] != committed[:high_watermark]
            ):
                raise Violation(f"I4: {broker.number} shows what is not committed")
            is_member = broker.number in image.isr and not broker.lost
            if is_member and not self.holds(broker):
                raise Violation(f"I5, I10: member {broker.number} lacks committed records")
            follower = broker.follower
            if broker.alive and follower is not None and follower.state is State.FETCHING:
                self.check_started(follower.leader_epoch)

    def check_started(self, epoch: int) -> None:
        image = self.controller.image
        if epoch == image.leader_epoch and not image.started:
            raise Violation(f"E8: epoch {epoch} is followed, its start is not committed")

    def check_leader(self, broker: Broker, leader: Leader) -> None:
        """H3; what it commits is appended to the list, once, and has its copies (I6)."""
        end = leader.high_watermark
        if broker.shown[0] is leader and end < broker.shown[1]:
            raise Violation(f"I3: the high watermark of {broker.number} went back to {end}")
        broker.shown = (leader, end)
        if end <= len(self.committed) or leader.leader_epoch < self.controller.image.recovery_epoch:
            return
        if broker.log[: len(self.committed)] != self.committed:
            raise Violation(f"I4: leader {broker.number} commits something else")
        self.committed = broker.log[:end]
        # Of whom has been replaced since, only the leader's image does not know it yet.
        copies = [b.number for b in self.brokers if self.is_replaced(b, broker) or self.holds(b)]
        if len(copies) < leader.minimum:
            raise Violation(f"I6: {end} is committed with copies on {copies} only")
        if leader.durability == "disk":
            for member in leader.isr:
                other = self.brokers[member]
                if other.synced_end < end and not self.is_replaced(other, broker):
                    raise Violation(f"H1: {end} is committed at disk, {member} has not synced it")

    def holds(self, broker: Broker) -> bool:
        return broker.log[: len(self.committed)] == self.committed

    def is_replaced(self, other: Broker, leader: Broker) -> bool:
        return other.lost or other.incarnation != leader.image.incarnations[other.number]

    def check_isr_size(self, before: Image) -> None:
        after = self.controller.image
        if len(after.isr) < min(after.effective_minimum, len(before.isr)):
            raise Violation(f"I6: the ISR shrank from {before.isr} to {after.isr}")

    # -- the end --------------------------------------------------------------------------------------

    def heal(self) -> None:
        """No more faults: a leader, all in the ISR, all the same, all committed."""
        for broker in self.brokers:
            self.step(self.wake, broker)
            self.step(self.restart, broker)
        appended = False
        for _ in range(80):
            self.now += LAG_TIME // 5
            for broker in self.brokers:
                for action in (self.see_newest, self.beat, self.start, self.sync, self.follow):
                    self.step(action, broker)
                self.step(self.plan, broker)
                self.step(self.propose, broker)
            while self.net:
                self.handle(self.net.pop(0))
                self.check()
            for broker in self.brokers:
                if not self.proposals[broker.number] and self.rng.random() < 0.2:
                    self.time_out(broker)
            if self.is_in_sync():
                if appended:
                    return
                for broker in self.brokers:
                    self.step(self.append, broker)
                appended = True
        raise Violation(f"L1, L2: not in sync: {self.describe()}")

    def see_newest(self, broker: Broker) -> None:
        last = len(self.controller.images) - 1
        if broker.seen < last:
            broker.see(self.controller.image, last, self.now)

    def is_in_sync(self) -> bool:
        image = self.controller.image
        leader = self.brokers[image.leader] if image.leader >= 0 else None
        return (
            leader is not None
            and leader.leader is not None
            and image.isr == leader.replicas
            and all(
                b.log == leader.log and b.high_watermark == len(leader.log) for b in self.brokers
            )
        )

    def describe(self) -> str:
        lines = [str(self.controller.image)]
        for b in self.brokers:
            lines.append(f"{b.number}.{b.incarnation} {b.leader or b.follower} end {len(b.log)}")
        return "\n".join(lines)
