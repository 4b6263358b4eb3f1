"""Copies of partitions: this broker's pulls from leaders, and what it gives to followers.

    follower   epoch question -> cut -> fetch ... fetch      one of each open per leader, for all its partitions
    leader     a fetch without news is parked; the end of a turn that appended answers it

Requests and answers are one-way messages that may be lost. A fetch is answered within `max_wait_ms` and a heartbeat;
it waits longer while there is nothing to fetch. After twice its time without an answer it is sent again under a new
number, and an answer to an older number is dropped. A fetch names for each partition the position wanted and the
stored end; where a sync moves a stored end while the fetch is parked, it is reported at once: acks never wait for a
poll.

Each answer is bounded in bytes; partitions that got data move to the end of the next fetch, so none starves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import astuple

from node import journal
from node.core.replica.follower import State, Truncation
from node.metadata import Send
from node.partition import Partition
from shmlog.clock import NS_PER_MS, Clock
from shmlog.errors import Code, CorruptLog, CorruptMessage, DiskFull
from shmlog.log.storage import Buffer
from shmlog.protocol import peers

RESEND_NS = 1000 * NS_PER_MS  # of a question
FETCH_WAIT_MS = 500
QUIET_WAIT_MS = 1500  # of a fetch after one that brought nothing: idle brokers are to cost nothing
PAUSE_NS = 20 * NS_PER_MS  # before an error that does not pass at once is met again
NO_SPACE_PAUSE_NS = 1000 * NS_PER_MS
PARTITION_BYTES_MAX = 1 << 20
PRODUCERS_TOLD = 2000  # in one answer, of all its partitions
READ_BYTES_MAX, READS_MAX = 4 << 20, 256  # that are kept for the other followers

Key = tuple[bytes, int]


@dataclass(slots=True)
class _Pull:
    """What is open towards one leader."""

    followed: dict[Key, Partition] = field(default_factory=dict)
    fetch_seq: int = 0
    fetch_sent_ns: int = 0
    wait_ms: int = FETCH_WAIT_MS  # of the fetch that is open, or of the next one
    fetched: dict[Key, tuple[int, int]] = field(default_factory=dict)  # (epoch, stored end) in it
    epochs_sent_ns: int = 0  # the newest question; 0: none is open
    due: bool = True  # something has changed: look what to send
    paused: dict[Key, int] = field(default_factory=dict)
    no_space: dict[Key, int] = field(default_factory=dict)  # until when nothing is asked for

    @property
    def patience_ns(self) -> int:
        """How long an answer may take before its fetch counts as lost."""
        return 2 * self.wait_ms * NS_PER_MS


@dataclass(slots=True)
class _Parked:
    fetch: peers.ReplicaFetch
    deadline_ns: int
    ready: bool = False


class Replication:
    """All pulls and all parked fetches of one broker. One owner: the loop.

    `find`: the hosted partition of a key. `reported(partition, moved)`: a follower has told its end, and did that move
    the high watermark? `written(partition)`: its log has grown. `trimmed(partition)`: its log start has risen, as the
    leader's has. `cut(partition, truncation)` has a worker cut it.
    """

    def __init__(
        self,
        first_seq: int,
        clock: Clock,
        send: Send,
        find: Callable[[bytes, int], Partition | None],
        reported: Callable[[Partition, bool], None],
        written: Callable[[Partition], None],
        trimmed: Callable[[Partition], None],
        cut: Callable[[Partition, Truncation], None],
    ) -> None:
        self._clock = clock
        self._send = send
        self._find = find
        self._reported = reported
        self._written = written
        self._trimmed = trimmed
        self._cut = cut
        self._seq = first_seq
        self._pulls: dict[int, _Pull] = {}
        self._of: dict[Key, int] = {}  # whom a followed partition is pulled from
        self._parked: dict[int, _Parked] = {}
        # Read lately, by (partition, leader epoch, position): the other follower reads the same. A leader's log is
        # never cut while it leads, so within an epoch what was read stays true (also where it was compacted since).
        self._read: dict[tuple[Key, int, int], bytes] = {}
        self._read_bytes = 0

    # -- which partitions -----------------------------------------------------------------------------

    def follow(self, partition: Partition) -> None:
        """The partition's role, leader or epoch has changed, or its log was cut."""
        key = (partition.topic_id, partition.name.partition)
        leader = partition.follower.leader if partition.follower is not None else -1
        before = self._of.get(key, -1)
        if before not in (-1, leader):
            self._drop(key, before)
        if leader != -1:
            pull = self._pulls.setdefault(leader, _Pull())
            pull.followed[key] = partition
            pull.fetched.pop(key, None)
            pull.paused.pop(key, None)
            pull.due = True
            self._of[key] = leader

    def forget(self, partition: Partition) -> None:
        """The partition is closed, or led here."""
        key = (partition.topic_id, partition.name.partition)
        self._drop(key, self._of.get(key, -1))

    def _drop(self, key: Key, leader: int) -> None:
        pull = self._pulls.get(leader)
        if pull is not None:
            pull.followed.pop(key, None)
            pull.fetched.pop(key, None)
            if not pull.followed:
                del self._pulls[leader]
        self._of.pop(key, None)

    def peer_gone(self, broker: int) -> None:
        """A broker died: nothing of it will be answered, and its fetch is not wanted any more."""
        self._parked.pop(broker, None)
        pull = self._pulls.get(broker)
        if pull is not None:
            pull.fetch_seq, pull.wait_ms = 0, FETCH_WAIT_MS
            self._ask_again(pull)

    # -- the turn -------------------------------------------------------------------------------------

    def changed(self, partition: Partition) -> None:
        """A partition led here has grown, or its log start has risen: parked fetches that ask for it are answered."""
        if self._parked:
            for broker in partition.state.replicas:
                parked = self._parked.get(broker)
                if parked is not None:
                    parked.ready = True

    def synced(self, partition: Partition) -> None:
        """A sync has moved the stored end of a followed partition: its leader is told at once."""
        key = (partition.topic_id, partition.name.partition)
        pull = self._pulls.get(self._of.get(key, -1))
        if pull is None or key not in pull.fetched:
            return
        epoch, reported = pull.fetched[key]
        durability, stored = partition.counted_by, partition.stored_end
        if stored > reported:
            pull.fetched[key] = (epoch, stored)
            end = peers.StoredEnd(*key, epoch, stored, durability)
            self._send(self._of[key], peers.ReplicaStored(partitions=[end]), ())

    def turn(self, now_ns: int) -> None:
        """Send what is due: answers to followers, then this broker's own questions and fetches."""
        self._answer(now_ns)
        self._pull(now_ns)

    def _answer(self, now_ns: int) -> None:
        """Answer the parked fetches that have something, or whose time is up."""
        for broker, parked in list(self._parked.items()):
            late = parked.deadline_ns <= now_ns
            if parked.ready or late:
                parked.ready = False
                self._serve(broker, parked, late=late)

    def _pull(self, now_ns: int) -> None:
        """Send the questions and fetches that are due."""
        for leader, pull in self._pulls.items():
            if pull.fetch_seq and now_ns - pull.fetch_sent_ns > pull.patience_ns:
                pull.fetch_seq, pull.due, pull.wait_ms = 0, True, FETCH_WAIT_MS
            if pull.epochs_sent_ns and now_ns - pull.epochs_sent_ns > RESEND_NS:
                self._ask_again(pull)
            if pull.paused and min(pull.paused.values()) <= now_ns:
                pull.paused = {key: at for key, at in pull.paused.items() if at > now_ns}
                pull.due = True
            if pull.no_space and min(pull.no_space.values()) <= now_ns:
                pull.no_space = {key: at for key, at in pull.no_space.items() if at > now_ns}
                pull.fetch_seq, pull.due = 0, True
            if pull.due:
                pull.due = False
                self._ask_epochs(leader, pull, now_ns)
                self._fetch(leader, pull, now_ns)

    def next_deadline_ns(self) -> int | None:
        """When there is something to do though nothing comes. Not to say that there is nothing: the next turn, at
        the latest that of the heartbeat, tells a parked fetch so.
        """
        due: list[int] = []
        for pull in self._pulls.values():
            due += (*pull.paused.values(), *pull.no_space.values())
            if pull.fetch_seq:
                due.append(pull.fetch_sent_ns + pull.patience_ns)
            if pull.epochs_sent_ns:
                due.append(pull.epochs_sent_ns + RESEND_NS)
        return min(due, default=None)

    # -- follower -------------------------------------------------------------------------------------

    def _in_state(self, pull: _Pull, state: State) -> dict[Key, Partition]:
        return {
            key: partition
            for key, partition in pull.followed.items()
            if key not in pull.paused
            and partition.follower is not None
            and partition.follower.state is state
        }

    def _ask_epochs(self, leader: int, pull: _Pull, now_ns: int) -> None:
        wanted = []
        self._seq += 1
        for key, partition in self._in_state(pull, State.RECONCILING).items():
            follower = partition.follower
            assert follower is not None
            if follower.wants_epochs:
                follower.asked(self._seq)
                wanted.append(
                    peers.EpochWanted(*key, follower.leader_epoch, follower.producers_after)
                )
        if wanted:
            pull.epochs_sent_ns = now_ns
            self._send(leader, peers.EpochQuestion(seq=self._seq, partitions=wanted), ())

    def _ask_again(self, pull: _Pull) -> None:
        pull.epochs_sent_ns, pull.due = 0, True
        for partition in self._in_state(pull, State.RECONCILING).values():
            assert partition.follower is not None
            partition.follower.reset()

    def _fetch(self, leader: int, pull: _Pull, now_ns: int) -> None:
        fetching = self._in_state(pull, State.FETCHING)
        if not fetching or (pull.fetch_seq and fetching.keys() == pull.fetched.keys()):
            return
        self._seq += 1
        pull.fetch_seq, pull.fetch_sent_ns, pull.fetched = self._seq, now_ns, {}
        positions = []
        for key, partition in fetching.items():
            assert partition.follower is not None
            epoch, stored = partition.follower.leader_epoch, partition.stored_end
            pull.fetched[key] = (epoch, stored)
            positions.append(
                peers.FetchPosition(
                    *key,
                    epoch,
                    partition.log.log_end_offset,
                    stored,
                    partition.counted_by,
                    partition.log.epochs.last_epoch,
                    key not in pull.no_space,
                    partition.log_start,
                    partition.follower.tombstones_known,
                )
            )
        fetch = peers.ReplicaFetch(seq=self._seq, partitions=positions, max_wait_ms=pull.wait_ms)
        self._send(leader, fetch, ())

    def handle_epochs(self, message: peers.EpochAnswer, now_ns: int) -> None:
        """A leader's epoch histories."""
        pull = self._pulls.get(message.broker)
        if pull is None:
            return
        pull.due = True
        for entry in message.partitions:
            partition = pull.followed.get((entry.topic_id, entry.partition))
            if partition is None or partition.follower is None:
                continue
            if entry.error:
                if partition.follower.awaits(message.seq):  # else it was asked in another epoch
                    partition.follower.refused(partition.follower.leader_epoch, entry.error)
                    pull.paused[entry.topic_id, entry.partition] = now_ns + PAUSE_NS
                continue
            truncation = partition.reconcile(message.seq, entry)
            if truncation is not None:
                self._cut(partition, truncation)
            elif partition.follower.state is State.STOPPED:
                journal.warning(
                    "the leader's history ends below what is committed here",
                    partition=str(partition.name),
                    leader=message.broker,
                    high_watermark=partition.high_watermark,
                    cut=partition.follower.truncation,
                )

    def handle_fetched(
        self, message: peers.ReplicaFetched, frames: Sequence[Buffer], now_ns: int
    ) -> None:
        """Batches of a leader, appended byte for byte."""
        pull = self._pulls.get(message.broker)
        if pull is None or message.seq != pull.fetch_seq:
            return
        pull.fetch_seq, pull.due = 0, True
        pull.wait_ms = FETCH_WAIT_MS if frames else QUIET_WAIT_MS
        remaining = iter(frames)
        for entry in message.partitions:
            frame = next(remaining, b"") if entry.size else b""
            key = (entry.topic_id, entry.partition)
            partition = pull.followed.get(key)
            if partition is None or partition.follower is None or key not in pull.fetched:
                continue
            if frame:  # to the end of the next fetch
                pull.followed[key] = pull.followed.pop(key)
            self._take(pull, key, partition, entry, frame, now_ns)

    def _take(
        self,
        pull: _Pull,
        key: Key,
        partition: Partition,
        entry: peers.FetchedPartition,
        frame: Buffer,
        now_ns: int,
    ) -> None:
        follower = partition.follower
        assert follower is not None
        if entry.error:
            follower.refused(pull.fetched[key][0], entry.error)
            pull.paused[key] = now_ns + PAUSE_NS
            return
        if not follower.accepts(entry.leader_epoch):
            return
        try:
            if frame:
                partition.append_replica(frame, entry.compacted_below)
                self._written(partition)
            follower.fetched(entry.leader_epoch, entry.high_watermark, partition.log.log_end_offset)
            self._copy_log_start(partition, entry.log_start)
        except CorruptMessage as error:
            journal.warning("fetched damage", partition=str(partition.name), reason=str(error))
            pull.paused[key] = now_ns + PAUSE_NS
        except DiskFull as error:
            journal.warning("disk full", partition=str(partition.name), reason=str(error))
            pull.no_space[key] = now_ns + NO_SPACE_PAUSE_NS

    def _copy_log_start(self, partition: Partition, log_start: int) -> None:
        """What the leader has deleted goes here too; never what is not known to be committed here."""
        log_start = min(log_start, partition.high_watermark)
        if log_start > partition.log_start:
            partition.trim(log_start)
            self._trimmed(partition)

    # -- leader ---------------------------------------------------------------------------------------

    def handle_fetch(self, fetch: peers.ReplicaFetch, now_ns: int) -> None:
        """A follower's fetch: its ends are taken in, then it is answered or parked."""
        for wanted in fetch.partitions:
            partition = self._find(wanted.topic_id, wanted.partition)
            if partition is not None and partition.leader is not None:
                self._report(
                    partition,
                    fetch,
                    wanted.leader_epoch,
                    wanted.stored_end,
                    wanted.durability,
                    now_ns,
                    can_append=wanted.can_append,
                )
        wait_ns = fetch.max_wait_ms * NS_PER_MS
        self._parked[fetch.broker] = _Parked(fetch, now_ns + wait_ns, ready=True)

    def handle_stored(self, message: peers.ReplicaStored, now_ns: int) -> None:
        """Stored ends that a sync has moved."""
        for end in message.partitions:
            partition = self._find(end.topic_id, end.partition)
            if partition is not None and partition.leader is not None:
                self._report(
                    partition, message, end.leader_epoch, end.stored_end, end.durability, now_ns
                )

    def _report(
        self,
        partition: Partition,
        message: peers.PeerMessage,
        epoch: int,
        stored_end: int,
        durability: str,
        now_ns: int,
        *,
        can_append: bool = True,
    ) -> None:
        moved = partition.report(
            message, epoch, stored_end, durability, now_ns, can_append=can_append
        )
        self._reported(partition, moved)

    def _serve(self, broker: int, parked: _Parked, *, late: bool) -> None:
        fetch = parked.fetch
        entries: list[peers.FetchedPartition] = []
        frames: list[bytes] = []
        room = fetch.max_bytes
        news = False
        for wanted in fetch.partitions:
            entry, data = self._serve_one(wanted, room, first=not frames)
            if data:
                frames.append(data)
                room -= len(data)
            start_rose = entry.log_start > wanted.log_start >= 0
            if data or entry.error or late or start_rose:
                entries.append(entry)
                news = True
        if late:
            self._forget_reads()  # nobody follows closely: nothing to share
        if news or late:
            del self._parked[broker]
            self._send(broker, peers.ReplicaFetched(seq=fetch.seq, partitions=entries), frames)

    def _serve_one(
        self, wanted: peers.FetchPosition, room: int, *, first: bool
    ) -> tuple[peers.FetchedPartition, bytes]:
        key = (wanted.topic_id, wanted.partition)
        partition = self._find(*key)
        error, data, epoch = 0, b"", -1
        high_watermark = log_start = -1
        compacted_below = 0
        if partition is None or partition.leader is None:
            error = int(Code.NOT_LEADER_OR_FOLLOWER)
        else:
            epoch = partition.leader_epoch
            high_watermark, log_start = partition.high_watermark, partition.log_start
            error = _epoch_error(wanted.leader_epoch, epoch)
            end, compaction = partition.log.log_end_offset, partition.log.compaction
            compacted_below = compaction.compacted_below
            dropped = compaction.tombstones_dropped
            missed = wanted.position < dropped and wanted.tombstones_known < dropped
            gone = wanted.position < log_start and wanted.position < partition.log.copy_start
            if not error and (missed or gone or wanted.position > end):
                error = int(Code.OFFSET_OUT_OF_RANGE)
            wants = wanted.can_append and wanted.position < end
            if not error and wants and (first or room > 0):
                position = max(
                    wanted.position, log_start
                )  # a read gives the whole batch that it lies in
                error, data = self._read_for(partition, key, position, room, first)
        entry = peers.FetchedPartition(
            *key, error, epoch, len(data), high_watermark, log_start, compacted_below
        )
        return entry, data

    def _read_for(
        self, partition: Partition, key: Key, position: int, room: int, first: bool
    ) -> tuple[int, bytes]:
        place = (key, partition.leader_epoch, position)
        data = self._read.get(place)
        if data is None:
            try:
                data = partition.read_for_replica(position, PARTITION_BYTES_MAX)
            except CorruptLog:
                return int(Code.STORAGE_ERROR), b""
            self._remember(place, data)
        if len(data) > room and not first:
            return 0, b""
        return 0, data

    def _remember(self, place: tuple[Key, int, int], data: bytes) -> None:
        self._read[place] = data
        self._read_bytes += len(data)
        while self._read_bytes > READ_BYTES_MAX or len(self._read) > READS_MAX:
            self._read_bytes -= len(self._read.pop(next(iter(self._read))))

    def _forget_reads(self) -> None:
        self._read.clear()
        self._read_bytes = 0

    def handle_question(self, question: peers.EpochQuestion) -> None:
        """A follower asks for epoch histories."""
        entries, room = [], PRODUCERS_TOLD
        for wanted in question.partitions:
            partition = self._find(wanted.topic_id, wanted.partition)
            if partition is None or partition.leader is None:
                error, epoch = int(Code.NOT_LEADER_OR_FOLLOWER), -1
            else:
                epoch = partition.leader_epoch
                error = _epoch_error(wanted.leader_epoch, epoch)
            good = partition is not None and not error
            producers, more = None, False
            if good and partition and wanted.producers_after is not None and room > 0:
                producers, more = _producers(partition, wanted.producers_after, room)
                room -= len(producers)
            entries.append(
                peers.PartitionEpochs(
                    wanted.topic_id,
                    wanted.partition,
                    error,
                    epoch,
                    list(partition.log.epochs.entries) if good and partition else [],
                    partition.log.log_end_offset if good and partition else -1,
                    partition.log.copy_start if good and partition else -1,
                    partition.log.compaction.tombstones_dropped if good and partition else 0,
                    producers,
                    more,
                )
            )
        answer = peers.EpochAnswer(seq=question.seq, partitions=entries)
        self._send(question.broker, answer, ())


def _producers(
    partition: Partition, after: int, room: int
) -> tuple[list[peers.ProducerState], bool]:
    """What is remembered of batches that a log which begins where this one does will never see."""
    page = partition.log.producers.page_below(partition.log.copy_start, after, room + 1)
    told = [
        peers.ProducerState(producer_id, known.epoch, [astuple(batch) for batch in known.batches])
        for producer_id, known in page[:room]
    ]
    return told, len(page) > room


def _epoch_error(asked: int, current: int) -> int:
    if asked == current:
        return 0
    older = asked < current
    return int(Code.FENCED_LEADER_EPOCH if older else Code.UNKNOWN_LEADER_EPOCH)
