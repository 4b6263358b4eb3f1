"""Brokers restarted one after the other, so that the cluster hardly notices.

    asking --health--> stopping --ready--> healing --as healthy as before--> the next one
      ^ once, at the begin                    any failure, or time: `error`

A stopping broker hands over what it leads by itself. The next one is not touched before every
partition has a leader and its in-sync replicas are as many as they were at the begin: two replicas
of a partition are never away at once through this. Whoever cannot say how the cluster was (no
broker answers: perhaps that is why one is restarted) is held to a cluster in full health.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from node.children import Child
from node.health import Asker, Health
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.control import State
from shmlog.errors import RequestTimedOut, ServerError, ShmlogError

ASK_NS = 5 * NS_PER_S
HEAL_NS = 60 * NS_PER_S
POLL_NS = 20 * NS_PER_MS


class Restart:
    """One run over some brokers. `turn` until `done`; then `error` says if it went wrong."""

    def __init__(
        self,
        children: Sequence[Child],
        asker: Asker,
        now_ns: int,
        grace_ns: int,
        done: Callable[[ShmlogError | None], None],
    ) -> None:
        self.due_ns = now_ns
        self._left = deque(children)
        self._asker = asker
        self._grace_ns = grace_ns
        self._done = done
        self._before: Health | None = None
        self._pid: int | None = None  # of the process that has to go
        self._going = False
        self._deadline_ns = now_ns + ASK_NS

    @property
    def text(self) -> str:
        """Who is being restarted."""
        return f"broker {self._left[0].broker}" if self._left else "no broker"

    def turn(self, now_ns: int) -> bool:
        """Go on; True once all is done, and has been answered."""
        self.due_ns = now_ns + POLL_NS
        if self._before is None:
            self._find_health(now_ns)
        elif not self._going:
            self._stop_next(now_ns)
        elif self._is_back(now_ns):
            self._left.popleft()
            self._going = False
            self.due_ns = now_ns
        elif self._left[0].state is State.STOPPED:
            return self._end(ServerError(f"{self.text} did not start again: see its log"))
        elif now_ns >= self._deadline_ns:
            return self._end(RequestTimedOut(self._why_not()))
        return self._end(None) if not self._left else False

    def cancel(self, error: ShmlogError) -> None:
        """Something else comes first."""
        self._end(error)

    def _end(self, error: ShmlogError | None) -> bool:
        self._done(error)
        return True

    def _find_health(self, now_ns: int) -> None:
        found = self._asker.health(now_ns)
        if found is not None or now_ns >= self._deadline_ns:
            self._before = found or Health()
            self.due_ns = now_ns

    def _stop_next(self, now_ns: int) -> None:
        child = self._left[0]
        self._pid, self._going = child.pid, True
        self._deadline_ns = now_ns + self._grace_ns + HEAL_NS
        child.restart(now_ns, now_ns + self._grace_ns)
        self._asker.forget()

    def _is_back(self, now_ns: int) -> bool:
        child, before = self._left[0], self._before
        assert before is not None
        if child.state is not State.READY or child.pid == self._pid:
            self._asker.forget()
            return False
        found = self._asker.health(now_ns)
        # Whoever does not know the new incarnation yet speaks of what was before.
        knows = found is not None and (child.broker, child.incarnation) in found.living
        return found is not None and knows and found.is_as_good_as(before)

    def _why_not(self) -> str:
        waited_s = HEAL_NS // NS_PER_S
        if self._left[0].state is not State.READY:
            return f"{self.text} was not ready {waited_s} s after its stop"
        return (
            f"{self.text} is ready, but after {waited_s} s the cluster is not as healthy as it "
            "was: a partition lacks its leader or an in-sync replica (see shmlog status)"
        )
