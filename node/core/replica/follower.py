"""A replica that follows: reconcile by epoch history, cut, then fetch. Sans-IO. T, H7: docs/rules.md.

    WAITING      nobody to follow: no leader, its epoch is not started (E8), or it knows of a later one (74)
    RECONCILING  the leader's epoch history is wanted; nothing is fetched before it was compared (T1)
    TRUNCATING   the driver cuts, in one step (T2)
    FETCHING     the log is a prefix of the leader's; only now may the high watermark move
    STOPPED      the leader's history would cut below the own high watermark (T3): for a person to look at

    WAITING -> RECONCILING -> TRUNCATING -> FETCHING, and from any of them back when the leader epoch rises, be it
    the same broker that leads (B04). A cut in progress is finished first.

A compacted log may have to be copied from its beginning though its history fits (*stale*): when it ends below a
tombstone that the leader has dropped, for what that deleted would come back; and when an election has given up records
that others had been dropped for.

The log is the driver's: its ends and its history are arguments. Invariant: high_watermark <= the log's end,
and it only goes back where T3 has its exception, or a stale log is emptied.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from shmlog.errors import Code

Entries = Sequence[tuple[int, int]]  # (leader epoch, start offset), both rising


class Truncation(NamedTuple):
    """The log is to end at `end_offset`: cut there, or (`anew`) emptied to begin there."""

    end_offset: int
    anew: bool = False


class Producers(NamedTuple):
    """Some of what the leader remembers of producers; `next_after`: the id after which the others come."""

    page: Sequence[object]
    next_after: int | None = None


class Compacted(NamedTuple):
    """What compaction has taken: from the leader's log tombstones below `their_tombstones`; from the own one records
    that any below `mine_below` replaced."""

    their_tombstones: int = 0
    mine_below: int = 0


def misses_deletes(end_offset: int, compacted: Compacted) -> bool:
    """Would a log that ends there go on behind deletes that it has not seen, and that are gone?"""
    return end_offset < compacted.their_tombstones


def is_stale(
    plan: Truncation, compacted: Compacted, mine: Entries, my_end: int, recovery_epoch: int
) -> bool:
    """Must a log begin anew though the plan would keep some of it?"""
    given_up = last_epoch(mine, my_end) < recovery_epoch
    return misses_deletes(my_end, compacted) or (
        given_up and plan.end_offset < compacted.mine_below
    )


def _end_of(epoch: int, entries: Entries, end_offset: int) -> int:
    return next((start for later, start in entries if later > epoch), end_offset)


def last_epoch(entries: Entries, end_offset: int) -> int:
    """The epoch of the last batch; -1 if there is none. (An epoch may have begun without one.)"""
    return max((epoch for epoch, start in entries if start < end_offset), default=-1)


def plan_truncation(
    mine: Entries, my_end: int, theirs: Entries, their_end: int, their_log_start: int
) -> Truncation:
    """T1: where a follower's log stops being a prefix of the leader's.

    At the end, the lower of both, of the largest epoch that both know. An epoch says who wrote, so below that the
    two are the same; what only one of them knows is not. A log without a batch differs nowhere. Where that end lies
    below the start of either log there is nothing to cut at: the follower begins anew. (Below its own start: where its
    oldest known epoch begins. It has deleted more than the leader, which lost what it had behind.) With no epoch in
    common the follower keeps its start if the leader's log has it: what it has deleted was committed.
    """
    anew = Truncation(their_log_start, anew=True)
    if last_epoch(mine, my_end) < 0:
        return Truncation(my_end) if their_log_start <= my_end <= their_end else anew
    common = max({epoch for epoch, _ in mine} & {epoch for epoch, _ in theirs}, default=-1)
    if common < 0:
        return Truncation(mine[0][1]) if their_log_start < mine[0][1] <= their_end else anew
    end = min(_end_of(common, mine, my_end), _end_of(common, theirs, their_end))
    return Truncation(end) if end >= max(their_log_start, mine[0][1]) else anew


def may_cut(
    plan: Truncation, high_watermark: int, mine: Entries, my_end: int, recovery_epoch: int
) -> bool:
    """T3: never below the own high watermark, but where a recovery or unclean election has given it up."""
    return plan.end_offset >= high_watermark or last_epoch(mine, my_end) < recovery_epoch


class State(enum.Enum):
    """What a follower is at."""

    WAITING = "waiting"
    RECONCILING = "reconciling"
    TRUNCATING = "truncating"
    FETCHING = "fetching"
    STOPPED = "stopped"


class Follower:
    """One partition that this broker follows."""

    def __init__(self, *, high_watermark: int) -> None:
        self.high_watermark = high_watermark
        self.leader = -1
        self.leader_epoch = -1
        self.started = False
        self.recovery_epoch = -1
        self.state = State.WAITING
        self.truncation: Truncation | None = None  # exactly while TRUNCATING or STOPPED
        # Which producers to ask for with the epochs, those after this id (-1: from the first on); None: it does not
        # begin anew, or that is not known yet.
        self.producers_after: int | None = None
        self.producers: list[
            object
        ] = []  # of a log that begins anew: what the leader remembers from below its start
        self._producers_below = -1  # that start
        self.tombstones_known = 0  # what the leader had dropped when it was reconciled with
        self._truncation_epoch = -1
        self._asked: int | None = (
            None  # seq of the question whose answer counts; only while RECONCILING
        )

    def __repr__(self) -> str:
        return (
            f"<Follower {self.state.value} of {self.leader} epoch {self.leader_epoch} "
            f"hw {self.high_watermark} {self.truncation}>"
        )

    def follow(
        self, leader: int, leader_epoch: int, started: bool, recovery_epoch: int = -1
    ) -> None:
        """What the image says. To be told at each change; only a rise or a start of the epoch matters."""
        self.recovery_epoch = recovery_epoch
        news = (leader, leader_epoch, started)
        if news == (self.leader, self.leader_epoch, self.started):
            return
        assert leader_epoch >= self.leader_epoch, (leader_epoch, self.leader_epoch)
        self.leader, self.leader_epoch, self.started = news
        if self.state not in (State.TRUNCATING, State.STOPPED):
            self._begin()

    def _begin(self, reconciled: bool = False) -> None:
        self._asked = self.producers_after = None
        if not self.started or self.leader < 0:
            self.state = State.WAITING
        else:
            self.state = State.FETCHING if reconciled else State.RECONCILING

    # -- epochs ---------------------------------------------------------------------------------------

    @property
    def wants_epochs(self) -> bool:
        """Is the leader's epoch history to be asked for?"""
        return self.state is State.RECONCILING and self._asked is None

    def asked(self, seq: int) -> None:
        """Question `seq` has left; only its answer counts, so a late one cannot cut what was fetched since."""
        assert self.wants_epochs, self
        self._asked = seq

    def awaits(self, seq: int) -> bool:
        """Does the answer to question `seq` count?"""
        return seq == self._asked

    def reset(self) -> None:
        """The answer did not come in time: ask again."""
        self._asked = None

    def handle_epochs(
        self,
        seq: int,
        leader_epoch: int,
        theirs: Entries,
        their_end: int,
        their_log_start: int,
        mine: Entries,
        my_end: int,
        compacted: Compacted = Compacted(),  # noqa: B008 - immutable
        producers: Producers | None = Producers(()),  # noqa: B008 - likewise
    ) -> Truncation | None:
        """The leader's history. Returns what to do before `truncated` is called; nothing has been cut yet.

        `producers` None: the answer tells nothing of them. None is returned also where they are needed and not all
        known: the question is to be asked again, for those after `producers_after`.
        """
        if not self.awaits(seq) or leader_epoch != self.leader_epoch:
            return None
        plan = plan_truncation(mine, my_end, theirs, their_end, their_log_start)
        stale = is_stale(plan, compacted, mine, my_end, self.recovery_epoch)
        self.tombstones_known = compacted.their_tombstones
        self._truncation_epoch, self._asked = leader_epoch, None
        if not stale and not may_cut(plan, self.high_watermark, mine, my_end, self.recovery_epoch):
            self.truncation, self.state = plan, State.STOPPED
            return None
        if stale or misses_deletes(plan.end_offset, compacted):
            plan = Truncation(their_log_start, anew=True)
        if plan.anew and not self._gather(plan.end_offset, producers):
            return None
        self.truncation, self.state = plan, State.TRUNCATING
        return plan

    def _gather(self, start: int, producers: Producers | None) -> bool:
        """Are all producers known whose batches lie below `start`, where the log will begin?"""
        first = self.producers_after is None or self.producers_after < 0
        if producers is None:
            if first:
                self.producers_after = -1
            return False
        if first:
            self.producers, self._producers_below = [], start
        elif start != self._producers_below:  # it has risen meanwhile
            self.producers_after = -1
            return False
        self.producers += producers.page
        self.producers_after = producers.next_after
        return producers.next_after is None

    def truncated(self) -> None:
        """The log ends where the plan said. If the epoch rose meanwhile, reconcile again."""
        assert self.state is State.TRUNCATING, self
        assert self.truncation is not None
        plan, self.truncation = self.truncation, None
        if plan.anew or plan.end_offset < self.high_watermark:
            self.high_watermark = plan.end_offset
        self._begin(reconciled=self._truncation_epoch == self.leader_epoch)

    # -- fetch ----------------------------------------------------------------------------------------

    @property
    def wants_records(self) -> bool:
        """May it fetch?"""
        return self.state is State.FETCHING

    def accepts(self, leader_epoch: int) -> bool:
        """May batches fetched in `leader_epoch` be appended?"""
        return self.state is State.FETCHING and leader_epoch == self.leader_epoch

    def fetched(self, leader_epoch: int, leader_high_watermark: int, my_end: int) -> bool:
        """An answer, its batches appended; True if the high watermark moved (H7: after truncation only)."""
        if not self.accepts(leader_epoch):
            return False
        end = min(leader_high_watermark, my_end)
        moved = end > self.high_watermark
        if moved:
            self.high_watermark = end
        return moved

    def trimmed(self, log_start: int) -> None:
        """The log begins at `log_start` now: the high watermark is never below it (B08)."""
        self.high_watermark = max(self.high_watermark, log_start)

    def refused(self, leader_epoch: int, code: int) -> None:
        """A question or fetch was answered by an error. What is not named here: the same again, after a while."""
        if leader_epoch != self.leader_epoch or self.state in (State.TRUNCATING, State.STOPPED):
            return
        self._asked = None
        if code == Code.FENCED_LEADER_EPOCH:
            self.state = State.WAITING  # the image with a later epoch is on its way
        elif code == Code.OFFSET_OUT_OF_RANGE and self.state is State.FETCHING:
            self.state = State.RECONCILING
