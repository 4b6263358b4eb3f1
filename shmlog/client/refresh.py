"""Renewing the metadata, without I/O: one round at a time, spread by backoff.

    refresh --(backoff)--> call to any broker --> answer: taken in, the round is over

A round for *news* asks for a metadata offset above the known one: the broker answers as soon as it
has something to tell, say a new leader, or after half a second that it has not. The round after
that is a plain one: a cluster that was made anew counts from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.errors import Code
from shmlog.protocol.messages import Metadata

if TYPE_CHECKING:
    from shmlog.client.session import Outcome, Session

BACKOFF_MAX_NS = NS_PER_S
NEWS_WAIT_NS = 500 * NS_PER_MS


class Refresher:
    """The refreshes of one session. `on_metadata(now)` is called at the end of each round."""

    def __init__(self, session: Session, *, auto_create: bool) -> None:
        self.on_metadata: Callable[[int], None] | None = None
        self._session = session
        self._auto_create = auto_create
        self._round = 0
        self._active = False
        self._again = False
        self._again_news = True
        self._plain_next = False
        self._ended_ns = 0
        self._repeats = 0  # in quick succession

    def refresh(self, now: int, *, at_once: bool = False, news: bool = False) -> None:
        """Begin a round, or note that another one is wanted after this one."""
        if self._active and not at_once:
            self._again = True
            self._again_news = self._again_news and news
            return
        self._active = True
        self._round += 1
        if at_once or now - self._ended_ns > BACKOFF_MAX_NS:
            self._repeats = 0
            self._ask(self._round, news, now)
        else:
            self._pause(self._round, news, now)

    def _pause(self, number: int, news: bool, now: int) -> None:
        self._repeats += 1
        wait_ns = self._session.backoff.ns(self._repeats)
        self._session.after(wait_ns, lambda at: self._ask(number, news, at), now)

    def _ask(self, number: int, news: bool, now: int) -> None:
        if number != self._round:
            return
        session = self._session
        self._again, self._again_news = False, True
        news = news and not self._plain_next and session.metadata.offset >= 0
        session.call(
            Metadata(
                op="metadata",
                id=0,
                topics=sorted(session.topics),
                auto_create=self._auto_create,
                min_metadata=session.metadata.offset + 1 if news else 0,
            ),
            lambda outcome, at: self._ended(number, news, outcome, at),
            now,
            now + session.request_timeout_ns,
            patience_ns=NEWS_WAIT_NS if news else 0,
        )

    def _ended(self, number: int, news: bool, outcome: Outcome, now: int) -> None:
        error = outcome.error
        if error is None:
            self._session.take_metadata(outcome.answer, now)
        if number != self._round or not self._active:
            return
        nothing_new = news and error is not None and error.code is Code.REQUEST_TIMED_OUT
        if error is not None and not nothing_new:
            self._pause(number, news, now)
            return
        self._active = False
        self._ended_ns = now
        self._plain_next = nothing_new
        if self._again:
            self.refresh(now, news=self._again_news)
        if self.on_metadata is not None:
            self.on_metadata(now)
