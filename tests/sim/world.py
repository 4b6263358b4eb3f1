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
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from node import uptime
from node.assembly import Node, Ports, Start
from node.io.wire import Ready, Received
from node.io.workers import THREADS, Completion, Lane, is_no_space
from node.metadata import Voting
from node.uptime import Uptime
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.errors import ShmlogError
from shmlog.ring.layout import ring_size
from shmlog.ring.memory import HeapMemory

from .disk import Disk, Killed

US = 1000
MS = NS_PER_MS
WALL_NS = 1_700_000_000 * NS_PER_S
BACKOFF_MS = (20, 50, 100, 200, 500, 1000)


class Violation(AssertionError):
    """An invariant does not hold. The message begins with its id."""


class Clock:
    """One machine's monotonic clock, which begins anew at each boot, and a wall clock that may jump."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic_ns(self) -> int:
        return self._world.now_ns - self._world.booted_ns + NS_PER_S

    def wall_ns(self) -> int:
        return WALL_NS + self._world.now_ns + self._world.wall_jump_ns


class Rings:
    """Rings in memory of this process: they outlive the broker's hold on them as shared memory does."""

    def __init__(self, budget_bytes: int) -> None:
        self._left = budget_bytes

    def reserve(self, capacity: int) -> bool:
        if self._left < ring_size(capacity):
            return False
        self._left -= ring_size(capacity)
        return True

    def release(self, capacity: int) -> None:
        self._left += ring_size(capacity)

    def make(self, identity: Any, capacity: int) -> HeapMemory:
        return HeapMemory(ring_size(capacity))

    def heap(self, capacity: int) -> HeapMemory:
        return HeapMemory(ring_size(capacity))

    def remove(self, memory: Any) -> None:
        self._left += memory.size

    def say_no_room(self, what: str) -> None:
        pass

    def close(self) -> None:
        pass


class Wire:
    """The sockets of one process. Implements node.io.wire.Wire; nothing here waits."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self.requests: deque[Received] = deque()
        self.messages: deque[list[bytes]] = deque()
        self.watched: set[int] = set()
        self.readable: set[int] = set()
        self.closed = False

    def has_input(self) -> bool:
        return bool(self.requests or self.messages or self.readable & self.watched)

    def poll(self, timeout_ms: int) -> Ready:
        found = sorted(self.readable & self.watched) if self.readable else ()
        return Ready(bool(self.requests), bool(self.messages), tuple(found))

    def watch(self, descriptor: int) -> None:
        self.watched.add(descriptor)

    def unwatch(self, descriptor: int) -> None:
        self.watched.discard(descriptor)
        self.readable.discard(descriptor)

    def receive_peer(self) -> list[bytes] | None:
        return self.messages.popleft() if self.messages else None

    def send_peer(self, broker: int, frames: Sequence[bytes]) -> None:
        self._process.operation("send", "")
        self._world.network.send(self._process, broker, [bytes(f) for f in frames])

    def reset_peer(self, broker: int) -> None:
        self._world.network.reset(self._process, broker)

    def receive(self) -> Received | None:
        if not self.requests:
            return None
        received = self.requests.popleft()
        self._world.checker.request(self._process, received)
        return received

    def send(self, client: bytes, frames: Sequence[bytes]) -> None:
        self._process.operation("send", "")
        frames = [bytes(f) for f in frames]
        self._world.checker.answer(self._process, client, frames)
        link = self._world.links.get(client)
        if link is not None:
            link.to_client(frames)

    def flush(self) -> bool:
        return False

    def guard_descriptors(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class _Job:
    __slots__ = ("done", "early", "error", "lane", "ran", "result", "run")

    def __init__(self, lane: Lane, run: Callable[[], object], done: Callable[..., None]) -> None:
        self.lane, self.run, self.done = lane, run, done
        self.ran = self.early = False
        self.result: object = None
        self.error: BaseException | None = None

    def execute(self) -> None:
        if self.ran:
            return
        self.ran = True
        try:
            self.result = self.run()
        except Exception as error:  # noqa: BLE001 - as a worker hands it to the loop
            self.error = error


class Workers:
    """Lanes of jobs: each runs at one moment between its start and its end, which are events."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._queues: dict[Lane, deque[_Job]] = {lane: deque() for lane in Lane}
        self._running: dict[Lane, int] = dict.fromkeys(Lane, 0)
        self.in_flight: list[_Job] = []
        self.finished: list[Completion] = []

    def fileno(self) -> int:
        return -1

    def submit(self, lane: Lane, run: Callable[[], object], done: Callable[..., None]) -> None:
        self._queues[lane].append(_Job(lane, run, done))
        if self._running[lane] < THREADS[lane]:
            self._running[lane] += 1
            self._world.after(self._world.rng.randrange(1, 40 * US), self._begin, lane)

    def _begin(self, lane: Lane) -> None:
        process = self._process
        if not process.alive:
            return
        if process.stopped:
            process.when_continued(self._begin, lane)
            return
        if not self._queues[lane]:
            self._running[lane] -= 1
            return
        job = self._queues[lane].popleft()
        self.in_flight.append(job)
        world = self._world
        job.early = world.rng.random() < 0.5
        if job.early and not self._execute(job):
            return
        world.after(world.job_ns(process, lane), self._end, job)

    def _execute(self, job: _Job) -> bool:
        try:
            job.execute()
        except Killed:
            self._process.die("killed in a worker")
            return False
        return True

    def _end(self, job: _Job) -> None:
        process = self._process
        if not process.alive:
            return
        if process.stopped:
            process.when_continued(self._end, job)
            return
        if not self._execute(job):
            return
        self.in_flight.remove(job)
        self.finished.append(Completion(job.lane, job.done, job.result, job.error))
        if self._queues[job.lane]:
            self._world.after(self._world.rng.randrange(1, 20 * US), self._begin, job.lane)
        else:
            self._running[job.lane] -= 1
        process.wake()

    def completions(self) -> list[Completion]:
        finished, self.finished = self.finished, []
        return finished

    def wake(self) -> None:
        self._process.wake()

    def close(self) -> list[Completion]:
        jobs = [*self.in_flight, *(job for lane in Lane for job in self._queues[lane])]
        self.in_flight = []
        for job in jobs:
            job.execute()
            self.finished.append(Completion(job.lane, job.done, job.result, job.error))
        return self.finished

    def cut_short(self, rng: random.Random) -> None:
        """The process was killed: what runs is done up to any operation of it."""
        for job in self.in_flight:
            if not job.ran and rng.random() < 0.6:
                self._process.countdown = rng.randrange(8)
                try:
                    job.execute()
                except Killed:
                    pass
        self._process.countdown = None


class Kernel:
    """What the operating system and the registry say of other processes."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._targets: dict[int, Process] = {}

    def open(self, broker: int, incarnation: int) -> int | None:
        found = self._world.registry.get(broker)
        if found is None or found.incarnation < incarnation:
            return None
        if found.incarnation > incarnation or found.exited:
            raise ProcessLookupError(f"broker {broker}, incarnation {incarnation}")
        descriptor = next(self._world.numbers)
        self._targets[broker] = found
        found.watchers.append((self._process, descriptor))
        return descriptor

    def close(self, descriptor: int) -> None:
        pass

    def is_blocked(self, broker: int) -> bool:
        return self._targets[broker].is_blocked


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
        self._is_recovered = False

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
        world.uptimes[self.broker] = uptime.at_start(last, self.incarnation, self.boot_id)
        others = tuple(world.brokers)
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
            self._last_uptime, self.incarnation, self.boot_id, recovered=self._is_recovered
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
    if watcher.alive and descriptor in watcher.wire.watched:
        watcher.wire.readable.add(descriptor)
        watcher.wake()


class Network:
    """Messages between brokers: each connection is of one process to another, and needs a moment to be made."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._connected_ns: dict[tuple[int, int], int] = {}  # processes -> when
        self._last_ns: dict[tuple[int, int], int] = {}
        self._resets: dict[tuple[int, int], int] = {}
        self.cuts: set[tuple[int, int]] = set()
        self.drop = self.double = self.shuffle = 0.0
        self.slow = 0.0
        self.slow_ns = 0

    def send(self, sender: Process, to: int, frames: list[bytes]) -> None:
        world = self._world
        target = world.processes.get(to)
        world.trace("message", sender.broker, to, frames[0])
        if target is None or not target.alive or target.wire.closed:
            return
        key = (sender.number, target.number)
        since_ns = self._connected_ns.get(key)
        rng = world.rng
        if since_ns is None:
            earliest = max(sender.began_ns, target.began_ns)
            since_ns = self._connected_ns[key] = earliest + rng.randrange(MS, 100 * MS)
        if world.now_ns < since_ns or (sender.broker, to) in self.cuts:
            return
        if self.drop and rng.random() < self.drop:
            return
        for _ in range(1 + (self.double > 0 and rng.random() < self.double)):
            delay_ns = rng.randrange(15 * US, 150 * US)
            if self.slow and rng.random() < self.slow:
                delay_ns += rng.randrange(self.slow_ns)
            at_ns = world.now_ns + delay_ns
            if not (self.shuffle and rng.random() < self.shuffle):
                at_ns = self._last_ns[key] = max(at_ns, self._last_ns.get(key, 0) + 1)
            world.at(at_ns, self._arrive, sender, target, frames, self._resets.get(key, 0))

    def _arrive(self, sender: Process, target: Process, frames: list[bytes], resets: int) -> None:
        if not target.alive or target.wire.closed:
            return
        if resets != self._resets.get((sender.number, target.number), 0):
            return
        if (sender.broker, target.broker) in self.cuts:
            return
        target.wire.messages.append(frames)
        target.wake()

    def reset(self, sender: Process, to: int) -> None:
        target = self._world.processes.get(to)
        if target is not None:
            key = (sender.number, target.number)
            self._resets[key] = self._resets.get(key, 0) + 1
            delay_ns = self._world.rng.randrange(MS, 20 * MS)
            self._connected_ns[key] = self._world.now_ns + delay_ns


class Link:
    """A client's connection to one process: in order, reliable, until it breaks."""

    def __init__(self, world: World, client: Any, process: Process) -> None:
        self._world = world
        self.client = client
        self.process = process
        self.session = b"s%d" % next(world.numbers)
        self.open = True
        self._to_broker_ns = self._to_client_ns = 0
        world.links[self.session] = self

    def send(self, frames: list[bytes]) -> None:
        world = self._world
        if not self.open:
            return
        at_ns = max(world.now_ns + world.client_delay_ns(), self._to_broker_ns + 1)
        self._to_broker_ns = at_ns
        world.at(at_ns, self._arrive, frames)

    def _arrive(self, frames: list[bytes]) -> None:
        process = self.process
        if process.alive and not process.wire.closed:
            process.wire.requests.append(Received(self.session, frames))
            process.wake()

    def to_client(self, frames: list[bytes]) -> None:
        world = self._world
        if not self.open:
            return
        at_ns = max(world.now_ns + world.client_delay_ns(), self._to_client_ns + 1)
        self._to_client_ns = at_ns
        world.at(at_ns, self._deliver, frames)

    def _deliver(self, frames: list[bytes]) -> None:
        if self.open:
            self.client.received(self, frames)

    def close(self) -> None:
        """By the client: what it has sent may still arrive."""
        self.open = False
        self._world.links.pop(self.session, None)
        self._world.checker.session_closed(self.session)

    def cut(self, *, told: bool) -> None:
        """By the world. `told`: the client notices."""
        if not self.open:
            return
        world = self._world
        world.links.pop(self.session, None)
        world.checker.session_closed(self.session)
        if told:
            delay_ns = world.rng.randrange(20 * US, 5 * MS)
            world.at(max(world.now_ns + delay_ns, self._to_client_ns + 1), self._broken)

    def _broken(self) -> None:
        if self.open:
            self.open = False
            self.client.disconnected(self)


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
        self.network = Network(self)
        self.supervisor = Supervisor(self)
        self.sync_ns = MS
        self.slow_disks: dict[int, int] = {}
        self.disk_trouble: dict[int, tuple[int, float]] = {}  # broker -> (errno, probability)
        self.has_injected = False
        self.rotten = False  # has any file been damaged?
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
