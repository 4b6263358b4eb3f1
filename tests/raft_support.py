"""A driver of Raft for tests: a disk that forgets what was not synced, and a node that carries out every wish.

`Node` is what node/metadata.py is in a broker: it knows the incarnations of its peers, writes at once, syncs one at a
time. It checks what it sends: a promise of something that is not on the disk fails the test that made it (I12).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from node.core.raft.raft import Entry, Envelope, HardState, Message, Raft, Role, Store
from shmlog.protocol.peers import AppendAnswer, AppendRequest, VoteAnswer, VoteRequest

MS = 1_000_000
HEARTBEAT_NS = 250 * MS
HANG_TIMEOUT_NS = 1500 * MS


def terms_of(entries: Iterable[Entry]) -> list[tuple[int, int]]:
    terms: list[tuple[int, int]] = []
    for entry in entries:
        if not terms or terms[-1][0] != entry.term:
            terms.append((entry.term, entry.base_offset))
    return terms


class Disk:
    """A log and a vote file. `entries`: as a reader sees the log; `durable`, `hard_state`: as after a power cut."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.durable: list[Entry] = []
        self.hard_state = HardState()
        self.vouched_end = (
            0  # up to here `entries` and `durable` are the same, whatever is cut meanwhile
        )
        self._since: list[int | Entry] = []  # cuts and appends since the last sync
        self._sync: tuple[int, list[Entry], Store] | None = None

    @property
    def end_offset(self) -> int:
        return self.entries[-1].end_offset if self.entries else 0

    def cut(self, offset: int) -> None:
        self.entries = [entry for entry in self.entries if entry.end_offset <= offset]
        self.vouched_end = min(self.vouched_end, offset)
        self._since.append(offset)

    def append(self, entry: Entry) -> None:
        assert entry.base_offset == self.end_offset, (entry, self.end_offset)
        self.entries.append(entry)
        self._since.append(entry)

    def begin_sync(self, store: Store) -> None:
        assert self._sync is None
        assert store.end_offset == self.end_offset
        self._sync = (len(self._since), list(self.entries), store)

    def end_sync(self) -> Store:
        assert self._sync is not None
        count, self.durable, store = self._sync
        self._sync = None
        self._since = self._since[count:]
        self.hard_state = store.hard_state
        self.vouched_end = min(
            [store.end_offset, *(cut for cut in self._since if isinstance(cut, int))]
        )
        return store

    def kill(self) -> None:
        """The process ends: the kernel keeps what was written, but for a vote file that was not."""
        self._sync = None

    def power_cut(self, rng: random.Random) -> None:
        """Some of what was done since the last sync has reached the disk, in order."""
        if self._sync is not None and rng.random() < 0.5:
            self.hard_state = self._sync[2].hard_state
        entries = list(self.durable)
        for done in self._since[: rng.randint(0, len(self._since))]:
            if isinstance(done, Entry):
                entries.append(done)
            else:
                entries = [entry for entry in entries if entry.end_offset <= done]
        self._sync, self._since, self.entries = None, [], entries
        self.durable, self.vouched_end = list(entries), self.end_offset


class Node:
    """One broker."""

    def __init__(
        self,
        broker: int,
        brokers: list[int],
        voters: list[int],
        disk: Disk,
        rng: random.Random,
        now_ns: int,
        *,
        incarnation: int = 1,
        raft_class: type[Raft] = Raft,
        frame_entries: int = 100,
        send: Callable[[Node, Envelope, list[Entry]], None],
        begin_sync: Callable[[Node], None],
    ) -> None:
        self.broker = broker
        self.incarnation = incarnation
        self.disk = disk
        self.syncing = False
        self.known: dict[int, int] = {}
        self._frame_entries = frame_entries
        self._send = send
        self._begin_sync = begin_sync
        self.raft = raft_class(
            broker=broker,
            brokers=brokers,
            voters=voters,
            hard_state=disk.hard_state,
            terms=terms_of(disk.entries),
            end_offset=disk.end_offset,
            rng=rng,
            now_ns=now_ns,
            heartbeat_ns=HEARTBEAT_NS,
            hang_timeout_ns=HANG_TIMEOUT_NS,
        )

    def receive(
        self, sender: int, incarnation: int, message: Message, entries: list[Entry], now_ns: int
    ) -> None:
        known = self.known.get(sender, 0)
        if incarnation < known:
            return
        if incarnation > known:
            self.known[sender] = incarnation
            self.raft.peer_back(sender, now_ns)
        self.raft.step(sender, message, now_ns, entries)
        self.do(now_ns)

    def tick(self, now_ns: int) -> None:
        self.raft.tick(now_ns)
        self.do(now_ns)

    def peer_died(self, broker: int, incarnation: int, now_ns: int) -> None:
        if self.known.get(broker, 0) <= incarnation:
            self.raft.peer_died(broker, now_ns)
            self.do(now_ns)

    def synced(self, now_ns: int) -> None:
        self.syncing = False
        self.raft.stored(self.disk.end_sync(), now_ns)
        self.do(now_ns)

    def append(self, data: str, now_ns: int) -> None:
        end = self.disk.end_offset
        self.disk.append(Entry(end, end + 1 + len(data) % 3, self.raft.term, data))
        self.raft.appended(self.disk.end_offset, now_ns)

    def do(self, now_ns: int) -> None:
        """Carry out all wishes, in their order."""
        if self.raft.needs_noop:
            self.append(f"noop{self.raft.term}", now_ns)
        wishes = self.raft.take()
        if wishes.truncate_to is not None:
            self.disk.cut(wishes.truncate_to)
        for entry in wishes.append:
            self.disk.append(entry)
        assert self.disk.end_offset == self.raft.end_offset
        for envelope in wishes.messages:
            entries = []
            if envelope.read_from is not None:
                behind = [e for e in self.disk.entries if e.base_offset >= envelope.read_from]
                entries = behind[: self._frame_entries]
                self.raft.sent(envelope.to, entries[-1].end_offset)
            self._check_promise(envelope)
            self._send(self, envelope, entries)
        if wishes.store is not None and not self.syncing:
            self.syncing = True
            self.disk.begin_sync(wishes.store)
            self._begin_sync(self)

    def _check_promise(self, envelope: Envelope) -> None:
        message, disk = envelope.message, self.disk
        voted = (disk.hard_state.term, disk.hard_state.voted_for)
        match message:
            case VoteRequest(pre=False):
                assert voted == (message.term, self.broker), "candidate without a stored vote"
            case VoteAnswer(pre=False, granted=True):
                assert voted == (message.term, envelope.to), "vote not stored"
            case AppendAnswer(accepted=True):
                assert voted[0] == message.term, "term not stored"
                assert message.stored_end <= disk.vouched_end, "entries not stored"
            case AppendRequest():
                assert self.raft.role is Role.LEADER
                assert voted == (message.term, self.broker), "leader without a stored vote"
