"""The world around brokers: one queue of events, one clock, one seed.

Everything that happens is an event: a turn of a broker, a message that arrives, a job of a worker that ends, a process
that dies. A broker's turn never waits: it is run when something has come for it, or when its own deadline is there
(`Loop.timeout_ms`). All of it is folded into `trace`, so two runs of one seed can be compared.

Death: `Killed` comes out of whatever operation (of the disk or of a socket) the process is in. Its jobs in flight are
done in part; its messages on the way arrive or not; the kernel tells others when it is *exited*, a little later, before
or after any message. A stopped process keeps all that was sent to it and goes on at any point. A reboot ends all of
them and takes what was not synced.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

from node import uptime
from node.assembly import Node, Ports, Start
from node.io.workers import Lane, is_no_space
from node.metadata import Voting
from node.uptime import Uptime
from shmlog.clock import NS_PER_S
from shmlog.errors import ShmlogError

from .disk import Disk, Killed
from .network import Link, Network
from .ports import MS, US, Clock, Compactor, Kernel, Rings, Wire, Workers

BACKOFF_MS = (20, 50, 100, 200, 500, 1000)


class Violation(AssertionError):
    """An invariant does not hold. The message begins with its id."""


class Process:
    """One uptime of one broker."""

    def __init__(self, world: World, broker: int) -> None:
        self.world = world
        self.broker = broker
        self.incarnation = world.incarnations[broker] = world.incarnations[broker] + 1
        self.number = next(world.numbers)
        self.boot_id = world.boot_id
        self.disk: Disk = world.disks[broker]
        self.alive = True
        self.exited = False
        self.stopped = False
        self.leaving = False
        self.blocked_until_ns = 0
        self.began_ns = world.now_ns
        self.began_wall_jump_ns = world.wall_jump_ns
        self.last_turn_ns = world.now_ns
        self.countdown: int | None = None  # operations until it is killed
        self.watchers: list[tuple[Process, int]] = []
        self._held: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._due_ns = -1  # of the turn that is scheduled
        self._busy_until_ns = 0
        self.wire = Wire(self)
        self.workers = Workers(self)
        self.kernel = Kernel(self)
        self.disk.before = self.operation
        self.node: Node | None = None
        self.same_boot = self.clean = False
        self._last_uptime: Uptime | None = None
        self._is_recovered = self._is_replaced = False

    def __repr__(self) -> str:
        return f"<broker {self.broker} incarnation {self.incarnation}>"

    @property
    def is_blocked(self) -> bool:
        return self.world.now_ns < self.blocked_until_ns

    def operation(self, kind: str, path: str) -> None:
        """Before each operation of the disk and of a socket."""
        if self.countdown is not None:
            self.countdown -= 1
            if self.countdown < 0:
                raise Killed
        if kind != "send" and self.world.disk_trouble:
            self.world.disk_fault(self, kind, path)

    # -- life -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """What `node.broker` does, with the parts of this world."""
        world = self.world
        last = uptime.before(world.uptimes.get(self.broker), self.disk, "data", self.boot_id)
        self.same_boot = last is not None and last.boot_id == self.boot_id
        self.clean = last is not None and last.clean
        self._last_uptime, self._is_recovered = last, False
        self._is_replaced = self.broker in world.replaced or (last is not None and last.replaced)
        world.uptimes[self.broker] = uptime.at_start(
            last, self.incarnation, replaced=self._is_replaced
        )
        world.replaced.discard(self.broker)
        others = tuple(world.brokers)
        self.began_wall_jump_ns = world.wall_jump_ns  # as its clocks are seen first
        voting = Voting("sim", self.broker, self.incarnation, self.boot_id, others, world.voters)
        endpoints = {"client": f"ipc://c{self.broker}", "peer": f"ipc://p{self.broker}"}
        rng = random.Random(f"{world.seed} {self.broker} {self.incarnation}")
        ids = random.Random(f"ids {world.seed} {self.broker} {self.incarnation}")
        self.node = Node(
            voting,
            Start(
                data_dir="data",
                pid=self.number,
                endpoints=endpoints,
                same_boot=self.same_boot,
                clean=self.clean,
                replaced=self._is_replaced,
                settings=world.settings,
                topic_defaults=world.topic_defaults,
            ),
            Ports(
                storage=self.disk,
                wire=self.wire,
                workers=self.workers,
                clock=world.clock,
                kernel=self.kernel,
                rings=Rings(world.ring_budget),  # type: ignore[arg-type]
                compactor=Compactor(self.disk),
                rng=rng,
                new_topic_id=lambda: ids.randbytes(16),
            ),
            self._registered,
        )

    def _registered(self) -> None:
        self.world.uptimes[self.broker] = Uptime(self.incarnation, self.boot_id, clean=False)
        self._is_recovered = True
        self.world.registry[self.broker] = self
        self.world.trace("registered", self.broker, self.incarnation)

    def wake(self, delay_ns: int | None = None) -> None:
        """Have a turn run soon."""
        world = self.world
        if delay_ns is None:
            delay_ns = world.rng.randrange(2 * US, 40 * US)
        due_ns = max(world.now_ns + delay_ns, self._busy_until_ns)
        if self._due_ns < 0 or due_ns < self._due_ns:
            self._due_ns = due_ns
            world.at(due_ns, self._turn, due_ns)

    def _turn(self, due_ns: int) -> None:
        if due_ns != self._due_ns or not self.alive:
            return
        if self.stopped:
            return  # `resume` wakes it
        world = self.world
        if self.is_blocked:
            self._due_ns = self.blocked_until_ns
            world.at(self._due_ns, self._turn, self._due_ns)
            return
        self._due_ns = -1
        world.running = self.broker
        try:
            if self.node is None:
                self.start()
                world.checker.started(self)
            assert self.node is not None
            self.node.loop.turn()
        except Killed:
            self.die("killed in a turn")
            return
        except (OSError, ShmlogError) as error:
            self._ended_by(error)
            return
        self.last_turn_ns = world.now_ns
        world.checker.turned(self)
        if self.leaving and self.node.loop.is_over:
            self._stop_cleanly()
            return
        self._busy_until_ns = world.now_ns + world.rng.randrange(10 * US, 80 * US)
        if self.wire.has_input() or self.workers.finished:
            self.wake()
        else:
            self.wake(max(self.node.loop.timeout_ms() * MS, 20 * US))

    def _ended_by(self, error: OSError | ShmlogError) -> None:
        world = self.world
        injected = isinstance(error, OSError) and error.errno in (errno.EIO, errno.ENOSPC)
        full = type(error).__name__ == "DiskFull"
        if not ((injected or full) and world.has_injected):
            raise Violation(
                f"broker {self.broker} ended: {type(error).__name__}: {error}"
            ) from error
        world.trace("io error", self.broker)
        world.count("broker ended by an I/O error")
        self.die("I/O error")

    def stop(self) -> None:
        """SIGTERM."""
        if self.node is not None:
            self.leaving = True
            self.node.loop.stop()
            self.wake()
        else:
            self.die("stopped before it had begun")

    def _stop_cleanly(self) -> None:
        node = self.node
        assert node is not None
        try:
            self.wire.close()
            for completion in self.workers.close():
                if completion.error is not None and not is_no_space(completion.error):
                    raise completion.error
            node.catalog.close_all()
            node.metadata.close()
        except Killed:
            self.die("killed while it stopped")
            return
        except (OSError, ShmlogError) as error:
            self._ended_by(error)
            return
        self.world.uptimes[self.broker] = uptime.after_stop(
            self._last_uptime,
            self.incarnation,
            self.boot_id,
            replaced=self._is_replaced,
            recovered=self._is_recovered,
        )
        self.die("stopped", linger_ns=0)

    def die(self, why: str, linger_ns: int | None = None) -> None:
        """It ends now; the kernel says so a little later."""
        if not self.alive:
            return
        world = self.world
        world.trace("died", self.broker, self.incarnation, why)
        world.checker.died(self)
        self.alive = False
        self.workers.cut_short(world.rng)
        self.disk.before = lambda kind, path: None
        world.break_links(self)
        if linger_ns is None:
            linger_ns = world.linger_ns()
        world.after(linger_ns, self._exit)

    def _exit(self) -> None:
        if self.exited:
            return
        world = self.world
        self.exited = True
        world.trace("exited", self.broker, self.incarnation)
        for watcher, descriptor in self.watchers:
            world.after(world.rng.randrange(20 * US, 300 * US), _tell, watcher, descriptor)
        self.watchers = []
        self.node = None
        world.supervisor.exited(self)

    def crash_now(self) -> None:
        """With the machine: nothing is told to anybody."""
        if self.alive:
            self.world.checker.died(self)
        self.alive = False
        self.exited = True
        self.watchers = []
        self.disk.before = lambda kind, path: None
        self.node = None

    # -- SIGSTOP --------------------------------------------------------------------------------------

    def pause(self) -> None:
        """SIGSTOP."""
        self.stopped = True

    def resume(self) -> None:
        """SIGCONT."""
        self.stopped = False
        held, self._held = self._held, []
        for action, args in held:
            self.world.after(self.world.rng.randrange(1, 200 * US), action, *args)
        self._due_ns = -1
        self.wake()

    def when_continued(self, action: Callable[..., None], *args: Any) -> None:
        """Not before SIGCONT."""
        self._held.append((action, args))


def _tell(watcher: Process, descriptor: int) -> None:
    """A pidfd is readable."""
    if watcher.alive and descriptor in watcher.wire.watched:
        watcher.wire.readable.add(descriptor)
        watcher.wake()


class Supervisor:
    """Starts brokers again, with backoff; it may itself be away for a while."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._failures: dict[int, int] = {}
        self.present = True
        self._waiting: list[int] = []
        self.held: set[int] = set()

    def exited(self, process: Process) -> None:
        world, broker = self._world, process.broker
        if world.now_ns - process.began_ns > 10 * NS_PER_S:
            self._failures[broker] = 0
        count = self._failures[broker] = self._failures.get(broker, 0) + 1
        backoff_ms = BACKOFF_MS[min(count, len(BACKOFF_MS)) - 1]
        world.after(backoff_ms * MS + world.rng.randrange(MS, 30 * MS), self.start, broker)

    def start(self, broker: int) -> None:
        current = self._world.processes.get(broker)
        if current is not None and not current.exited:
            return
        if not self.present or broker in self.held:
            self._waiting.append(broker)
            return
        self._world.start(broker)

    def come_back(self) -> None:
        self.present = True
        self.held.clear()
        waiting, self._waiting = self._waiting, []
        for broker in waiting:
            self._world.after(self._world.rng.randrange(MS, 50 * MS), self.start, broker)


class World:
    """All of it. `checker` is told of everything (checkers.py)."""

    def __init__(
        self,
        seed: int,
        brokers: Sequence[int],
        voters: Sequence[int],
        settings: Any,
        topic_defaults: dict[str, Any],
        checker: Any,
    ) -> None:
        self.seed = seed
        self.rng = random.Random(f"world {seed}")
        self.brokers = tuple(brokers)
        self.voters = tuple(voters)
        self.settings = settings
        self.topic_defaults = topic_defaults
        self.ring_budget = 0
        self.checker = checker
        self.now_ns = 0
        self.booted_ns = 0
        self.boots = 1
        self.wall_jump_ns = 0
        self.clock = Clock(self)
        self.numbers = itertools.count(1000)
        self.disks = {b: Disk(random.Random(f"disk {seed} {b}")) for b in brokers}
        self.incarnations = dict.fromkeys(brokers, 0)
        self.uptimes: dict[int, Uptime] = {}
        self.registry: dict[int, Process] = {}
        self.processes: dict[int, Process] = {}
        self.links: dict[bytes, Link] = {}
        self.hosts: dict[int, Any] = {}  # processes of group members, by pid
        self.network = Network(self)
        self.supervisor = Supervisor(self)
        self.sync_ns = MS
        self.slow_disks: dict[int, int] = {}
        self.disk_trouble: dict[int, tuple[int, float]] = {}  # broker -> (errno, probability)
        self.has_injected = False
        self.rotten = False  # has any file been damaged or lost?
        self.replaced: set[int] = set()  # data directories that no start has seen yet
        self.linger_max_ns = MS
        self.counts: dict[str, int] = {}
        self.events = 0
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._hash = hashlib.blake2b(digest_size=12)
        self.log: list[str] | None = None
        self.running = -1  # whose turn it is, for the log

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    # -- events ---------------------------------------------------------------------------------------

    def at(self, at_ns: int, action: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._queue, (at_ns, next(self._order), action, args))

    def after(self, delay_ns: int, action: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._queue, (self.now_ns + delay_ns, next(self._order), action, args))

    def run_until(self, end_ns: int, done: Callable[[], bool] | None = None) -> bool:
        """Let things happen until then, or until `done`, which is asked every 20 events."""
        queue = self._queue
        while queue and queue[0][0] <= end_ns:
            self.now_ns, _, action, args = heapq.heappop(queue)
            self.events += 1
            self._hash.update(b"%d %s" % (self.now_ns, action.__name__.encode()))
            action(*args)
            if done is not None and self.events % 20 == 0 and done():
                return True
        self.now_ns = max(self.now_ns, end_ns)
        return done is not None and done()

    def trace(self, what: str, *facts: Any) -> None:
        """Fold it into the hash."""
        self._hash.update(what.encode())
        for fact in facts:
            self._hash.update(fact if isinstance(fact, bytes) else str(fact).encode())
        if self.log is not None and what != "message":
            self.log.append(f"{self.now_ns / 1e9:10.6f} {what} {' '.join(map(str, facts))}")

    def digest(self) -> str:
        """The hash of all that has happened."""
        return self._hash.hexdigest()

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # -- figures --------------------------------------------------------------------------------------

    def job_ns(self, process: Process, lane: Lane) -> int:
        if lane is Lane.OPEN:
            return self.rng.randrange(50 * US, 5 * MS)
        slow_ns = self.slow_disks.get(process.broker, 0)
        if lane is Lane.FILES:
            return self.rng.randrange(20 * US, 2 * MS) + slow_ns // 4
        return self.rng.randrange(self.sync_ns // 4, self.sync_ns) + slow_ns

    def client_delay_ns(self) -> int:
        return self.rng.randrange(15 * US, 120 * US)

    def linger_ns(self) -> int:
        return self.rng.randrange(10 * US, self.linger_max_ns)

    def disk_fault(self, process: Process, kind: str, path: str) -> None:
        trouble = self.disk_trouble.get(process.broker)
        if trouble is None:
            return
        error, probability = trouble
        if error == errno.ENOSPC and kind not in ("create", "make_dir", "pwrite", "allocate"):
            return
        if self.rng.random() < probability:
            self.has_injected = True
            self.count("disk errors")
            raise OSError(error, f"injected into {kind}", path)

    # -- processes ------------------------------------------------------------------------------------

    def start(self, broker: int) -> None:
        current = self.processes.get(broker)
        if current is not None and not current.exited:
            return
        process = self.processes[broker] = Process(self, broker)
        self.trace("start", broker, process.incarnation)
        process.wake(self.rng.randrange(MS, 20 * MS))

    def replace_disk(self, broker: int) -> None:
        """An empty data directory takes the place of what was there; its process has ended."""
        self.count("disks replaced")
        self.rotten = True
        self.disks[broker] = Disk(random.Random(f"disk {self.seed} {broker} {self.events}"))
        self.uptimes.pop(broker, None)
        self.replaced.add(broker)
        self.checker.replaced(broker)

    def living(self) -> list[Process]:
        return [p for p in self.processes.values() if p.alive]

    def break_links(self, process: Process) -> None:
        for link in [k for k in self.links.values() if k.process is process]:
            link.cut(told=True)

    def reboot(self) -> None:
        """A power cut: all processes end, what was not synced may be gone."""
        self.trace("reboot")
        self.count("reboots")
        for process in self.processes.values():
            process.crash_now()
        for link in list(self.links.values()):
            link.cut(told=True)
        for broker in self.brokers:
            self.disks[broker].reboot(self.rng)
        self.boots += 1
        self.booted_ns = self.now_ns
        if self.rng.random() < 0.3:
            self.registry.clear()  # run/ is not on the disk
        self.supervisor._waiting.clear()
        self.checker.rebooted()
        for broker in self.brokers:
            self.after(self.rng.randrange(10 * MS, 200 * MS), self.supervisor.start, broker)
