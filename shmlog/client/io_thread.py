"""The producer's I/O thread: one turn sends what is ready, waits, and takes answers in.

    user threads --(lock)--> accumulator <--(lock)-- this thread --> session --> transport
          |                                              ^
          +---- eventfd, only while this thread sleeps --+

`asleep` is set under the lock in which nothing was found to send, and read under the lock in which
a record is added: so no record is ever left lying. The thread knows nothing of the Producer object,
which can therefore be collected while the thread lives.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from shmlog.client.accumulator import Accumulator, Batch, PartitionQueue
from shmlog.client.arguments import no_topic
from shmlog.client.session import Outcome, Session, entry_error
from shmlog.client.transport import Transport
from shmlog.clock import Clock
from shmlog.errors import (
    ClientClosed,
    CorruptMessage,
    LeaderUnavailable,
    ShmlogError,
    from_wire,
)
from shmlog.ids import TopicPartition
from shmlog.protocol.messages import (
    REQUEST_BYTES_MAX,
    InitProducer,
    Metadata,
    ProduceFast,
    ProducePartition,
    TopicInfo,
)

_REFRESH = frozenset({3, 5, 6, 56, 74, 75, 100, 103, 1001})
_NO_ERROR_YET = 5  # LEADER_NOT_AVAILABLE: the topic is being made
_FOREVER_NS = 1 << 62


class TopicState:
    """A topic as `send` needs it: its partitions' queues and its limit."""

    __slots__ = ("max_message_bytes", "name", "queues", "sticky", "topic_id")

    def __init__(self, name: str) -> None:
        self.name = name
        self.topic_id = ""
        self.max_message_bytes = 0
        self.queues: list[PartitionQueue] = []
        self.sticky: PartitionQueue | None = None


class IoThread(threading.Thread):
    """Owns session and transport; shares accumulator and topics under `lock`."""

    def __init__(
        self,
        discover: Callable[[], list[str]],
        accumulator: Accumulator,
        clock: Clock,
        rng: random.Random,
        *,
        acks: str,
        batch_bytes: int,
        request_timeout_ns: int,
    ) -> None:
        super().__init__(name="shmlog-producer", daemon=True)
        self.lock = threading.Lock()
        self.changed = threading.Condition(
            self.lock
        )  # room in the buffer, news of a topic, the end
        self.accumulator = accumulator
        self.topics: dict[str, TopicState] = {}
        self.topic_errors: dict[str, ShmlogError] = {}
        self.asleep = False
        self.stopping = False
        self.metadata_count = 0  # answers taken in
        self.waiters = 0  # threads that wait for `changed`
        self._clock = clock
        self._acks = acks
        self._batch_bytes = batch_bytes
        self._wanted: set[str] = set()
        self._asking_id = False
        self._session = Session(
            discover, rng, request_timeout_ns=request_timeout_ns, auto_create=True
        )
        self._session.on_metadata = self._on_metadata
        self._transport = Transport()

    # --- called by user threads

    def wake(self) -> None:
        """End the thread's sleep."""
        self._transport.wake()

    def want(self, topic: str) -> None:
        """Ask for a topic's metadata; under the lock."""
        self.topic_errors.pop(topic, None)
        self._wanted.add(topic)
        self._transport.wake()

    def stop(self) -> None:
        """End the thread; what was not sent fails."""
        self.stopping = True
        self._transport.wake()

    # --- the thread

    def run(self) -> None:
        """Turn after turn until `stop`."""
        cause = "the producer was closed before the ack"
        try:
            while not self.stopping:
                self._turn()
        except BaseException as error:
            cause = f"the producer's I/O thread failed: {error!r}"
            raise
        finally:
            self._end(ClientClosed(cause))

    def _turn(self) -> None:
        session, accumulator = self._session, self.accumulator
        now = self._clock.monotonic_ns()
        session.tick(now)
        with self.lock:
            if self._wanted:
                session.topics |= self._wanted
                self._wanted.clear()
                session.refresh(now, at_once=True)
            ready = accumulator.take_ready(now)
            due = None if ready else accumulator.next_deadline_ns(now)
            self.asleep = not ready
            needs_id = accumulator.idempotent and accumulator.producer_id < 0
        if needs_id and not self._asking_id:
            self._ask_id(now)
        if ready:
            self._submit(ready, now)
        if accumulator.finished:
            self._announce()
        for endpoint, frames in session.take_outgoing():
            self._transport.send(endpoint, frames)
        self._wait(0 if ready else due, now)
        if accumulator.finished:
            self._announce()

    def _wait(self, due: int | None, now: int) -> None:
        session = self._session
        timer = session.next_deadline_ns()
        if due is None or (timer is not None and timer < due):
            due = timer
        events = self._transport.poll(None if due is None else max(due - now, 0))
        if events:
            now = self._clock.monotonic_ns()
            for endpoint, frames in events:
                if frames is None:
                    session.lost(endpoint, now)
                else:
                    session.received(endpoint, frames, now)

    def _announce(self) -> None:
        """Tell those who wait that batches have their fate."""
        with self.lock:
            finished, self.accumulator.finished = self.accumulator.finished, []
            if self.waiters:
                self.changed.notify_all()
        for batch in finished:
            if batch.waiter is not None:
                batch.waiter.set()

    def _end(self, cause: ClientClosed) -> None:
        with self.lock:
            self.stopping = True
            if self.accumulator.fatal is None:
                self.accumulator.give_up(cause)
            self.changed.notify_all()
        self._announce()
        self._transport.close()

    # --- produce

    def _submit(self, ready: list[Batch], now: int) -> None:
        """One request a leader and round: a partition at most once in each, in sequence order."""
        rounds: dict[str, list[list[Batch]]] = {}
        places: dict[PartitionQueue, int] = {}
        for batch in ready:
            leader = self._session.metadata.leader(batch.queue.tp)
            if leader is None:
                error = LeaderUnavailable(f"{batch.queue.tp} has no leader now")
                self._failed(batch, error, True, now)
                continue
            line = rounds.setdefault(leader.endpoint, [])
            place = places.get(batch.queue, 0)
            while place < len(line) and not _fits(line[place], batch):
                place += 1
            if place == len(line):
                line.append([])
            line[place].append(batch)
            places[batch.queue] = place + 1
        for endpoint, line in rounds.items():
            for batches in line:
                self._produce(endpoint, batches, now)

    def _produce(self, endpoint: str, batches: list[Batch], now: int) -> None:
        message = ProduceFast(
            op="produce",
            id=0,
            mode="fast",
            acks=self._acks,
            partitions=[
                ProducePartition(
                    topic=batch.queue.tp.topic,
                    partition=batch.queue.tp.partition,
                    topic_id=self.topics[batch.queue.tp.topic].topic_id,
                )
                for batch in batches
            ],
        )
        left = min(self.accumulator.time_left_ns(batch, now) for batch in batches)
        self._session.submit(
            endpoint,
            message,
            [batch.encoded for batch in batches],
            lambda outcome, at: self._produced(batches, outcome, at),
            now,
            # Rounded, so that requests share their time-out and wait for it in one line.
            timeout_ns=min(self._session.request_timeout_ns, -(-left // 10**9) * 10**9),
        )

    def _produced(self, batches: list[Batch], outcome: Outcome, now: int) -> None:
        if outcome.error is not None:
            for batch in batches:
                self._failed(batch, outcome.error, outcome.answered, now)
            return
        entries = outcome.answer.partitions
        for index, batch in enumerate(batches):
            if index >= len(entries):
                error = CorruptMessage(f"{len(entries)} results for {len(batches)} batches")
                self._failed(batch, error, False, now)
                continue
            entry = entries[index]
            if entry["error"]:
                self._failed(batch, entry_error(entry), True, now)
            else:
                with self.lock:
                    self.accumulator.succeeded(batch, entry["base_offset"])

    def _failed(self, batch: Batch, error: ShmlogError, answered: bool, now: int) -> None:
        tp = batch.queue.tp
        facts = error.facts
        if facts.get("endpoint") and facts.get("leader", -1) >= 0:
            self._session.metadata.redirect(
                tp, facts["leader"], facts.get("leader_epoch", -1), facts["endpoint"]
            )
        if error.code in _REFRESH:
            self._session.refresh(now)
        with self.lock:
            self.accumulator.failed(batch, error, answered, now)

    # --- producer id

    def _ask_id(self, now: int) -> None:
        self._asking_id = True
        self._session.call(
            InitProducer(op="init_producer", id=0), self._got_id, now, now + _FOREVER_NS
        )

    def _got_id(self, outcome: Outcome, now: int) -> None:
        self._asking_id = False
        with self.lock:
            if outcome.error is not None:
                self.accumulator.give_up(outcome.error)
            else:
                self.accumulator.producer_id = int(outcome.answer.producer_id)
                self.accumulator.epoch = outcome.answer.producer_epoch

    # --- topics

    def _on_metadata(self, now: int) -> None:
        metadata = self._session.metadata
        missing = False
        with self.lock:
            self.metadata_count += 1
            for name in self._session.topics:
                info = metadata.topics.get(name)
                if info is None or info.error == _NO_ERROR_YET:
                    missing = True
                elif info.error:
                    self._topic_failed(info, now)
                else:
                    missing = not self._apply(info) or missing
            self.changed.notify_all()
        if missing:
            self._session.refresh(now)

    def _apply(self, info: TopicInfo) -> bool:
        """Take in a topic; False if a partition has no leader."""
        state = self.topics.get(info.topic)
        if state is None:
            state = self.topics[info.topic] = TopicState(info.topic)
        state.topic_id = info.topic_id
        state.max_message_bytes = info.max_message_bytes
        limit = min(self._batch_bytes, info.max_message_bytes)
        for number in range(len(state.queues), len(info.partitions)):
            tp = TopicPartition(info.topic, number)
            state.queues.append(self.accumulator.add_queue(tp, limit))
        for queue in state.queues:
            queue.limit = limit
            queue.has_leader = self._session.metadata.leader(queue.tp) is not None
        return all(queue.has_leader for queue in state.queues)

    def _topic_failed(self, info: TopicInfo, now: int) -> None:
        """Under the lock: the broker does not know the topic, or refuses its name."""
        if info.topic not in self.topics and info.topic not in self.topic_errors:
            self._session.topics = self._session.topics - {info.topic}
            if info.error == 3:
                self._suggest(info.topic, now)
                return
            error = from_wire(info.error, f"topic {info.topic!r} cannot be used", topic=info.topic)
            self.topic_errors[info.topic] = error
        else:
            error = no_topic(info.topic, ())
            self.topics.pop(info.topic, None)
            self.topic_errors[info.topic] = error
            self._session.topics = self._session.topics - {info.topic}
        self.accumulator.topic_gone(info.topic, error)

    def _suggest(self, topic: str, now: int) -> None:
        """Fail the topic with the nearest name of those that exist."""

        def listed(outcome: Outcome, _: int) -> None:
            names = [] if outcome.error else [t.topic for t in outcome.answer.topics]
            with self.lock:
                self.topic_errors[topic] = no_topic(topic, names)
                self.changed.notify_all()

        message = Metadata(op="metadata", id=0)
        self._session.call(message, listed, now, now + self._session.request_timeout_ns)


def _fits(batches: list[Batch], batch: Batch) -> bool:
    sizes = sum(len(b.encoded or b"") for b in batches) + len(batch.encoded or b"")
    return sizes <= REQUEST_BYTES_MAX and all(b.queue is not batch.queue for b in batches)
