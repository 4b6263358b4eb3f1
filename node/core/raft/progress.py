"""What a leader knows of one peer's log, and what it may send next.

    replicate ---- refused ----> probe         a request does not fit: `next` goes back by the peer's hint
        ^                          |           (see Terms), and requests carry no entries
        +-------- accepted --------+

Optimistic while it replicates: `next` moves when entries are sent, not when they are answered. One request with entries
is under way at a time; a peer answers on receipt, before it syncs, so the next one waits for a round trip and no disk.
A heartbeat continues behind what was sent: if that was lost it is refused, and this is how the loss is found.

Answers come late, doubled and out of order. `answered_ns` numbers them (no two requests have the same `sent_ns`): an
older refusal changes nothing, and what a peer has stored is only ever more.
"""

from __future__ import annotations

from node.core.raft.terms import Terms
from shmlog.protocol.peers import AppendAnswer


class Progress:
    """A leader's view of one peer, for one term of the leader and one incarnation of the peer.

    Invariants: match <= next; match never falls; the peer has stored all below match, equal to the leader's log.
    """

    def __init__(self, end_offset: int) -> None:
        self.match = 0
        self.next = end_offset
        self.probing = False
        self.due = True  # something is to be said, with or without entries
        self.sent_ns = 0
        self.answered_ns = 0  # the newest request that was answered; 0: none
        self._flight_ns = 0  # the request with entries that is under way; 0: none

    def wants_entries(self, end_offset: int) -> bool:
        """Are there entries below `end_offset` that may be sent now?"""
        return self.next < end_offset and not self.probing and self._flight_ns == 0

    def request(self, sent_ns: int) -> None:
        """A request from `next` on leaves."""
        self.sent_ns = sent_ns
        self.due = False

    def sent(self, end_offset: int) -> None:
        """The request that left last carries entries up to `end_offset`."""
        if end_offset > self.next:
            self.next = end_offset
            self._flight_ns = self.sent_ns

    def maybe_match(self, answer: AppendAnswer) -> bool:
        """Take an acceptance; True if the peer has stored more than was known."""
        if answer.sent_ns >= self.answered_ns:
            self.answered_ns = answer.sent_ns
            self.probing = False
            if answer.sent_ns >= self._flight_ns:
                self._flight_ns = 0
        if answer.stored_end <= self.match:
            return False
        self.match = answer.stored_end
        self.next = max(self.next, self.match)
        return True

    def refuse(self, answer: AppendAnswer, terms: Terms) -> None:
        """Take a refusal: go back to where the logs may still be equal. `terms`: of the leader's log."""
        if answer.sent_ns <= self.answered_ns:
            return
        self.answered_ns = answer.sent_ns
        term, end = terms.newest_up_to(answer.diverging_term)
        if term == answer.diverging_term:
            end = min(end, answer.diverging_end)
        end = max(end, self.match)
        # Asked again at once only from further back: whoever refuses what it once had must not make a busy loop.
        self.due |= end < self.next
        self.next = min(end, self.next)
        self.probing = True
        self._flight_ns = 0

    def __repr__(self) -> str:
        state = "probe" if self.probing else "flight" if self._flight_ns else "replicate"
        return f"<{state} match={self.match} next={self.next}>"
