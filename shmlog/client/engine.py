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
from typing import Any

from shmlog.client import forks
from shmlog.client.arguments import no_topic
from shmlog.client.bootstrap import Where, discoverer
from shmlog.client.session import Outcome, Session, entry_error
from shmlog.client.transport import Transport
from shmlog.clock import NS_PER_S, SYSTEM_CLOCK
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


class Engine:
    """A session, its sockets, and the waiting."""

    def __init__(
        self,
        where: Where,
        *,
        rng: random.Random | None = None,
        request_timeout_ns: int = 30 * NS_PER_S,
    ) -> None:
        discover = discoverer(where)
        discover()  # nobody there: say so at once
        self.lock = threading.RLock()
        self.session = Session(
            discover, rng or random.Random(), request_timeout_ns=request_timeout_ns
        )
        self._transport: Transport | None = Transport()
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
        transport, session = self.check(), self.session
        now = self.now()
        session.tick(now)
        for endpoint, frames in session.take_outgoing():
            transport.send(endpoint, frames)
        due = session.next_deadline_ns()
        if due is not None:
            left = max(due - now, 0)
            timeout_ns = left if timeout_ns is None else min(left, timeout_ns)
        events = transport.poll(timeout_ns)
        if self._closing is not None:
            self.check()
        if events:
            now = self.now()
            for endpoint, answer in events:
                if answer is None:
                    session.lost(endpoint, now)
                else:
                    session.received(endpoint, answer, now)

    def wait(self, done: Callable[[], bool], deadline_ns: int) -> bool:
        """Pump until `done()`; False if the deadline passes first."""
        while not done():
            left = deadline_ns - self.now()
            if left <= 0:
                return False
            self.pump(left)
        return True

    def ask(self, message: Request, timeout_ns: int = API_TIMEOUT_NS) -> Any:
        """The answer of any broker. Raises what the broker or the deadline says."""
        with self.lock:
            self.check()
            outcomes: list[Outcome] = []
            now = self.now()
            deadline_ns = now + timeout_ns
            self.session.call(message, lambda o, _: outcomes.append(o), now, deadline_ns)
            self.wait(lambda: bool(outcomes), deadline_ns + NS_PER_S)
            if not outcomes:
                raise RequestTimedOut(f"{message.op}: no answer within {timeout_ns / NS_PER_S:g} s")
            error = outcomes[0].error
            if error is not None:
                raise error
            return outcomes[0].answer

    def refresh(
        self, topics: Sequence[str] | None, timeout_ns: int = API_TIMEOUT_NS
    ) -> MetadataAnswer:
        """Metadata of some or (None) all topics, kept in the cache."""
        wanted = None if topics is None else list(topics)
        answer: MetadataAnswer = self.ask(Metadata(op="metadata", id=0, topics=wanted), timeout_ns)
        self.session.metadata.apply(answer)
        return answer

    def unknown_topic(self, topic: str, timeout_ns: int = API_TIMEOUT_NS) -> UnknownTopic:
        """The error for a topic that does not exist, with the nearest one."""
        return no_topic(topic, (t.topic for t in self.refresh(None, timeout_ns).topics))

    def list_offsets(
        self,
        questions: Iterable[tuple[TopicPartition, int]],
        timeout_ns: int = API_TIMEOUT_NS,
    ) -> dict[tuple[TopicPartition, int], int]:
        """The offsets that (partition, timestamp or -1 latest, -2 earliest) ask for; -1: no such
        record.

        Each is asked at the partition's leader, again after a change of leaders.
        Raises: UnknownTopic, RequestTimedOut, or what the last answer said.
        """
        gathering = _OffsetGathering(self, list(dict.fromkeys(questions)), timeout_ns)
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


class _OffsetGathering:
    """One list_offsets over many leaders, until every question has its answer."""

    def __init__(
        self, engine: Engine, questions: list[tuple[TopicPartition, int]], timeout_ns: int
    ) -> None:
        self._engine = engine
        self._open = questions
        self._answers: dict[tuple[TopicPartition, int], int] = {}
        self._deadline_ns = engine.now() + timeout_ns
        self._error: ShmlogError | None = None
        self._waiting = 0

    def run(self) -> dict[tuple[TopicPartition, int], int]:
        attempts = 0
        while True:
            self._ask_leaders()
            done = self._engine.wait(lambda: self._waiting == 0, self._deadline_ns)
            self._open = [q for q in self._open if q not in self._answers]
            if not self._open:
                return self._answers
            attempts += 1
            self._pause_or_raise(attempts, done)

    def _ask_leaders(self) -> None:
        session, now = self._engine.session, self._engine.now()
        by_endpoint: dict[str, list[tuple[TopicPartition, int]]] = {}
        for question in self._open:
            leader = session.metadata.leader(question[0])
            if leader is None:
                self._error = LeaderUnavailable(f"{question[0]} has no leader known")
            else:
                by_endpoint.setdefault(leader.endpoint, []).append(question)
        self._waiting = len(by_endpoint)
        left = max(self._deadline_ns - now, 1)
        for endpoint, questions in by_endpoint.items():
            message = ListOffsets(
                op="list_offsets",
                id=0,
                partitions=[
                    OffsetQuestion(topic=tp.topic, partition=tp.partition, timestamp=Big(t))
                    for tp, t in questions
                ],
            )
            session.submit(
                endpoint,
                message,
                (),
                functools.partial(self._done, questions),
                now,
                timeout_ns=min(left, session.request_timeout_ns),
            )

    def _done(self, asked: list[tuple[TopicPartition, int]], outcome: Outcome, _: int) -> None:
        self._waiting -= 1
        if outcome.error is not None:
            self._error = outcome.error
            return
        for question, entry in zip(asked, outcome.answer.partitions, strict=False):
            if entry["error"]:
                self._error = entry_error(entry)
            else:
                self._answers[question] = entry["offset"]

    def _pause_or_raise(self, attempts: int, done: bool) -> None:
        engine, error = self._engine, self._error
        unknown = isinstance(error, UnknownTopic)
        fatal = error is not None and not error.retriable and not (unknown and attempts == 1)
        now = engine.now()
        if not done or now >= self._deadline_ns:
            raise error or RequestTimedOut("list_offsets: no answer in time")
        if fatal:
            assert error is not None
            raise error
        pause_ns = now + engine.session.backoff.ns(attempts)
        engine.wait(lambda: False, min(pause_ns, self._deadline_ns))
        if error is not None and error.code in (Code.BUSY, Code.REQUEST_TIMED_OUT):
            return
        left = max(self._deadline_ns - engine.now(), 1)
        engine.refresh(sorted({tp.topic for tp, _ in self._open}), left)
