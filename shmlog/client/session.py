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
from typing import Any, NamedTuple

from msgspec import Struct

from shmlog.client.metadata import MetadataCache
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
    OPERATIONS,
    ErrorAnswer,
    Metadata,
    MetadataAnswer,
    Request,
)

BACKOFF_NS = 5 * NS_PER_MS
BACKOFF_MAX_NS = NS_PER_S
METADATA_AGE_NS = 300 * NS_PER_S
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

    __slots__ = ("answer_type", "endpoint", "on_done")

    def __init__(self, endpoint: str, answer_type: type[Struct], on_done: OnDone) -> None:
        self.endpoint = endpoint
        self.answer_type = answer_type
        self.on_done = on_done


class _Call:
    """A request to any broker, with its retries."""

    __slots__ = ("attempts", "deadline_ns", "endpoint", "error", "message", "on_done")

    def __init__(self, message: Request, on_done: OnDone, deadline_ns: int) -> None:
        self.message = message
        self.on_done = on_done
        self.deadline_ns = deadline_ns
        self.attempts = 0
        self.error: ShmlogError | None = None
        self.endpoint: str | None = None  # whom the last answer named


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
        self.on_metadata: Callable[[int], None] | None = None
        self._discover = discover
        self._auto_create = auto_create
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._deadlines: dict[int, deque[tuple[int, int]]] = {}  # by length of time: in order
        self._timers: list[tuple[int, int, Callable[[int], None]]] = []
        self._timer_ids = itertools.count()
        self._outgoing: list[tuple[str, Sequence[Any]]] = []
        self._turn = 0
        self._avoid: str | None = None  # the connection that broke last
        self._found: list[str] = []  # by `discover`, when there is no metadata yet
        self._refreshing = False
        self._refresh_again = False
        self._refreshed_ns = 0
        self._refreshes = 0  # in quick succession
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
    ) -> None:
        """Send one request to one endpoint; `on_done(outcome, now)` is called once."""
        timeout_ns = timeout_ns or self.request_timeout_ns
        number = next(self._ids)
        message.id = number
        message.timeout_ms = min(max(timeout_ns // NS_PER_MS, 1), 3_600_000)
        encoded = header.encode(message, header.Codec.MSGPACK)
        self._pending[number] = _Pending(endpoint, _ANSWERS[type(message)], on_done)
        line = self._deadlines.get(timeout_ns)
        if line is None:
            line = self._deadlines[timeout_ns] = deque()
        line.append((now + timeout_ns + _GRACE_NS, number))
        self._outgoing.append((endpoint, [encoded, *frames]))

    def call(self, message: Request, on_done: OnDone, now: int, deadline_ns: int) -> None:
        """Ask any broker, again and again until the deadline; `on_done(outcome, now)` is called
        once.
        """
        self._try(_Call(message, on_done, deadline_ns), now)

    def refresh(self, now: int, *, at_once: bool = False) -> None:
        """Renew the metadata of `topics`; calls in quick succession are spread by backoff."""
        if self._refreshing:
            self._refresh_again = True
            return
        self._refreshing = True
        if at_once or now - self._refreshed_ns > BACKOFF_MAX_NS:
            self._refreshes = 0
            self._send_refresh(now)
            return
        self._refreshes += 1
        self.after(self.backoff.ns(self._refreshes), self._send_refresh, now)

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

    def lost(self, endpoint: str, now: int) -> None:
        """The connection broke, or could not be made: all that was in flight there has ended."""
        self._avoid = endpoint
        self._found = []
        gone = [n for n, pending in self._pending.items() if pending.endpoint == endpoint]
        for number in gone:
            pending = self._pending.pop(number, None)
            if pending is not None:
                error = BrokerGone(
                    f"the connection to {endpoint} is gone; the request may have been carried out",
                    endpoint=endpoint,
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
            call.on_done(Outcome(None, (), error, False), now)
            return
        try:
            endpoint = call.endpoint or self._any_endpoint()
        except ClusterNotFound as error:
            self._again(call, error, now)
            return
        self.submit(
            endpoint,
            call.message,
            (),
            lambda outcome, at: self._tried(call, outcome, at),
            now,
            timeout_ns=min(left, self.request_timeout_ns),
        )

    def _tried(self, call: _Call, outcome: Outcome, now: int) -> None:
        if outcome.error is None or not outcome.error.retriable:
            call.on_done(outcome, now)
        else:
            call.endpoint = outcome.error.facts.get("endpoint") if outcome.answered else None
            self._again(call, outcome.error, now)

    def _again(self, call: _Call, error: ShmlogError, now: int) -> None:
        call.error = error
        call.attempts += 1
        wait = self.backoff.ns(call.attempts)
        asked = error.facts.get("retry_after_ms")
        if asked:
            wait = max(wait, int(asked) * NS_PER_MS)
        self.after(min(wait, max(call.deadline_ns - now, 0)), lambda at: self._try(call, at), now)

    def _any_endpoint(self) -> str:
        known = self.metadata.endpoints() or self._found
        if not known or (len(known) == 1 and known[0] == self._avoid):
            known = self._found = self._discover()
        self._turn += 1
        endpoint = known[self._turn % len(known)]
        if endpoint == self._avoid and len(known) > 1:
            self._turn += 1
            endpoint = known[self._turn % len(known)]
        return endpoint

    # --- metadata

    def _send_refresh(self, now: int) -> None:
        message = Metadata(
            op="metadata", id=0, topics=sorted(self.topics), auto_create=self._auto_create
        )
        self._refresh_again = False
        self.call(message, self._refreshed, now, now + self.request_timeout_ns)

    def _refreshed(self, outcome: Outcome, now: int) -> None:
        self._refreshing = False
        self._refreshed_ns = now
        self._aged_ns = now + METADATA_AGE_NS
        if outcome.error is not None:
            self.refresh(now)
            return
        answer: MetadataAnswer = outcome.answer
        self.metadata.apply(answer)
        if self._refresh_again:
            self.refresh(now)
        if self.on_metadata is not None:
            self.on_metadata(now)


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
