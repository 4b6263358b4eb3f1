"""The shipped turn, handlers, partitions and metadata over parts that a test drives by hand.

Only socket, clock, workers and disk are replaced: requests are put into `wire`, jobs run when the test says so.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from node.assembly import Node, Ports, Start
from node.io.liveness import Kernel, Opened
from node.io.wire import Ready, Received
from node.io.workers import Completion, Lane
from node.metadata import Voting
from node.rings import Rings
from shmlog.clock import ManualClock
from shmlog.log.cleaner import run_task
from shmlog.log.cleaning_task import CleaningResult, CleaningTask
from shmlog.log.storage import MemoryStorage, Storage
from shmlog.protocol import header
from shmlog.registry import MemoryList
from shmlog.settings import ClusterConfig

Answer = tuple[dict[str, Any], list[bytes]]


class HandWire:
    """A wire whose clients are the test."""

    def __init__(self) -> None:
        self.waiting: deque[Received] = deque()
        self.readable: tuple[int, ...] = ()
        self.sent: list[tuple[bytes, list[bytes]]] = []

    def poll(self, timeout_ms: int) -> Ready:
        readable, self.readable = self.readable, ()
        return Ready(bool(self.waiting), False, jobs=True, descriptors=readable)

    def watch(self, descriptor: int) -> None:
        pass

    def unwatch(self, descriptor: int) -> None:
        pass

    def receive_peer(self) -> list[bytes] | None:
        return None

    def send_peer(self, broker: int, frames: Sequence[bytes]) -> None:
        raise AssertionError("there is no other broker")

    def reset_peer(self, broker: int) -> None:
        pass

    def receive(self) -> Received | None:
        return self.waiting.popleft() if self.waiting else None

    def pid_of(self, sender: Any) -> int:
        return int(sender or 0)

    def send(self, client: bytes, frames: Sequence[bytes]) -> None:
        self.sent.append((client, list(frames)))

    def flush(self) -> int:
        return 0

    def guard_descriptors(self) -> None:
        pass

    def close(self) -> None:
        pass


class HandWorkers:
    """Jobs wait in `queued` until the test runs them; what they did is seen by the next turn.

    With `rng` jobs end in any order that threads could give: only FILES keeps its own.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng
        self.queued: deque[tuple[Lane, Callable[[], object], Callable[..., None]]] = deque()
        self._done: list[Completion] = []
        self.held: set[Lane] = set()

    def fileno(self) -> int:
        return -1

    def submit(self, lane: Lane, run: Callable[[], object], done: Callable[..., None]) -> None:
        self.queued.append((lane, run, done))

    def run(self) -> int:
        """Run every queued job of a lane that is not held; how many."""
        jobs, self.queued = self.queued, deque()
        if self._rng is not None:
            files = iter([job for job in jobs if job[0] is Lane.FILES])
            mixed = self._rng.sample(list(jobs), len(jobs))
            jobs = deque(next(files) if job[0] is Lane.FILES else job for job in mixed)
        count = 0
        for lane, run, done in jobs:
            if lane in self.held:
                self.queued.append((lane, run, done))
                continue
            count += 1
            try:
                self._done.append(Completion(lane, done, run(), None))
            except BaseException as error:  # noqa: BLE001
                self._done.append(Completion(lane, done, None, error))
        return count

    def completions(self) -> list[Completion]:
        done, self._done = self._done, []
        return done

    def wake(self) -> None:
        pass

    def close(self) -> list[Completion]:
        return []


class NoOthers:
    """There are no other processes."""

    def open(self, broker: int, incarnation: int) -> int | None:
        return None

    def open_process(self, pid: int) -> Opened | None:
        return None

    def close(self, descriptor: int) -> None:
        pass

    def is_blocked(self, broker: int) -> bool:
        return False


class InlineCompactor:
    """Passes in the worker that asks for them."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def run(self, task: CleaningTask) -> CleaningResult:
        return run_task(self._storage, task, lambda size: None)

    def close(self) -> None:
        pass


class MemoryBroker:
    """One broker; `ask` sends a request and turns until it is answered."""

    def __init__(
        self,
        tmp_path: Path,
        *,
        storage: MemoryStorage | None = None,
        settings: ClusterConfig | None = None,
        clock: ManualClock | None = None,
        incarnation: int = 1,
        clean: bool = False,
        ring_budget: int = 0,
        shuffle: int | None = None,
        files_max: int = 1 << 20,
        kernel: Kernel | None = None,
        is_awaited: bool = True,
    ) -> None:
        self.storage = storage or MemoryStorage()
        self.clock = clock or ManualClock(monotonic_ns=10**9)
        self.wire = HandWire()
        self.workers = HandWorkers(None if shuffle is None else random.Random(shuffle))
        # No budget, no room: rings on the heap, made at once. Else a worker makes them.
        self.rings = Rings(MemoryList(tmp_path / "names"), ring_budget)
        # Names of rings are made of topic ids, and other processes run tests, too.
        ids = itertools.count(zlib.crc32(str(tmp_path).encode()) << 64 | incarnation << 32)
        endpoints = {"client": "ipc:///nowhere", "peer": "ipc:///nowhere"}
        node = Node(
            Voting("c", 0, incarnation, "boot", (0,), (0,)),
            Start("data", 1, endpoints, True, clean, settings or ClusterConfig(), {}, files_max),
            Ports(
                self.storage,
                self.wire,
                self.workers,
                self.clock,
                kernel or NoOthers(),
                self.rings,
                InlineCompactor(self.storage),
                random.Random(7),
                lambda: next(ids).to_bytes(16, "big"),
            ),
            lambda: None,
        )
        self.context, self.catalog, self.loop = node.context, node.catalog, node.loop
        self.metadata, self.standing = node.metadata, node.standing
        self._id = 0
        if not is_awaited:
            return
        self.until(lambda: self.standing.is_registered)
        partitions = self.context.partitions.values()
        self.until(lambda: all(partition.leader for partition in partitions))

    def until(self, test: Callable[[], bool], turns: int = 40) -> None:
        """Turn until something is so."""
        for _ in range(turns):
            if test():
                return
            self.turn()
        raise AssertionError(f"not within {turns} turns")

    def post(self, message: dict[str, Any], *frames: bytes, client: bytes = b"c1") -> int:
        """Put a request into the socket; its id."""
        self._id += 1
        data = header.encode({"id": self._id, **message}, header.Codec.JSON)
        self.wire.waiting.append(Received(client, [data, *frames]))
        return self._id

    def turn(self) -> None:
        """Run the jobs that wait, then one turn."""
        self.workers.run()
        self.loop.turn()

    def answer(self, wanted: int) -> Answer | None:
        """The answer to a request, if it has been sent."""
        found = [frames for _, frames in self.wire.sent if self._id_of(frames) == wanted]
        assert len(found) <= 1, f"request {wanted} was answered {len(found)} times"
        return (header.decode(found[0][0], dict), found[0][1:]) if found else None

    def _id_of(self, frames: list[bytes]) -> Any:
        decoded: dict[str, Any] = header.decode(frames[0], dict)
        return decoded.get("id")

    def ask(self, message: dict[str, Any], *frames: bytes, turns: int = 20) -> Answer:
        """The answer to a request."""
        wanted = self.post(message, *frames)
        for _ in range(turns):
            self.turn()
            found = self.answer(wanted)
            if found is not None:
                return found
        raise AssertionError(f"{message['op']} was not answered in {turns} turns")

    def create(self, topic: str, partitions: int = 1, **configs: Any) -> None:
        """Make a topic."""
        reply, _ = self.ask(
            {
                "op": "create_topic",
                "topic": topic,
                "partition_count": partitions,
                "configs": configs,
            }
        )
        assert reply["error"] == 0, reply
        assert reply["ready"], reply

    def produce(
        self, topic: str, *values: bytes, partition: int = 0, **fields: Any
    ) -> dict[str, Any]:
        """Simple produce of keyless values; the answer."""
        frames = [x for value in values for x in (b"", value)]
        message = {
            "op": "produce",
            "mode": "simple",
            "topic": topic,
            "partition": partition,
            "count": len(values),
            "null_keys": list(range(len(values))),
            **fields,
        }
        return self.ask(message, *frames)[0]

    def produce_fast(self, batch: bytes, topic: str = "t", **fields: Any) -> dict[str, Any]:
        """Fast produce of one batch to partition 0; its entry of the answer."""
        partitions = [{"topic": topic, "partition": 0}]
        message = {"op": "produce", "mode": "fast", "partitions": partitions, **fields}
        reply, _ = self.ask(message, bytes(batch))
        assert reply["error"] == 0, reply
        entry: dict[str, Any] = reply["partitions"][0]
        return entry

    def fetch(self, topic: str, offset: int = 0, partition: int = 0, **fields: Any) -> Answer:
        """Simple fetch."""
        message = {
            "op": "fetch",
            "mode": "simple",
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "max_wait_ms": 0,
            **fields,
        }
        return self.ask(message)

    def values(self, topic: str, partition: int = 0) -> list[bytes]:
        """Every committed value."""
        out: list[bytes] = []
        while True:
            reply, frames = self.fetch(topic, len(out), partition)
            assert reply["error"] == 0, reply
            if not frames:
                return out
            out += frames[1::2]
