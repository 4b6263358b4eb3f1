"""What clients change: topics, their settings and partitions, log starts, blocks of producer ids. Pure plans."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

from node.core.cluster import elections
from node.core.cluster.image import (
    ConfigRecord,
    Image,
    PartitionRecord,
    ProducerIdsRecord,
    Record,
    RemoveTopicRecord,
    Topic,
    TopicRecord,
)
from node.core.cluster.placement import place
from shmlog.errors import (
    Code,
    InvalidConfig,
    InvalidRequest,
    LeaderUnavailable,
    NotAllowed,
    NotLeader,
    OffsetOutOfRange,
    TopicExists,
    UnknownTopic,
)
from shmlog.protocol import peers
from shmlog.settings import TOPIC_SETTINGS, TopicConfig, check_all, resolve

PARTITIONS_MAX = 1024
REPLICAS_MAX = 2000  # of one broker
REPLICATION_DEFAULT = 3
PRODUCER_ID_BLOCK = 1000
TOPIC_ID_SIZE = 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")


OFFSETS_TOPIC, OFFSETS_PARTITIONS = "__consumer_offsets", 8
# What the coordinators of groups keep: read at a change of leaders only, durable before it is told to anybody.
OFFSETS_CONFIGS = {
    "cleanup_policy": "compact",
    "durability": "disk",
    "ring_bytes": 0,
    "segment_bytes": 16 << 20,
    "max_message_bytes": 8 << 20,
}


def check_topic_name(name: str) -> None:
    """Raises InvalidRequest (17) unless clients may create a topic of this name."""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise InvalidRequest(
            f"topic name {name[:60]!r}: 1 to 249 of A-Z a-z 0-9 . _ -",
            code=Code.INVALID_TOPIC_EXCEPTION,
        )
    if name.startswith("__"):
        raise InvalidRequest(
            f"topic name {name!r}: names that begin with __ are the brokers' own",
            code=Code.INVALID_TOPIC_EXCEPTION,
        )


def _collision_key(name: str) -> str:
    return name.lower().replace(".", "_")


def topic_of(image: Image, name: str) -> Topic:
    """The topic. Raises UnknownTopic (3), NotAllowed (29) for internal names."""
    topic = image.topics.get(name)
    if topic is None:
        raise UnknownTopic(f"no topic {name[:60]!r}", topic=name)
    if name.startswith("__"):
        raise NotAllowed(f"topic {name!r} is internal", topic=name)
    return topic


def create_topic(
    image: Image,
    change: peers.CreateTopic,
    brokers: Sequence[int],
    alive: Set[int],
    replicas_max: int = REPLICAS_MAX,
) -> list[Record]:
    """A topic with its partitions and settings, as one set; `brokers`: all of the cluster, up or down.

    `replicas_max`: that a broker's descriptors allow; all brokers share one machine and its limits.
    """
    name, count = change.name, change.partition_count
    if name != OFFSETS_TOPIC:
        check_topic_name(name)
    if name in image.topics:
        if change.if_missing:
            return []
        raise TopicExists(f"topic {name!r} exists", topic=name)
    wanted = _collision_key(name)
    for other in image.topics:
        if _collision_key(other) == wanted:
            raise InvalidRequest(
                f"topic name {name!r} is too much like {other!r} (case, or . against _)",
                code=Code.INVALID_TOPIC_EXCEPTION,
            )
    if len(change.topic_id) != TOPIC_ID_SIZE or change.topic_id in image.names:
        raise InvalidRequest("a new topic has an id of 16 bytes that no other has")
    factor = change.replication_factor
    if factor == -1:
        factor = min(REPLICATION_DEFAULT, len(brokers))
    if not 1 <= factor <= len(brokers):
        raise InvalidRequest(
            f"replication factor {factor}: 1 to {len(brokers)}, one replica a broker",
            code=Code.INVALID_REPLICATION_FACTOR,
        )
    _check_partition_count(count)
    checked = check_all(change.configs, TOPIC_SETTINGS)
    _check_config(image, checked, factor)
    records: list[Record] = [TopicRecord(change.topic_id, name, count)]
    records += _new_partitions(
        image, change.topic_id, 0, count, factor, brokers, alive, replicas_max
    )
    records += [ConfigRecord(change.topic_id, key, value) for key, value in sorted(checked.items())]
    return records


def _check_config(image: Image, overrides: Mapping[str, Any], factor: int) -> None:
    """Rules between settings (40). A default of cluster.toml is clamped, a topic's own word is not."""
    TopicConfig(**{**image.topic_defaults, **overrides})
    minimum = overrides.get("min_insync_replicas", -1)
    if minimum > factor:
        raise InvalidConfig(
            f"min_insync_replicas = {minimum}: the topic has {factor} replicas",
            setting="min_insync_replicas",
        )


def _check_partition_count(count: int) -> None:
    if not 1 <= count <= PARTITIONS_MAX:
        raise InvalidRequest(
            f"{count} partitions: 1 to {PARTITIONS_MAX}", code=Code.INVALID_PARTITIONS
        )


def _new_partitions(
    image: Image,
    topic_id: bytes,
    first: int,
    count: int,
    factor: int,
    brokers: Sequence[int],
    alive: Set[int],
    replicas_max: int,
) -> list[PartitionRecord]:
    """Their replicas that live are in sync (all are empty), and the first of these leads."""
    placed = place(topic_id, first, count, factor, brokers, alive)
    load = Counter(b for t in image.topics.values() for p in t.partitions for b in p.replicas)
    load.update(broker for replicas in placed for broker in replicas)
    broker, most = max(load.items(), key=lambda item: (item[1], -item[0]))
    if most > replicas_max:
        why = "" if replicas_max == REPLICAS_MAX else "; its limit of open files allows no more"
        raise InvalidRequest(
            f"{most} replicas on broker {broker}: at most {replicas_max}{why}",
            code=Code.INVALID_PARTITIONS,
        )
    records = []
    for partition, replicas in enumerate(placed, first):
        isr = tuple(broker for broker in replicas if broker in alive)
        if not isr:
            raise LeaderUnavailable(
                "no broker is there to lead a new partition", code=Code.BROKER_NOT_AVAILABLE
            )
        record = PartitionRecord(
            topic_id=topic_id,
            partition=partition,
            replicas=replicas,
            leader=isr[0],
            leader_epoch=1,
            partition_epoch=1,
            isr=isr,
        )
        records.append(record)
    return records


def add_partitions(
    image: Image,
    change: peers.AddPartitions,
    brokers: Sequence[int],
    alive: Set[int],
    replicas_max: int = REPLICAS_MAX,
) -> list[Record]:
    """More partitions for a topic; the number never falls (37)."""
    topic = topic_of(image, change.name)
    have, count = len(topic.partitions), change.partition_count
    if count <= have:
        raise InvalidRequest(
            f"topic {change.name!r} has {have} partitions: the new number must be larger",
            code=Code.INVALID_PARTITIONS,
        )
    _check_partition_count(count)
    factor = len(topic.partitions[0].replicas)
    added = _new_partitions(
        image, topic.topic_id, have, count - have, factor, brokers, alive, replicas_max
    )
    return [TopicRecord(topic.topic_id, change.name, count), *added]


def alter_topic(image: Image, change: peers.AlterTopic) -> list[Record]:
    """Change a topic's own settings, all or none."""
    topic = topic_of(image, change.name)
    checked = check_all(change.set_values, TOPIC_SETTINGS)
    gone = {resolve(key, TOPIC_SETTINGS).native for key in change.delete}
    if both := gone & set(checked):
        raise InvalidRequest(f"{', '.join(sorted(both))}: both set and deleted")
    kept = {key: value for key, value in topic.overrides.items() if key not in gone}
    _check_config(image, {**kept, **checked}, len(topic.partitions[0].replicas))
    records: list[Record] = [
        ConfigRecord(topic.topic_id, key, value) for key, value in sorted(checked.items())
    ]
    records += [
        ConfigRecord(topic.topic_id, key, None) for key in sorted(gone & set(topic.overrides))
    ]
    return records


def delete_topic(image: Image, change: peers.DeleteTopic) -> list[Record]:
    """Remove a topic."""
    return [RemoveTopicRecord(topic_of(image, change.name).topic_id)]


def delete_records(image: Image, change: peers.DeleteRecords) -> list[Record]:
    """Raise a partition's log start to `offset` (at most the high watermark that its leader knows)."""
    topic = topic_of(image, change.name)
    name, partition = change.name, change.partition
    if not 0 <= partition < len(topic.partitions):
        raise UnknownTopic(f"topic {name!r} has no partition {partition}", topic=name)
    old = topic.partitions[partition]
    if change.leader_epoch != old.leader_epoch:
        raise NotLeader(
            f"{name}-{partition} is led at epoch {old.leader_epoch}, not {change.leader_epoch}",
            code=Code.FENCED_LEADER_EPOCH,
            leader_epoch=old.leader_epoch,
        )
    if not 0 <= change.offset <= change.high_watermark:
        raise OffsetOutOfRange(
            f"offset {change.offset}: the log of {name}-{partition} ends at "
            f"{change.high_watermark}",
            log_start=old.log_start,
            high_watermark=change.high_watermark,
        )
    if change.offset <= old.log_start:
        return []
    return [elections.changed(old, log_start=change.offset)]


def take_producer_ids(image: Image, change: peers.TakeProducerIds) -> list[Record]:
    """The next block of producer ids; it ends at `image.producer_blocks[taker]` once committed."""
    return [ProducerIdsRecord(change.taker, image.next_producer_id + PRODUCER_ID_BLOCK)]
