"""One seed, one life of a cluster: what the seed makes of it, the faults, the healing, and what must be so at the end.

trouble   clients work, faults come as the seed has chosen them (swarm: each life has a subset of kinds)
healing   all links whole, all disks well, all brokers up: within bounds every partition has its leader and all its
          replicas in sync, every batch its fate, every reader is at the end (L1 to L5)
history   what clients saw is judged as a whole
"""

from __future__ import annotations

import contextlib
import errno
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.settings import ClusterConfig

from . import members
from .checkers import Checker
from .workload import Workload
from .world import Process, Violation, World

MS = NS_PER_MS
HEAL_NS = 30 * NS_PER_S
KINDS = (
    "kill",
    "kill inside",
    "kill all",
    "pause",
    "block",
    "stop",
    "cut",
    "isolate",
    "break links",
    "reboot",
    "slow disk",
    "disk full",
    "disk error",
    "wall clock",
    "no supervisor",
)
WEIGHTS = {"kill": 4, "kill inside": 5, "reboot": 2, "kill all": 2}


@dataclass(slots=True)
class Options:
    """What a seed makes of a life; each may be given instead."""

    brokers: int
    voters: int
    trouble_ms: int
    every_ms: int
    faults: tuple[str, ...]
    changes: tuple[str, ...]
    topics: int
    durabilities: tuple[str, ...]
    acks: tuple[str, ...]
    sync_ms: int
    linger_ms: int
    drop: float
    double: float
    shuffle: float
    slow: float
    slow_ms: int
    lag_ms: int
    recovery_wait_ms: int
    ring_bytes: int
    retention: bool
    compaction: bool
    groups: bool

    def __str__(self) -> str:
        return "\n".join(f"    {f.name}: {getattr(self, f.name)}" for f in fields(self))


def options_of(seed: int, *, later: bool = True) -> Options:
    """The options of a seed; without `later` as they were before there was retention, compaction or a group."""
    rng = random.Random(f"options {seed}")
    brokers = rng.choice((1, 2, 3, 3, 3, 3, 3, 3, 3, 4, 5))
    voters = {1: 1, 2: 1, 3: 3, 4: 3, 5: rng.choice((3, 5))}[brokers]
    faults = tuple(kind for kind in KINDS if rng.random() < 0.35)
    if rng.random() < 0.5 and "kill" not in faults:
        faults = ("kill", *faults)
    if rng.random() < 0.04:
        faults = ()  # bugs live in healthy clusters too
    kinds = ("min_insync", "durability", "elect", "trim", "partitions", "delete")
    changes = tuple(kind for kind in kinds if rng.random() < 0.35)
    bad_network = rng.random() < 0.4
    # Drawn apart, so that what came later does not change what a seed was before.
    apart = random.Random(f"retention {seed}")
    retention = later and apart.random() < 0.4
    if retention:
        changes = (*changes, "retention") if changes and apart.random() < 0.6 else changes
        faults = (*faults, "disk low") if faults and apart.random() < 0.3 else faults
    if later and brokers >= 3 and faults and random.Random(f"replace {seed}").random() < 0.2:
        faults = (*faults, "replace disk")
    return Options(
        brokers=brokers,
        voters=voters,
        trouble_ms=rng.choice((1500, 2500, 4000, 7000)),
        every_ms=rng.choice((100, 250, 700)),
        faults=faults,
        changes=changes if rng.random() < 0.7 else (),
        topics=rng.choice((1, 1, 2)),
        durabilities=rng.choice((("os",), ("disk",), ("os", "disk"))),
        acks=rng.choice((("all",), ("all",), ("all", "1"), ("all", "all", "1", "0"))),
        sync_ms=rng.choice((1, 3, 20, 60)),
        linger_ms=rng.choice((1, 1, 20, 400)),
        drop=rng.choice((0.0, 0.02, 0.15)) if bad_network else 0.0,
        double=rng.choice((0.0, 0.05, 0.2)) if bad_network else 0.0,
        shuffle=rng.choice((0.0, 0.1, 0.5)) if bad_network else 0.0,
        slow=rng.choice((0.0, 0.1, 0.3)) if bad_network else 0.0,
        slow_ms=rng.choice((5, 50, 400)),
        lag_ms=rng.choice((1000, 3000, 10_000)),
        recovery_wait_ms=rng.choice((3000, 60_000, 60_000)),
        ring_bytes=rng.choice((0, 256 << 10)),
        retention=retention,
        compaction=later and random.Random(f"compaction {seed}").random() < 0.4,
        groups=later and random.Random(f"groups {seed}").random() < 0.4,
    )


class Result(NamedTuple):
    """What became of a life."""

    seed: int
    violation: str | None
    digest: str
    events: int
    acked: int
    read: int
    counts: dict[str, int]
    virtual_ms: int


class Life:
    """One seed's life."""

    def __init__(self, seed: int, options: Options | None = None) -> None:
        self.seed = seed
        self.options = o = options or options_of(seed)
        self.rng = random.Random(f"life {seed}")
        self.wall_jumps = [0]
        brokers = range(1, o.brokers + 1)
        self.checker = Checker()
        settings = ClusterConfig(
            replica_lag_time_max=o.lag_ms,
            recovery_wait=o.recovery_wait_ms,
            **(members.settings_of(seed) if o.groups else {}),
        )
        defaults = {
            "segment_bytes": 64 << 10,
            "max_message_bytes": 32 << 10,
            "index_interval_bytes": 512,
            "ring_bytes": o.ring_bytes,
        }
        self.world = world = World(
            seed, brokers, tuple(brokers)[: o.voters], settings, defaults, self.checker
        )
        world.ring_budget = self.rng.choice((0, 600 << 10, 64 << 20)) if o.ring_bytes else 0
        self.checker.attach(world)
        world.sync_ns = o.sync_ms * MS
        world.linger_max_ns = o.linger_ms * MS
        network = world.network
        network.drop, network.double, network.shuffle = o.drop, o.double, o.shuffle
        network.slow, network.slow_ns = o.slow, o.slow_ms * MS
        self.load = load = Workload(world, self.checker, random.Random(f"load {seed}"))
        load.topic_count, load.durabilities, load.acks = o.topics, o.durabilities, o.acks
        load.changes = o.changes
        load.retention = random.Random(f"rules {seed}") if o.retention else None
        load.compaction = random.Random(f"keys {seed}") if o.compaction else None
        self.groups = members.Groups(load) if o.groups else None
        self.trouble = True

    # -- phases ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """All of it. Raises Violation."""
        world, o = self.world, self.options
        for broker in world.brokers:
            world.start(broker)
        self.load.start()
        if self.groups is not None:
            self.groups.start()
        begin_ns = self.rng.choice((0, 800 * MS, 1500 * MS))
        if o.faults:
            world.after(begin_ns + 1, self._fault)
        world.run_until(begin_ns + o.trouble_ms * MS)
        self._heal()
        self._await(HEAL_NS, "L1 L2 L5", self._why_not_whole)
        self.load.stop()
        self._await(HEAL_NS, "L3", lambda: self._first(self.load.unresolved()))
        self.load.read_again()
        self._await(HEAL_NS, "L4", lambda: self._first(self.load.unread()))
        if self.groups is not None:
            self._await(HEAL_NS, "L6", self.groups.why_not_done)
        self._await(HEAL_NS, "L1 L2 L4 L5", self._why_not_over)
        self.checker.final()
        if self.groups is not None:
            self.groups.checker.final()
        self.checker.check_overdue(2 * NS_PER_S)
        self.load.check_history()

    def _first(self, found: list[Any]) -> str:
        return repr(found[0]) if found else ""

    def _await(self, bound_ns: int, what: str, why_not: Callable[[], str]) -> None:
        if not self.world.run_until(self.world.now_ns + bound_ns, lambda: not why_not()):
            raise Violation(f"{what} not within {bound_ns // NS_PER_S} s: {why_not()}")

    def _why_not_whole(self) -> str:
        """Every broker up and registered, every partition led, all in sync, all images the same."""
        checker, world = self.checker, self.world
        image = checker.image
        for broker in world.brokers:
            process = world.processes.get(broker)
            if process is None or not process.alive or process.node is None:
                return f"broker {broker} is not up"
            if not image.is_current(broker, process.incarnation) or broker in image.fenced:
                return f"broker {broker} is not registered, or fenced: {image.fenced}"
            if process.node.metadata.image.offset != checker.metadata_end:
                return f"broker {broker} has an old image"
            if self.world.registry.get(broker) is not process:
                return f"broker {broker} has not published itself"
        if len(self.load.topics) < self.load.topic_count:
            return "topics are missing"
        for topic in image.topics.values():
            for state in topic.partitions:
                if state.leader < 0 or not state.started:
                    return f"{topic.name} has no leader: {state}"
                if len(state.isr) < len(state.replicas):
                    leader = world.processes[state.leader].node
                    hosted = leader.context.partitions.get((topic.name, state.partition))  # type: ignore[union-attr]
                    return f"{topic.name} is not whole: {state} {hosted and hosted.leader}"
        return checker.lagging_start()

    def _why_not_over(self) -> str:
        """Whole and read to the end at one moment: batches without a number may be on their way until answered."""
        return self._why_not_whole() or self._first(self.load.unread())

    def _heal(self) -> None:
        world = self.world
        self.trouble = False
        world.trace("heal")
        network = world.network
        network.cuts.clear()
        network.drop = network.double = network.shuffle = network.slow = 0.0
        world.slow_disks.clear()
        world.disk_trouble.clear()
        for disk in world.disks.values():
            disk.is_low = False
        world.supervisor.come_back()
        if self.groups is not None:
            self.groups.heal()
        for process in world.living():
            process.countdown = None
            process.blocked_until_ns = 0
            if process.stopped:
                process.resume()

    # -- faults ---------------------------------------------------------------------------------------

    def _fault(self) -> None:
        if not self.trouble:
            return
        weights = [WEIGHTS.get(kind, 1) for kind in self.options.faults]
        kind = self.rng.choices(self.options.faults, weights)[0]
        self.world.trace("fault", kind)
        self.world.count(f"faults: {kind}")
        getattr(self, "_" + kind.replace(" ", "_"))()
        every_ns = self.options.every_ms * MS
        self.world.after(self.rng.randrange(every_ns // 4, every_ns * 2), self._fault)

    def _later(self, low_ms: int, high_ms: int, action: Callable[..., None], *args: Any) -> None:
        self.world.after(self.rng.randrange(low_ms * MS, high_ms * MS), action, *args)

    def _anybody(self) -> Process | None:
        """A living broker: somebody who leads something, more often than not."""
        living = self.world.living()
        if not living:
            return None
        image = self.checker.image
        leaders = {p.leader for t in image.topics.values() for p in t.partitions}
        chosen = [p for p in living if p.broker in leaders]
        return self.rng.choice(chosen if chosen and self.rng.random() < 0.6 else living)

    def _kill(self) -> None:
        process = self._anybody()
        if process is not None:
            process.die("killed")
            if self.rng.random() < 0.1:
                self.world.supervisor.held.add(process.broker)
                self._later(1000, 6000, self.world.supervisor.come_back)

    def _kill_inside(self) -> None:
        """At one of the next system calls, in a turn or in a worker."""
        process = self._anybody()
        if process is not None:
            process.countdown = self.rng.choice((self.rng.randrange(6), self.rng.randrange(80)))

    def _kill_all(self) -> None:
        for process in self.world.living():
            if self.rng.random() < 0.8:
                process.die("killed with others")

    def _pause(self) -> None:
        process = self._anybody()
        if process is None or process.stopped:
            return
        process.pause()

        def go_on() -> None:
            if process.alive and process.stopped:
                self.world.trace("continued", process.broker)
                process.resume()

        high = self.rng.choice((200, 1500, 4000))
        self._later(high // 4, high, go_on)
        if self.rng.random() < 0.2:
            self._later(100, high, process.die, "killed while stopped")

    def _block(self) -> None:
        process = self._anybody()
        if process is not None:
            blocked_ms = self.rng.choice((50, 500, 3000))
            process.blocked_until_ns = self.world.now_ns + blocked_ms * MS

    def _stop(self) -> None:
        process = self._anybody()
        if process is not None:
            process.stop()

    def _cut(self) -> None:
        brokers = self.world.brokers
        if len(brokers) < 2:
            return
        pair = tuple(self.rng.sample(brokers, 2))
        cuts = {pair} if self.rng.random() < 0.5 else {pair, pair[::-1]}
        self._cut_for(cuts)  # type: ignore[arg-type]

    def _isolate(self) -> None:
        """One from all others, in one direction or both."""
        process = self._anybody()
        if process is None:
            return
        one = process.broker
        into = {(other, one) for other in self.world.brokers if other != one}
        out = {(one, other) for _, one in into for other in self.world.brokers if other != one}
        self._cut_for(self.rng.choice((into, out, into | out)))

    def _cut_for(self, cuts: set[tuple[int, int]]) -> None:
        network = self.world.network
        network.cuts |= cuts

        def mend() -> None:
            network.cuts -= cuts

        high = self.rng.choice((200, 1000, 5000))
        self._later(high // 4, high, mend)

    def _break_links(self) -> None:
        for link in list(self.world.links.values()):
            if self.rng.random() < 0.4:
                link.cut(told=True)

    def _reboot(self) -> None:
        self.world.reboot()
        if self.groups is not None:
            self.groups.rebooted()

    def _slow_disk(self) -> None:
        broker = self.rng.choice(self.world.brokers)
        slow = self.world.slow_disks
        slow[broker] = self.rng.choice((50, 300, 2500)) * MS
        self._later(100, 4000, slow.pop, broker, None)

    def _disk_full(self) -> None:
        self._disk(errno.ENOSPC, self.rng.choice((0.3, 1.0)), 50, 2500)

    def _disk_error(self) -> None:
        self._disk(errno.EIO, self.rng.choice((0.05, 0.5)), 5, 200)

    def _disk(self, error: int, probability: float, low_ms: int, high_ms: int) -> None:
        broker = self.rng.choice(self.world.brokers)
        trouble = self.world.disk_trouble
        trouble[broker] = (error, probability)
        self._later(low_ms, high_ms, trouble.pop, broker, None)

    def _replace_disk(self) -> None:
        """Of one who is needed by nobody: each partition has another member, each other voter a vote."""
        process = self._anybody()
        if process is None:
            return
        broker, image = process.broker, self.checker.image
        hosted = [p for t in image.topics.values() for p in t.partitions if broker in p.replicas]
        if any(set(p.isr) <= {broker} for p in hosted):
            return
        for voter in set(self.world.voters) - {broker}:
            other = self.world.processes.get(voter)
            if other is None or not other.alive or other.node is None:
                return
            if not image.is_current(voter, other.incarnation) or other.node.metadata.log.is_lossy:
                return
        process.die("its disk is replaced")
        self.world.replace_disk(broker)

    def _disk_low(self) -> None:
        disk = self.world.disks[self.rng.choice(self.world.brokers)]
        disk.is_low = True
        self._later(500, 4000, setattr, disk, "is_low", False)

    def _wall_clock(self) -> None:
        jump_ns = self.rng.randrange(-1200, 1200) * NS_PER_S
        while any(abs(jump_ns - before) <= 60 * NS_PER_S for before in self.wall_jumps):
            # A small step is no jump, nor are two that undo each other: ages are wrong by it.
            jump_ns += 200 * NS_PER_S
        self.wall_jumps.append(jump_ns)
        self.world.wall_jump_ns = jump_ns

    def _no_supervisor(self) -> None:
        supervisor = self.world.supervisor
        supervisor.present = False
        self._later(300, 4000, supervisor.come_back)


class _Lines(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        facts = getattr(record, "facts", {})
        assert self._world.log is not None
        self._world.log.append(
            f"{self._world.now_ns / 1e9:10.6f}   [{self._world.running}] {record.getMessage()} {facts}"
        )


@contextlib.contextmanager
def _journal(world: World, *, shown: bool) -> Iterator[None]:
    """What the brokers tell goes into the world's log, or nowhere."""
    journal = logging.getLogger("shmlog.node")
    before = journal.propagate, journal.level
    handler = _Lines(world) if shown else logging.NullHandler()
    if shown:
        world.log = []
    journal.propagate = False
    journal.addHandler(handler)
    journal.setLevel(logging.INFO if shown else logging.ERROR)
    try:
        yield
    finally:
        journal.removeHandler(handler)
        journal.propagate, level = before
        journal.setLevel(level)


def live(seed: int, options: Options | None = None, *, log: bool = False) -> tuple[Result, Life]:
    """Run a seed; the result, and the life for who wants to look."""
    life = Life(seed, options)
    violation = None
    try:
        with _journal(life.world, shown=log):
            life.run()
    except Violation as error:
        violation = str(error)
    except Exception as error:  # noqa: BLE001 - whatever the product raises is a finding
        violation = _described(error)
    world, load = life.world, life.load
    result = Result(
        seed,
        violation,
        world.digest(),
        world.events,
        load.acked,
        load.read,
        world.counts,
        world.now_ns // MS,
    )
    return result, life


def _described(error: Exception) -> str:
    import traceback

    where = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{f.filename.rsplit('/', 2)[-1]}:{f.lineno} {f.name}" for f in where[::-1])
    return f"crash: {type(error).__name__}: {error} at {places}"
