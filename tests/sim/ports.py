"""What a simulated broker has instead of clock, shared memory, socket, threads and kernel."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from node.io.liveness import Opened
from node.io.wire import Ready, Received
from node.io.workers import THREADS, Completion, Lane
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.log.cleaner import run_task
from shmlog.log.cleaning_task import CleaningResult, CleaningTask
from shmlog.log.storage import Storage
from shmlog.ring.layout import ring_size
from shmlog.ring.memory import HeapMemory

from .disk import Killed

if TYPE_CHECKING:
    from .world import Process, World


US = 1000
MS = NS_PER_MS
WALL_NS = 1_700_000_000 * NS_PER_S


class Clock:
    """One machine's monotonic clock, which begins anew at each boot, and a wall clock that may jump."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic_ns(self) -> int:
        return self._world.now_ns - self._world.booted_ns + NS_PER_S

    def wall_ns(self) -> int:
        return WALL_NS + self._world.now_ns + self._world.wall_jump_ns

    def boottime_ns(self) -> int:
        return self.monotonic_ns()


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
        jobs = bool(self._process.workers.finished)
        return Ready(bool(self.requests), bool(self.messages), jobs, tuple(found))

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

    def pid_of(self, sender: Any) -> int:
        return int(sender or 0)

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


class Compactor:
    """A pass is one job: it may be cut short at any operation of it, like all jobs."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def run(self, task: CleaningTask) -> CleaningResult:
        return run_task(self._storage, task, lambda size: None)

    def close(self) -> None:
        pass


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

    def open_process(self, pid: int) -> Opened | None:
        found = self._world.hosts.get(pid)
        if found is None or found.exited:
            return None
        descriptor = next(self._world.numbers)
        found.watchers.append((self._process, descriptor))
        return Opened(descriptor, found.started)

    def close(self, descriptor: int) -> None:
        pass

    def is_blocked(self, broker: int) -> bool:
        return self._targets[broker].is_blocked
