"""Raft by stories: each file of tests/raft is commands and the exact trace that they leave.

`REWRITE=1 pytest tests/test_raft.py` writes the traces anew; the diff is the review. Commands:

    cluster voters=1,2,3 [observers=4] [logs=1:1x3,2x2;..]   brokers; 1's log: 3 entries of term 1, 2 of term 2
    timeout 1             its election time-out has passed, as its own clock sees it
    tick 250 [1]          milliseconds pass; all, or those named, tick
    propose 1 a           append an entry
    deliver [1>2]         deliver what is under way now (on that link), nothing that follows from it
    drop 1>2 | late 1>2   what is under way is lost | kept back until `deliver 1>2`
    swap 1>2 | twice 1>2  what is under way changes its order | is doubled
    sync 1                the sync that is under way ends
    settle                deliver and sync until all is quiet
    cut 1>2 | heal        links
    kill 1 [power|lost] | restart 1 | died 1 [2] | blocked 2 1
    show                  every broker
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from raft_support import HEARTBEAT_NS, MS, Disk, Node

from node.core.raft.progress import Progress
from node.core.raft.raft import Entry, Envelope, HardState, Message, Raft, Role
from node.core.raft.terms import Terms
from shmlog.errors import InvalidRequest
from shmlog.protocol.peers import AppendAnswer, AppendRequest, VoteAnswer, VoteRequest

SCENARIOS = sorted((Path(__file__).parent / "raft").glob("*.txt"))
Link = tuple[int, int]


def describe(message: Message, entries: list[Entry]) -> str:
    match message:
        case VoteRequest():
            pre = "pre-vote" if message.pre else "vote"
            proof = " death-proven" if message.death_proven else ""
            return f"{pre}? term={message.term} log={message.last_term}/{message.end_offset}{proof}"
        case VoteAnswer():
            pre = "pre-vote" if message.pre else "vote"
            return f"{pre} {'granted' if message.granted else 'refused'} term={message.term}"
        case AppendRequest():
            data = "".join(f" {entry.data}" for entry in entries)
            prev = f"{message.prev_term}/{message.prev_offset}"
            return f"append term={message.term} prev={prev} commit={message.commit}{data}"
        case AppendAnswer(accepted=True):
            return f"accepted term={message.term} stored={message.stored_end}"
        case AppendAnswer():
            hint = f"{message.diverging_term}/{message.diverging_end}"
            return f"refused term={message.term} hint={hint}"


class Story:
    """A cluster whose every message and sync is moved by hand."""

    def __init__(self) -> None:
        self.now_ns = 10**9
        self.trace: list[str] = []
        self.queue: list[tuple[Link, int, Message, list[Entry]]] = []
        self.held: set[Link] = set()
        self.cuts: set[Link] = set()
        self.nodes: dict[int, Node] = {}
        self.disks: dict[int, Disk] = {}
        self.incarnations: dict[int, int] = {}
        self.known: dict[int, tuple[object, ...]] = {}

    def run(self, line: str) -> str:
        name, *words = line.split()
        command: Callable[..., None] = getattr(self, f"do_{name}")
        command(*words)
        trace, self.trace = self.trace, []
        return "".join(f"{line}\n" for line in trace) or "-\n"

    # -- what the nodes want --------------------------------------------------------------------------

    def send(self, node: Node, envelope: Envelope, entries: list[Entry]) -> None:
        self.look(node)
        link = (node.broker, envelope.to)
        lost = " (cut)" if link in self.cuts else ""
        said = describe(envelope.message, entries)
        self.trace.append(f"{node.broker} > {envelope.to}  {said}{lost}")
        if not lost:
            self.queue.append((link, node.incarnation, envelope.message, entries))

    def begin_sync(self, node: Node) -> None:
        self.look(node)
        self.trace.append(f"{node.broker}      syncs {self.log(node)}")

    def log(self, node: Node) -> str:
        raft = node.raft
        return f"term={raft.term} vote={raft._hard.voted_for} end={raft.end_offset}"

    def look(self, node: Node) -> None:
        """Note what has changed in a broker."""
        raft = node.raft
        now = (raft.role.value, raft.term, raft.leader, raft.commit_offset)
        before = self.known.get(node.broker)
        if now != before:
            self.known[node.broker] = now
            if before is None or now[:3] != before[:3]:
                leader = "" if raft.leader is None else f" of {raft.leader}"
                self.trace.append(f"{node.broker}      {raft.role.value}{leader} term={raft.term}")
            if before is None or now[3] != before[3]:
                self.trace.append(f"{node.broker}      commit={raft.commit_offset}")

    def on(self, broker: int, action: Callable[[Node], None]) -> None:
        node = self.nodes.get(broker)
        if node is not None:
            end = node.disk.end_offset
            cut = node.disk.cut

            def told_cut(offset: int) -> None:
                self.trace.append(f"{broker}      cut at {offset}, was {end}")
                cut(offset)

            node.disk.cut = told_cut  # type: ignore[method-assign]
            action(node)
            node.disk.cut = cut  # type: ignore[method-assign]
            self.look(node)

    # -- commands -------------------------------------------------------------------------------------

    def do_cluster(self, *words: str) -> None:
        options = dict(word.split("=", 1) for word in words)
        self.voters = [int(v) for v in options["voters"].split(",")]
        observers = [int(v) for v in options.get("observers", "").split(",") if v]
        self.brokers = [*self.voters, *observers]
        for broker in self.brokers:
            self.disks[broker] = Disk()
            self.incarnations[broker] = 0
        for log in filter(None, options.get("logs", "").split(";")):
            broker, runs = log.split(":")
            disk = self.disks[int(broker)]
            for run in runs.split(","):
                term, count = map(int, run.split("x"))
                for _ in range(count):
                    end = disk.end_offset
                    disk.append(Entry(end, end + 1, term, f"{term}.{end}"))
            disk.durable, disk.vouched_end, disk._since = list(disk.entries), disk.end_offset, []
            disk.hard_state = HardState(disk.entries[-1].term)
        for broker in self.brokers:
            self.do_restart(str(broker))

    def do_restart(self, broker: str) -> None:
        number = int(broker)
        self.incarnations[number] += 1
        node = self.nodes[number] = Node(
            number,
            self.brokers,
            self.voters,
            self.disks[number],
            random.Random(number),
            self.now_ns,
            incarnation=self.incarnations[number],
            send=self.send,
            begin_sync=self.begin_sync,
        )
        self.known[number] = (Role.FOLLOWER.value, node.raft.term, None, 0)

    def do_timeout(self, broker: str) -> None:
        node = self.nodes[int(broker)]
        self.now_ns = max(self.now_ns, node.raft._deadline_ns)
        node.raft._ticked_ns = self.now_ns  # its loop was not late
        self.on(int(broker), lambda n: n.tick(self.now_ns))

    def do_tick(self, milliseconds: str, *brokers: str) -> None:
        self.now_ns += int(milliseconds) * MS
        for broker in map(int, brokers or map(str, self.brokers)):
            self.on(broker, lambda n: n.tick(self.now_ns))

    def do_propose(self, broker: str, data: str) -> None:
        def propose(node: Node) -> None:
            node.append(data, self.now_ns)
            node.do(self.now_ns)

        self.on(int(broker), propose)

    def links(self, words: tuple[str, ...]) -> set[Link]:
        pairs = [word.split(">") for word in words]
        return {(int(a), int(b)) for a, b in pairs} or {
            (a, b) for a in self.brokers for b in self.brokers
        } - self.held

    def do_deliver(self, *words: str) -> None:
        links = self.links(words)
        now = [one for one in self.queue if one[0] in links]
        self.queue = [one for one in self.queue if one[0] not in links]
        self.held -= links
        for (sender, to), incarnation, message, entries in now:
            self.receive(to, sender, incarnation, message, entries)

    def receive(self, to: int, sender: int, incarnation: int, *args: object) -> None:
        self.on(to, lambda n: n.receive(sender, incarnation, *args, self.now_ns))  # type: ignore[arg-type]

    def do_late(self, *words: str) -> None:
        self.held |= self.links(words)

    def do_drop(self, *words: str) -> None:
        links = self.links(words)
        self.queue = [one for one in self.queue if one[0] not in links]

    def do_swap(self, link: str) -> None:
        links = self.links((link,))
        moved = [one for one in self.queue if one[0] in links]
        self.queue = [one for one in self.queue if one[0] not in links] + moved[::-1]

    def do_twice(self, link: str) -> None:
        links = self.links((link,))
        self.queue += [one for one in self.queue if one[0] in links]

    def do_sync(self, broker: str) -> None:
        self.on(int(broker), lambda n: n.synced(self.now_ns))

    def do_settle(self) -> None:
        for _ in range(50):
            syncing = [b for b in self.brokers if b in self.nodes and self.nodes[b].syncing]
            if any(link not in self.held for link, *_ in self.queue):
                self.do_deliver()
            elif syncing:
                for broker in syncing:
                    self.do_sync(str(broker))
            else:
                return
        raise AssertionError("it does not become quiet")

    def do_cut(self, *words: str) -> None:
        self.cuts |= self.links(words)

    def do_heal(self) -> None:
        self.cuts.clear()

    def do_kill(self, broker: str, how: str = "") -> None:
        number = int(broker)
        del self.nodes[number]
        self.queue = [one for one in self.queue if one[0][1] != number]
        disk = self.disks[number]
        if how == "lost":
            self.disks[number] = Disk()
            self.disks[number].hard_state = HardState(abstaining=True)
        elif how == "power":
            disk._since = []
            disk._sync = None
            disk.entries = list(disk.durable)
        else:
            disk.kill()

    def do_died(self, dead: str, *brokers: str) -> None:
        incarnation = self.incarnations[int(dead)]
        for broker in map(int, brokers or map(str, self.nodes)):
            self.on(broker, lambda n: n.peer_died(int(dead), incarnation, self.now_ns))

    def do_blocked(self, broker: str, *blocked: str) -> None:
        self.nodes[int(broker)].raft.blocked(map(int, blocked))

    def do_show(self) -> None:
        for broker, node in sorted(self.nodes.items()):
            log = " ".join(str(entry.data) for entry in node.disk.entries)
            away = " abstains" if node.raft.is_abstaining else ""
            raft = node.raft
            self.trace.append(
                f"{broker}      {raft.role.value} term={raft.term} leader={raft.leader} "
                f"commit={raft.commit_offset}{away}: {log}"
            )


def replay(text: str) -> str:
    """The text with its traces made anew: a trace follows `----` and ends at an empty line."""
    story = Story()
    parts = []
    for part in text.strip("\n").split("\n\n"):
        lines = part.split("\n----")[0].split("\n")
        commands = [line for line in lines if line and not line.startswith("#")]
        trace = "".join(story.run(command) for command in commands)
        parts.append("\n".join(lines) + ("\n----\n" + trace if commands else "\n"))
    return "\n".join(parts)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_story_leaves_its_trace(path: Path) -> None:
    text = path.read_text()
    trace = replay(text)
    if os.environ.get("REWRITE"):
        path.write_text(trace)
    assert trace == path.read_text()


def raft(
    broker: int = 1,
    voters: tuple[int, ...] = (1, 2, 3),
    *,
    hard_state: HardState = HardState(),  # noqa: B008
    terms: tuple[tuple[int, int], ...] = (),
    end_offset: int = 0,
) -> Raft:
    return Raft(
        broker=broker,
        brokers=(1, 2, 3, 4, 5),
        voters=voters,
        hard_state=hard_state,
        terms=terms,
        end_offset=end_offset,
        rng=random.Random(0),
        now_ns=0,
        heartbeat_ns=HEARTBEAT_NS,
        hang_timeout_ns=1500 * MS,
    )


def store(one: Raft, now_ns: int) -> None:
    wanted = one.take().store
    assert wanted is not None
    one.stored(wanted, now_ns)


def lead(one: Raft, now_ns: int) -> None:
    """Make it the leader of its next term, its noop stored."""
    one.tick(now_ns)
    one._maybe_stand()
    one.step(2, VoteAnswer(term=one.term + 1, granted=True, pre=True), now_ns)
    store(one, now_ns)
    one.step(2, VoteAnswer(term=one.term, granted=True), now_ns)
    assert one.needs_noop
    one.appended(one.end_offset + 1, now_ns)
    store(one, now_ns)


def requests(one: Raft) -> dict[int, AppendRequest]:
    wishes = one.take()
    return {to: m for to, m, _ in wishes.messages if isinstance(m, AppendRequest)}


def append(term: int, sent_ns: int, prev: tuple[int, int] = (0, 0)) -> AppendRequest:
    return AppendRequest(
        term=term, prev_offset=prev[1], prev_term=prev[0], commit=0, sent_ns=sent_ns
    )


def test_who_was_late_accuses_nobody() -> None:
    """E6: a process that was stopped for seconds finds its election time-out long over."""
    one = raft(2)
    one.tick(0)
    one.step(1, append(1, 0), 0)
    one.tick(5000 * MS)
    assert one.role is Role.FOLLOWER
    now = 5000 * MS
    while one.role is Role.FOLLOWER:
        now = one.next_deadline_ns
        one.tick(now)
    assert 5750 * MS <= now <= 6500 * MS


def test_a_late_leader_first_asks_whether_it_still_is_one() -> None:
    """E6, E7: it resigns only an election time-out later; its lease has run out meanwhile."""
    one = raft()
    lead(one, MS)
    assert one.lease_until_ns < 2000 * MS
    one.tick(9000 * MS)
    assert one.role is Role.LEADER
    assert one.lease_until_ns < one._now_ns
    now = 9000 * MS
    while one.role is Role.LEADER:
        now += HEARTBEAT_NS
        one.tick(now)
    assert now - 9000 * MS <= 1750 * MS


def test_the_lease_begins_when_the_answered_request_left() -> None:
    """E7, I13: of the newest request that a majority has answered, not of its answer."""
    one = raft()
    lead(one, 100 * MS)
    sent = requests(one) or {}
    one.tick(400 * MS)
    sent = requests(one)
    one.step(2, AppendAnswer(term=1, accepted=True, sent_ns=sent[2].sent_ns), 900 * MS)
    assert one.lease_until_ns == sent[2].sent_ns + 1500 * MS
    one.tick(950 * MS)
    told = requests(one)[3].lease_until_ns
    assert told == one.lease_until_ns
    follower = raft(3)
    follower.step(1, AppendRequest(**_fields(append(1, 1)), lease_until_ns=told), 950 * MS)
    assert follower.lease_until_ns == told


def test_who_has_not_got_what_is_committed_has_no_lease_from_it() -> None:
    """I13: what it lacks may be that it was fenced."""
    one = raft(3)
    request = AppendRequest(**_fields(append(1, 1)), lease_until_ns=2000 * MS)
    request.commit = 1
    one.step(1, request, MS)
    assert one.lease_until_ns == 0
    request = AppendRequest(**_fields(append(1, 2)), lease_until_ns=2000 * MS)
    request.commit = 1
    one.step(1, request, 2 * MS, [Entry(0, 1, 1, b"fence")])
    assert one.commit_offset == 1
    assert one.lease_until_ns == 2000 * MS


def _fields(request: AppendRequest) -> dict[str, int]:
    return {
        name: getattr(request, name)
        for name in ("term", "prev_offset", "prev_term", "commit", "sent_ns")
    }


def test_a_lone_voter_has_its_lease_always() -> None:
    one = raft(1, (1,))
    one.tick(0)
    store(one, 0)
    assert one.role is Role.LEADER
    assert one.lease_until_ns > 10**18


@pytest.mark.parametrize("broker", [1, 4])
def test_deadlines_lie_ahead_and_a_heartbeat_away_at_most(broker: int) -> None:
    """A driver that sleeps until the deadline neither spins nor is ever late, voter or observer."""
    one = raft(broker)
    now = 0
    for _ in range(100):
        one.tick(now)
        one.take()
        assert now < one.next_deadline_ns <= now + HEARTBEAT_NS
        now = one.next_deadline_ns
    assert one.role is (Role.PRE_CANDIDATE if broker == 1 else Role.FOLLOWER)


def follow(one: Raft, leader: int = 1) -> None:
    """Let it follow `leader` in term 1, with one entry stored."""
    one.step(leader, append(1, 1), MS, [Entry(0, 1, 1, "a")])
    store(one, MS)
    one.take()


def test_at_proof_of_death_each_voter_waits_for_those_of_lower_ids_that_live() -> None:
    waits = {}
    for broker in (2, 4, 5):
        one = raft(broker, (1, 2, 3, 4, 5))
        follow(one)
        one.peer_died(3, MS)
        one.peer_died(1, MS)
        waits[broker] = one.next_deadline_ns - MS if one.role is Role.FOLLOWER else 0
    assert waits == {2: 0, 4: 5 * MS, 5: 10 * MS}


def test_a_candidate_gives_its_disk_the_time_it_takes() -> None:
    """Else a disk slower than the election time-out would never see an election through."""
    one = raft()
    one.tick(0)
    store(one, 0)
    one._maybe_stand()
    one.step(2, VoteAnswer(term=1, granted=True, pre=True), 0)
    wanted = one.take().store
    assert wanted is not None
    now = 0
    for now in range(0, 5000 * MS, HEARTBEAT_NS):
        one.tick(now)
        assert not one.take().messages
    one.stored(wanted, now)
    assert [m.term for _, m, _ in one.take().messages if isinstance(m, VoteRequest)] == [1, 1]
    assert one.role is Role.CANDIDATE


def test_a_new_incarnation_of_the_leader_proves_the_death_of_the_old_one() -> None:
    one = raft(2)
    follow(one)
    one.peer_back(3, MS)
    assert one.role is Role.FOLLOWER
    one.peer_back(1, MS)
    assert one.role is Role.PRE_CANDIDATE
    asked = [m for _, m, _ in one.take().messages if isinstance(m, VoteRequest)]
    assert [m.death_proven for m in asked] == [True, True]


def test_nobody_votes_in_a_term_whose_leader_it_follows() -> None:
    """I1: its vote was not needed for this leader, but another leader of this term there cannot be."""
    one = raft(2)
    follow(one)
    one.step(3, VoteRequest(term=1, last_term=1, end_offset=9), 9000 * MS)
    (answer,) = [m for _, m, _ in one.take().messages if isinstance(m, VoteAnswer)]
    assert not answer.granted


# What a voter that abstains must have seen: (answered_ns, commit, end stored, terms told, when asked) -> does it vote?
BORN = 1000


@pytest.mark.parametrize(
    ("answered_ns", "commit", "terms_told", "asked_ns", "votes"),
    [
        (BORN + 1, 3, {1: 5, 3: 5}, BORN, True),
        (BORN + 1, 3, {1: 5, 3: 4}, BORN, True),
        (
            BORN - 1,
            3,
            {1: 5, 3: 5},
            BORN,
            False,
        ),  # the leader still counts what the old incarnation had
        (BORN + 1, 2, {1: 5, 3: 5}, BORN, False),  # the leader has committed nothing of its term
        (BORN + 1, 4, {1: 5, 3: 5}, BORN, False),  # an entry below the commit is missing
        (BORN + 1, 3, {1: 5}, BORN, False),  # 3 may have got a vote of a higher term
        (BORN + 1, 3, {1: 5, 3: 5}, BORN - 1, False),  # an answer to the old incarnation
    ],
)
def test_a_voter_abstains_until_it_knows_what_it_may_have_forgotten(
    answered_ns: int, commit: int, terms_told: dict[int, int], asked_ns: int, votes: bool
) -> None:
    """docs/rules.md: what a voter that abstains must know before it votes."""
    one = Raft(
        broker=2,
        brokers=(1, 2, 3),
        voters=(1, 2, 3),
        hard_state=HardState(abstaining=True),
        terms=(),
        end_offset=0,
        rng=random.Random(0),
        now_ns=BORN,
        heartbeat_ns=HEARTBEAT_NS,
        hang_timeout_ns=1500 * MS,
    )
    request = append(5, BORN + 2)
    request.answered_ns, request.commit = answered_ns, commit
    one.step(1, request, BORN + 3, [Entry(0, 2, 4, "a"), Entry(2, 3, 5, "noop")])
    for voter, term in terms_told.items():
        answer = VoteAnswer(term=term, granted=False, pre=True, sent_ns=asked_ns)
        one.step(voter, answer, BORN + 4)
    assert one.is_abstaining  # nothing is stored yet
    store(one, BORN + 5)
    assert one.is_abstaining is not votes
    if votes:
        # In this term it is as if it had voted for the leader, and all that waits for the disk.
        wanted = one.take().store
        assert wanted is not None
        assert wanted.hard_state == HardState(5, 1)


def test_a_term_beyond_the_leaders_keeps_a_voter_abstaining() -> None:
    one = raft(2, hard_state=HardState(abstaining=True))
    request = append(5, 2)
    request.answered_ns, request.commit = 1, 1
    for voter, term in ((1, 5), (3, 6)):
        answer = VoteAnswer(term=term, granted=True, pre=True, sent_ns=0)
        one.step(voter, answer, 1)
    one.step(1, request, 3, [Entry(0, 1, 5, "noop")])
    store(one, 4)
    assert one.is_abstaining


def test_a_log_that_is_ahead_of_the_vote_file_raises_the_term() -> None:
    one = raft(hard_state=HardState(3, 2), terms=((1, 0), (5, 4), (6, 9)), end_offset=9)
    assert one.term == 5  # term 6 wrote nothing that is left
    assert one._hard.voted_for == -1


def test_a_peer_that_refuses_what_it_had_makes_no_busy_loop() -> None:
    """Its disk lost what it had stored, and no new incarnation was announced: a heartbeat is enough for it."""
    progress, terms = Progress(10), Terms([(1, 0)], 10)
    progress.maybe_match(AppendAnswer(term=1, accepted=True, sent_ns=1, stored_end=8))
    progress.request(2)
    progress.refuse(AppendAnswer(term=1, accepted=False, sent_ns=2), terms)
    assert (progress.next, progress.due) == (8, True)
    progress.request(3)
    progress.refuse(AppendAnswer(term=1, accepted=False, sent_ns=3), terms)
    assert (progress.next, progress.due) == (8, False)


def test_a_late_refusal_moves_nothing() -> None:
    """R05."""
    progress, terms = Progress(10), Terms([(1, 0)], 10)
    for sent_ns, end in [(5, 4), (3, 2)]:
        progress.maybe_match(AppendAnswer(term=1, accepted=True, sent_ns=sent_ns, stored_end=end))
    progress.refuse(AppendAnswer(term=1, accepted=False, sent_ns=4), terms)
    assert (progress.match, progress.next, progress.probing) == (4, 10, False)
    assert progress.answered_ns == 5


def test_what_is_cut_before_it_was_written_is_not_written() -> None:
    """Two leaders' requests between two `take`: one cut, and only entries that are still wanted."""
    one = raft(3, hard_state=HardState(1), terms=((1, 0),), end_offset=4)
    one.step(1, append(2, 1, (1, 2)), 0, [Entry(2, 3, 2, "x"), Entry(3, 4, 2, "y")])
    one.step(2, append(3, 2, (2, 3)), 0, [Entry(3, 5, 3, "z")])
    wishes = one.take()
    assert wishes.truncate_to == 2
    assert [entry.data for entry in wishes.append] == ["x", "z"]
    one.step(1, append(4, 3), 0, [Entry(0, 5, 4, "w")])
    one.step(1, append(4, 4), 0)
    wishes = one.take()
    assert wishes.truncate_to == 0
    assert [entry.data for entry in wishes.append] == ["w"]


def test_nothing_below_the_commit_is_ever_cut() -> None:
    """T3, I9: it stops before anything has changed."""
    one = raft(3)
    request = append(1, 1)
    request.commit = 2
    one.step(1, request, 0, [Entry(0, 2, 1, "kept")])
    assert one.commit_offset == 2
    with pytest.raises(InvalidRequest, match="replaces what is committed at 0"):
        one.step(2, append(2, 2), 0, [Entry(0, 2, 2, "other")])
    assert (one.end_offset, one.term, one.leader) == (2, 1, 1)


def test_two_leaders_of_one_term_are_never_followed() -> None:
    one = raft(3)
    one.step(1, append(1, 1), 0)
    leader = raft(hard_state=HardState(1))
    lead(leader, MS)
    for member, term in ((one, 1), (leader, leader.term)):
        with pytest.raises(InvalidRequest, match="says that it leads a term of another"):
            member.step(2, append(term, 2), 0)
    assert (one.leader, leader.role) == (1, Role.LEADER)


def test_entries_of_older_terms_are_not_committed_by_being_counted() -> None:
    """Figure 8 of the Raft paper: what a majority holds of an older term may still be overwritten."""
    one = raft(hard_state=HardState(1), terms=((1, 0),), end_offset=2)
    lead(one, MS)
    assert (one.term, one.end_offset) == (2, 3)
    one.step(2, AppendAnswer(term=2, accepted=True, sent_ns=1, stored_end=2), 2 * MS)
    assert one.commit_offset == 0
    one.step(2, AppendAnswer(term=2, accepted=True, sent_ns=2, stored_end=3), 3 * MS)
    assert one.commit_offset == 3


def test_a_leader_counts_itself_once_its_own_sync_is_done() -> None:
    one = raft()
    lead(one, MS)
    one.appended(3, 2 * MS)
    one.step(2, AppendAnswer(term=1, accepted=True, sent_ns=1, stored_end=3), 3 * MS)
    assert one.commit_offset == 1
    store(one, 4 * MS)
    assert one.commit_offset == 3


def test_terms_are_what_a_plain_list_says() -> None:
    rng = random.Random(1)
    for _ in range(100):
        plain: list[int] = []
        terms = Terms([], 0)
        for _ in range(30):
            if rng.random() < 0.3 and plain:
                offset = rng.randrange(len(plain) + 1)
                del plain[offset:]
                terms.truncate(offset)
            else:
                term, count = (plain[-1] if plain else 0) + rng.randrange(3), rng.randint(1, 3)
                if term:
                    plain += [term] * count
                    terms.append(term, len(plain))
            for offset in range(len(plain) + 2):
                expected = plain[offset - 1] if 0 < offset <= len(plain) else 0
                assert terms.term_before(offset) == (-1 if offset > len(plain) else expected)
            for term in range(12):
                up_to = [t for t in plain if t <= term]
                newest = (up_to[-1], len(up_to)) if up_to else (0, 0)
                assert terms.newest_up_to(term) == newest
            assert terms.last_term == (plain[-1] if plain else 0)


def test_it_says_what_it_is() -> None:
    one = raft()
    lead(one, MS)
    assert "leader term=1" in repr(one)
    figures = one.statistics()
    assert (figures.role, figures.term, figures.leader, figures.elections) == ("leader", 1, 1, 1)
    assert figures.match == {2: 0, 3: 0, 4: 0, 5: 0}
