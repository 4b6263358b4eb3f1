"""Requests and answers, without I/O: correlation ids, deadlines, retries, and the metadata cache.

    submit --+                        +--> outgoing: (endpoint, frames)
    call   --+--> in flight by id ----+
    refresh -+        ^   ^   ^
                      |   |   |
       received ------+   |   +------ tick (deadlines, backoff)
                        lost

Two kinds of request. `submit` is one attempt at one endpoint: its outcome says what became of it,
and whoever asked decides (produce and fetch: the fate is one per partition). `call` goes to any
broker, from there to whom the answer names (6), and is repeated with backoff until an answer, a
final error, or its deadline.

*Silence*: a request that is not answered when it might be (half a second, beyond what it may be
parked) makes the metadata be renewed, by another broker, every half second until it is answered.
Nothing ends by silence alone; but when the metadata says that a silent broker is fenced, all that
was in flight there ends as if its connection were lost, long before the deadlines.

Rules: every request ends exactly once, by an answer, a loss or its deadline; a second answer for an
id, or one after the end, is dropped. Time is an argument. Callbacks run inside the call that caused
them.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from shmlog.client.metadata import MetadataCache
from shmlog.client.refresh import BACKOFF_MAX_NS, Refresher
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.errors import (
    BrokerGone,
    ClusterNotFound,
    InvalidRequest,
    RequestTimedOut,
    ShmlogError,
    from_wire,
)
from shmlog.protocol import header
from shmlog.protocol.messages import (
    DescribeCluster,
    DescribeTopic,
    Epochs,
    ErrorAnswer,
    Hello,
    InitProducer,
    Metadata,
    MetadataAnswer,
    MetadataLog,
    Request,
)
from shmlog.protocol.operations import OPERATIONS

if TYPE_CHECKING:
    from shmlog.client.bootstrap import Watch

BACKOFF_NS = 5 * NS_PER_MS
METADATA_AGE_NS = 300 * NS_PER_S
SILENCE_NS = 500 * NS_PER_MS  # who owes an answer for so long may hang
_NEVER = 1 << 62
_REPEATABLE = (  # may be asked twice at the same time: at worst a producer id is never used
    Metadata, Hello, InitProducer, DescribeTopic, DescribeCluster, Epochs, MetadataLog,
)  # fmt: skip
_GRACE_NS = 500 * NS_PER_MS  # the broker answers 7 at the deadline; its answer may take a moment
_ANSWERS = {operation.request: operation.answer for operation in OPERATIONS.values()}


class _Head(Struct):
    """What every answer has."""

    id: int | None = None
    error: int = 0


class Outcome(NamedTuple):
    """How a request ended: with `answer` and frames, or with `error`.

    `answered` tells an error that a broker sent (nothing else will happen) from a loss or a
    deadline (the request may have been carried out).
    """

    answer: Any
    frames: Sequence[bytes]
    error: ShmlogError | None
    answered: bool


OnDone = Callable[[Outcome, int], None]


class Backoff:
    """Waiting times: 5 ms, doubling to 1 s, each 20 % up or down."""

    __slots__ = ("_rng",)

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def ns(self, attempts: int) -> int:
        """Nanoseconds to wait after `attempts` failures, counted from 1."""
        plain = min(BACKOFF_NS << min(attempts - 1, 20), BACKOFF_MAX_NS)
        return int(plain * self._rng.uniform(0.8, 1.2))


class _Pending:
    """A request in flight."""

    __slots__ = ("answer_type", "endpoint", "on_done", "on_silence", "overdue_ns", "sent_ns")

    def __init__(
        self,
        endpoint: str,
        answer_type: type[Struct],
        on_done: OnDone,
        sent_ns: int,
        overdue_ns: int,
        on_silence: Callable[[int], None] | None,
    ) -> None:
        self.endpoint = endpoint
        self.answer_type = answer_type
        self.on_done = on_done
        self.on_silence = on_silence
        self.sent_ns = sent_ns
        self.overdue_ns = overdue_ns


class _Call:
    """A request to any broker, with its retries."""

    __slots__ = (
        "attempts",
        "deadline_ns",
        "done",
        "endpoint",
        "error",
        "message",
        "on_done",
        "open",
        "patience_ns",
        "repeatable",
    )

    def __init__(
        self, message: Request, on_done: OnDone, deadline_ns: int, patience_ns: int
    ) -> None:
        self.message = message
        self.repeatable = isinstance(message, _REPEATABLE)
        self.on_done = on_done
        self.deadline_ns = deadline_ns
        self.patience_ns = patience_ns
        self.attempts = 0
        self.open = 0  # attempts without an outcome
        self.done = False
        self.error: ShmlogError | None = None
        self.endpoint: str | None = None  # whom the last answer named

    def end(self, outcome: Outcome, now: int) -> None:
        """Once only."""
        if not self.done:
            self.done = True
            self.on_done(outcome, now)


class Session:
    """The state of one client's conversations.

    `discover` gives the endpoints found outside (registry or the address given); it raises
    ClusterNotFound.
    """

    def __init__(
        self,
        discover: Callable[[], list[str]],
        rng: random.Random,
        *,
        request_timeout_ns: int = 30 * NS_PER_S,
        auto_create: bool = False,
    ) -> None:
        self.metadata = MetadataCache()
        self.backoff = Backoff(rng)
        self.request_timeout_ns = request_timeout_ns
        self.topics: set[str] = set()
        self.refresher = Refresher(self, auto_create=auto_create)
        self._discover = discover
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._deadlines: dict[int, deque[tuple[int, int]]] = {}  # by length of time: in order
        self._timers: list[tuple[int, int, Callable[[int], None]]] = []
        self._timer_ids = itertools.count()
        self._outgoing: list[tuple[str, Sequence[Any]]] = []
        self._turn = 0
        self._avoid: str | None = None  # the connection that broke last
        self._found: list[str] = []  # by `discover`, when there is no metadata yet
        self._heard: dict[str, int] = {}  # when an endpoint answered last
        self._silent: set[str] = set()  # endpoints that owe an answer
        self._look_ns = _NEVER  # when the next request is overdue
        self._aged_ns = 0  # when the metadata is too old; 0: not known yet

    # --- inputs

    def submit(
        self,
        endpoint: str,
        message: Request,
        frames: Sequence[Any],
        on_done: OnDone,
        now: int,
        *,
        timeout_ns: int = 0,
        patience_ns: int = 0,
        on_silence: Callable[[int], None] | None = None,
    ) -> None:
        """Send one request to one endpoint; `on_done(outcome, now)` is called once.

        `patience_ns`: how long the broker may hold the answer back though it is well. `on_silence(now)`
        is called, at most once and before that end, when nothing was heard from it for longer.
        """
        timeout_ns = timeout_ns or self.request_timeout_ns
        number = next(self._ids)
        message.id = number
        message.timeout_ms = min(max(timeout_ns // NS_PER_MS, 1), 3_600_000)
        encoded = header.encode(message, header.Codec.MSGPACK)
        overdue_ns = now + patience_ns + SILENCE_NS
        self._look_ns = min(self._look_ns, overdue_ns)
        self._pending[number] = _Pending(
            endpoint, _ANSWERS[type(message)], on_done, now, overdue_ns, on_silence
        )
        line = self._deadlines.get(timeout_ns)
        if line is None:
            line = self._deadlines[timeout_ns] = deque()
        line.append((now + timeout_ns + _GRACE_NS, number))
        self._outgoing.append((endpoint, [encoded, *frames]))

    def call(
        self,
        message: Request,
        on_done: OnDone,
        now: int,
        deadline_ns: int,
        *,
        patience_ns: int = 0,
        endpoint: str | None = None,
    ) -> None:
        """Ask any broker, `endpoint` first, again and again until the deadline; `on_done(outcome, now)`
        is called once. `patience_ns`: the broker is to answer by then, if only that there is nothing new.
        """
        call = _Call(message, on_done, deadline_ns, patience_ns)
        call.endpoint = endpoint
        self._try(call, now)

    def take_metadata(self, answer: MetadataAnswer, now: int) -> None:
        """News of the cluster. What is in flight at a silent broker that it has fenced ends."""
        self._aged_ns = now + METADATA_AGE_NS
        self.metadata.apply(answer)
        for broker in self.metadata.brokers.values():
            endpoint = broker.endpoint
            if broker.alive or self._heard.get(endpoint, 0) > now - SILENCE_NS:
                continue
            if any(pending.endpoint == endpoint for pending in self._pending.values()):
                why = f"broker {broker.broker} does not answer and was fenced"
                self.metadata.ended(broker.broker, broker.incarnation, why, now, dead=False)
                self._end_all(endpoint, why, now)

    def refresh(self, now: int, *, at_once: bool = False, news: bool = False) -> None:
        """Renew the metadata of `topics`; calls in quick succession are spread by backoff.

        `news`: what is known now does not help, so wait (shortly) for a newer image.
        """
        self.refresher.refresh(now, at_once=at_once, news=news)

    def after(self, delay_ns: int, action: Callable[[int], None], now: int) -> None:
        """Call `action(now)` in a later tick."""
        heapq.heappush(self._timers, (now + delay_ns, next(self._timer_ids), action))

    def received(self, endpoint: str, frames: Sequence[bytes], now: int) -> None:
        """An answer. One that nobody waits for (late, or a second one) is dropped."""
        if frames and not frames[0]:
            frames = frames[1:]
        if not frames:
            return
        if endpoint == self._avoid:
            self._avoid = None
        self._heard[endpoint] = now
        self._silent.discard(endpoint)
        try:
            head = header.decode(frames[0], _Head)
        except InvalidRequest:
            return  # not readable, so not to be assigned to a request: that one will time out
        pending = self._pending.pop(head.id, None) if head.id is not None else None
        if pending is None:
            return
        if head.error:
            pending.on_done(Outcome(None, (), error_of(frames[0]), True), now)
            return
        try:
            answer: Struct = header.decode(frames[0], pending.answer_type)
        except InvalidRequest as error:
            broken = from_wire(2, f"unreadable answer from {endpoint}: {error}")
            pending.on_done(Outcome(None, (), broken, False), now)
            return
        pending.on_done(Outcome(answer, frames[1:], None, True), now)

    def lost_all(self, now: int) -> None:
        """Every connection was given up, with what was still to be sent."""
        self._outgoing.clear()
        for endpoint in {pending.endpoint for pending in self._pending.values()}:
            self.lost(endpoint, now)

    def lost(self, endpoint: str, now: int, died: Watch | None = None) -> None:
        """The connection broke, or could not be made: all that was in flight there has ended.

        `died`: because that process ended.
        """
        self._avoid = endpoint
        self._found = []
        self._silent.discard(endpoint)
        why = f"the connection to {endpoint} is gone"
        if died is not None:
            why = f"{died} died"
            self.metadata.ended(died.broker, died.incarnation, why, now, dead=True)
        self._end_all(endpoint, why, now)
        if self.metadata.leads(endpoint):
            self.refresh(now)

    def _end_all(self, endpoint: str, why: str, now: int) -> None:
        gone = [n for n, pending in self._pending.items() if pending.endpoint == endpoint]
        for number in gone:
            pending = self._pending.pop(number, None)
            if pending is not None:
                error = BrokerGone(
                    f"{why}; the request may have been carried out", endpoint=endpoint
                )
                pending.on_done(Outcome(None, (), error, False), now)

    def tick(self, now: int) -> None:
        """Let deadlines and timers that are due take effect."""
        for timeout_ns, line in list(self._deadlines.items()):
            while line and (line[0][0] <= now or line[0][1] not in self._pending):
                number = line.popleft()[1]
                pending = self._pending.pop(number, None)
                if pending is not None:
                    error = RequestTimedOut(f"no answer from {pending.endpoint} in time")
                    pending.on_done(Outcome(None, (), error, False), now)
            if not line:
                self._deadlines.pop(timeout_ns, None)
        if self._look_ns <= now:
            self._look(now)
        if self.topics and now >= self._aged_ns:
            if self._aged_ns:
                self.refresh(now)
            self._aged_ns = now + METADATA_AGE_NS
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2](now)

    # --- outputs

    def take_outgoing(self, only: Container[str] | None = None) -> list[tuple[str, Sequence[Any]]]:
        """What has to be sent (to the endpoints in `only`), oldest first; it is handed over."""
        outgoing, self._outgoing = self._outgoing, []
        if only is not None:
            self._outgoing = [message for message in outgoing if message[0] not in only]
            outgoing = [message for message in outgoing if message[0] in only]
        return outgoing

    @property
    def has_outgoing(self) -> bool:
        """Is there something to be sent?"""
        return bool(self._outgoing)

    def next_deadline_ns(self) -> int | None:
        """When `tick` has something to do, None if never."""
        due = self._timers[0][0] if self._timers else None
        if self._pending and (due is None or self._look_ns < due):
            due = self._look_ns
        if self.topics and (due is None or self._aged_ns < due):
            due = self._aged_ns
        for line in self._deadlines.values():
            while line and line[0][1] not in self._pending:
                line.popleft()
            if line and (due is None or line[0][0] < due):
                due = line[0][0]
        return due

    @property
    def in_flight(self) -> int:
        """Requests without an answer."""
        return len(self._pending)

    # --- calls to any broker

    def _try(self, call: _Call, now: int) -> None:
        left = call.deadline_ns - now
        if left <= 0:
            error = call.error or RequestTimedOut("no broker answered in time")
            call.end(Outcome(None, (), error, False), now)
            return
        try:
            endpoint = call.endpoint or self.any_endpoint()
        except ClusterNotFound as error:
            self._again(call, error, now)
            return
        call.open += 1
        self.submit(
            endpoint,
            call.message,
            (),
            lambda outcome, at: self._tried(call, outcome, at),
            now,
            timeout_ns=min(left, call.patience_ns or self.request_timeout_ns),
            patience_ns=call.patience_ns,
            on_silence=partial(self._hedge, call) if call.repeatable else None,
        )

    def _hedge(self, call: _Call, now: int) -> None:
        """Somebody else may answer sooner than one who is silent."""
        fit = self._fit(self.metadata.endpoints() or self._found)
        if fit and not call.done and now < call.deadline_ns:
            call.endpoint = None
            self._try(call, now)

    def _tried(self, call: _Call, outcome: Outcome, now: int) -> None:
        call.open -= 1
        error = outcome.error
        # A broker that was asked for news and has none has answered.
        no_news = outcome.answered and call.patience_ns and error is not None and error.code == 7
        if error is None or not error.retriable or no_news:
            call.end(outcome, now)
        elif not call.done and (not call.open or call.repeatable):
            call.endpoint = error.facts.get("endpoint") if outcome.answered else None
            self._again(call, error, now)

    def _again(self, call: _Call, error: ShmlogError, now: int) -> None:
        call.error = error
        call.attempts += 1
        wait = self.backoff.ns(call.attempts)
        asked = error.facts.get("retry_after_ms")
        if asked:
            wait = max(wait, int(asked) * NS_PER_MS)
        self.after(min(wait, max(call.deadline_ns - now, 0)), lambda at: self._try(call, at), now)

    def any_endpoint(self) -> str:
        """One after the other of those that may answer. Raises: ClusterNotFound."""
        fit = self._fit(self.metadata.endpoints() or self._found)
        if not fit:
            self._found = self._discover()
            fit = self._fit(self._found) or self._found
        self._turn += 1
        return fit[self._turn % len(fit)]

    def _fit(self, endpoints: list[str]) -> list[str]:
        return [e for e in endpoints if e != self._avoid and e not in self._silent]

    # --- silence

    def _look(self, now: int) -> None:
        """Is an answer overdue? Then the metadata may tell why; look again in a while."""
        soonest, overdue = _NEVER, []
        for pending in self._pending.values():
            if pending.overdue_ns > now:
                soonest = min(soonest, pending.overdue_ns)
                continue
            overdue.append(pending)
            if self._heard.get(pending.endpoint, 0) <= pending.sent_ns:
                self._silent.add(pending.endpoint)
        self._look_ns = min(soonest, now + SILENCE_NS) if overdue else soonest
        for pending in overdue:
            tell = pending.on_silence
            if tell is not None and pending.endpoint in self._silent:
                pending.on_silence = None
                tell(now)
        if overdue:
            self.refresh(now, news=True)


def error_of(encoded: bytes) -> ShmlogError:
    """The exception for an answer that is an error as a whole."""
    answer = header.decode(encoded, ErrorAnswer)
    return from_wire(answer.error, answer.message, **_facts(answer))


def entry_error(entry: dict[str, Any]) -> ShmlogError:
    """The exception for the entry of a partition that failed."""
    facts = {k: v for k, v in entry.items() if k in _FACTS and v is not None}
    return from_wire(entry["error"], entry.get("message", ""), **facts)


_FACTS = frozenset(ErrorAnswer.__struct_fields__) - {"error", "name", "retriable", "message", "id"}


def _facts(answer: ErrorAnswer) -> dict[str, Any]:
    return {name: value for name in _FACTS if (value := getattr(answer, name)) is not None}
