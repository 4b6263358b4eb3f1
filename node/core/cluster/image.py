"""Metadata records and the immutable image they add up to. Pure.

A record set (one batch of the metadata log) is one atomic change: `apply` returns a new image, the old one
stays as it was, so whoever holds an image sees one moment of the cluster.

    cluster        cluster id, format version            first record of every metadata log
    broker         id, incarnation, boot id, endpoints   a broker has registered
    fence          id, incarnation, fenced or not, why   it may not lead (hung, dead, stopping), or may again
    topic          id, name, partition count
    remove_topic   id
    partition      topic id, index, replicas, leader, epochs, ISR, log start, ...
    config         topic id, key, value or null          null: back to the layer below
    producer_ids   first id of the next block
    noop           -                                     a new controller's first record: Raft commits by it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from shmlog.settings import TopicConfig

FORMAT_VERSION = 1


class ClusterRecord(msgspec.Struct, frozen=True, tag="cluster", tag_field="kind"):
    """The log's owner."""

    cluster: str
    format: int = FORMAT_VERSION


class BrokerRecord(msgspec.Struct, frozen=True, tag="broker", tag_field="kind"):
    """One uptime of a broker."""

    broker: int
    incarnation: int
    boot_id: str
    pid: int
    endpoints: Mapping[str, str]  # "client" and "peer"


class FenceRecord(msgspec.Struct, frozen=True, tag="fence", tag_field="kind"):
    """A broker's incarnation is fenced, or not any more. A registration unfences."""

    broker: int
    incarnation: int
    fenced: bool
    reason: str = ""


class TopicRecord(msgspec.Struct, frozen=True, tag="topic", tag_field="kind"):
    """A topic; its partitions follow in the same set."""

    topic_id: bytes
    name: str
    partition_count: int


class RemoveTopicRecord(msgspec.Struct, frozen=True, tag="remove_topic", tag_field="kind"):
    """A topic is gone; its id is never used again."""

    topic_id: bytes


class PartitionRecord(msgspec.Struct, frozen=True, tag="partition", tag_field="kind"):
    """The state of one partition, whole.

    leader: -1 while nobody may lead. It serves, followers too, only once `started`: the start of `leader_epoch`
    (`epoch_start`) is committed. `last_leader`: (broker, incarnation, epoch) of the last one that started.
    isr: in-sync replicas, confirmed. `lossy`: who left it as lossy since the last epoch start.
    recovery_epoch: the last epoch begun by a recovery or unclean election, -1 none; `lost`: (from, to) given up by
    it, for `describe`.
    """

    topic_id: bytes
    partition: int
    replicas: tuple[int, ...]
    leader: int
    leader_epoch: int
    partition_epoch: int
    isr: tuple[int, ...]
    log_start: int = 0
    started: bool = False
    epoch_start: int = 0
    last_leader: tuple[int, int, int] | None = None
    lossy: tuple[int, ...] = ()
    recovery_epoch: int = -1
    lost: tuple[int, int] | None = None


class ConfigRecord(msgspec.Struct, frozen=True, tag="config", tag_field="kind"):
    """One setting of one topic, parsed and checked."""

    topic_id: bytes
    key: str
    value: int | float | str | bool | None


class ProducerIdsRecord(msgspec.Struct, frozen=True, tag="producer_ids", tag_field="kind"):
    """Ids below `next_id` have been given to brokers."""

    broker: int
    next_id: int


class NoopRecord(msgspec.Struct, frozen=True, tag="noop", tag_field="kind"):
    """Nothing."""


Record = (
    ClusterRecord
    | BrokerRecord
    | FenceRecord
    | TopicRecord
    | RemoveTopicRecord
    | PartitionRecord
    | ConfigRecord
    | ProducerIdsRecord
    | NoopRecord
)
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """A record as the value of one record of the metadata log."""
    return _ENCODER.encode(record)


def decode_record(value: bytes) -> Record:
    """The record in a value of the metadata log. Raises msgspec.MsgspecError."""
    record: Record = _DECODER.decode(value)
    return record


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic at one moment. `overrides` are its own settings, `config` what is in force."""

    name: str
    topic_id: bytes
    partitions: tuple[PartitionRecord, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    config: TopicConfig = field(default_factory=TopicConfig)


@dataclass(frozen=True, slots=True)
class Image:
    """The cluster at metadata offset `offset`: all records below it are applied."""

    cluster: str = ""
    offset: int = 0
    brokers: Mapping[int, BrokerRecord] = field(default_factory=dict)
    fenced: Mapping[int, str] = field(default_factory=dict)  # broker -> why
    fenced_at: Mapping[int, int] = field(default_factory=dict)  # broker -> offset behind that set
    topics: Mapping[str, Topic] = field(default_factory=dict)
    names: Mapping[bytes, str] = field(default_factory=dict)
    next_producer_id: int = 0
    producer_blocks: Mapping[int, int] = field(
        default_factory=dict
    )  # broker -> its last block's end
    topic_defaults: Mapping[str, Any] = field(default_factory=dict)  # of cluster.toml

    def by_id(self, topic_id: bytes) -> Topic | None:
        """The topic with this id, if it is still there."""
        name = self.names.get(topic_id)
        return None if name is None else self.topics[name]

    def partition(self, topic_id: bytes, partition: int) -> PartitionRecord | None:
        """The state of a partition, if it is there."""
        topic = self.by_id(topic_id)
        if topic is None or not 0 <= partition < len(topic.partitions):
            return None
        return topic.partitions[partition]

    def is_current(self, broker: int, incarnation: int) -> bool:
        """Is this the registered incarnation of the broker?"""
        record = self.brokers.get(broker)
        return record is not None and record.incarnation == incarnation

    def unfenced(self) -> frozenset[int]:
        """The brokers that are registered and not fenced: those that may lead, as far as is committed."""
        return frozenset(self.brokers.keys() - self.fenced.keys())


class _Draft:
    """An image being made: mutable copies, so that a set of a thousand records costs no thousand copies."""

    def __init__(self, image: Image) -> None:
        self.cluster = image.cluster
        self.brokers = dict(image.brokers)
        self.fenced = dict(image.fenced)
        self.fenced_at = dict(image.fenced_at)
        self.topics = dict(image.topics)
        self.names = dict(image.names)
        self.next_producer_id = image.next_producer_id
        self.producer_blocks = dict(image.producer_blocks)
        self.defaults = image.topic_defaults
        self.partitions: dict[str, list[PartitionRecord]] = {}
        self.overrides: dict[str, dict[str, Any]] = {}

    def apply(self, record: Record, offset: int) -> None:
        match record:
            case ClusterRecord():
                self.cluster = record.cluster
            case BrokerRecord():
                self.brokers[record.broker] = record
                self._unfence(record.broker)
            case FenceRecord():
                if record.fenced:
                    self.fenced[record.broker] = record.reason
                    self.fenced_at[record.broker] = offset
                else:
                    self._unfence(record.broker)
            case TopicRecord():
                topic = self.topics.get(record.name)
                if topic is None:
                    config = TopicConfig(**self.defaults)
                    self.topics[record.name] = Topic(record.name, record.topic_id, config=config)
                    self.names[record.topic_id] = record.name
            case RemoveTopicRecord():
                name = self.names.pop(record.topic_id)
                del self.topics[name]
                self.partitions.pop(name, None)
                self.overrides.pop(name, None)
            case PartitionRecord():
                self._partition(record)
            case ConfigRecord():
                self._config(record)
            case ProducerIdsRecord():
                self.next_producer_id = record.next_id
                self.producer_blocks[record.broker] = record.next_id
            case NoopRecord():
                pass

    def _unfence(self, broker: int) -> None:
        self.fenced.pop(broker, None)
        self.fenced_at.pop(broker, None)

    def _partition(self, record: PartitionRecord) -> None:
        name = self.names[record.topic_id]
        partitions = self.partitions.get(name)
        if partitions is None:
            partitions = self.partitions[name] = list(self.topics[name].partitions)
        if record.partition == len(partitions):
            partitions.append(record)
        else:
            partitions[record.partition] = record

    def _config(self, record: ConfigRecord) -> None:
        name = self.names[record.topic_id]
        overrides = self.overrides.get(name)
        if overrides is None:
            overrides = self.overrides[name] = dict(self.topics[name].overrides)
        if record.value is None:
            overrides.pop(record.key, None)
        else:
            overrides[record.key] = record.value

    def finish(self, offset: int) -> Image:
        for name, partitions in self.partitions.items():
            self.topics[name] = replace(self.topics[name], partitions=tuple(partitions))
        # Only the whole set is a valid configuration: settings have rules between each other.
        for name, overrides in self.overrides.items():
            config = TopicConfig(**{**self.defaults, **overrides})
            self.topics[name] = replace(self.topics[name], overrides=overrides, config=config)
        return Image(
            cluster=self.cluster,
            offset=offset,
            brokers=self.brokers,
            fenced=self.fenced,
            fenced_at=self.fenced_at,
            topics=self.topics,
            names=self.names,
            next_producer_id=self.next_producer_id,
            producer_blocks=self.producer_blocks,
            topic_defaults=self.defaults,
        )


def apply(image: Image, records: Iterable[Record], offset: int) -> Image:
    """The image after one record set; `offset` is the metadata offset behind it."""
    draft = _Draft(image)
    for record in records:
        draft.apply(record, offset)
    return draft.finish(offset)
