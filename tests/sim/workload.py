"""Clients as small state machines that speak the real protocol to any broker.

A client asks one thing of one broker and is called back with the answer, or with None when the link broke or time is
up. What a producer does with an unknown fate is the strictest thing the protocol promises to bear: an idempotent one
sends the same batches again, in order, until each has succeeded; another one never does.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.errors import Code
from shmlog.records import batch as batches
from shmlog.records.builder import build

from .checkers import Checker, Key
from .history import History, Poll, Send
from .truth import Truth, rows_of
from .world import Link, Violation, World

MS = NS_PER_MS
_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.decode
Answer = dict[str, Any]
Callback = Callable[[Answer | None, list[bytes]], None]
NOT_WRITTEN = (Code.NOT_ENOUGH_REPLICAS, Code.DISK_FULL, Code.BUSY)
OUT_OF_SEQUENCE = (Code.OUT_OF_ORDER_SEQUENCE_NUMBER, Code.UNKNOWN_PRODUCER_ID)


@dataclass(slots=True)
class Asked:
    """A produce, for the checker."""

    acks: str
    count: int
    body_crc: int | None


class Client:
    """Links, ids, time-outs, and who leads what."""

    pid = 0  # as brokers see it

    def __init__(self, load: Workload, number: int) -> None:
        self.load = load
        self.world: World = load.world
        self.checker: Checker = load.checker
        self.number = number
        self.rng = random.Random(f"client {load.world.seed} {number}")
        self.links: dict[int, Link] = {}
        self._ids = 0
        self._waiting: dict[tuple[bytes, int], Callback] = {}
        self.leaders: dict[Key, int] = {}
        self.timeout_ms = load.rng.choice((1500, 4000))
        self.closes_late_links = load.rng.random() < 0.5

    def link(self, broker: int) -> Link | None:
        link = self.links.get(broker)
        if link is not None and link.open and link.session in self.world.links:
            return link
        process = self.world.registry.get(broker)
        if process is None or not process.alive:
            return None
        if link is not None and link.open:
            return link  # broken, and it has not heard of that
        link = self.links[broker] = Link(self.world, self, process)
        return link

    def ask(
        self,
        broker: int,
        message: dict[str, Any],
        callback: Callback,
        frames: Sequence[bytes] = (),
        info: Any = None,
        timeout_ms: int | None = None,
    ) -> None:
        """One request; `callback` is called once."""
        link = self.link(broker)
        if link is None:
            self.world.after(self.rng.randrange(MS, 20 * MS), callback, None, [])
            return
        self._ids += 1
        timeout_ms = self.timeout_ms if timeout_ms is None else timeout_ms
        name = (link.session, self._ids)
        self._waiting[name] = callback
        if info is not None:
            self.checker.expected[name] = info
        header = _encode({"id": self._ids, "timeout_ms": timeout_ms, **message})
        link.send([header, *frames])
        self.world.after((timeout_ms + 300) * MS, self._late, link, name)

    def received(self, link: Link, frames: list[bytes]) -> None:
        answer = _decode(frames[0])
        callback = self._waiting.pop((link.session, answer["id"]), None)
        if callback is not None:
            callback(answer, frames[1:])

    def disconnected(self, link: Link) -> None:
        for name in [n for n in self._waiting if n[0] == link.session]:
            self._waiting.pop(name)(None, [])

    def _late(self, link: Link, name: tuple[bytes, int]) -> None:
        callback = self._waiting.pop(name, None)
        if callback is None:
            return
        if self.closes_late_links and link.open:
            link.close()
            self.disconnected(link)
        callback(None, [])

    def find(self, then: Callable[[], None]) -> None:
        """Ask anybody who leads what; `then` comes whether it was found or not."""
        broker = self.rng.choice(self.world.brokers)

        def told(answer: Answer | None, _: list[bytes]) -> None:
            if answer is not None and not answer["error"]:
                for topic in answer["topics"]:
                    for state in topic["partitions"]:
                        key = (bytes.fromhex(topic["topic_id"]), state["partition"])
                        self.leaders[key] = state["leader"]
            then()

        self.ask(broker, {"op": "metadata"}, told, timeout_ms=500)

    def exists(self, key: Key) -> bool:
        return key[0] in self.checker.image.names


class Topic:
    """A topic as it was created."""

    def __init__(self, name: str, topic_id: bytes, partitions: int, *, keyed: bool) -> None:
        self.name, self.topic_id, self.partitions, self.keyed = name, topic_id, partitions, keyed
        self.gone = False


def _topic(found: Any) -> Topic:
    keyed = found.config.is_compacted
    return Topic(found.name, found.topic_id, len(found.partitions), keyed=keyed)


class _Batch:
    __slots__ = ("count", "crc", "frame", "keys", "send", "sequence", "was_unknown")

    def __init__(self, send: Send, keys: list[bytes], frame: bytes, sequence: int) -> None:
        self.send, self.keys, self.frame, self.sequence = send, keys, frame, sequence
        self.count = len(send.values)
        self.crc = batches.decode_header(frame).body_crc
        self.was_unknown = False


class Producer(Client):
    """Sends to one partition. `stuck_since_ns`: of its oldest batch without an answer."""

    def __init__(
        self, load: Workload, number: int, topic: Topic, index: int, acks: str, idempotent: bool
    ) -> None:
        super().__init__(load, number)
        self.topic, self.key = topic, (topic.topic_id, index)
        self.acks, self.idempotent = acks, idempotent
        self.simple = not idempotent and self.rng.random() < 0.5
        self.window = self.rng.choice((1, 2, 5, 5))
        self.pause_ms = self.rng.choice((15, 60, 150))
        self.size = self.rng.choice((0, 0, 50, 3000))
        self.producer_id = -1
        self.sequence = 0
        self.made = 0
        self.unresolved: deque[_Batch] = deque()
        self.outstanding = 0
        self.recovering = False
        self.active = True
        self._tick()

    def __repr__(self) -> str:
        return f"<producer {self.number} of {self.topic.name}-{self.key[1]} acks={self.acks}>"

    # -- making ---------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if not self.active:
            return
        if not self.exists(self.key):
            if self.topic.gone:
                self.give_up()
                return
        elif self.idempotent and self.producer_id < 0:
            self._init()
            return
        elif not self.recovering and len(self.unresolved) < self.window:
            self._make()
        self.world.after(
            self.rng.randrange(self.pause_ms * MS // 2, self.pause_ms * MS * 2), self._tick
        )

    def _init(self) -> None:
        def told(answer: Answer | None, _: list[bytes]) -> None:
            if answer is not None and not answer["error"]:
                self.load.take_producer_id(answer["producer_id"])
                self.producer_id, self.sequence = answer["producer_id"], 0
            self.world.after(self.rng.randrange(5 * MS, 50 * MS), self._tick)

        self.ask(self.rng.choice(self.world.brokers), {"op": "init_producer"}, told)

    def _make(self) -> None:
        values: list[bytes | None] = []
        keys: list[bytes] = []
        for _ in range(self.rng.choice((1, 1, 2, 4))):
            self.made += 1
            values.append(b"%d.%d." % (self.number, self.made) + b"x" * self.size)
            if self.topic.keyed:
                keys.append(b"k%d" % self.rng.randrange(6))
                if self.rng.random() < 0.25:
                    values[-1] = None
        send = Send(
            self.number,
            self.key,
            values,
            self.world.now_ns,
            acks=self.acks,
            idempotent=self.idempotent,
        )
        self.load.history.sends.append(send)
        frame = build(
            values,
            keys=keys or None,
            timestamps=self.world.clock.wall_ns(),
            producer_id=self.producer_id,
            producer_epoch=0 if self.idempotent else -1,
            base_sequence=self.sequence if self.idempotent else -1,
        )
        batch = _Batch(send, keys, bytes(frame), self.sequence)
        self.sequence += batch.count
        if self.idempotent:
            self.unresolved.append(batch)
        self._send(batch)

    # -- sending --------------------------------------------------------------------------------------

    def _send(self, batch: _Batch) -> None:
        leader = self.leaders.get(self.key, -1)
        if leader < 0:
            self._failed(batch, None)
            return
        self.outstanding += 1

        def told(answer: Answer | None, _: list[bytes]) -> None:
            self.outstanding -= 1
            if answer is not None and "partitions" in answer:
                answer = answer["partitions"][0]
            if answer is not None and not answer["error"]:
                self._succeeded(batch, answer)
            else:
                self._failed(batch, answer)

        partition = {"topic": self.topic.name, "partition": self.key[1]}
        partition["topic_id"] = self.topic.topic_id.hex()
        if self.simple:
            keys = batch.keys or [b""] * batch.count
            values = batch.send.values
            frames = [
                x for key, value in zip(keys, values, strict=True) for x in (key, value or b"")
            ]
            nulls = [] if batch.keys else list(range(batch.count))
            message = {"op": "produce", "mode": "simple", "count": batch.count, "null_keys": nulls}
            message["null_values"] = [i for i, value in enumerate(values) if value is None]
            self.ask(
                leader,
                {**message, **partition, "acks": self.acks},
                told,
                frames,
                Asked(self.acks, batch.count, None),
            )
            return
        message = {"op": "produce", "mode": "fast", "partitions": [partition], "acks": self.acks}
        self.ask(leader, message, told, [batch.frame], Asked(self.acks, batch.count, batch.crc))

    def _succeeded(self, batch: _Batch, result: Answer) -> None:
        if batch.send.type != "ok":
            batch.send.ok(result["base_offset"], self.world.now_ns)
            self.load.acked += 1
        if batch in self.unresolved:
            self.unresolved.remove(batch)
        self._maybe_recover()

    def _failed(self, batch: _Batch, error: Answer | None) -> None:
        code = None if error is None else error["error"]
        if code is None:
            self.leaders.pop(self.key, None)
        if not self.idempotent:
            if code in NOT_WRITTEN:
                batch.send.fail(self.world.now_ns)
            self.recovering = True
            self._maybe_recover()
            return
        if batch.send.type == "ok":
            return
        if code in OUT_OF_SEQUENCE and self.unresolved and self.unresolved[0] is batch:
            self._out_of_sequence(batch, error)
            return
        if code == Code.INVALID_PRODUCER_EPOCH:
            raise Violation(f"I14 {self} is fenced by itself: {error}")
        self.recovering = True
        self._maybe_recover()

    def _out_of_sequence(self, batch: _Batch, error: Answer | None) -> None:
        truth = self.checker.truths[self.key]
        if self.acks == "all" and not truth.losses and not self.load.forgives:
            raise Violation(f"I14 {self}: sequence {batch.sequence} refused: {error}")
        self.producer_id = -1  # what is unresolved stays unknown
        self.unresolved.clear()
        self.recovering = False

    def _maybe_recover(self) -> None:
        if not self.recovering or self.outstanding:
            return
        self.recovering = True
        self.outstanding += 1  # until it has been looked who leads
        delay_ns = self.rng.randrange(5 * MS, 150 * MS)
        self.world.after(delay_ns, self.find, self._again)

    def _again(self) -> None:
        self.outstanding -= 1
        if not self.exists(self.key) and self.topic.gone:
            self.give_up()
            return
        self.recovering = False
        for batch in list(self.unresolved):
            self._send(batch)
        if not self.idempotent and self.leaders.get(self.key, -1) < 0:
            self.recovering = True
            self._maybe_recover()

    def give_up(self) -> None:
        """The topic is deleted."""
        self.active = False
        self.unresolved.clear()
        self.recovering = False


class Fetcher(Client):
    """Reads one partition from its start on, and checks what it gets against what is committed."""

    def __init__(self, load: Workload, number: int, topic: Topic, index: int) -> None:
        super().__init__(load, number)
        self.topic, self.key = topic, (topic.topic_id, index)
        self.position = 0
        self.reset = True
        self.fast = self.rng.random() < 0.6
        self.wait_ms = self.rng.choice((0, 100, 500))
        self.active = True
        self.pause_ms = self.rng.choice((10, 100, 300))
        world = self.world
        world.after(self.rng.randrange(50 * MS), self._next)

    def __repr__(self) -> str:
        return f"<fetcher {self.number} of {self.topic.name}-{self.key[1]} at {self.position}>"

    def _later(self, *, lost: bool = False) -> None:
        delay_ns = self.rng.randrange(MS, self.pause_ms * MS * 2)
        if lost:
            self.world.after(delay_ns, self.find, self._next)
        else:
            self.world.after(delay_ns, self._next)

    def _next(self) -> None:
        if not self.active or (self.topic.gone and not self.exists(self.key)):
            return
        leader = self.leaders.get(self.key, -1)
        if leader < 0:
            self._later(lost=True)
            return
        asked_ns = self.world.now_ns
        fields = {
            "topic": self.topic.name,
            "partition": self.key[1],
            "offset": self.position,
            "topic_id": self.topic.topic_id.hex(),
        }

        def told(answer: Answer | None, frames: list[bytes]) -> None:
            if answer is not None and "partitions" in answer:
                answer = answer["partitions"][0]
            if answer is None:
                self.leaders.pop(self.key, None)
                self._later(lost=True)
            elif answer["error"] == Code.OFFSET_OUT_OF_RANGE:
                self._out_of_range(answer)
            elif answer["error"]:
                self._later(lost=True)
            else:
                self._take(answer, frames, asked_ns)

        message: dict[str, Any]
        if self.fast:
            message = {"op": "fetch", "mode": "fast", "partitions": [fields]}
        else:
            message = {"op": "fetch", "mode": "simple", **fields}
        self.ask(leader, {**message, "max_wait_ms": self.wait_ms}, told)

    def _take(self, answer: Answer, frames: list[bytes], asked_ns: int) -> None:
        if not self.exists(self.key):
            return  # deleted, and the leader does not know: what it commits now is nobody's truth
        truth = self.checker.truths[self.key]
        recent = [start for at, start, _ in truth.losses if at >= asked_ns]
        limit = min(recent, default=1 << 60)  # behind it a loss was on its way
        records: list[tuple[int, bytes | None]] = []
        end = self.position
        if self.fast:
            for frame in frames:
                for position, header in batches.iterate(memoryview(frame)):
                    found = rows_of(header, memoryview(frame)[position:])
                    records += [(offset, value) for offset, _, value in found if offset >= end]
                    end = max(end, header.end_offset)
        else:
            base, nulls = answer["base_offset"], set(answer["null_values"])
            offsets = answer.get("offsets") or range(base, base + answer["count"])
            for i, (offset, value) in enumerate(zip(offsets, frames[1::2], strict=True)):
                records.append((offset, None if i in nulls else value))
            end = answer["next_offset"]
        for offset, value in records:
            if offset >= limit:
                break
            known = truth.row(offset)
            if known is None or known[2] != value:
                raise Violation(
                    f"I16 {self} read {value and value[:20]!r} at {offset}, committed is {known}"
                )
        if answer["high_watermark"] > truth.highest:
            raise Violation(
                f"I3 {self} is told {answer['high_watermark']}, {truth.highest} is committed"
            )
        if self.topic.keyed and end <= limit:
            records = self._with_compacted(truth, records, end)
        if records:
            self.load.history.polls.append(Poll(self.number, self.key, records, self.reset))
            self.load.read += len(records)
            self.reset = False
        self.position = end
        self._later()

    def _with_compacted(
        self, truth: Truth, records: list[tuple[int, bytes | None]], end: int
    ) -> list[tuple[int, bytes | None]]:
        """What was read, and what compaction had rightly taken from between: as if it had been read."""
        there = dict(records)
        topic = self.checker.image.by_id(self.key[0])
        for offset in range(self.position, end):
            row = truth.row(offset)
            if offset in there or row is None or topic is None:
                continue
            if not truth.may_be_gone(row, self.checker.deletes_due_ns(topic.config, truth)):
                raise Violation(f"I22 {self} up to {end}: {row} is not there")
            there[offset] = row[2]
            self.world.count("compacted away for a reader")
        return sorted(there.items())

    def _out_of_range(self, answer: Answer) -> None:
        """Below the log start after a trim; beyond the end after a loss, or at one who lags behind."""
        truth = self.checker.truths[self.key]
        log_start = answer.get("log_start", -1)
        state = self.checker.image.partition(*self.key)
        if log_start > self.position:
            if state is not None and log_start > max(state.log_start, truth.given_up):
                raise Violation(f"I22 {self}: log start {log_start}, deleted was {state.log_start}")
            self.position = log_start
            self.reset = True
        elif truth.losses:
            self.position = min(self.position, truth.end)
            self.reset = True
        else:
            raise Violation(f"I18 {self} is out of range: {answer}")
        self._later(lost=True)


class Admin(Client):
    """Creates topics, and changes this and that."""

    def __init__(self, load: Workload, number: int) -> None:
        super().__init__(load, number)
        self.timeout_ms = 3000
        self.active = True
        self._tick()

    def _tick(self) -> None:
        if not self.active:
            return
        load, rng = self.load, self.rng
        if len(load.topics) < load.topic_count:
            self._create()
        elif load.changes and rng.random() < 0.5:
            self._change(rng.choice(load.topics))
        elif rng.random() < 0.3:
            self._look(rng.choice(load.topics))
        self.world.after(rng.randrange(100 * MS, 600 * MS), self._tick)

    def _create(self) -> None:
        load, rng = self.load, self.rng
        name = f"t{load.next_topic}"
        load.next_topic += 1
        count = len(self.world.brokers)
        factor = rng.choice((min(3, count), min(3, count), rng.randrange(1, min(3, count) + 1)))
        configs: dict[str, Any] = {"durability": rng.choice(load.durabilities)}
        if rng.random() < 0.3:
            configs["min_insync_replicas"] = rng.choice((1, 2, 3))
        partitions = rng.choice((1, 1, 2))
        if load.retention is not None:
            configs |= load.retention_settings()
        if load.compaction is not None:
            configs |= load.compaction_settings()

        def told(answer: Answer | None, _: list[bytes]) -> None:
            found = self.checker.image.topics.get(name)
            if answer is not None and answer["error"] and found is not None and not load.stopping:
                pass  # refused, yet made: its fate was unknown
            if found is not None and all(t.topic_id != found.topic_id for t in load.topics):
                load.topic_created(_topic(found))

        message = {
            "op": "create_topic",
            "topic": name,
            "partition_count": partitions,
            "replication_factor": factor,
            "configs": configs,
        }
        self.ask(rng.choice(self.world.brokers), message, told)

    def _change(self, topic: Topic) -> None:
        rng = self.rng
        key = (topic.topic_id, rng.randrange(topic.partitions))
        what = rng.choice(self.load.changes)
        message: dict[str, Any] = {"topic": topic.name}
        broker = rng.choice(self.world.brokers)
        partition = {"topic": topic.name, "partition": key[1]}
        if what == "min_insync":
            message |= {"op": "alter_topic", "set": {"min_insync_replicas": rng.choice((1, 2, 3))}}
        elif what == "durability":
            message |= {"op": "alter_topic", "set": {"durability": rng.choice(("os", "disk"))}}
        elif what == "retention":
            message |= {"op": "alter_topic", "set": self.load.retention_settings()}
        elif what == "elect":
            message = {"op": "elect", **partition}
            broker = self._leader(key)
        elif what == "trim":
            truth = self.checker.truths[key]
            offset = rng.choice((-1, rng.randrange(truth.end + 1)))
            message = {"op": "delete_records", "partitions": [{**partition, "offset": offset}]}
            broker = self._leader(key)
        elif what == "partitions":
            topic.partitions = min(3, topic.partitions + 1)
            message |= {"op": "add_partitions", "partition_count": topic.partitions}
            topic.partitions -= 1
        else:
            message |= {"op": "delete_topic"}
            topic.gone = True
            self.load.topics.remove(topic)
        self.world.count(f"changes: {what}")
        self.ask(broker, message, lambda *_: None)

    def _leader(self, key: Key) -> int:
        state = self.checker.image.partition(*key)
        return state.leader if state is not None and state.leader >= 0 else self.world.brokers[0]

    def _look(self, topic: Topic) -> None:
        rng = self.rng
        partition = {"topic": topic.name, "partition": 0}
        message: dict[str, Any] = rng.choice(
            (
                {"op": "describe_cluster"},
                {"op": "describe_topic", "topic": topic.name},
                {"op": "epochs", **partition},
                {"op": "metadata_log", "from_offset": 0, "max_records": 20},
                {"op": "list_offsets", "partitions": [{**partition, "timestamp": -1}]},
                {"op": "list_offsets", "partitions": [{**partition, "timestamp": 5}]},
                {"op": "hello"},
            )
        )

        def told(answer: Answer | None, _: list[bytes]) -> None:
            if answer is not None and "partitions" in answer and message["op"] == "list_offsets":
                found = answer["partitions"][0]
                truth = self.checker.truths.get((topic.topic_id, 0))
                if not found["error"] and truth is not None and found["offset"] > truth.highest:
                    raise Violation(f"I3 list_offsets says {found}, committed is {truth.highest}")

        broker = rng.choice(self.world.brokers)
        if message["op"] in ("epochs", "list_offsets"):
            broker = self._leader((topic.topic_id, 0))
        self.ask(broker, message, told)


class Workload:
    """All clients of one life."""

    def __init__(self, world: World, checker: Checker, rng: random.Random) -> None:
        self.world, self.checker, self.rng = world, checker, rng
        self.history = History()
        self.topics: list[Topic] = []
        self.clients: list[Client] = []
        self.topic_count = 1
        self.next_topic = 0
        self.durabilities: tuple[str, ...] = ("os",)
        self.changes: tuple[str, ...] = ()
        self.acks: tuple[str, ...] = ("all",)
        self.retention: random.Random | None = None  # set: topics have rules of retention
        self.compaction: random.Random | None = None  # set: topics are compacted
        self.forgives = False
        self.stopping = False
        self.acked = self.read = 0
        self._producer_ids: set[int] = set()

    def start(self) -> None:
        self.clients.append(Admin(self, 0))

    def retention_settings(self) -> dict[str, Any]:
        assert self.retention is not None
        return {
            "segment_age": self.retention.choice((100, 300, 1000)),
            "retention": self.retention.choice((-1, 0, 500, 2500)),
            "retention_bytes": self.retention.choice((-1, -1, 1000, 20_000)),
        }

    def compaction_settings(self) -> dict[str, Any]:
        assert self.compaction is not None
        choice = self.compaction.choice
        return {
            "cleanup_policy": choice(("compact", "compact", "compact,delete")),
            "segment_age": choice((100, 300, 1000)),
            "min_cleanable_dirty_ratio": choice((0.0, 0.3)),
            "max_compaction_lag": choice((-1, 300)),
            "delete_retention": choice((0, 500, 2500)),
        }

    def take_producer_id(self, producer_id: int) -> None:
        if producer_id in self._producer_ids:
            raise Violation(f"I14 producer id {producer_id} was given out twice")
        self._producer_ids.add(producer_id)

    def topic_created(self, topic: Topic) -> None:
        self.topics.append(topic)
        if self.stopping:
            return  # the answer was late: nobody writes any more
        for index in range(topic.partitions):
            for _ in range(self.rng.choice((1, 1, 2))):
                acks = self.rng.choice(self.acks)
                idempotent = acks != "0" and self.rng.random() < 0.75
                self.clients.append(
                    Producer(self, len(self.clients), topic, index, acks, idempotent)
                )
            if self.rng.random() < 0.7:
                self.clients.append(Fetcher(self, len(self.clients), topic, index))

    def stop(self) -> None:
        """No new batches, no changes."""
        self.stopping = True
        self.topic_count = 0
        for client in self.clients:
            if isinstance(client, Producer | Admin):
                client.active = False

    def unresolved(self) -> list[Producer]:
        """L3."""
        return [c for c in self.clients if isinstance(c, Producer) and c.unresolved]

    def read_again(self) -> None:
        """The last readers: each key from its start."""
        for found in self.checker.image.topics.values():
            topic = _topic(found)
            if topic.name.startswith("__"):
                continue  # the members of groups look at it
            for index in range(topic.partitions):
                self.clients.append(Fetcher(self, len(self.clients), topic, index))

    def unread(self) -> list[Fetcher]:
        """L4."""
        return [
            c
            for c in self.clients
            if isinstance(c, Fetcher)
            and c.exists(c.key)
            and c.position < self.checker.truths[c.key].end
        ]

    def check_history(self) -> None:
        from .history import anomalies

        history = self.history
        for key, truth in self.checker.truths.items():
            state = self.checker.image.partition(*key)
            gone = 1 << 60 if state is None else max(state.log_start, truth.given_up)
            history.trimmed[key] = gone
            history.excused.update((key, value) for value in truth.lost_values)
        found = anomalies(history)
        if found:
            raise Violation(f"history: {found[0]} (and {len(found) - 1} more)")


DEADLINE_NS = 30 * NS_PER_S
