"""Raft over the metadata log: who leads it, and what of it is committed. Sans-IO.

                  time-out, proof of death          a majority would            majority, own vote stored
    follower ----------------------------> pre-candidate ---------> candidate ----------------------------> leader
        ^                                        |                      |                                     |
        +--- a leader of this term, or a higher term is heard; no majority has answered the leader for long --+

An entry is a batch of the metadata log, its term the batch's leader epoch; positions are offsets. Nothing is done
here, only wished for. A driver's turn, with `do` after every call or after many:

    raft.step(sender, message, clock(), entries)        # entries: of an AppendRequest's frame
    raft.tick(clock())                                  # by `next_deadline_ns` at the latest
    if raft.role is Role.LEADER and (raft.needs_noop or proposal):
        raft.appended(log.append(batch_of(raft.term)), clock())

    def do(wishes):                                     # = raft.take()
        if wishes.truncate_to is not None: log.truncate_to(wishes.truncate_to)
        log.append(wishes.append)
        for to, message, read_from in wishes.messages:
            frame = log.read(read_from, ...) if read_from is not None else b""
            wire.send(to, message, frame)
            if frame: raft.sent(to, end_of(frame))
        image.apply(below=raft.commit_offset)
        if wishes.store and not syncing:                # one at a time, in a worker: vote file and log
            begin_sync(wishes.store, then=lambda store: raft.stored(store, clock()))

What a message promises (a vote, "I follow you") waits here until term and vote are stored, and an AppendAnswer names
only what is synced; so the driver has no second list to keep. It is answered on receipt and again after the sync: a
slow disk delays the commit, not the heartbeat. What was found at the start counts as stored after the first sync.

Rules (docs/rules.md). I12: only entries of the own term commit by counting (a new leader `needs_noop`); commit and
match only grow; a log is cut only where an entry of the present term's leader differs, never below the commit. A voter
that hears a living leader answers no vote, real or pre (R13, B18), unless the candidate has proof that this leader is
dead. A leader that no majority has answered for the longest election time-out resigns (B16) and forgets its peers. E6:
who was late accuses nobody. Observers follow the log; they never count and never stand.

An abstaining voter (its vote or log was damaged) follows as well. It votes again once (a) every other voter has
told its term to this incarnation and (b) a leader of no lower term, which has forgotten what the old incarnation had
acknowledged (`answered_ns` is younger than this Raft), told a commit offset that covers an entry of its own term, and
all below is stored here. That it abstains is part of the hard state, so a restart does not end it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

from node.core.raft.progress import Progress
from node.core.raft.terms import Terms
from shmlog.errors import InvalidRequest
from shmlog.protocol.peers import AppendAnswer, AppendRequest, VoteAnswer, VoteRequest

Message = VoteRequest | VoteAnswer | AppendRequest | AppendAnswer
NOBODY = -1
BLOCKED_PATIENCE_NS = 10_000_000_000  # a leader in kernel state D waits for a device
RANK_DELAY_NS = 5_000_000  # at proof of death, for each living voter of a lower id
_ELECTION_HEARTBEATS = (3, 6)  # shortest and longest election time-out
_LATE_HEARTBEATS = 2  # a tick after so many accuses nobody (E6)
_ALWAYS_NS = (1 << 63) - 1


class Role(Enum):
    """What a broker is in the present term."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class HardState:
    """What the vote file holds. `abstaining`: a vote or an entry may be lost, so none is given (module docstring)."""

    term: int = 0
    voted_for: int = NOBODY
    abstaining: bool = False


class Entry(NamedTuple):
    """A batch of the metadata log; `data` is the driver's."""

    base_offset: int
    end_offset: int
    term: int
    data: Any = None


class Envelope(NamedTuple):
    """A message to send. `read_from`: batches from there on go into its frame, and `sent` says up to where."""

    to: int
    message: Message
    read_from: int | None = None


class Store(NamedTuple):
    """What a sync vouches for that begins once the wishes beside it are carried out. Handed back to `stored`."""

    end_offset: int
    hard_state: HardState
    cuts: int


class Intentions(NamedTuple):
    """To be carried out in this order. `store`: what is not synced yet, None if all is."""

    truncate_to: int | None
    append: tuple[Entry, ...]
    messages: tuple[Envelope, ...]
    store: Store | None


class Statistics(NamedTuple):
    """Figures for the operator."""

    role: str
    term: int
    leader: int
    end_offset: int
    stored_end: int
    commit_offset: int
    elections: int  # stood in, since the start
    match: dict[int, int]  # of the leader: what each peer has stored


class Raft:
    """One broker's part in the metadata quorum.

    Invariants: commit_offset <= end_offset, and never falls; stored_end <= end_offset; match_end <= end_offset;
    a message of the present term leaves only after the hard state is stored.
    """

    def __init__(
        self,
        *,
        broker: int,
        brokers: Iterable[int],
        voters: Iterable[int],
        hard_state: HardState,
        terms: Iterable[tuple[int, int]],
        end_offset: int,
        rng: random.Random,
        now_ns: int,
        heartbeat_ns: int,
        hang_timeout_ns: int,
    ) -> None:
        self.broker = broker
        self.role = Role.FOLLOWER
        self.leader: int | None = None
        self.commit_offset = 0
        self._peers = sorted(set(brokers) - {broker})
        self._voters = sorted(set(voters))
        self._majority = len(self._voters) // 2 + 1
        self._terms = Terms(terms, end_offset)
        self._hard = hard_state
        self._rng = rng
        self._heartbeat_ns = heartbeat_ns
        self._hang_timeout_ns = hang_timeout_ns
        self._election_ns = tuple(count * heartbeat_ns for count in _ELECTION_HEARTBEATS)

        self._born_ns = self._now_ns = self._stamp_ns = now_ns
        self._ticked_ns: int | None = None
        # Nobody is accused by the first election, and pre-vote protects a living leader: it may come soon.
        self._deadline_ns = now_ns + rng.randrange(heartbeat_ns, 2 * heartbeat_ns)
        self._beat_ns = now_ns  # next heartbeat as leader, next question as one who abstains
        self._heard_ns = 0  # from the leader of this term
        self._lease_ns = 0
        self._elections = 0
        self._dead: set[int] = set()
        self._is_vacant = False  # the last leader is proven dead, and no other was heard since
        self._blocked: frozenset[int] = frozenset()

        self._stored_end = 0
        self._stored_hard: HardState | None = None
        self._cuts = 0
        self._truncate_to: int | None = None
        self._append: list[Entry] = []
        self._messages: list[Envelope] = []
        self._messages_after_store: list[Envelope] = []

        self._votes: set[int] = set()
        self._death_proven = (
            False  # the leader of the term before the one that votes are asked for is dead
        )
        self._terms_told: dict[
            int, int
        ] = {}  # by other voters to this incarnation, while abstaining
        self._progress: dict[int, Progress] = {}
        self._term_start = 0  # end of the log when this broker became leader
        self._grace_ns = 0  # a leader is excused for not having been answered before
        self._begin_term()
        if self._terms.last_term > self.term:
            self._raise_term(self._terms.last_term)  # the log was synced before the vote file was

    # -- views --------------------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        """The present term: the leader epoch of batches that this leader appends."""
        return self._hard.term

    @property
    def end_offset(self) -> int:
        """End of the log, once the last wishes are carried out."""
        return self._terms.end_offset

    @property
    def is_voter(self) -> bool:
        """Does this broker vote, now or after it has abstained?"""
        return self.broker in self._voters

    @property
    def is_abstaining(self) -> bool:
        """Does it neither vote nor stand, for it may have forgotten something?"""
        return self._hard.abstaining

    @property
    def needs_noop(self) -> bool:
        """Is this a leader that has not appended anything yet? Nothing commits before it does."""
        return self.role is Role.LEADER and self.end_offset == self._term_start

    @property
    def is_leader_ready(self) -> bool:
        """Has this leader committed an entry of its term, so that all that was ever committed is known to be?"""
        return self.role is Role.LEADER and self.commit_offset > self._term_start

    @property
    def lease_until_ns(self) -> int:
        """Until when produce may be acked (E7)."""
        if self.role is not Role.LEADER:
            return self._lease_ns
        return _ALWAYS_NS if self._majority == 1 else max(self._lease_ns, self._new_lease_ns())

    @property
    def next_deadline_ns(self) -> int:
        """When `tick` is due at the latest; one heartbeat after the last, so that a late one is told apart (E6)."""
        first = self._deadline_ns if self.role is not Role.LEADER else self._beat_ns
        return min(first, (self._ticked_ns or self._born_ns) + self._heartbeat_ns)

    def statistics(self) -> Statistics:
        """Figures for the operator."""
        return Statistics(
            role=self.role.value,
            term=self.term,
            leader=NOBODY if self.leader is None else self.leader,
            end_offset=self.end_offset,
            stored_end=self._stored_end,
            commit_offset=self.commit_offset,
            elections=self._elections,
            match={peer: progress.match for peer, progress in self._progress.items()},
        )

    def __repr__(self) -> str:
        return (
            f"<Raft {self.broker} {self.role.value} term={self.term} leader={self.leader} "
            f"commit={self.commit_offset} stored={self._stored_end} end={self.end_offset}>"
        )

    # -- what happens -------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        """Time has passed. Called at least once a heartbeat, or it looks as if the process had been stopped."""
        self._now_ns = now_ns
        gap_ns = 0 if self._ticked_ns is None else now_ns - self._ticked_ns
        self._ticked_ns = now_ns
        if gap_ns > _LATE_HEARTBEATS * self._heartbeat_ns:
            self._arm()
            self._grace_ns = now_ns
        if self.role is Role.LEADER:
            self._tick_leader()
        elif self._majority == 1 and self.role is Role.FOLLOWER:
            self._maybe_stand()
        elif now_ns >= self._deadline_ns:
            # A candidate cannot be answered before its disk has answered.
            waits = self.role is Role.CANDIDATE and not self._is_hard_state_stored()
            if waits or self._leader_lives():
                self._arm()
            else:
                self._maybe_stand()
        if self.is_abstaining and now_ns >= self._beat_ns:
            self._beat_ns = now_ns + self._heartbeat_ns
            self._ask_votes(term=0, pre=True, send=self._send)

    def step(
        self, sender: int, message: Message, now_ns: int, entries: Sequence[Entry] = ()
    ) -> None:
        """A message of the sender's present incarnation. `entries`: of an AppendRequest's frame."""
        self._now_ns = now_ns
        if sender not in self._peers:
            return
        match message:
            case VoteRequest():
                self._handle_vote_request(sender, message)
            case VoteAnswer():
                self._handle_vote_answer(sender, message)
            case AppendRequest():
                self._handle_append_request(sender, message, entries)
            case AppendAnswer():
                self._handle_append_answer(sender, message)

    def appended(self, end_offset: int, now_ns: int) -> None:
        """This leader has appended a batch of its term, up to `end_offset`."""
        assert self.role is Role.LEADER, self
        self._now_ns = now_ns
        self._terms.append(self.term, end_offset)

    def sent(self, to: int, end_offset: int) -> None:
        """The message to `to` that was last taken carries batches up to `end_offset`."""
        if to in self._progress:
            self._progress[to].sent(end_offset)

    def stored(self, store: Store, now_ns: int) -> None:
        """The sync that began with `store` has ended."""
        self._now_ns = now_ns
        self._stored_hard = store.hard_state
        # A sync begun before a cut vouches for nothing behind it, and what is before it the next one covers (B21).
        if store.cuts == self._cuts:
            self._stored_end = max(self._stored_end, store.end_offset)
        if self._is_hard_state_stored():
            self._messages += self._messages_after_store
            self._messages_after_store.clear()
            if self.role is Role.CANDIDATE and self.broker not in self._votes:
                self._arm()
                self._votes.add(self.broker)
                self._count_votes()
        if self.role is Role.LEADER:
            self._maybe_commit()
        else:
            self._maybe_report()
        self._maybe_end_abstention()

    def peer_died(self, broker: int, now_ns: int) -> None:
        """There is proof that the last known incarnation of `broker` is dead (E3)."""
        self._now_ns = now_ns
        if broker in self._dead:
            return
        self._dead.add(broker)
        self._leader_dead |= broker == self.leader
        self._is_vacant |= broker == self.leader
        if broker not in (self.leader, self._hard.voted_for) or not self.is_voter:
            return
        rank = sum(voter < self.broker and voter not in self._dead for voter in self._voters)
        self._deadline_ns = now_ns + rank * RANK_DELAY_NS
        if rank == 0:
            self._maybe_stand()

    def peer_back(self, broker: int, now_ns: int) -> None:
        """A new incarnation of `broker` speaks; called before its first message. What the old one had is forgotten."""
        self._now_ns = now_ns
        if broker == self.leader:
            self.peer_died(broker, now_ns)
        self._dead.discard(broker)
        if broker in self._progress:
            self._progress[broker] = Progress(self.end_offset)

    def blocked(self, brokers: Iterable[int]) -> None:
        """These are in kernel state D: slow, not hung. Replaces those named before."""
        self._blocked = frozenset(brokers)

    def take(self) -> Intentions:
        """What is to be done now; it will not be said again, but for the store."""
        for peer, progress in self._progress.items():
            if progress.due or progress.wants_entries(self.end_offset):
                self._messages.append(self._append_request(peer, progress))
        store = Store(self.end_offset, self._hard, self._cuts)
        owed = self._stored_end < self.end_offset or not self._is_hard_state_stored()
        wishes = Intentions(
            self._truncate_to,
            tuple(self._append),
            tuple(self._messages),
            store if owed else None,
        )
        self._truncate_to = None
        self._append.clear()
        self._messages.clear()
        return wishes

    # -- terms and roles ----------------------------------------------------------------------------------

    def _begin_term(self) -> None:
        """Nothing that was learnt in the term before holds in the new one."""
        self._messages_after_store.clear()
        self._leader_dead = False
        self._match_end = 0  # the log is known to be equal to the leader's up to here
        self._reported_end = 0
        self._accepted_ns = 0  # sent_ns of the newest AppendRequest that was accepted
        self._trusted_commit: int | None = None  # condition (b) for one who abstains

    def _raise_term(self, term: int, voted_for: int = NOBODY) -> None:
        assert term > self.term, (term, self)
        self._hard = replace(self._hard, term=term, voted_for=voted_for)
        self._begin_term()

    def _arm(self) -> None:
        """An election time-out; a short one while the leader is proven dead: a split vote is nobody's fault."""
        heartbeat_ns = self._heartbeat_ns
        bounds = (heartbeat_ns // 5, heartbeat_ns) if self._is_vacant else self._election_ns
        self._deadline_ns = self._now_ns + self._rng.randrange(*bounds)

    def _become_follower(self, term: int, leader: int | None) -> None:
        if term > self.term:
            self._raise_term(term)
        self.role = Role.FOLLOWER
        self.leader = leader
        self._is_vacant &= leader is None
        self._progress = {}
        self._arm()

    def _maybe_stand(self) -> None:
        """Ask whether an election would be won; nothing is promised yet, and the term stays."""
        self._arm()
        if not self.is_voter or self.is_abstaining or self.role is Role.LEADER:
            return
        self.role = Role.PRE_CANDIDATE
        self.leader = None
        self._death_proven = self._leader_dead
        self._votes = {self.broker}
        self._ask_votes(term=self.term + 1, pre=True, send=self._send)
        self._count_votes()

    def _become_candidate(self) -> None:
        self._raise_term(self.term + 1, self.broker)
        self.role = Role.CANDIDATE
        self._elections += 1
        self._votes = set()  # the own vote counts once it is stored (R07)
        self._arm()
        self._ask_votes(term=self.term, pre=False, send=self._send_after_store)

    def _become_leader(self) -> None:
        self.role = Role.LEADER
        self.leader = self.broker
        self._is_vacant = False
        self._term_start = self.end_offset
        self._grace_ns = self._now_ns
        self._beat_ns = self._now_ns + self._heartbeat_ns
        self._progress = {peer: Progress(self.end_offset) for peer in self._peers}

    def _leader_lives(self) -> bool:
        """Is there, as far as can be told here, a leader of the present term?"""
        if self.role is Role.LEADER:
            return True
        if self.leader is None or self._leader_dead:
            return False
        patience_ns = self._election_ns[0]
        if self.leader in self._blocked:
            patience_ns = BLOCKED_PATIENCE_NS
        return self._now_ns - self._heard_ns < patience_ns

    # -- votes --------------------------------------------------------------------------------------------

    def _ask_votes(self, *, term: int, pre: bool, send: Callable[[int, Message], None]) -> None:
        for voter in self._voters:
            if voter != self.broker:
                request = VoteRequest(
                    term=term,
                    last_term=self._terms.last_term,
                    end_offset=self.end_offset,
                    pre=pre,
                    death_proven=self._death_proven,
                    sent_ns=self._now_ns,
                )
                send(voter, request)

    def _handle_vote_request(self, sender: int, request: VoteRequest) -> None:
        if not self.is_voter or sender not in self._voters:
            return
        if request.term > self.term:
            # A higher term is not even looked at: it would depose a leader that the others follow.
            if self._leader_lives() and not request.death_proven:
                return
            if not request.pre:
                self._become_follower(request.term, None)
        if request.pre:
            granted = request.term > self.term
        else:
            granted = (
                request.term == self.term
                and self.leader is None
                and self._hard.voted_for in (NOBODY, sender)
            )
        own = (self._terms.last_term, self.end_offset)
        granted &= not self.is_abstaining and (request.last_term, request.end_offset) >= own
        if granted and not request.pre:
            self._become_follower(self.term, None)
            self._hard = replace(self._hard, voted_for=sender)
        answer = VoteAnswer(
            term=request.term if granted else self.term,
            granted=granted,
            pre=request.pre,
            sent_ns=request.sent_ns,
        )
        self._send_after_store(sender, answer)

    def _handle_vote_answer(self, sender: int, answer: VoteAnswer) -> None:
        if sender not in self._voters:
            return
        if self.is_abstaining and answer.sent_ns >= self._born_ns:
            self._terms_told[sender] = max(answer.term, self._terms_told.get(sender, 0))
        if not answer.granted:
            if answer.term > self.term:
                self._become_follower(answer.term, None)
            return
        if answer.pre:
            counts = self.role is Role.PRE_CANDIDATE and answer.term == self.term + 1
        else:
            counts = self.role is Role.CANDIDATE and answer.term == self.term
        if counts:
            self._votes.add(sender)
            self._count_votes()

    def _count_votes(self) -> None:
        if len(self._votes) < self._majority:
            return
        if self.role is Role.PRE_CANDIDATE:
            self._become_candidate()
        elif self.role is Role.CANDIDATE:
            self._become_leader()

    # -- the log, as one who follows ----------------------------------------------------------------------

    def _handle_append_request(
        self, sender: int, request: AppendRequest, entries: Sequence[Entry]
    ) -> None:
        if request.term < self.term:
            # The sender learns the term: a leader that one of its followers has left behind resigns, or that
            # one would never follow again.
            self._refuse(sender, request)
            return
        if request.term == self.term and self.leader not in (None, sender):
            raise InvalidRequest(f"broker {sender} says that it leads a term of another: {self}")
        self._check_cut(request.prev_offset, entries)
        if request.term > self.term:
            self._become_follower(request.term, sender)
        if not self._leader_dead:  # else its last words: good entries, but no sign of life
            self._follow(sender)
        if self._terms.term_before(request.prev_offset) != request.prev_term:
            self._refuse(sender, request)
            return
        self._match_end = max(self._match_end, self._take_entries(request.prev_offset, entries))
        self.commit_offset = max(self.commit_offset, min(request.commit, self._match_end))
        if self.commit_offset >= request.commit:  # else it may be fenced by what it has not got yet
            self._lease_ns = max(self._lease_ns, request.lease_until_ns)
        self._accepted_ns = max(self._accepted_ns, request.sent_ns)
        self._report(sender, request.sent_ns)
        if self.is_abstaining and self._is_trusted(request):
            self._trusted_commit = request.commit
            self._maybe_end_abstention()

    def _follow(self, leader: int) -> None:
        if self.role is not Role.FOLLOWER or self.leader is None:
            self._become_follower(self.term, leader)
        self._heard_ns = self._now_ns
        self._arm()

    def _refuse(self, sender: int, request: AppendRequest) -> None:
        term, end_offset = self._terms.newest_up_to(request.prev_term)
        answer = AppendAnswer(
            term=self.term,
            accepted=False,
            sent_ns=request.sent_ns,
            diverging_term=term,
            diverging_end=end_offset,
        )
        self._send_after_store(sender, answer)

    def _take_entries(self, end_offset: int, entries: Sequence[Entry]) -> int:
        """Append what is not there yet; returns up to where the log is now known to equal the leader's."""
        for entry in entries:
            if entry.base_offset != end_offset:
                break
            # The same term at the same offset is the same entry: what is there is never cut, however late this is.
            if self._terms.term_before(entry.end_offset) != entry.term:
                if end_offset < self.end_offset:
                    self._truncate(end_offset)
                self._terms.append(entry.term, entry.end_offset)
                self._append.append(entry)
            end_offset = entry.end_offset
        return end_offset

    def _check_cut(self, end_offset: int, entries: Sequence[Entry]) -> None:
        """What is committed is in every leader's log: who would have it replaced is none."""
        for entry in entries:
            if entry.base_offset != end_offset or entry.base_offset >= self.commit_offset:
                return
            if self._terms.term_before(entry.end_offset) != entry.term:
                raise InvalidRequest(
                    f"an entry that replaces what is committed at {end_offset}: {self}"
                )
            end_offset = entry.end_offset

    def _truncate(self, offset: int) -> None:
        assert offset >= self.commit_offset, f"to be cut at {offset}, below the commit: {self}"
        self._terms.truncate(offset)
        self._append = [entry for entry in self._append if entry.end_offset <= offset]
        if not self._append:
            self._truncate_to = offset  # not above an earlier cut: the log ends there
        self._stored_end = min(self._stored_end, offset)
        self._cuts += 1

    def _report(self, leader: int, sent_ns: int) -> None:
        self._reported_end = min(self._match_end, self._stored_end)
        answer = AppendAnswer(
            term=self.term, accepted=True, sent_ns=sent_ns, stored_end=self._reported_end
        )
        self._send_after_store(leader, answer)

    def _maybe_report(self) -> None:
        """A sync has ended: tell the leader, it need not ask."""
        if self.leader is not None and min(self._match_end, self._stored_end) > self._reported_end:
            self._report(self.leader, self._accepted_ns)

    def _is_trusted(self, request: AppendRequest) -> bool:
        """Condition (b) for one who abstains, but for the store."""
        return (
            request.answered_ns > self._born_ns
            and request.commit <= self._match_end
            and self._terms.term_before(request.commit) == request.term
        )

    def _maybe_end_abstention(self) -> None:
        if not self.is_abstaining or self._trusted_commit is None or self.leader is None:
            return
        if min(self._match_end, self._stored_end) < self._trusted_commit:
            return
        others = [voter for voter in self._voters if voter != self.broker]
        if all(self._terms_told.get(voter, self.term + 1) <= self.term for voter in others):
            # As if it had voted for the leader: in this term it votes for nobody else.
            self._hard = HardState(self.term, self.leader)

    # -- the log, as leader -------------------------------------------------------------------------------

    def _tick_leader(self) -> None:
        answered_ns = max(self._quorum_answered_ns(), self._grace_ns)
        if self._now_ns - answered_ns > self._election_ns[1]:
            self._become_follower(self.term, None)
        elif self._now_ns >= self._beat_ns:
            self._beat_ns = self._now_ns + self._heartbeat_ns
            self._say_to_all()

    def _append_request(self, peer: int, progress: Progress) -> Envelope:
        # Also the number of the request (see Progress), so never twice the same.
        self._stamp_ns = max(self._now_ns, self._stamp_ns + 1)
        entries = progress.wants_entries(self.end_offset)
        progress.request(self._stamp_ns)
        request = AppendRequest(
            term=self.term,
            prev_offset=progress.next,
            prev_term=self._terms.term_before(progress.next),
            commit=self.commit_offset,
            sent_ns=self._stamp_ns,
            lease_until_ns=self._new_lease_ns(),
            answered_ns=progress.answered_ns,
        )
        return Envelope(peer, request, progress.next if entries else None)

    def _handle_append_answer(self, sender: int, answer: AppendAnswer) -> None:
        if answer.term > self.term:
            self._become_follower(answer.term, None)
        if self.role is not Role.LEADER or answer.term < self.term:
            return
        progress = self._progress[sender]
        if not answer.accepted:
            progress.refuse(answer, self._terms)
        elif progress.maybe_match(answer):
            self._maybe_commit()

    def _maybe_commit(self) -> None:
        end = self._majority_has(self._stored_end, lambda progress: progress.match)
        # Entries of terms before are never counted, they commit below one of the own term (R01).
        if end > max(self._term_start, self.commit_offset):
            self.commit_offset = end
            self._say_to_all()

    def _say_to_all(self) -> None:
        for progress in self._progress.values():
            progress.due = True

    def _quorum_answered_ns(self) -> int:
        """When the newest request left that a majority of the voters has answered."""
        return self._majority_has(self._now_ns, lambda progress: progress.answered_ns)

    def _new_lease_ns(self) -> int:
        return self._quorum_answered_ns() + self._hang_timeout_ns

    def _majority_has(self, own: int, of_peer: Callable[[Progress], int]) -> int:
        """The largest value that a majority of the voters has reached."""
        values = [
            own if voter == self.broker else of_peer(self._progress[voter])
            for voter in self._voters
        ]
        return sorted(values, reverse=True)[self._majority - 1]

    # -- messages -----------------------------------------------------------------------------------------

    def _is_hard_state_stored(self) -> bool:
        return self._stored_hard == self._hard

    def _send(self, to: int, message: Message) -> None:
        self._messages.append(Envelope(to, message))

    def _send_after_store(self, to: int, message: Message) -> None:
        """Send a message that promises: only once the hard state that it goes by is stored (I12)."""
        if self._is_hard_state_stored():
            self._send(to, message)
        else:
            self._messages_after_store.append(Envelope(to, message))
