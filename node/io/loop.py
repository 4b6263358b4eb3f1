"""The turn: poll, finish jobs, drain a bounded amount, append, write once, answer all. Read it top to bottom.

Natural batching: everything that is queued goes into one turn, so under load batches grow by themselves and an
idle broker answers at once. A turn is bounded in messages, bytes and time; what is left stays in the sockets for
the next one. Nothing in a turn syncs, preallocates, touches fresh pages or unlinks files: workers do.

Peers come before clients: what they bring is what clients wait for. The metadata log comes after the write: a new
image is published, and roles change, only between what a turn appends and what the next one does.

The turn measures itself: the longest one and its cause stand in the broker's last log line (`turns`), and all
counters in its stats page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from node import journal
from node.catalog import Catalog
from node.core.cluster.image import Image
from node.handlers import table
from node.handlers.coordinator import Coordinator
from node.handlers.exchange import COMMITTED, STORED, Context
from node.handlers.peers import PeerHandler
from node.handlers.produce import ProduceWait
from node.io.liveness import Death, Liveness
from node.io.wire import Wire
from node.io.workers import Workers
from node.metadata import Metadata
from node.standing import Standing
from node.stats import TurnStatistics
from shmlog import stats
from shmlog.clock import NS_PER_MS, NS_PER_S, Clock

TURN_REQUESTS_MAX = 256
TURN_MESSAGES_MAX = 256
TURN_BYTES_MAX = 8 << 20
TURN_NS_MAX = 4 * NS_PER_MS
TURN_SIMPLE_RECORDS_MAX = 4000
HEARTBEAT_NS = 250 * NS_PER_MS
CHORES_NS = NS_PER_S
POLL_NS_MAX = NS_PER_S


class Loop:
    """The broker's one loop. `stop` may be called from a signal handler."""

    def __init__(
        self,
        context: Context,
        catalog: Catalog,
        standing: Standing,
        coordinator: Coordinator,
        peers: PeerHandler,
        liveness: Liveness,
        wire: Wire,
        workers: Workers,
        clock: Clock,
    ) -> None:
        self._context = context
        self._catalog = catalog
        self._standing = standing
        self._coordinator = coordinator
        self._peers = peers
        self._liveness = liveness
        self._wire = wire
        self._workers = workers
        self._clock = clock
        self._metadata: Metadata = context.metadata
        self._stop_asked = False
        self._backlog_ms = 0  # when to try again to send what had to wait; 0: nothing waits
        self._beat_due_ns = self._chores_due_ns = clock.monotonic_ns()
        self.statistics = TurnStatistics()
        self.show: Callable[[dict[str, int], TurnStatistics, int], None] = lambda *_: None

    def stop(self) -> None:
        """Leave the cluster, then end."""
        self._stop_asked = True

    def run(self) -> None:
        """Turn until stopped."""
        while not self.is_over:
            self.turn()

    @property
    def is_over(self) -> bool:
        """Was it stopped, and has this broker given back what it leads?"""
        return self._stop_asked and self._standing.has_left(self._clock.monotonic_ns())

    def turn(self) -> None:
        """One turn. Raises OSError for a failed write or sync: the broker must end."""
        ready = self._wire.poll(self.timeout_ms())
        began_ns = self._clock.monotonic_ns()
        context = self._context
        context.simple_records = 0
        context.has_lease = self._metadata.has_lease(began_ns)
        finished = self._finish_jobs() if ready.jobs else 0
        if ready.descriptors:
            self._died(self._liveness.readable(ready.descriptors), began_ns)
            self._coordinator.readable(ready.descriptors, began_ns)
        jobs_ns = self._clock.monotonic_ns()
        messages = self._drain_peers(began_ns) if ready.messages else 0
        peers_ns = self._clock.monotonic_ns()
        requests = self._drain(peers_ns) if ready.requests else 0
        drained_ns = self._clock.monotonic_ns()
        self._coordinator.flush(drained_ns)
        self._write()
        written_ns = self._clock.monotonic_ns()
        self._catalog.replication.turn(written_ns)  # first: it takes others longer
        self._answer()  # before the chores: clients wait
        answered_ns = self._clock.monotonic_ns()
        self._go_on(answered_ns)
        if context.outbox:
            self._answer()
        ended_ns = self._clock.monotonic_ns()
        statistics = self.statistics
        statistics.count += 1
        statistics.requests += requests
        statistics.messages += messages
        statistics.busy_ns += ended_ns - began_ns
        statistics.by_duration[stats.bucket_of(ended_ns - began_ns)] += 1
        statistics.longest_write_ns = max(statistics.longest_write_ns, written_ns - drained_ns)
        if ended_ns - began_ns > statistics.longest_ns:
            statistics.longest_ns = ended_ns - began_ns
            parts = {
                f"{finished} finished jobs": jobs_ns - began_ns,
                f"{messages} messages of peers": peers_ns - jobs_ns,
                f"{requests} requests, {context.simple_records} simple records": drained_ns
                - peers_ns,
                "write": written_ns - drained_ns,
                "answers": answered_ns - written_ns,
                "metadata and chores": ended_ns - answered_ns,
            }
            statistics.longest_cause = max(parts, key=lambda part: parts[part])

    def _go_on(self, now_ns: int) -> None:
        """What is no client's business at once: the metadata log, roles, pulls, deadlines, chores."""
        context, catalog = self._context, self._catalog
        if self._stop_asked:
            self._standing.leave(now_ns)
        self._standing.turn(now_ns)
        catalog.propose_isr(now_ns, all_of_them=False)
        self._metadata.turn(now_ns)
        if catalog.report_epochs(now_ns):
            self._metadata.turn(now_ns)
        for waiter in context.purgatory.expire(now_ns):
            waiter.expire()
        self._coordinator.turn(now_ns)
        # What groups do by themselves, and requests that went on behind a change of the cluster or at their deadline.
        if context.dirty:
            self._write()
        context.purgatory.arm()
        catalog.retention.turn(now_ns)
        context.no_space = catalog.space.refusal
        catalog.upkeep.turn()
        self._tick(now_ns)
        catalog.replication.turn(now_ns)

    def timeout_ms(self) -> int:
        """How long the next turn may wait for something to come."""
        now_ns = self._clock.monotonic_ns()
        due_ns = min(now_ns + POLL_NS_MAX, self._chores_due_ns)
        if self._catalog.has_rings():
            due_ns = min(due_ns, self._beat_due_ns)
        if self._backlog_ms:
            due_ns = min(due_ns, now_ns + self._backlog_ms * NS_PER_MS)
        for deadline in (
            self._context.purgatory.next_deadline_ns(),
            self._catalog.upkeep.next_deadline_ns(),
            self._catalog.retention.next_deadline_ns(),
            self._catalog.replication.next_deadline_ns(),
            self._metadata.next_deadline_ns(),
            self._standing.next_deadline_ns(),
            self._coordinator.next_deadline_ns(),
        ):
            if deadline is not None:
                due_ns = min(due_ns, deadline)
        return max(0, -(-(due_ns - now_ns) // NS_PER_MS))

    def _finish_jobs(self) -> int:
        completions = self._workers.completions()
        for completion in completions:
            completion.done(completion.result, completion.error)
            if self._context.dirty:
                # A parked request went on and appended; the next job may bring that partition's ring,
                # which is attached between writes only.
                self._write()
        return len(completions)

    def _died(self, deaths: list[Death], now_ns: int) -> None:
        for death in deaths:
            journal.event("death", peer=death.broker, incarnation=death.incarnation)
            self._wire.reset_peer(death.broker)
            self._catalog.replication.peer_gone(death.broker)
            self._metadata.peer_died(death.broker, death.incarnation, now_ns)
        if deaths:
            self._catalog.members_changed()

    def published(self, old: Image, new: Image) -> None:
        """The image is new: watch the incarnations that it names, take on roles, answer who waited for it."""
        me = self._context.identity.broker
        others = {b: record.incarnation for b, record in new.brokers.items() if b != me}
        self._died(self._liveness.follow(others), self._clock.monotonic_ns())
        self._catalog.follow(old, new)
        self._standing.follow(new)
        self._coordinator.follow(new)

    def _drain_peers(self, began_ns: int) -> int:
        """Take in what other brokers have sent, within the bounds of a turn."""
        size = count = 0
        while count < TURN_MESSAGES_MAX and size < TURN_BYTES_MAX:
            frames = self._wire.receive_peer()
            if frames is None:
                break
            count += 1
            size += sum(map(len, frames))
            self._peers.receive(frames)
            if self._clock.monotonic_ns() - began_ns > TURN_NS_MAX:
                break
        return count

    def _drain(self, began_ns: int) -> int:
        """Handle what is queued, within the bounds of a turn."""
        context = self._context
        size = count = 0
        while count < TURN_REQUESTS_MAX and size < TURN_BYTES_MAX:
            received = self._wire.receive()
            if received is None:
                break
            count += 1
            size += sum(map(len, received.frames))
            table.receive(context, received.client, received.frames, received.sender)
            if context.simple_records > TURN_SIMPLE_RECORDS_MAX:
                break
            if self._clock.monotonic_ns() - began_ns > TURN_NS_MAX:
                break
        return count

    def _write(self) -> None:
        """One write for each partition that was appended to; then the ends move and waiters answer."""
        dirty = list(self._context.dirty)
        self._context.dirty.clear()
        for partition in dirty:
            error = partition.flush()
            if error is not None:
                journal.warning("disk full", partition=str(partition.name), reason=str(error))
                for channel in (STORED, COMMITTED):
                    for waiter in self._context.purgatory.drop_key((partition, channel)):
                        if isinstance(waiter, ProduceWait):
                            waiter.taken_back(partition, error)
                        else:
                            waiter.resume()
                if partition.log.synced_end_offset < partition.log.log_end_offset:
                    self._catalog.upkeep.written(partition)  # a flush in between had succeeded
                continue
            self._catalog.maybe_make_ring(partition)
            self._catalog.upkeep.written(partition)
            self._catalog.retention.written(partition)
            self._catalog.replication.changed(partition)
            self._catalog.settled(partition)

    def _answer(self) -> None:
        outbox = self._context.outbox
        if outbox:
            for client, frames in outbox:
                self._wire.send(client, frames)
            outbox.clear()
            self._backlog_ms = 1
        if self._backlog_ms:
            self._backlog_ms = self._wire.flush()

    def _tick(self, now_ns: int) -> None:
        if now_ns >= self._beat_due_ns:
            self._beat_due_ns = now_ns + HEARTBEAT_NS
            self._catalog.beat()
            self.show(self._values(), self.statistics, now_ns)
            late = self._metadata.is_anyone_late(now_ns)
            self._metadata.blocked(self._liveness.blocked() if late else frozenset())
        if now_ns >= self._chores_due_ns:
            self._chores_due_ns = now_ns + CHORES_NS
            self._wire.guard_descriptors()
            self._catalog.retry_opening()
            self._died(self._liveness.retry(), now_ns)
            self._catalog.propose_isr(now_ns, all_of_them=True)
            self._standing.move_preferred(now_ns)
            self._catalog.compaction.turn(self._context.partitions.values(), now_ns)
            expiration_ns = self._context.settings.producer_id_expiration * NS_PER_MS
            for partition in self._context.partitions.values():
                partition.log.producers.expire(now_ns, expiration_ns)

    def _values(self) -> dict[str, int]:
        """What the stats page shows."""
        context, turns = self._context, self.statistics
        partitions = context.partitions.values()
        return {
            "turns": turns.count,
            "busy_ns": turns.busy_ns,
            "longest_turn_ns": turns.longest_ns,
            "requests": turns.requests,
            "peer_messages": turns.messages,
            "waiting": len(context.purgatory),
            "admitted_bytes": context.admitted_bytes,
            "partitions": len(partitions),
            "leaders": sum(partition.leader is not None for partition in partitions),
            **asdict(context.counters),
            **self._coordinator.counts(),
        }
