"""The pump of caller-driven clients: Admin and Consumer have no thread, their calls do the work.


A call sends what it has to, and lives in the sockets' poll until what it waits for is there: no
hand-over between threads, so an answer is in the caller's hands as soon as the kernel has it.
`close` may come from any thread: it wakes the one that waits, and that one takes the sockets down.
"""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from shmlog.client import forks
from shmlog.client.arguments import no_topic
from shmlog.client.bootstrap import Where, look_around
from shmlog.client.metadata import Leader
from shmlog.client.session import Outcome, Session, entry_error
from shmlog.client.transport import Event, Transport
from shmlog.clock import NS_PER_MS, NS_PER_S, SYSTEM_CLOCK
from shmlog.errors import (
    ClientClosed,
    Code,
    LeaderUnavailable,
    RequestTimedOut,
    ShmlogError,
    UnknownTopic,
)
from shmlog.ids import TopicPartition
from shmlog.protocol.header import Big
from shmlog.protocol.messages import ListOffsets, Metadata, MetadataAnswer, OffsetQuestion, Request

API_TIMEOUT_NS = 60 * NS_PER_S
CLOSE_PATIENCE_S = 5.0


class Place(NamedTuple):
    """An offset, the leader epoch of the record before it (-1: none), and under which leader epoch
    this was known.
    """

    offset: int
    last_epoch: int
    leader_epoch: int


class Engine:
    """A session, its sockets, and the waiting."""

    def __init__(
        self,
        where: Where,
        *,
        rng: random.Random | None = None,
        request_timeout_ns: int = 30 * NS_PER_S,
    ) -> None:
        surroundings = look_around(where)  # nobody there: it says so at once
        self.lock = threading.RLock()
        self.session = Session(
            surroundings.endpoints, rng or random.Random(), request_timeout_ns=request_timeout_ns
        )
        self.sees_registry = surroundings.sees_registry
        self._transport: Transport | None = Transport(surroundings.watch)
        self._closing: str | None = None
        forks.guard(self)

    def now(self) -> int:
        """The monotonic time, ns."""
        return SYSTEM_CLOCK.monotonic_ns()

    def check(self) -> Transport:
        """The sockets. Raises ClientClosed, and finishes a `close` of another thread."""
        if self._closing is not None or self._transport is None:
            self._release()
            raise ClientClosed(self._closing or "this client is closed")
        return self._transport

    def pump(self, timeout_ns: int | None) -> None:
        """Send what is to be sent, wait for answers up to `timeout_ns` (None: for ever), take them
        in.
        """
        left_ns = self.begin(timeout_ns)
        self.take_in(self.check().poll(left_ns))

    def begin(self, timeout_ns: int | None) -> int | None:
        """The half of `pump` before the wait: send; how long the wait may be."""
        transport, session = self.check(), self.session
        now = self.now()
        session.tick(now)
        for endpoint, frames in session.take_outgoing():
            transport.send(endpoint, frames)
        due = session.next_deadline_ns()
        if due is not None:
            left = max(due - now, 0)
            timeout_ns = left if timeout_ns is None else min(left, timeout_ns)
        return timeout_ns

    def take_in(self, events: Sequence[Event]) -> None:
        """The half of `pump` after the wait."""
        self.check()
        session = self.session
        if events:
            now = self.now()
            for endpoint, answer, died in events:
                if answer is None:
                    session.lost(endpoint, now, died)
                else:
                    session.received(endpoint, answer, now)

    def wake(self) -> None:
        """End a `pump` of another thread, without an answer. From any thread."""
        transport = self._transport
        if transport is not None:
            transport.wake()

    def wait(self, done: Callable[[], bool], deadline_ns: int) -> bool:
        """Pump until `done()`; False if the deadline passes first."""
        while not done():
            left = deadline_ns - self.now()
            if left <= 0:
                return False
            self.pump(left)
        return True

    def ask(
        self, message: Request, timeout_ns: int = API_TIMEOUT_NS, *, endpoint: str | None = None
    ) -> Any:
        """The answer of any broker, `endpoint` first. Raises what the broker or the deadline says."""
        with self.lock:
            self.check()
            outcomes: list[Outcome] = []
            now = self.now()
            deadline_ns = now + timeout_ns
            self.session.call(
                message, lambda o, _: outcomes.append(o), now, deadline_ns, endpoint=endpoint
            )
            self.wait(lambda: bool(outcomes), deadline_ns + NS_PER_S)
            if not outcomes:
                raise RequestTimedOut(f"{message.op}: no answer within {timeout_ns / NS_PER_S:g} s")
            error = outcomes[0].error
            if error is not None:
                raise error
            return outcomes[0].answer

    def ask_brokers(
        self, message: Callable[[], Request], timeout_ns: int = API_TIMEOUT_NS
    ) -> list[Any]:
        """The answers of all brokers that live, all of them as long as none of them goes meanwhile."""
        with self.lock:
            deadline_ns, attempts = self.now() + timeout_ns, 0
            while True:
                living = [b for b in self.refresh([], timeout_ns).brokers if b.alive]
                outcomes = self.ask_each([b.endpoint for b in living], message(), deadline_ns)
                error = next((o.error for o in outcomes if o.error is not None), None)
                if error is None and len(outcomes) == len(living):
                    return [outcome.answer for outcome in outcomes]
                if self.now() >= deadline_ns or (error is not None and not error.retriable):
                    raise error or RequestTimedOut("not every broker answered in time")
                attempts += 1
                pause_ns = self.session.backoff.ns(attempts)
                self.wait(lambda: False, min(self.now() + pause_ns, deadline_ns))

    def ask_each(
        self, endpoints: Sequence[str], message: Request, deadline_ns: int
    ) -> list[Outcome]:
        """One attempt at each endpoint; how those ended that did before the deadline."""
        outcomes: list[Outcome] = []
        now = self.now()
        timeout_ns = min(max(deadline_ns - now, NS_PER_MS), self.session.request_timeout_ns)
        for endpoint in endpoints:
            done = functools.partial(_keep, outcomes)
            self.session.submit(endpoint, message, (), done, now, timeout_ns=timeout_ns)
        self.wait(lambda: len(outcomes) == len(endpoints), deadline_ns)
        return outcomes

    def refresh(
        self, topics: Sequence[str] | None, timeout_ns: int = API_TIMEOUT_NS
    ) -> MetadataAnswer:
        """Metadata of some or (None) all topics, kept in the cache."""
        wanted = None if topics is None else list(topics)
        answer: MetadataAnswer = self.ask(Metadata(op="metadata", id=0, topics=wanted), timeout_ns)
        self.session.take_metadata(answer, self.now())
        return answer

    def unknown_topic(self, topic: str, timeout_ns: int = API_TIMEOUT_NS) -> UnknownTopic:
        """The error for a topic that does not exist, with the nearest one."""
        return no_topic(topic, (t.topic for t in self.refresh(None, timeout_ns).topics))

    def list_offsets(
        self,
        questions: Iterable[tuple[TopicPartition, int]],
        timeout_ns: int = API_TIMEOUT_NS,
    ) -> dict[tuple[TopicPartition, int], Place]:
        """The places that (partition, timestamp or -1 latest, -2 earliest) ask for; offset -1: no
        such record.

        Each is asked at the partition's leader, again after a change of leaders.
        Raises: UnknownTopic, RequestTimedOut, or what the last answer said.
        """

        def message(asked: Sequence[tuple[TopicPartition, int]]) -> Request:
            return ListOffsets(
                op="list_offsets",
                id=0,
                partitions=[
                    OffsetQuestion(topic=tp.topic, partition=tp.partition, timestamp=Big(t))
                    for tp, t in asked
                ],
            )

        found = self.ask_leaders(questions, message, timeout_ns)
        return {
            question: Place(entry["offset"], entry["last_epoch"], leader.epoch)
            for question, (entry, leader) in found.items()
        }

    def ask_leaders(
        self,
        items: Iterable[tuple[TopicPartition, int]],
        message: Callable[[Sequence[tuple[TopicPartition, int]]], Request],
        timeout_ns: int,
    ) -> dict[tuple[TopicPartition, int], tuple[dict[str, Any], Leader]]:
        """Ask each partition's leader, with one message (of `message(items)`) a leader; each item's
        entry of the answer, and who gave it. Repeated until each item has one.
        """
        gathering = _Gathering(self, list(dict.fromkeys(items)), message, timeout_ns)
        with self.lock:
            return gathering.run()

    def abandon(self) -> None:
        """The client was copied by fork: refuse everything; the parent owns sockets and locks."""
        self._closing = forks.FORKED
        forks.leave(self._transport)
        self._transport = None
        self.lock = threading.RLock()

    def close(self) -> None:
        """Close the sockets; a call waiting in another thread raises ClientClosed. Idempotent."""
        if self._closing is None:
            self._closing = "this client is closed; make a new one"
        transport = self._transport
        if transport is None:
            return
        transport.wake()
        # Who waits in `pump` raises now and lets go; who does not pump again lets go soon.
        if self.lock.acquire(timeout=CLOSE_PATIENCE_S):
            try:
                self._release()
            finally:
                self.lock.release()

    def __del__(self) -> None:
        if getattr(self, "_transport", None) is not None:
            self.close()

    def _release(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()


def _keep(outcomes: list[Outcome], outcome: Outcome, _: int) -> None:
    outcomes.append(outcome)


class _Gathering:
    """One question to many leaders, until every item has its answer."""

    def __init__(
        self,
        engine: Engine,
        items: list[tuple[TopicPartition, int]],
        message: Callable[[Sequence[tuple[TopicPartition, int]]], Request],
        timeout_ns: int,
    ) -> None:
        self._engine = engine
        self._open = items
        self._message = message
        self._answers: dict[tuple[TopicPartition, int], tuple[dict[str, Any], Leader]] = {}
        self._deadline_ns = engine.now() + timeout_ns
        self._error: ShmlogError | None = None
        self._waiting = 0

    def run(self) -> dict[tuple[TopicPartition, int], tuple[dict[str, Any], Leader]]:
        attempts = 0
        while True:
            self._ask_leaders()
            done = self._engine.wait(lambda: self._waiting == 0, self._deadline_ns)
            self._open = [item for item in self._open if item not in self._answers]
            if not self._open:
                return self._answers
            attempts += 1
            self._pause_or_raise(attempts, done)

    def _ask_leaders(self) -> None:
        session, now = self._engine.session, self._engine.now()
        by_leader: dict[str, list[tuple[tuple[TopicPartition, int], Leader]]] = {}
        self._error = None
        for item in self._open:
            leader = session.metadata.leader(item[0])
            if leader is None:
                self._error = LeaderUnavailable(session.metadata.whereabouts(item[0], now))
            else:
                by_leader.setdefault(leader.endpoint, []).append((item, leader))
        self._waiting = len(by_leader)
        left = max(self._deadline_ns - now, 1)
        for endpoint, asked in by_leader.items():
            session.submit(
                endpoint,
                self._message([item for item, _ in asked]),
                (),
                functools.partial(self._done, asked),
                now,
                timeout_ns=min(left, session.request_timeout_ns),
            )

    def _done(
        self,
        asked: list[tuple[tuple[TopicPartition, int], Leader]],
        outcome: Outcome,
        _: int,
    ) -> None:
        self._waiting -= 1
        if outcome.error is not None:
            self._error = outcome.error
            return
        for (item, leader), entry in zip(asked, outcome.answer.partitions, strict=False):
            if entry["error"]:
                self._error = entry_error(entry)
            else:
                self._answers[item] = entry, leader

    def _pause_or_raise(self, attempts: int, done: bool) -> None:
        engine, error = self._engine, self._error
        unknown = isinstance(error, UnknownTopic)
        if error is not None and not error.retriable and not (unknown and attempts == 1):
            raise error
        now = engine.now()
        if not done or now >= self._deadline_ns:
            raise self._too_late(now)
        pause_ns = engine.session.backoff.ns(attempts)
        if error is not None:
            pause_ns = max(pause_ns, int(error.facts.get("retry_after_ms") or 0) * NS_PER_MS)
        engine.wait(lambda: False, min(now + pause_ns, self._deadline_ns))
        if error is not None and error.code in (Code.BUSY, Code.REQUEST_TIMED_OUT):
            return
        left = max(self._deadline_ns - engine.now(), 1)
        engine.refresh(sorted({tp.topic for tp, _ in self._open}), left)

    def _too_late(self, now: int) -> ShmlogError:
        """The last error, or that there was none; with where the partition's leader is."""
        tp = self._open[0][0]
        known = self._engine.session.metadata.whereabouts(tp, now)
        if self._error is None:
            return RequestTimedOut(f"{tp}: no answer in time" + (f"; {known}" if known else ""))
        if known and known not in str(self._error):
            self._error.args = (f"{self._error}; {known}",)
        return self._error
