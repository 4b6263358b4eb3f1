"""The thread of a group's member: heartbeats and automatic commits, apart from the application's work.

It has connections of its own and knows nothing of the consumer, which can therefore be collected while the thread
lives; then, as at `stop`, the member leaves. Whoever touches the membership holds `lock`.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from shmlog.client import forks
from shmlog.client.bootstrap import Where
from shmlog.client.engine import Engine
from shmlog.client.membership import Asked, Membership
from shmlog.client.session import Outcome
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.errors import ClientClosed, ClusterNotFound, LeaderUnavailable, ShmlogError

_SLEEP_MAX_NS = 5 * NS_PER_S
_LEAVE_NS = (
    2 * NS_PER_S
)  # a leave that does not arrive: the process's end, or silence, says the same


class MemberThread(threading.Thread):
    """See above. `tell` is called whenever the membership has heard something."""

    def __init__(
        self,
        where: Where,
        make: Callable[[Engine], Membership],
        tell: Callable[[], None],
        *,
        request_timeout_ns: int,
        rng: random.Random | None,
    ) -> None:
        super().__init__(name="shmlog-member", daemon=True)
        self.lock = threading.Lock()
        self.is_abandoned = False
        self._engine = Engine(where, rng=rng, request_timeout_ns=request_timeout_ns)
        self.membership = make(self._engine)
        self._tell = tell
        self._stopping = False
        forks.guard(self)

    def wake(self) -> None:
        """The membership has changed: look at once."""
        self._engine.wake()

    def stop(self) -> None:
        """Leave the group and end, soon."""
        self._stopping = True
        if not self.is_abandoned:
            self._engine.wake()

    def abandon(self) -> None:
        """The consumer was copied by fork: the member is the parent's."""
        self.is_abandoned = True
        forks.leave(self)

    def run(self) -> None:
        """Turn after turn until `stop`."""
        engine = self._engine
        try:
            with engine.lock:
                while not self._stopping:
                    engine.pump(self._turn())
                self._leave()
        except BaseException as error:
            with self.lock:
                self.membership.fatal = _as_error(error)
                self.membership.has_news = True
            self._tell()
            raise
        finally:
            engine.close()

    def _turn(self) -> int:
        """Send what is due; how long there is nothing to do, ns."""
        membership, now = self.membership, self._engine.now()
        with self.lock:
            asked = membership.requests(now)
        for one in asked:
            self._submit(one, now)
        with self.lock:
            due_ns = membership.due_ns()
        return max(min(due_ns - now, _SLEEP_MAX_NS), 0)

    def _submit(self, asked: Asked, now: int) -> None:
        session = self._engine.session

        def done(outcome: Outcome, at: int) -> None:
            with self.lock:
                asked.on_done(outcome, at)
            self._tell()

        try:
            endpoint = asked.endpoint or session.any_endpoint()
        except ClusterNotFound as error:
            done(Outcome(None, (), _unavailable(error), False), now)
            return
        if asked.endpoint is None and not session.metadata.endpoints():
            session.refresh(now)  # to know all brokers, not only the one that was found first
        patience_ns = getattr(asked.message, "max_wait_ms", 0) * NS_PER_MS
        session.submit(endpoint, asked.message, (), done, now, patience_ns=patience_ns)

    def _leave(self) -> None:
        engine = self._engine
        with self.lock:
            message, endpoint = self.membership.leave(), self.membership.coordinator
            joined = self.membership.epoch > 0
        if joined:
            try:
                engine.ask(message, _LEAVE_NS, endpoint=endpoint)
            except ShmlogError:
                pass  # it is no member any more, or is soon found to be gone


def _unavailable(error: ShmlogError) -> ShmlogError:
    return LeaderUnavailable(str(error))


def _as_error(error: BaseException) -> ShmlogError:
    return ClientClosed(f"the member's thread failed: {error!r}")
