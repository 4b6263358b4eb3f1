"""Raft in simulation: I12 (docs/rules.md), L1 and L5 hold for many seeds, and each planted bug is found by them.

`RAFT_SEEDS=first:count pytest tests/test_raft_simulation.py` runs others; `Simulation(seed).run()` replays one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from raft_simulation import Simulation
from raft_support import Disk

from node.core.raft.progress import Progress
from node.core.raft.raft import NOBODY, Entry, HardState, Message, Raft, Role, Store
from node.core.raft.terms import Terms
from shmlog.protocol.peers import AppendAnswer, AppendRequest, VoteRequest

FIRST, COUNT = map(int, os.environ.get("RAFT_SEEDS", "0:240").split(":"))
CHUNK = 30
BUG_SEEDS = 400


@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, CHUNK))
def test_whatever_happens_the_quorum_is_safe_and_heals(first: int) -> None:
    for seed in range(first, min(first + CHUNK, FIRST + COUNT)):
        simulation = Simulation(seed)
        try:
            simulation.run()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_the_same_seed_gives_the_same_run() -> None:
    runs = [Simulation(11), Simulation(11)]
    for run in runs:
        run.run()
    assert runs[0].committed == runs[1].committed
    assert runs[0].count == runs[1].count
    assert len(runs[0].committed) > 20


# -- planted bugs -----------------------------------------------------------------------------------------


class PromisesAtOnce(Raft):
    """R03, R04: a vote or an answer leaves before term and vote are on disk."""

    def _send_after_store(self, to: int, message: Message) -> None:
        self._send(to, message)


class CountsOlderTerms(Raft):
    """R01: entries of earlier terms committed by counting."""

    def _become_leader(self) -> None:
        super()._become_leader()
        self._maybe_commit()

    def _maybe_commit(self) -> None:
        start, self._term_start = self._term_start, 0
        super()._maybe_commit()
        self._term_start = start


class CommitGoesBack(Raft):
    """R05: the commit offset of a late message is believed."""

    def _handle_append_request(
        self, sender: int, request: AppendRequest, entries: Sequence[Entry]
    ) -> None:
        super()._handle_append_request(sender, request, entries)
        if self.leader == sender:
            self.commit_offset = min(request.commit, self._match_end)


class MatchGoesBack(Raft):
    """R05: the stored end of a late answer is believed."""

    def _handle_append_answer(self, sender: int, answer: AppendAnswer) -> None:
        super()._handle_append_answer(sender, answer)
        if self.role is Role.LEADER and answer.term == self.term and answer.accepted:
            self._progress[sender].match = answer.stored_end


class CutsAtEveryAppend(Raft):
    """A request whose entries are there already cuts what is behind them."""

    def _take_entries(self, end_offset: int, entries: Sequence[Entry]) -> int:
        if end_offset < self.end_offset and entries:
            self._truncate(max(end_offset, self.commit_offset))
        return super()._take_entries(end_offset, entries)


class CutsAtHeartbeats(Raft):
    """A follower makes its log as short as a request that may be late says."""

    def _take_entries(self, end_offset: int, entries: Sequence[Entry]) -> int:
        end = super()._take_entries(end_offset, entries)
        if end < self.end_offset:
            self._truncate(end)
        return end


class NoStickiness(Raft):
    """R13: a living leader is deposed by whoever does not hear it."""

    def _handle_vote_request(self, sender: int, request: VoteRequest) -> None:
        request.death_proven = True
        super()._handle_vote_request(sender, request)


class NoPreVote(Raft):
    """R13: a term is raised, and the leader with it deposed, by whoever does not hear it."""

    def _maybe_stand(self) -> None:
        self._arm()
        if self.is_voter and not self.is_abstaining and self.role is not Role.LEADER:
            self.leader = None
            self._become_candidate()


class NoCheckQuorum(Raft):
    """B16: a leader without a majority stays."""

    def _tick_leader(self) -> None:
        self._grace_ns = self._now_ns
        super()._tick_leader()


class CountsOwnEnd(Raft):
    """R07: the leader's own log counts before it is synced."""

    def _maybe_commit(self) -> None:
        stored, self._stored_end = self._stored_end, self.end_offset
        super()._maybe_commit()
        self._stored_end = stored


class AnswersItsEnd(Raft):
    """R04: a follower answers with what it has written, not with what it has synced."""

    def _report(self, leader: int, sent_ns: int) -> None:
        stored, self._stored_end = self._stored_end, self.end_offset
        super()._report(leader, sent_ns)
        self._stored_end = stored


class SyncVouchesAcrossCuts(Raft):
    """B21: a sync begun before a truncation counts what was written after it."""

    def stored(self, store: Store, now_ns: int) -> None:
        end = min(store.end_offset, self.end_offset)
        super().stored(Store(end, store.hard_state, self._cuts), now_ns)


class CommitsItsOwnTail(Raft):
    """A follower commits entries that the leader has not compared yet."""

    def _handle_append_request(
        self, sender: int, request: AppendRequest, entries: Sequence[Entry]
    ) -> None:
        super()._handle_append_request(sender, request, entries)
        if self.leader == sender:
            self.commit_offset = max(self.commit_offset, min(request.commit, self.end_offset))


class PreviousTermUnchecked(Raft):
    """Entries are appended behind others than they stand behind in the leader's log."""

    def _handle_append_request(
        self, sender: int, request: AppendRequest, entries: Sequence[Entry]
    ) -> None:
        if request.term >= self.term and request.prev_offset <= self.end_offset:
            request.prev_term = self._terms.term_before(request.prev_offset)
        super()._handle_append_request(sender, request, entries)


class OldTermAppends(Raft):
    """A deposed leader's entries are taken."""

    def _handle_append_request(
        self, sender: int, request: AppendRequest, entries: Sequence[Entry]
    ) -> None:
        if request.term < self.term and self.role is not Role.LEADER:
            if self._terms.term_before(request.prev_offset) == request.prev_term:
                self._take_entries(request.prev_offset, entries)
            return
        super()._handle_append_request(sender, request, entries)


class VotesForShortLogs(Raft):
    """Leader completeness: a vote is given without comparing logs."""

    def _handle_vote_request(self, sender: int, request: VoteRequest) -> None:
        request.last_term = self._terms.last_term + request.last_term
        super()._handle_vote_request(sender, request)


class VotesTwice(Raft):
    """Whoever asks in a term gets its vote."""

    def _handle_vote_request(self, sender: int, request: VoteRequest) -> None:
        if not request.pre and request.term == self.term and self.role is Role.FOLLOWER:
            self._hard = replace(self._hard, voted_for=NOBODY)
        super()._handle_vote_request(sender, request)


class NeverAbstains(Raft):
    """A voter whose vote and log are damaged goes on as if it were new."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._hard = replace(self._hard, abstaining=False)


class AbstainsForEver(Raft):
    """A voter whose disk was lost never votes again."""

    def _is_trusted(self, request: AppendRequest) -> bool:
        return False


BUGS: list[type[Raft]] = [
    PromisesAtOnce,
    CountsOlderTerms,
    CommitGoesBack,
    MatchGoesBack,
    CutsAtEveryAppend,
    CutsAtHeartbeats,
    NoStickiness,
    NoPreVote,
    NoCheckQuorum,
    CountsOwnEnd,
    AnswersItsEnd,
    SyncVouchesAcrossCuts,
    CommitsItsOwnTail,
    PreviousTermUnchecked,
    OldTermAppends,
    VotesForShortLogs,
    VotesTwice,
    NeverAbstains,
    AbstainsForEver,
]


def find(**options: Any) -> str:
    """The first thing that a simulation finds wrong."""
    for seed in range(BUG_SEEDS):
        try:
            Simulation(seed, **options).run()
        except AssertionError as error:
            return f"seed {seed}: {str(error).splitlines()[0]}"
    pytest.fail(f"not found in {BUG_SEEDS} seeds")


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: type[Raft]) -> None:
    print(find(raft_class=bug))


def test_a_driver_that_forgets_its_vote_file_is_found() -> None:
    """R03: all restart, terms collapse."""

    def forget(disk: Disk) -> None:
        disk.hard_state = HardState()

    print(find(restarted=forget))


def test_a_driver_that_starts_a_lost_disk_as_a_new_voter_is_found() -> None:
    def as_new(disk: Disk) -> None:
        disk.hard_state = replace(disk.hard_state, abstaining=False)

    print(find(restarted=as_new))


Patch = Callable[[pytest.MonkeyPatch], None]


def never_finds_losses(patch: pytest.MonkeyPatch) -> None:
    """A request that was lost is never sent again."""

    def refuse(self: Progress, answer: AppendAnswer, terms: Terms) -> None:
        self.answered_ns = max(self.answered_ns, answer.sent_ns)

    patch.setattr(Progress, "refuse", refuse)


def waits_for_a_lost_answer(patch: pytest.MonkeyPatch) -> None:
    """Only the answer to the request with entries itself lets the next one go."""
    plain = Progress.maybe_match

    def maybe_match(self: Progress, answer: AppendAnswer) -> bool:
        flight = self._flight_ns
        grown = plain(self, answer)
        self._flight_ns = 0 if answer.sent_ns == flight else flight
        return grown

    patch.setattr(Progress, "maybe_match", maybe_match)
    patch.setattr(Progress, "refuse", lambda self, answer, terms: None)


@pytest.mark.parametrize("plant", [never_finds_losses, waits_for_a_lost_answer])
def test_a_planted_bug_of_progress_is_found(plant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    print(find())
