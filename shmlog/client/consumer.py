"""Records out of topics.

The caller drives: iterating pumps the sockets, there is no thread (a member of a group has one, which keeps it in the
group and commits). Where the leader's ring is on
this machine, batches come straight from it (ring_tail.py); else, and below the ring, by fetch
(fetches.py), with no gap and no repeat at any change between the two. Records, batches and arrays
are views of one position.
"""

from __future__ import annotations

import fnmatch
import random
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType

from shmlog.client import positions, ring_tail
from shmlog.client.arguments import Duration, duration_ns, optional_ns, size_in
from shmlog.client.batch import Batch, Record
from shmlog.client.bootstrap import Where
from shmlog.client.engine import API_TIMEOUT_NS, CLOSE_PATIENCE_S, Engine
from shmlog.client.fetches import ENDLESS, Fetches, PartitionReader
from shmlog.client.group_member import GroupMember, OnAssign, OnRevoke
from shmlog.client.membership import Mark, Parts
from shmlog.client.pacing import Pacer
from shmlog.client.positions import Position, Positionable
from shmlog.clock import NS_PER_MS, NS_PER_S, SYSTEM_CLOCK
from shmlog.errors import (
    ClientClosed,
    Code,
    InvalidConfig,
    InvalidRequest,
    OffsetOutOfRange,
    ShmlogError,
    UnknownTopic,
    from_wire,
)
from shmlog.ids import TopicPartition
from shmlog.protocol.group_messages import CommittedOffset
from shmlog.protocol.messages import FETCH_BYTES_MAX, TopicInfo
from shmlog.ring.layout import RingIdentity
from shmlog.serde import Serde

Steps = Generator[int | Callable[[], None] | None, None, Batch | None]

_GLOB = frozenset("*?[")
_LATEST, _EARLIEST = -1, -2
_PIECES_AHEAD = 4  # below this many, answers are looked for before the buffer is empty


class Consumer:
    """Reads partitions. One thread at a time; `close` may come from any. Use it in a `with`.

    Args:
        topics: names, or glob patterns ("metrics.*").
        partitions: numbers (of every topic), or TopicPartitions; None: all.
        start: a position (see shmlog.client.positions), or a range "A:B" that sets `stop` too.
        stop: where to end; "latest" is the end as of now. None: never.
        out_of_range: "error", or "reset" = go to the earliest offset and tell `on_error`. A topic that was
            deleted and made again is read from `start`, after UnknownTopic (100) was raised, or told.
        on_truncation: when records that were read are not in the log any more (a power cut, a
            replica that came back without them): "raise" LogTruncated, with the range, once; or
            "continue" = tell `on_error` only. Either way reading goes on where the log was cut.
        key, value: serdes; without one, keys and values are bytes.
        check_crcs: "auto" = the body CRC too, but in ring reads only where the processor needs it;
            "always"; "never" = not the body CRC.
        ring: read from shared memory where possible.
        on_error: is told what does not end the reading.
        group: share the topics (names, or patterns with `*` and `?`) with the other members of a group, and
            go on from its committed offsets. `partitions` and `start` are then the group's affair.
        reset: where a group begins that has no committed offset: a position, or "error".
        commit: "auto" = every `commit_interval`, before partitions go, and in `close`, of what is finished:
            all before the batch or record in the application's hands (asking for the next one finishes
            it); so at least once. "manual" = by `commit` only; called before the work is done, at most once.
        instance_id: a static member: its partitions wait for its return instead of going to others.
        assignor: "uniform" or "range".
        on_assign, on_revoke: called in the thread that asks for the next batch (or closes): with the
            partitions from now on read, and with those that go, on_revoke(partitions, lost=False). What is
            `lost` is another member's already. What they raise comes out of that call, and changes nothing: the
            partitions are taken, or given up, all the same.
        pace: replay: hand records out with the gaps between their timestamps, times this factor (1: as they
            were, 0.1: ten times as fast), over all partitions in the order of time; see pacing.py and `lateness`.
    A change of leaders is no event: the reader goes on at the new one, with no gap and no repeat.
    When the constructor returns, every position is fixed: nothing written from then on is missed.
    Without `partitions` and `stop`, partitions that are added to its topics are read too, from their log
    start, within five minutes.
    """

    def __init__(
        self,
        *topics: str,
        where: Where = None,
        partitions: Iterable[int | TopicPartition] | None = None,
        start: Positionable = "earliest",
        stop: Positionable | None = None,
        out_of_range: str = "error",
        on_truncation: str = "raise",
        key: Serde | None = None,
        value: Serde | None = None,
        fetch_max_bytes: int | str = "8MiB",
        fetch_max_wait: Duration = 0.5,
        max_partition_fetch_bytes: int | str = "1MiB",
        check_crcs: str = "auto",
        ring: bool = True,
        request_timeout: Duration = 30,
        on_error: Callable[[ShmlogError], None] | None = None,
        group: str | None = None,
        reset: Positionable = "earliest",
        commit: str = "auto",
        commit_interval: Duration = 1,
        instance_id: str = "",
        assignor: str = "uniform",
        on_assign: OnAssign | None = None,
        on_revoke: OnRevoke | None = None,
        pace: float | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if out_of_range not in ("error", "reset"):
            raise InvalidConfig(f'out_of_range = {out_of_range!r}: must be "error" or "reset"')
        if on_truncation not in ("raise", "continue"):
            raise InvalidConfig(f'on_truncation = {on_truncation!r}: must be "raise" or "continue"')
        if check_crcs not in ("auto", "always", "never"):
            raise InvalidConfig(f'check_crcs = {check_crcs!r}: must be "auto", "always" or "never"')
        if commit not in ("auto", "manual"):
            raise InvalidConfig(f'commit = {commit!r}: must be "auto" or "manual"')
        if group is not None and (partitions is not None or start != "earliest"):
            raise InvalidConfig(
                "a group shares out the partitions and goes on where it was: say `reset` for where it begins"
            )
        if group is not None and stop not in (None, "latest", "end", positions.LATEST):
            raise InvalidConfig(f'stop = {stop!r}: a member of a group stops at "latest", or never')
        self.on_assign, self.on_revoke = on_assign, on_revoke
        self._auto_commit = commit == "auto"
        self._needs_commit = group is not None and reset == "error"
        if group is not None:
            start = "earliest" if self._needs_commit else reset
        first, last = positions.parse_range(start)
        if group is not None and last is not None:
            raise InvalidConfig(f"reset = {reset!r}: one position, not a range")
        self._serdes = (key, value)
        self._pacer = None if pace is None else Pacer(pace, self._serdes)
        self._reset = out_of_range == "reset"
        self._raise_truncation = on_truncation == "raise"
        self._on_error = on_error
        self._check_crcs = {"auto": None, "always": True, "never": False}[check_crcs]
        self._ring = ring
        self._engine = Engine(
            where, rng=rng, request_timeout_ns=duration_ns(request_timeout, "request_timeout")
        )
        session = self._engine.session
        self._fetches = Fetches(
            session.metadata,
            session.backoff,
            max_bytes=size_in(fetch_max_bytes, "fetch_max_bytes", 1, FETCH_BYTES_MAX),
            max_wait_ms=duration_ns(fetch_max_wait, "fetch_max_wait") // NS_PER_MS,
            partition_max_bytes=size_in(
                max_partition_fetch_bytes, "max_partition_fetch_bytes", 1, FETCH_BYTES_MAX
            ),
            check_body=self._check_crcs is not False,
        )
        session.refresher.on_metadata = self._on_metadata
        self._grows = False
        self._added: dict[TopicPartition, str] = {}  # new partitions and their topic ids
        self._batch: Batch | None = None  # partly handed out, record by record
        self._taken = 0
        self._in_hand: tuple[Batch, int | None] | None = None  # and its end; None: by `_taken`
        self._member: GroupMember | None = None
        self._ends: dict[TopicPartition, int] = {}  # where a member of a group stops
        self._closed = False
        try:
            with self._engine.lock:
                if group is not None:
                    self._start = first or positions.EARLIEST
                    self._stop = None if stop is None else positions.LATEST
                    self._look_at(topics)
                    self._member = GroupMember(
                        self._engine, where, group, topics,
                        instance=instance_id, assignor=assignor,
                        commit_interval_ns=duration_ns(commit_interval, "commit_interval"),
                        request_timeout_ns=duration_ns(request_timeout, "request_timeout"), rng=rng,
                    )  # fmt: skip
                    if not self._auto_commit:
                        self._member.membership.report_ns = ENDLESS
                    self._member.wait_joined()
                    self._follow()
                    return
                self._assign(topics, partitions)
                stop_at = positions.parse(stop) if stop is not None else last
                self._grows = partitions is None and stop_at is None
                self._start, self._stop = first or positions.EARLIEST, stop_at
                self._fix(list(self._readers), self._start, stop_at)
        except BaseException:
            self.close()
            raise

    # --- records

    def __iter__(self) -> Iterator[Record]:
        """Records, one by one; waits for more, and ends at `stop`."""
        member, now = self._member, SYSTEM_CLOCK.monotonic_ns
        watched = None if member is None else member.membership
        while True:
            self._finish()
            batch, self._in_hand = self._batch, None
            if batch is None or self._taken >= len(batch):
                batch = self._wait(self._next_batch(None, True))
                if batch is None:
                    return
                self._keep(batch, 0)
            self._in_hand = batch, None
            records = iter(batch if not self._taken else batch.part(self._taken, len(batch)))
            for record in records:
                self._taken += 1
                yield record
                if watched is not None and (watched.has_news or now() >= watched.report_ns):
                    self._finish()
                    with self._engine.lock:
                        self._follow()
                if self._batch is not batch:
                    break  # a seek, `batches` in between, or the partition is another member's

    def batches(
        self,
        max_records: int | None = None,
        timeout: Duration | None = None,
        copy: bool = True,
    ) -> Iterator[Batch]:
        """Batches as they are stored, or parts of at most `max_records`; ends at `stop`.

        With `timeout`, an empty batch whenever nothing has come for so long. With copy=False
        batches may be views of shared memory: a result counts only if `batch.valid()` afterwards.
        """
        if max_records is not None and max_records < 1:
            raise InvalidRequest(f"max_records = {max_records}: must be at least 1")
        timeout_ns = optional_ns(timeout, "timeout")
        while True:
            self._finish()
            if self._member is not None and self._member.has_news:
                with self._engine.lock:
                    self._follow()
            batch = self._rest()
            if batch is None:
                batch = self._wait(self._next_batch(timeout_ns, copy))
            if batch is None:
                return
            if max_records is not None and len(batch) > max_records:
                self._keep(batch, max_records)
                batch = batch.part(0, max_records)
            self._in_hand = (batch, batch.end_offset) if len(batch) else None
            yield batch

    def _rest(self) -> Batch | None:
        """What is left of the batch that was handed out in part."""
        batch, taken = self._batch, self._taken
        self._batch = None
        if batch is None or taken >= len(batch):
            return None
        return batch.part(taken, len(batch)) if taken else batch

    def _keep(self, batch: Batch, taken: int) -> None:
        """The first `taken` records of a batch are handed out, the others are not yet."""
        self._batch, self._taken = batch, taken

    # --- positions

    @property
    def assignment(self) -> list[TopicPartition]:
        """The partitions read, sorted."""
        return sorted(self._readers)

    def position(self, tp: TopicPartition) -> int:
        """The offset of the next record of a partition. Raises: UnknownTopic: not assigned."""
        reader = self._reader(tp)
        batch = self._batch
        if batch is not None and (batch.topic, batch.partition) == tp:
            return batch.offset_at(self._taken)
        return reader.position

    def seek(
        self, target: TopicPartition | Batch | str, position: Positionable | None = None
    ) -> None:
        """Go to a position: of one partition, of all partitions of a topic, or back to a batch's
        begin.

        Raises: UnknownTopic: not assigned; InvalidConfig.
        """
        with self._engine.lock:
            self._engine.check()
            if isinstance(target, Batch):
                reader = self._reader(TopicPartition(target.topic, target.partition))
                self._move(reader, target.base_offset)
                self._sought([reader.tp])
                return
            if position is None:
                raise InvalidRequest("seek needs a position, or a batch to go back to")
            wanted = (
                [tp for tp in self._readers if tp.topic == target]
                if isinstance(target, str)
                else [self._reader(target).tp]
            )
            if not wanted:
                raise UnknownTopic(f"topic {target!r} is not read by this consumer", topic=target)
            self._fix(wanted, positions.parse(position), None)
            self._sought(wanted)

    def pause(self, *partitions: TopicPartition) -> None:
        """Hand out no records of these partitions (none named: of all that are read now) until `resume`."""
        for tp in partitions or self.assignment:
            self._reader(tp).paused = True

    def resume(self, *partitions: TopicPartition) -> None:
        """Go on where `pause` has stopped."""
        for tp in partitions or self.assignment:
            self._reader(tp).paused = False

    def lateness(self) -> tuple[float, float]:
        """With `pace`: how late the last records were handed out, and the latest ones so far, in seconds."""
        if self._pacer is None:
            raise InvalidRequest("lateness: this consumer has no pace")
        return self._pacer.lateness_ns / NS_PER_S, self._pacer.lateness_max_ns / NS_PER_S

    def lag(self) -> dict[TopicPartition, int]:
        """How many committed records each partition has behind the position, as of now."""
        with self._engine.lock:
            found = self._engine.list_offsets([(tp, _LATEST) for tp in self._readers])
        return {tp: max(end.offset - self.position(tp), 0) for (tp, _), end in found.items()}

    # --- a member of a group

    def commit(self, done: Batch | Record | None = None, *, metadata: str = "") -> None:
        """Store, durably, that the group has finished all that was handed out, or all up to and with a batch
        or record; with up to 4096 bytes of text.

        Raises: PartitionMoved: the partition is another member's by now. RecordTooLarge: the text.
        """
        member = self._membership()
        marks = {}
        if done is None:
            for tp, reader in self._readers.items():
                marks[tp] = Mark(self.position(tp), reader.handed_epoch, metadata)
        else:
            tp = _place_of(done)
            if isinstance(done, Batch):
                marks[tp] = Mark(done.end_offset, done.leader_epoch, metadata)
            else:
                marks[tp] = Mark(done.offset + 1, self._epoch_of(done), metadata)
        with self._engine.lock:
            self._engine.check()
            member.commit(marks)

    def committed(self) -> dict[TopicPartition, CommittedOffset]:
        """The group's committed offsets of the partitions that are read here, where there are any."""
        member = self._membership()
        with self._engine.lock:
            self._engine.check()
            return member.committed(self._readers)

    def _epoch_of(self, record: Record) -> int:
        """The leader epoch of a record of the batch in hand; -1: it is of another one."""
        batch = self._batch
        if batch is None or _place_of(batch) != _place_of(record):
            return -1
        return batch.leader_epoch if batch.base_offset <= record.offset < batch.end_offset else -1

    def _membership(self) -> GroupMember:
        if self._member is None:
            raise InvalidRequest("this consumer is in no group: Consumer(..., group=NAME)")
        return self._member

    def _finish(self, *, closing: bool = False) -> None:
        """The application asks for more: what it has in its hands is finished. Not so in `close`: there only
        the records before the current one are.
        """
        member = self._member
        if self._in_hand is None or member is None or not self._auto_commit:
            return
        batch, end = self._in_hand
        if end is None:
            end = batch.base_offset + max(self._taken - closing, 0)
        elif closing:
            return
        else:
            self._in_hand = None
        member.finish(_place_of(batch), Mark(end, batch.leader_epoch))

    def _sought(self, tps: list[TopicPartition]) -> None:
        """The application goes on elsewhere: so does the group."""
        if self._member is not None and self._auto_commit:
            for tp in tps:
                reader = self._readers[tp]
                self._member.finish(tp, Mark(reader.position, reader.handed_epoch))

    def _follow(self) -> None:
        """Take and give up partitions as the coordinator says."""
        member = self._member
        while member is not None and member.has_news:
            self._check()
            news = member.news()
            for error in news.refused:
                self._tell(error)
            if news.lost:
                self._give_up(news.lost, lost=True)
            if news.releasing:
                self._give_up(news.releasing, lost=False)
            if news.assigned:
                self._take(member, news.assigned)

    def _give_up(self, parts: Iterable[TopicPartition], *, lost: bool) -> None:
        member = self._membership()
        tps = sorted(tp for tp in parts if tp in self._readers)
        try:
            if not lost:
                self._save(member)
            if self.on_revoke is not None and tps:
                self.on_revoke(tps, lost=lost)
        finally:
            for tp in tps:
                self._fetches.remove(tp)
                if self._batch is not None and _place_of(self._batch) == tp:
                    self._batch = self._in_hand = None
            member.release(parts)

    def _save(self, member: GroupMember, *, closing: bool = False) -> None:
        """The commit before partitions go; if it fails, their next reader repeats something."""
        if self._auto_commit:
            try:
                member.save_last() if closing else member.save()
            except ShmlogError as error:
                self._tell(error)

    def _tell(self, error: ShmlogError) -> None:
        if self._on_error is not None:
            self._on_error(error)

    def _take(self, member: GroupMember, parts: Parts) -> None:
        """Read new partitions, from where the group has come to."""
        try:
            mine = member.take(parts)
            topics = {tp.topic for tp in mine} - self._engine.session.topics
            if topics:
                self._engine.session.topics |= topics
                self._engine.refresh(sorted(self._engine.session.topics))
            for tp, topic_id in mine.items():
                self._fetches.add(PartitionReader(tp, topic_id, 0, ENDLESS))
            self._place(member, mine)
        except BaseException:
            for tp in parts:
                self._fetches.remove(tp)
            member.release(parts)  # it is news again
            raise
        if self.on_assign is not None and mine:
            self.on_assign(sorted(mine))

    def _place(self, member: GroupMember, parts: Parts) -> None:
        found = member.committed(parts)
        marks = {}
        for tp, stored in found.items():
            if stored.topic_id == parts[tp]:
                marks[tp] = Mark(stored.offset, stored.leader_epoch)
                self._move(self._readers[tp], *marks[tp][:2])
        member.begin(marks)
        fresh = [tp for tp in parts if tp not in marks]
        if fresh and self._needs_commit:
            raise InvalidRequest(
                f'group {member.group!r} has no committed offset for {fresh[0]}, and reset is "error"'
            )
        if fresh:
            self._fix(fresh, self._start, None)
            if self._start.kind is not positions.Kind.EARLIEST:
                # At once: nothing between this place and the first commit can be left out.
                member.commit({tp: Mark(self._readers[tp].position) for tp in fresh})
        if self._stop is not None:
            self._note_ends(tp for tp in parts if tp not in self._ends)
            for tp in parts:
                self._readers[tp].stop = self._ends[tp]

    def _look_at(self, topics: tuple[str, ...]) -> None:
        """Do the topics named exist? And where do they end, if that is where to stop?"""
        if not topics:
            raise InvalidConfig("name at least one topic")
        plain = [name for name in topics if not _GLOB & set(name)]
        found = (
            self._topics(list(topics) if self._stop is not None else plain)
            if plain or self._stop
            else []
        )
        if self._stop is not None:
            self._note_ends(
                TopicPartition(t.topic, p.partition) for t in found for p in t.partitions
            )

    def _note_ends(self, tps: Iterable[TopicPartition]) -> None:
        found = self._engine.list_offsets([(tp, _LATEST) for tp in tps])
        self._ends.update({tp: place.offset for (tp, _), place in found.items()})

    # --- the end

    def close(self) -> None:
        """Close the connections and let the rings go; a member of a group commits what is finished (if `commit`
        is "auto") and leaves. Idempotent, from any thread.
        """
        member = self._member
        try:
            if member is not None and not self._closed and not member.is_abandoned:
                self._closed = True
                self._engine.wake()
                try:
                    self._part(member)
                finally:
                    member.close()
        finally:
            self._engine.close()

    def _part(self, member: GroupMember) -> None:
        """Give all up, in good order, unless another thread reads on and on."""
        if not self._engine.lock.acquire(timeout=CLOSE_PATIENCE_S):
            return
        try:
            self._give_all_up(member)
        finally:
            self._engine.lock.release()

    def _give_all_up(self, member: GroupMember) -> None:
        self._finish(closing=True)
        self._save(member, closing=True)
        if self.on_revoke is not None and self._readers:
            self.on_revoke(self.assignment, lost=False)

    def _check(self) -> None:
        if self._closed:
            raise ClientClosed("this consumer is closed; make a new one")

    def __del__(self) -> None:
        member = getattr(self, "_member", None)
        if member is not None:
            member.close(wait=False)

    def __enter__(self) -> Consumer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- assignment

    @property
    def _readers(self) -> dict[TopicPartition, PartitionReader]:
        return self._fetches.readers

    def _reader(self, tp: TopicPartition) -> PartitionReader:
        reader = self._readers.get(TopicPartition(*tp))
        if reader is None:
            raise UnknownTopic(f"{tp} is not read by this consumer", topic=tp[0], partition=tp[1])
        return reader

    def _assign(
        self, topics: tuple[str, ...], partitions: Iterable[int | TopicPartition] | None
    ) -> None:
        named = [tp for tp in partitions or () if isinstance(tp, tuple)]
        numbers = None if partitions is None else [p for p in partitions if isinstance(p, int)]
        wanted = list(dict.fromkeys([*topics, *(tp[0] for tp in named)]))
        if not wanted:
            raise InvalidConfig("name at least one topic")
        for info in self._topics(wanted):
            count = len(info.partitions)
            if info.topic in topics or not named:
                chosen = list(range(count)) if numbers is None else numbers
            else:
                chosen = []
            chosen = [*chosen, *(tp[1] for tp in named if tp[0] == info.topic)]
            for number in dict.fromkeys(chosen):
                if not 0 <= number < count:
                    raise UnknownTopic(
                        f"topic {info.topic!r} has partitions 0..{count - 1}, not {number}",
                        topic=info.topic,
                        partition=number,
                        hint="",
                    )
                tp = TopicPartition(info.topic, number)
                self._fetches.add(PartitionReader(tp, info.topic_id, 0, ENDLESS))
        self._engine.session.topics = {tp.topic for tp in self._readers}

    def _topics(self, wanted: list[str]) -> list[TopicInfo]:
        """The topics named, and those that the patterns match now."""
        plain = [name for name in wanted if not _GLOB & set(name)]
        patterns = [name for name in wanted if _GLOB & set(name)]
        answer = self._engine.refresh(None if patterns else plain)
        found = {info.topic: info for info in answer.topics}
        chosen: dict[str, TopicInfo] = {}
        for name in plain:
            info = found.get(name)
            if info is None or info.error == 3:
                raise self._engine.unknown_topic(name)
            if info.error:
                raise from_wire(info.error, f"topic {name!r} cannot be read", topic=name)
            chosen[name] = info
        for pattern in patterns:
            theirs = fnmatch.filter(sorted(found), pattern)
            matching = [t for t in theirs if not t.startswith("__")]  # those are the brokers' own
            if not matching:
                raise UnknownTopic(f"no topic matches {pattern!r}", topic=pattern)
            chosen.update({name: found[name] for name in matching})
        return list(chosen.values())

    def _fix(self, tps: list[TopicPartition], start: Position, stop: Position | None) -> None:
        """Resolve positions into offsets, all as of now."""
        now_ns = SYSTEM_CLOCK.wall_ns()
        wanted = [p for p in (start, stop) if p is not None]
        times = {t for p in wanted if (t := p.timestamp_ns(now_ns)) is not None}
        asked = {_LATEST, _EARLIEST, *times} if any(_needs_ends(p) for p in wanted) else set()
        found = self._engine.list_offsets([(tp, t) for tp in tps for t in asked])

        def offset(tp: TopicPartition, position: Position) -> int:
            if not _needs_ends(position):
                return position.value
            time = position.timestamp_ns(now_ns)
            by_time = -1 if time is None else found[tp, time].offset
            return position.resolve(found[tp, _EARLIEST].offset, found[tp, _LATEST].offset, by_time)

        for tp in tps:
            reader = self._readers[tp]
            place = offset(tp, start)
            # What came with the answer that gave this place: the epoch of the record before it.
            known = [f for (t, _), f in found.items() if t == tp and f.offset == place]
            self._move(reader, place, *(known[0][1:] if known else ()))
            if stop is not None:
                reader.stop = offset(tp, stop)

    def _move(
        self, reader: PartitionReader, offset: int, last_epoch: int = -1, checked_epoch: int = -1
    ) -> None:
        reader.seek(offset, last_epoch, checked_epoch)
        if self._pacer is not None:
            self._pacer.begin_anew()
        if self._batch is not None and _place_of(self._batch) == reader.tp:
            self._batch = None
        if self._in_hand is not None and _place_of(self._in_hand[0]) == reader.tp:
            self._in_hand = None

    # --- the reading

    def _wait(self, steps: Steps) -> Batch | None:
        """Drive `_next_batch`: this is all that differs between this class and the one for asyncio."""
        with self._engine.lock:
            try:
                while True:
                    step = next(steps)
                    if callable(step):
                        step()
                    else:
                        self._engine.pump(step)
            except StopIteration as end:
                batch: Batch | None = end.value
                return batch

    def _next_batch(self, timeout_ns: int | None, copy: bool) -> Steps:
        """The next batch; an empty one at the time-out; None at the stop.

        Yields where there is something to wait for: up to how many ns for news of the sockets, or
        what to call, which asks brokers.
        """
        engine = self._engine
        engine.check()
        deadline_ns = None if timeout_ns is None else engine.now() + timeout_ns
        while True:
            self._check()
            if self._member is not None and self._member.has_news:
                yield self._follow
            if self._fetches.truncated:
                self._report_truncation()
            if self._added:
                yield self._take_added
            batch, due_ns = self._choose(copy)
            if batch is not None:
                return batch
            if self._is_over():
                return None
            if any(reader.error is not None for reader in self._readers.values()):
                yield self._raise_errors
            now = engine.now()
            left_ns = None if deadline_ns is None else deadline_ns - now
            if left_ns is not None and left_ns < 0:
                return Batch("", None, -1, -1, self._serdes, check_crc=False)
            self._ask(now)
            for at_ns in (self._fetches.next_retry_ns(now), due_ns):
                if at_ns is not None:
                    wait_ns = max(0, at_ns - now)
                    left_ns = wait_ns if left_ns is None else min(left_ns, wait_ns)
            yield left_ns

    def _choose(self, copy: bool) -> tuple[Batch | None, int | None]:
        """Records that are here, and due; else when they will be due, if that is known."""
        if self._pacer is not None:
            return self._pacer.next(self._filled(), self._engine.now())
        while (reader := self._find(copy)) is not None:
            batch = self._hand_out(reader)
            if len(batch):
                return batch, None
            # Compaction has left no record of it.
        return None, None

    def _is_over(self) -> bool:
        member = self._member
        if member is not None and (self._stop is None or not member.is_settled):
            return False  # more partitions may come
        return all(reader.finished for reader in self._readers.values())

    def _take_added(self) -> None:
        found = self._engine.list_offsets([(tp, _EARLIEST) for tp in self._added])
        added, self._added = self._added, {}
        for tp, topic_id in added.items():
            self._fetches.add(PartitionReader(tp, topic_id, found[tp, _EARLIEST].offset, ENDLESS))

    def _find(self, copy: bool) -> PartitionReader | None:
        """A partition with something in its buffer, filled from its ring if need be."""
        found = None
        for reader in self._fetches.in_turn():
            if reader.paused:
                continue
            if reader.pieces or (reader.wants and self._from_ring(reader, copy)):
                found = reader
                break
        if found is not None and not found.ring_try and len(found.pieces) <= _PIECES_AHEAD:
            # By socket: keep a request in flight while the user works on what is here.
            self._ask(self._engine.now())
            self._engine.pump(0)
        return found

    def _filled(self) -> list[PartitionReader]:
        """The partitions that are read, each with something in its buffer if there is anything."""
        readers = [reader for reader in self._fetches.in_turn() if not reader.paused]
        for reader in readers:
            if not reader.pieces and reader.wants:
                self._from_ring(reader, copy=True)  # a view would not last until it is due
        return readers

    def _from_ring(self, reader: PartitionReader, copy: bool) -> bool:
        """Read ahead from the ring; False if there is nothing, or no ring that has the place."""
        if not self._ring or not reader.ring_try:
            return False
        tail = reader.tail
        if tail is None:
            tail = reader.tail = self._attach(reader)
        pieces = None if tail is None else tail.poll(reader.fetch_offset, copy=copy)
        if pieces is None:
            self._leave_ring(reader)
            return False
        if not pieces and tail is not None and (tail.sealed or tail.is_stale(self._engine.now())):
            # Its writer leads no more, or does not live: look for the leader anew.
            reader.let_ring_go()
            self._fetches.news_wanted = True
            self._leave_ring(reader)
            return False
        reader.caught_up = not pieces
        for piece in pieces:
            reader.take_in(piece)
        if pieces:
            reader.in_flight = 0  # what a fetch still brings is known already
        return bool(pieces)

    def _attach(self, reader: PartitionReader) -> ring_tail.RingTail | None:
        metadata = self._engine.session.metadata
        leader = metadata.leader(reader.tp)
        if leader is None or leader.incarnation < 0:
            return None
        identity = RingIdentity(
            metadata.cluster,
            leader.broker,
            leader.incarnation,
            bytes.fromhex(reader.topic_id),
            reader.tp.partition,
        )
        if reader.leader_epoch >= 0 and reader.checked_epoch < leader.epoch:
            return None  # a new leader: may its log lack what was read? A fetch asks that first
        tail = ring_tail.attach(
            identity, check_crcs=self._check_crcs, bells=self._engine.check().doorbells
        )
        if tail is None:
            return None
        newer = reader.leader_epoch >= 0 and reader.checked_epoch < tail.leader_epoch
        if newer or tail.is_stale(self._engine.now()):
            tail.close()
            return None
        return tail

    def _leave_ring(self, reader: PartitionReader) -> None:
        """The place is not in the ring: by fetch, until an answer makes it worth another look."""
        reader.ring_try = False
        reader.caught_up = False
        if reader.tail is not None and reader.tail.sealed:
            reader.let_ring_go()
            self._fetches.news_wanted = True

    def _ask(self, now: int) -> None:
        session = self._engine.session
        fetches = self._fetches
        for endpoint, message, on_done in fetches.requests(now):
            patience_ns = message.max_wait_ms * NS_PER_MS
            session.submit(endpoint, message, (), on_done, now, patience_ns=patience_ns)
        if fetches.refresh_wanted or fetches.news_wanted:
            session.refresh(now, news=not fetches.refresh_wanted)
            fetches.refresh_wanted = fetches.news_wanted = False

    def _hand_out(self, reader: PartitionReader) -> Batch:
        piece = reader.next_piece()
        batch = Batch(
            reader.tp.topic,
            piece,
            reader.position,
            reader.stop,
            self._serdes,
            check_crc=False,
        )
        reader.position = min(piece.header.end_offset, reader.stop)
        reader.handed_epoch = piece.header.leader_epoch
        if reader.finished:
            reader.pieces.clear()
        if not reader.pieces:
            self._fetches.served(reader)
        return batch

    def _report_truncation(self) -> None:
        error = self._fetches.truncated.pop(0)
        if self._raise_truncation:
            raise error
        if self._on_error is not None:
            self._on_error(error)

    def _raise_errors(self) -> None:
        for reader in self._readers.values():
            error = reader.error
            if error is None:
                continue
            reader.error = None  # the user may seek, or simply try again
            if self._reset and isinstance(error, OffsetOutOfRange):
                self._go_to_start(reader, error)
            elif isinstance(error, UnknownTopic) and self._member is not None:
                pass  # the coordinator will say so too, and what comes instead
            elif isinstance(error, UnknownTopic):
                self._begin_anew(reader)
            else:
                raise error

    def _begin_anew(self, gone: PartitionReader) -> None:
        """The topic was deleted. One of the same name is another log: the old positions mean nothing in it."""
        topic = gone.tp.topic
        answers = self._engine.refresh([topic]).topics
        info = next((t for t in answers if t.topic == topic and not t.error), None)
        count = 0 if info is None or info.topic_id == gone.topic_id else len(info.partitions)
        if info is None or gone.tp.partition >= count:
            raise self._engine.unknown_topic(topic) from None
        tps = [tp for tp in self._readers if tp.topic == topic and tp.partition < count]
        for tp in tps:
            self._readers[tp].begin_anew(info.topic_id)
        start = self._start
        if start.kind is positions.Kind.OFFSET:
            start = positions.EARLIEST  # an offset of the old log
        self._fix(tps, start, self._stop)
        news = UnknownTopic(
            f"topic {topic!r} was deleted and made again: its old positions are dropped, reading goes on in "
            f"the new one from {start.kind.value}",
            code=Code.UNKNOWN_TOPIC_ID,
            topic=topic,
        )
        if not self._reset:
            raise news
        if self._on_error is not None:
            self._on_error(news)

    def _go_to_start(self, reader: PartitionReader, error: ShmlogError) -> None:
        before = reader.position
        if self._member is not None:
            self._fix([reader.tp], self._start, None)
        else:
            found = self._engine.list_offsets([(reader.tp, _EARLIEST)], API_TIMEOUT_NS)
            reader.seek(*found[reader.tp, _EARLIEST])
        if self._on_error is not None:
            self._on_error(
                OffsetOutOfRange(
                    f"{reader.tp}: went from offset {before} to {reader.position}: {error}",
                    topic=reader.tp.topic,
                    partition=reader.tp.partition,
                    offset=before,
                    new_offset=reader.position,
                )
            )

    def _on_metadata(self, now: int) -> None:
        metadata = self._engine.session.metadata
        self._fetches.leaders_changed()
        for reader in self._readers.values():
            reader.ring_try = True
            info = metadata.topics.get(reader.tp.topic)
            if info is not None and (info.error == 3 or info.topic_id not in ("", reader.topic_id)):
                # Deleted, perhaps made again: another log, whose offsets mean something else.
                reader.error = UnknownTopic(f"topic {reader.tp.topic!r} was deleted")
            elif metadata.leader(reader.tp) is None:
                self._fetches.news_wanted = True
        for topic in self._engine.session.topics if self._grows else ():
            info = metadata.topics[topic]
            for number in range(len(info.partitions)):
                tp = TopicPartition(topic, number)
                if tp not in self._readers and not info.error:
                    self._added[tp] = info.topic_id


def _needs_ends(position: Position) -> bool:
    return position.kind is not positions.Kind.OFFSET


def _place_of(what: Batch | Record) -> TopicPartition:
    return TopicPartition(what.topic, what.partition)
