"""The producer's I/O thread: one turn takes answers in and sends what is ready; then it waits.

    user threads --(lock)--> accumulator <--(lock)-- this thread --(wire)--> session --> transport
          |                                              ^                      ^
          +---- eventfd, only while this thread sleeps --+                      |
          +---- a record alone, while this thread sleeps: `go` --------(wire)---+

`asleep` is set under the lock in which nothing was found to send, and read under the lock in which
a record is added: so no record is ever left lying.

Waking a thread costs more than sending one record. So while nothing is in flight, who adds a record
sends it himself; under load, when answers are due anyway, records gather for the thread. Whoever
uses session and transport holds `wire`; the thread sleeps without it, and is woken only if what
was done has a deadline before the sleep ends, or an answer came in meanwhile. Callers only send,
and only on connections that stand.

A caller's thread can be stopped anywhere by an exception out of a signal handler, even between the
frames of a message. Whoever gets `wire` next sees it by `_in_caller`. Then nothing half done is
trusted: the thread closes the connections, and all that was in flight goes again, as after any loss
of a connection (`_start_over`).

Order of locks: wire, lock. The thread knows nothing of the Producer object, which can therefore be
collected while the thread lives.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from shmlog.client.accumulator import Accumulator, Batch, PartitionQueue
from shmlog.client.arguments import no_topic
from shmlog.client.bootstrap import Surroundings
from shmlog.client.session import Outcome, Session, entry_error
from shmlog.client.transport import Transport
from shmlog.clock import NS_PER_S, Clock
from shmlog.errors import (
    BrokerGone,
    ClientClosed,
    CorruptMessage,
    LeaderUnavailable,
    NotLeader,
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
_SLEEP_MAX_NS = 5 * NS_PER_S  # below the usual time-outs, so that what callers begin ends later


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
    """Shares accumulator and topics under `lock`, session and transport under `wire`."""

    def __init__(
        self,
        surroundings: Surroundings,
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
        self.wire = threading.Lock()
        self.accumulator = accumulator
        self.topics: dict[str, TopicState] = {}
        self.topic_errors: dict[str, ShmlogError] = {}
        self.asleep = False
        self.stopping = False
        self.metadata_count = 0  # answers taken in
        self.waiters = 0  # threads that wait for `changed`
        # Told what `changed` is told, under the lock.
        self.on_changed: Callable[[], None] = lambda: None
        self._clock = clock
        self._acks = acks
        self._batch_bytes = batch_bytes
        self._wanted: set[str] = set()
        self._asking_id = False
        self._sleeps_until = 0
        self._in_caller = False  # still so when a caller was interrupted
        self._session = Session(
            surroundings.endpoints, rng, request_timeout_ns=request_timeout_ns, auto_create=True
        )
        self._session.refresher.on_metadata = self._on_metadata
        accumulator.whereabouts = self._session.metadata.whereabouts
        self._transport = Transport(surroundings.watch)

    # --- called by user threads

    def wake(self) -> None:
        """End the thread's sleep."""
        self._transport.wake()

    def go(self) -> None:
        """See to it that a record that was added while the thread sleeps is sent. Without locks."""
        if self._session.in_flight:
            self.wake()
            return
        awaited = True
        try:
            with self.wire:
                if not self.stopping and not self._in_caller:
                    self._in_caller = True
                    now = self._clock.monotonic_ns()
                    self._transmit(now, in_caller=True)
                    awaited = (
                        self._transport.settle()
                        or self._session.has_outgoing
                        or bool(self.accumulator.finished)
                        or self._due(now) < self._sleeps_until
                    )
                    self._in_caller = False
        finally:
            if awaited:
                self.wake()

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
            ready: list[int] = []
            while not self.stopping:
                with self.wire:
                    left_ns = self._turn(ready)
                ready = self._transport.wait(left_ns)
        except BaseException as error:
            cause = f"the producer's I/O thread failed: {error!r}"
            raise
        finally:
            self._end(ClientClosed(cause))

    def _turn(self, readable: list[int]) -> int:
        """How long the thread may sleep now."""
        session, accumulator = self._session, self.accumulator
        now = self._clock.monotonic_ns()
        if self._in_caller:
            self._start_over(now)
        events = self._transport.receive(readable)
        for endpoint, frames, died in events:
            if frames is None:
                session.lost(endpoint, now, died)
                self._note_leaders()
            else:
                session.received(endpoint, frames, now)
        session.tick(now)
        if self._wanted:
            with self.lock:
                session.topics |= self._wanted
                self._wanted.clear()
            session.refresh(now, at_once=True)
        sent = self._transmit(now)
        if accumulator.finished:
            self._announce()
        if sent:
            return 0  # more may have come meanwhile, for which nobody wakes the thread
        self._sleeps_until = min(self._due(now), now + _SLEEP_MAX_NS)
        return self._sleeps_until - now

    def _transmit(self, now: int, *, in_caller: bool = False) -> bool:
        """Send what is ready, and what the session has to send; True if records were.

        A caller sends on connections that stand; it does not come back for records that are added
        from now on, and the thread sleeps: `asleep`, as when there was nothing to send.
        """
        accumulator, session = self.accumulator, self._session
        with self.lock:
            ready = accumulator.take_ready(now)
            self.asleep = in_caller or not ready
            needs_id = accumulator.idempotent and accumulator.producer_id < 0
        if needs_id and not self._asking_id:
            self._ask_id(now)
        if ready:
            self._submit(ready, now)
        only = self._transport.endpoints if in_caller else None
        for endpoint, frames in session.take_outgoing(only):
            self._transport.send(endpoint, frames)
        return bool(ready)

    def _due(self, now: int) -> int:
        """When time alone gives the thread something to do."""
        with self.lock:
            due = self.accumulator.next_deadline_ns(now)
        timer = self._session.next_deadline_ns()
        return min(now + _FOREVER_NS if at is None else max(at, now) for at in (due, timer))

    def _start_over(self, now: int) -> None:
        """A caller was interrupted while it sent."""
        self._transport.disconnect()
        self._session.lost_all(now)
        error = BrokerGone("the sending was interrupted; the request may have been carried out")
        with self.lock:
            self.accumulator.start_over(error, now)
        self._in_caller = False

    def _tell(self) -> None:
        """Under the lock."""
        self.changed.notify_all()
        self.on_changed()

    def _announce(self) -> None:
        """Tell those who wait that batches have their fate."""
        with self.lock:
            finished, self.accumulator.finished = self.accumulator.finished, []
            if self.waiters:
                self.changed.notify_all()
            self.on_changed()
        for batch in finished:
            if batch.waiter is not None:
                batch.waiter.set()

    def _end(self, cause: ClientClosed) -> None:
        with self.lock:
            self.stopping = True
            if self.accumulator.fatal is None:
                self.accumulator.give_up(cause)
            self._tell()
        self._announce()
        with self.wire:
            self._transport.close()

    # --- produce

    def _submit(self, ready: list[Batch], now: int) -> None:
        """One request a leader and round: a partition at most once in each, in sequence order."""
        rounds: dict[str, list[list[Batch]]] = {}
        places: dict[PartitionQueue, int] = {}
        for batch in ready:
            leader = self._session.metadata.leader(batch.queue.tp)
            if leader is None:
                why = self._session.metadata.whereabouts(batch.queue.tp, now)
                self._failed(batch, LeaderUnavailable(why), True, now)
                continue
            batch.leader_epoch = leader.epoch
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
                    leader_epoch=batch.leader_epoch,
                )
                for batch in batches
            ],
        )
        attempts = [batch.attempt for batch in batches]
        left = min(self.accumulator.time_left_ns(batch, now) for batch in batches)
        self._session.submit(
            endpoint,
            message,
            [batch.encoded for batch in batches],
            lambda outcome, at: self._produced(batches, attempts, outcome, at),
            now,
            # Rounded, so that requests share their time-out and wait for it in one line.
            timeout_ns=min(self._session.request_timeout_ns, -(-left // 10**9) * 10**9),
        )

    def _produced(
        self, batches: list[Batch], attempts: list[int], outcome: Outcome, now: int
    ) -> None:
        if outcome.error is not None:
            for batch, attempt in zip(batches, attempts, strict=True):
                if batch.on_wire and batch.attempt == attempt:
                    self._failed(batch, outcome.error, outcome.answered, now)
            return
        entries = outcome.answer.partitions
        for index, batch in enumerate(batches):
            if not batch.on_wire or batch.attempt != attempts[index]:
                continue  # it went to another leader meanwhile
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
                    missing = not self._apply(info, now) or missing
            self._tell()
        if missing:
            self._session.refresh(now, news=True)

    def _apply(self, info: TopicInfo, now: int) -> bool:
        """Take in a topic; False if a partition has no leader."""
        state = self.topics.get(info.topic)
        if state is None:
            state = self.topics[info.topic] = TopicState(info.topic)
        if state.topic_id != info.topic_id:
            for queue in state.queues:
                queue.leader_epoch = -1  # made again: epochs begin anew
        state.topic_id = info.topic_id
        state.max_message_bytes = info.max_message_bytes
        limit = min(self._batch_bytes, info.max_message_bytes)
        for number in range(len(state.queues), len(info.partitions)):
            tp = TopicPartition(info.topic, number)
            state.queues.append(self.accumulator.add_queue(tp, limit))
        for queue in state.queues:
            queue.limit = limit
            self._follow_leader(queue, now)
        return all(queue.has_leader for queue in state.queues)

    def _follow_leader(self, queue: PartitionQueue, now: int) -> None:
        """Under the lock: take note of a partition's leader; what is at an older one goes to it."""
        leader = self._session.metadata.leader(queue.tp)
        queue.has_leader = leader is not None
        if leader is None or leader.epoch <= queue.leader_epoch:
            return
        queue.leader_epoch = leader.epoch
        self.accumulator.led_anew(queue)
        error = NotLeader(
            f"{queue.tp} moves to broker {leader.broker}, leader epoch {leader.epoch}",
            topic=queue.tp.topic,
            partition=queue.tp.partition,
            leader=leader.broker,
            leader_epoch=leader.epoch,
            endpoint=leader.endpoint,
        )
        self.accumulator.moved(queue, leader.epoch, error, now)

    def _note_leaders(self) -> None:
        """A connection is lost: which partitions have a leader still?"""
        leader = self._session.metadata.leader
        with self.lock:
            for state in self.topics.values():
                for queue in state.queues:
                    queue.has_leader = leader(queue.tp) is not None

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
                self._tell()

        message = Metadata(op="metadata", id=0)
        self._session.call(message, listed, now, now + self._session.request_timeout_ns)


def _fits(batches: list[Batch], batch: Batch) -> bool:
    sizes = sum(len(b.encoded or b"") for b in batches) + len(batch.encoded or b"")
    return sizes <= REQUEST_BYTES_MAX and all(b.queue is not batch.queue for b in batches)
