"""The metadata log behind Raft, the image, and the changes that make both grow.

    submit(change) --> controller here: planned, appended --> synced by a majority --> committed
                  \\-> elsewhere: Propose ~> ProposeAnswer -------------------------------> image is there

A change is a value (shmlog/protocol/peers.py). Only the leader of Raft plans: it is the controller, and a plan is
a pure function of the newest image. All changes that wait are planned one upon the other and appended in one go; the
next go begins when that one is committed. So a plan never builds on what another leader may have written, and two
requests for the same name never race. A set is applied, published and answered only when it is committed.

The log is written in the turn and synced by a worker, one sync at a time: term and vote with it, in a small file of
their own. What Raft promises leaves only after the sync that it depends on (core/raft says which that is).

Invariants: the image is exactly the records below Raft's commit offset; `done` of a change is called once.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from node import journal
from node.core.cluster.controller import Controller
from node.core.cluster.image import (
    ClusterRecord,
    Image,
    NoopRecord,
    Record,
    apply,
    decode_record,
    encode_record,
)
from node.core.cluster.topics import REPLICAS_MAX
from node.core.raft.raft import NOBODY, Entry, HardState, Raft, Role, Store
from node.io.workers import Lane, Workers, is_no_space
from shmlog.clock import NS_PER_MS, NS_PER_S, Clock
from shmlog.errors import (
    Code,
    CorruptLog,
    DiskFull,
    InvalidConfig,
    LeaderUnavailable,
    NotLeader,
    RequestTimedOut,
    ServerError,
    ShmlogError,
    from_wire,
)
from shmlog.log import checkpoint, paths
from shmlog.log.log import Log
from shmlog.log.received import check_replica_batches
from shmlog.log.storage import Buffer, Storage
from shmlog.protocol import peers
from shmlog.records import batch as batches
from shmlog.records.builder import build, stamp
from shmlog.records.layout import BATCH_SIZE_MAX
from shmlog.settings import INT64_MAX, MIB, ClusterConfig, TopicConfig

Done = Callable[[int, ShmlogError | None], None]
Send = Callable[[int, peers.PeerMessage, Sequence[bytes]], None]
Publish = Callable[[Image, Image], None]
METADATA_TOPIC_ID = b"cluster-metadata"
APPEND_BYTES_MAX = 1 << 20
CHANGES_MAX = 256  # planned in one go
OLD_MESSAGES = 50  # of a past incarnation, in a row
FORWARDED_NS = 30 * NS_PER_S
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Voting:
    """Who takes part: this broker, all brokers of the cluster, and those of them that vote."""

    cluster: str
    broker: int
    incarnation: int
    boot_id: str
    brokers: tuple[int, ...]
    voters: tuple[int, ...]


class Quorum(msgspec.Struct, frozen=True):
    """Term and vote, as they stand on disk."""

    term: int
    voted_for: int
    abstaining: bool


class _Waiting(NamedTuple):
    change: peers.Change
    done: Done
    deadline_ns: int


def open_log(
    storage: Storage,
    data_dir: str,
    clock: Clock,
    *,
    same_boot: bool,
    clean: bool,
    replaced: bool,
    replicated: bool,
) -> Log:
    """The metadata log of a data directory, wholly verified: it is small, and all of it is read at each start.

    `replicated`: damage is set aside, the other voters have it all.
    """
    config = TopicConfig(
        durability="disk",
        segment_bytes=16 * MIB,
        segment_age=INT64_MAX,
        max_message_bytes=BATCH_SIZE_MAX,
        ring_bytes=0,
    )
    return Log.open(
        storage,
        f"{data_dir}/{paths.partition_dir(paths.METADATA_TOPIC, 0)}",
        topic_id=METADATA_TOPIC_ID,
        partition=0,
        config=config,
        now_ns=clock.monotonic_ns(),
        same_boot=same_boot,
        clean=clean,
        replaced=replaced,
        replicated=replicated,
        verify=True,
    )


def decode_set(batch: batches.RecordBatch) -> list[Record]:
    """The records of one set. Raises CorruptLog."""
    try:
        return [decode_record(value) for value in batch.values() if value is not None]
    except msgspec.MsgspecError as error:
        raise CorruptLog(
            f"metadata log: the record set at offset {batch.base_offset} cannot be read ({error}): "
            "it was written by another version"
        ) from None


class Metadata:
    """The metadata log of one broker, and the image. One owner: the loop."""

    def __init__(
        self,
        storage: Storage,
        data_dir: str,
        voting: Voting,
        *,
        topic_defaults: Mapping[str, Any],
        settings: ClusterConfig,
        clock: Clock,
        rng: random.Random,
        workers: Workers,
        send: Send,
        same_boot: bool,
        clean: bool,
        replicas_max: int = REPLICAS_MAX,
        replaced: bool = False,
    ) -> None:
        self.voting = voting
        self.replicas_max = replicas_max  # of one broker, as the descriptors allow
        self.image = Image(topic_defaults=dict(topic_defaults))
        self.log = open_log(
            storage,
            data_dir,
            clock,
            same_boot=same_boot,
            clean=clean,
            replaced=replaced,
            replicated=len(voting.voters) > 1,
        )
        self.controller: Controller | None = None
        self.publish: Publish = lambda old, new: None
        self._storage = storage
        self._quorum_file = f"{data_dir}/{paths.QUORUM}"
        self._settings = settings
        self._clock = clock
        self._workers = workers
        self._send = send
        self._stored = self._read_quorum()
        self.raft = Raft(
            broker=voting.broker,
            brokers=voting.brokers,
            voters=voting.voters,
            hard_state=self._stored,
            terms=self.log.epochs.entries,
            end_offset=self.log.log_end_offset,
            rng=rng,
            now_ns=clock.monotonic_ns(),
            heartbeat_ns=settings.broker_heartbeat * NS_PER_MS,
            hang_timeout_ns=settings.broker_hang_timeout * NS_PER_MS,
        )
        self._tail: deque[tuple[int, list[Record]]] = deque()  # appended, not applied
        self._syncing = False
        self._checkpointing = False
        self._waiting: deque[_Waiting] = deque()  # for a controller
        self._in_flight: deque[tuple[int, Done]] = deque()  # appended here, by end offset
        self._seq = peers.first_seq(voting.incarnation)
        self._asked: dict[int, _Waiting] = {}  # proposed to the controller `_asked_whom`
        self._asked_whom = -1
        self._seen: dict[int, tuple[int, int]] = {}  # broker -> newest (incarnation, seq) proposed
        self._known: list[tuple[int, Done]] = []  # committed elsewhere, image not there yet
        self._deaths: dict[int, int] = {}  # broker -> the newest incarnation that is proven dead
        self._shown = (Role.FOLLOWER, 0, -1)
        self._heard: dict[int, int] = {}  # broker -> when it last followed or led
        self._leader_commit = -1  # the newest commit offset that a leader has told
        self._old: dict[tuple[int, int], int] = {}  # messages of the last old incarnation
        self._incarnations: dict[int, int] = {}  # the newest that has spoken, by broker
        self._read_tail()

    def _read_quorum(self) -> HardState:
        """Term and vote. Where they are damaged, or the log has lost what was synced, this voter abstains."""
        exists = self._storage.exists(self._quorum_file)
        if exists:
            # Its writer may have been killed before the name was synced: what is promised by it now would be
            # forgotten in a power cut (I12).
            self._storage.sync_dir(self._quorum_file.rpartition("/")[0])
        # Not the generation before: it would vote twice.
        quorum = checkpoint.read_newest(self._storage, self._quorum_file, Quorum)
        if quorum is not None and not exists:
            # Killed before the rename: what was read stands aside, and may be in the page cache only.
            checkpoint.write(self._storage, self._quorum_file, quorum, is_gapless=True)
        lost = quorum is None and (exists or self.log.log_end_offset > 0)
        quorum = quorum or Quorum(0, NOBODY, False)
        if (lost or self.log.recovery.lossy) and not quorum.abstaining:
            reason = self.log.recovery.lossy_reason or "the vote file is gone or damaged"
            journal.warning("this voter abstains until it knows all", reason=reason)
            # At once: the evidence goes with the first start that the cluster takes note of.
            quorum = Quorum(quorum.term, quorum.voted_for, True)
            checkpoint.write(self._storage, self._quorum_file, quorum, is_gapless=True)
        return HardState(quorum.term, quorum.voted_for, quorum.abstaining)

    def _read_tail(self) -> None:
        """What stands in the log is applied once Raft says that it is committed."""
        offset, end = self.log.log_start_offset, self.log.log_end_offset
        while offset < end:
            data = memoryview(self.log.read(offset, max_bytes=_READ_BYTES, end_offset=end))
            for position, header in batches.iterate(data):
                batch = batches.RecordBatch(data[position:], header)
                self._tail.append((header.end_offset, decode_set(batch)))
                offset = header.end_offset

    def check_cluster(self) -> None:
        """Raises InvalidConfig if the log belongs to another cluster, or knows a later incarnation."""
        voting = self.voting
        for _, records in self._tail:
            for record in records:
                if isinstance(record, ClusterRecord) and record.cluster != voting.cluster:
                    raise InvalidConfig(
                        f"cluster.toml says cluster {voting.cluster!r}, the data belongs to "
                        f"{record.cluster!r}"
                    )

    # -- what others ask ------------------------------------------------------------------------------

    @property
    def controller_id(self) -> int:
        """The broker that leads the metadata quorum, as far as is known here; -1: nobody."""
        return self.raft.leader if self.raft.leader is not None else -1

    def has_lease(self, now_ns: int) -> bool:
        """May this broker ack (E7)?"""
        return now_ns < self.raft.lease_until_ns

    def submit(self, change: peers.Change, done: Done, deadline_ns: int) -> None:
        """Have a change made. `done(metadata offset, None)` once it is committed and in the image here,
        `done(-1, error)` if it was refused, or its fate is unknown when the deadline comes.
        """
        self._waiting.append(_Waiting(change, done, deadline_ns))

    # -- the turn -------------------------------------------------------------------------------------

    @property
    def is_caught_up(self) -> bool:
        """Does the image hold all that was committed when this broker came?"""
        if self.raft.role is Role.LEADER:
            return self.controller is not None
        return self.raft.leader is not None and self.image.offset >= self._leader_commit > 0

    def receive(self, message: peers.PeerMessage, frames: Sequence[Buffer], now_ns: int) -> None:
        """A message of Raft, or about a change. Raises CorruptMessage: nothing has changed."""
        if not self._is_newest(message.broker, message.incarnation, now_ns):
            return
        if isinstance(message, peers.Propose):
            self._proposed(message, now_ns)
        elif isinstance(message, peers.ProposeAnswer):
            self._answered(message)
        else:
            self._step(message, frames, now_ns)

    def _is_newest(self, broker: int, incarnation: int, now_ns: int) -> bool:
        """Raft is told when a new incarnation speaks or registers; an old one is not listened to."""
        newest = self._incarnations.get(broker, 0)
        if incarnation > newest:
            self._incarnations[broker] = incarnation
            if newest and broker != self.voting.broker:
                self.raft.peer_back(broker, now_ns)
        if incarnation < newest:
            self._note_old(broker, incarnation, newest)
        return incarnation >= newest

    def _note_old(self, broker: int, incarnation: int, newest: int) -> None:
        """Few messages of the dead are on their way; one that goes on has lost count of its starts."""
        count = self._old.get((broker, incarnation), 0) + 1
        self._old = {(broker, incarnation): count}
        if count == OLD_MESSAGES:
            journal.warning(
                "old incarnation",
                peer=broker,
                incarnation=incarnation,
                do=f"its data directory and run/ were emptied: stop it, write {newest} into "
                f"run/broker-{broker}.incarnation, start it",
            )

    def _step(self, message: Any, frames: Sequence[Buffer], now_ns: int) -> None:
        entries: list[Entry] = []
        if isinstance(message, peers.AppendRequest):
            entries = _entries(frames, message.prev_offset)
        self.raft.step(message.broker, message, now_ns, entries)
        if isinstance(message, peers.AppendRequest | peers.AppendAnswer):
            self._heard[message.broker] = now_ns
        if isinstance(message, peers.AppendRequest) and self.raft.leader == message.broker:
            self._leader_commit = max(self._leader_commit, message.commit)
        elif isinstance(message, peers.AppendAnswer) and self.controller is not None:
            self.controller.beat(message.broker, message.incarnation, message.image_offset, now_ns)

    def peer_died(self, broker: int, incarnation: int, now_ns: int) -> None:
        """That incarnation is proven dead."""
        self._deaths[broker] = incarnation
        if self._incarnations.get(broker, 0) <= incarnation:
            # Otherwise its successor is there, and may lead.
            self.raft.peer_died(broker, now_ns)
        if self.controller is not None:
            self.controller.died(broker, incarnation, now_ns)

    def is_anyone_late(self, now_ns: int) -> bool:
        """Has somebody not been heard for longer than a heartbeat explains?"""
        patience_ns = 2 * self._settings.broker_heartbeat * NS_PER_MS
        return any(now_ns - at_ns > patience_ns for at_ns in self._heard.values())

    def blocked(self, brokers: frozenset[int]) -> None:
        """These wait for a device: slow, not hung."""
        self.raft.blocked(brokers)
        if self.controller is not None:
            self.controller.blocked(brokers)

    def turn(self, now_ns: int) -> None:
        """Go on with all that can go on."""
        self.raft.tick(now_ns)
        self._carry_out(now_ns)
        if self.raft.role is Role.LEADER:
            self._lead(now_ns)
        else:
            self._follow(now_ns)
        self._expire(now_ns)
        self._carry_out(now_ns)
        shown = (self.raft.role, self.raft.term, self.controller_id)
        if shown != self._shown:
            self._shown = shown
            journal.event("quorum", role=shown[0].value, term=shown[1], leader=shown[2])

    def next_deadline_ns(self) -> int | None:
        """When `turn` has something to do though nothing comes."""
        due: list[int | None] = [self.raft.next_deadline_ns]
        if self.controller is not None and self._may_plan:
            due.append(self.controller.next_deadline_ns(self.image))
        due += [waiting.deadline_ns for waiting in (*self._waiting, *self._asked.values())]
        return min((at for at in due if at is not None), default=None)

    @property
    def _may_plan(self) -> bool:
        """The next go begins when the last one is committed; until then the controller has no deadlines."""
        return self.raft.commit_offset == self.log.log_end_offset

    # -- Raft's intentions ----------------------------------------------------------------------------

    def _carry_out(self, now_ns: int) -> None:
        wishes = self.raft.take()
        if wishes.truncate_to is not None:
            self.log.truncate_to(wishes.truncate_to)
            while self._tail and self._tail[-1][0] > wishes.truncate_to:
                self._tail.pop()
        if wishes.append:
            self._append_entries(wishes.append)
        for to, message, read_from in wishes.messages:
            frames = [] if read_from is None else [self._read_for(to, read_from)]
            if isinstance(message, peers.AppendAnswer):
                message.image_offset = self.image.offset
            self._send(to, message, frames)
        self._apply(self.raft.commit_offset)
        if wishes.store is not None and not self._syncing:
            self._begin_sync(wishes.store)

    def _read_for(self, to: int, offset: int) -> bytes:
        end = self.log.log_end_offset
        data = self.log.read(offset, max_bytes=APPEND_BYTES_MAX, end_offset=end)
        *_, (_, last) = batches.iterate(memoryview(data))
        self.raft.sent(to, last.end_offset)
        return data

    def _append_entries(self, entries: Sequence[Entry]) -> None:
        found = []
        for entry in entries:
            header = batches.decode_header(entry.data)
            found.append((header, entry.data))
            batch = batches.RecordBatch(memoryview(entry.data), header)
            self._tail.append((entry.end_offset, decode_set(batch)))
        self._write(found)

    def _write(self, found: list[tuple[batches.BatchHeader, Any]]) -> None:
        try:
            self.log.append(found, self._clock.monotonic_ns())
        except DiskFull as error:
            raise DiskFull(f"metadata log: {error}") from None

    def _begin_sync(self, store: Store) -> None:
        state = store.hard_state
        changed = state != self._stored
        job = self.log.sync_job()
        self._syncing = True

        def run() -> None:
            if changed:
                quorum = Quorum(state.term, state.voted_for, state.abstaining)
                checkpoint.write(self._storage, self._quorum_file, quorum, is_gapless=True)
            if job is not None:
                job.run()

        def stored(_: object, error: BaseException | None) -> None:
            if error is not None:
                raise error
            self._syncing = False
            self._stored = state
            if job is not None:
                self.log.finish_sync(job)
            if self.log.is_lossy and not state.abstaining:
                self._forget_lossy()
            now_ns = self._clock.monotonic_ns()
            self.raft.stored(store, now_ns)
            self._carry_out(now_ns)

        self._workers.submit(Lane.METADATA, run, stored)

    def _forget_lossy(self) -> None:
        """This voter has caught up and votes again: its next start need not abstain."""
        job = self.log.forget_lossy()

        def written(_: object, error: BaseException | None) -> None:
            if is_no_space(error):
                self.log.checkpoint_failed(job)
            elif error is not None:
                raise error

        self._workers.submit(Lane.FILES, job.run, written)

    def _apply(self, commit: int) -> None:
        """Apply what is committed, publish the image, then answer."""
        before = self.image
        while self._tail and self._tail[0][0] <= commit:
            end, records = self._tail.popleft()
            self.image = apply(self.image, records, end)
        if self.image is before:
            return
        self._checkpoint()
        if self.image.brokers is not before.brokers:
            now_ns = self._clock.monotonic_ns()
            for record in self.image.brokers.values():
                self._is_newest(record.broker, record.incarnation, now_ns)
        self.publish(before, self.image)
        self._answer_committed()

    def _answer_committed(self) -> None:
        offset = self.image.offset
        while self._in_flight and self._in_flight[0][0] <= offset:
            end, done = self._in_flight.popleft()
            done(end, None)
        if self._known:
            reached = [known for known in self._known if known[0] <= offset]
            self._known = [known for known in self._known if known[0] > offset]
            for end, done in reached:
                done(end, None)

    def _checkpoint(self) -> None:
        """What is committed must never be taken for a torn tail: move the recovery point behind it."""
        if self._checkpointing:
            return
        job = self.log.checkpoint_job(min(self.image.offset, self.log.synced_end_offset))
        if job is None:
            return
        self._checkpointing = True
        offset = self.image.offset

        def written(_: object, error: BaseException | None) -> None:
            self._checkpointing = False
            if is_no_space(error):
                self.log.checkpoint_failed(job)  # the next change tries again
            elif error is not None:
                raise error
            elif self.image.offset > offset:
                self._checkpoint()

        self._workers.submit(Lane.FILES, job.run, written)

    # -- controller -----------------------------------------------------------------------------------

    def _lead(self, now_ns: int) -> None:
        raft = self.raft
        if self._asked:
            self._give_up_asked()
        if raft.needs_noop:
            founding = self.log.log_end_offset == 0
            first: Record = ClusterRecord(self.voting.cluster) if founding else NoopRecord()
            self._append([first], now_ns)
        if (
            self.controller is None
            and raft.is_leader_ready
            and self.image.offset >= raft.commit_offset
        ):
            self._become_controller(now_ns)
        if self.controller is not None and self._may_plan:
            self._plan(self.controller, now_ns)

    def _become_controller(self, now_ns: int) -> None:
        voting = self.voting
        self.controller = Controller(
            voting.broker,
            voting.incarnation,
            voting.brokers,
            self._settings,
            self.image,
            now_ns,
            boot_id=voting.boot_id,
            last_heard=self._heard,
            replicas_max=self.replicas_max,
        )
        for broker, incarnation in self._deaths.items():
            self.controller.died(broker, incarnation, now_ns)
        journal.event("controller", term=self.raft.term, metadata_offset=self.image.offset)

    def _plan(self, controller: Controller, now_ns: int) -> None:
        """Plan what facts and time demand, then all changes that wait, one upon the other."""
        tip = self.image
        records = controller.tick(tip, now_ns)
        if records:
            tip = self._append_on(tip, records, now_ns)
        for _ in range(min(len(self._waiting), CHANGES_MAX)):
            waiting = self._waiting.popleft()
            try:
                records = _planned(controller, tip, waiting.change, now_ns)
                if records:
                    tip = self._append_on(tip, records, now_ns)
            except ShmlogError as error:
                waiting.done(-1, error)
                continue
            self._in_flight.append((tip.offset, waiting.done))
        self._answer_committed()

    def _append_on(self, tip: Image, records: list[Record], now_ns: int) -> Image:
        return apply(tip, records, self._append(records, now_ns))

    def _append(self, records: list[Record], now_ns: int) -> int:
        """Append one set in this broker's term; the end behind it."""
        wall_ns = self._clock.wall_ns()
        batch = build([encode_record(record) for record in records], timestamps=wall_ns)
        stamp(
            batch,
            base_offset=self.log.log_end_offset,
            leader_epoch=self.raft.term,
            append_time_ns=max(wall_ns, self.log.last_append_time_ns),
            topic_id=METADATA_TOPIC_ID,
            partition=0,
        )
        self._write([(batches.decode_header(batch), batch)])
        end = self.log.log_end_offset
        self._tail.append((end, records))
        self.raft.appended(end, now_ns)
        return end

    # -- changes made elsewhere -----------------------------------------------------------------------

    def _follow(self, now_ns: int) -> None:
        if self.controller is not None:
            journal.event("controller no more", term=self.raft.term)
            self.controller = None
        if self._in_flight:
            lost, self._in_flight = self._in_flight, deque()
            for _, done in lost:
                done(-1, _fate_unknown())
        leader = self.controller_id
        if self._asked and leader != self._asked_whom:
            self._give_up_asked()
        if leader == -1:
            return
        self._asked_whom = leader
        while self._waiting:
            waiting = self._waiting.popleft()
            self._seq += 1
            self._asked[self._seq] = waiting
            self._send(leader, peers.Propose(seq=self._seq, change=waiting.change), ())  # type: ignore[arg-type]

    def _give_up_asked(self) -> None:
        asked, self._asked = self._asked, {}
        for waiting in asked.values():
            waiting.done(-1, _fate_unknown())

    def _proposed(self, message: peers.Propose, now_ns: int) -> None:
        newest = (message.incarnation, message.seq)
        if newest <= self._seen.get(message.broker, (-1, -1)):
            return  # doubled on the way
        self._seen[message.broker] = newest
        to, seq = message.broker, message.seq

        def done(offset: int, error: ShmlogError | None) -> None:
            if error is None:
                answer = peers.ProposeAnswer(seq=seq, metadata_offset=offset)
            else:
                answer = peers.ProposeAnswer(
                    seq=seq, error=int(error.code), message=str(error), facts=error.facts
                )
            self._send(to, answer, ())

        if self.controller is None:
            done(-1, NotLeader("this broker is not the controller", code=Code.NOT_CONTROLLER))
        else:
            self.submit(message.change, done, now_ns + FORWARDED_NS)

    def _answered(self, message: peers.ProposeAnswer) -> None:
        waiting = self._asked.pop(message.seq, None)
        if waiting is None:
            return
        if message.error == Code.NOT_CONTROLLER:
            self._waiting.append(waiting)  # nothing happened: the next one is asked
        elif message.error:
            waiting.done(-1, from_wire(message.error, message.message, **message.facts))
        elif message.metadata_offset <= self.image.offset:
            waiting.done(message.metadata_offset, None)
        else:
            self._known.append((message.metadata_offset, waiting.done))

    def _expire(self, now_ns: int) -> None:
        late = [waiting for waiting in self._waiting if waiting.deadline_ns <= now_ns]
        if late:
            self._waiting = deque(w for w in self._waiting if w.deadline_ns > now_ns)
        for seq in [s for s, w in self._asked.items() if w.deadline_ns <= now_ns]:
            late.append(self._asked.pop(seq))
        for waiting in late:
            waiting.done(-1, RequestTimedOut("the controller did not answer in time"))

    def close(self) -> None:
        """A clean stop: everything synced. Jobs have ended."""
        self.log.close(self.image.offset)


def _planned(controller: Controller, tip: Image, change: peers.Change, now_ns: int) -> list[Record]:
    """A bug in a plan is answered -1: nothing has been changed, and the next controller has it too."""
    try:
        return controller.plan(tip, change, now_ns)
    except (ShmlogError, AssertionError):
        raise
    except Exception as error:  # noqa: BLE001 - a plan touches nothing
        journal.failure("change could not be planned", error)
        raise ServerError("internal error: the broker's log has the details") from None


def _fate_unknown() -> ShmlogError:
    return LeaderUnavailable(
        "the controller changed meanwhile; the change may have been made",
        code=Code.BROKER_NOT_AVAILABLE,
    )


def _entries(frames: Sequence[Buffer], prev_offset: int) -> list[Entry]:
    """The batches of an AppendRequest's frame, checked. Raises CorruptMessage."""
    entries = []
    for frame in frames:
        for header, view in check_replica_batches(
            memoryview(frame),
            expected_offset=prev_offset,
            topic_id=METADATA_TOPIC_ID,
            partition=0,
            last_epoch=-1,
        ):
            entries.append(
                Entry(header.base_offset, header.end_offset, header.leader_epoch, bytes(view))
            )
    return entries
