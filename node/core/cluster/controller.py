"""The controller: each change of the cluster as a pure plan, committed image in, records out.

It acts only on what is committed: a plan is made when the change before it has been committed, never on an
image that might still be lost. A plan raises a typed error and then nothing is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from node.core.cluster.image import (
    BrokerRecord,
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
    InvalidRequest,
    NotAllowed,
    OffsetOutOfRange,
    TopicExists,
    UnknownTopic,
)
from shmlog.settings import TOPIC_SETTINGS, TopicConfig, check_all, resolve

PARTITIONS_MAX = 1024
REPLICAS_MAX = 2000  # of one broker
PRODUCER_ID_BLOCK = 1000
_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")


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


def register_broker(image: Image, broker: BrokerRecord) -> list[Record]:
    """A broker starts: its registration, and a new epoch for every partition it can lead.

    The epoch rises although the leader is the same: what the dead incarnation had in flight can then never
    be taken for the new one's.
    """
    records: list[Record] = [broker]
    for topic in image.topics.values():
        for old in topic.partitions:
            if broker.broker in old.isr and old.leader in (-1, broker.broker):
                records.append(_elected(old, broker.broker))
    return records


def _elected(old: PartitionRecord, leader: int) -> PartitionRecord:
    return PartitionRecord(
        topic_id=old.topic_id,
        partition=old.partition,
        replicas=old.replicas,
        leader=leader,
        leader_epoch=old.leader_epoch + 1,
        partition_epoch=old.partition_epoch + 1,
        isr=old.isr,
        log_start=old.log_start,
    )


def create_topic(
    image: Image,
    *,
    name: str,
    topic_id: bytes,
    partition_count: int,
    replication_factor: int,
    configs: Mapping[str, Any],
    brokers: Sequence[int],
) -> list[Record]:
    """A topic with its partitions and settings, as one set. replication_factor -1: the default."""
    check_topic_name(name)
    if name in image.topics:
        raise TopicExists(f"topic {name!r} exists", topic=name)
    wanted = _collision_key(name)
    for other in image.topics:
        if _collision_key(other) == wanted:
            raise InvalidRequest(
                f"topic name {name!r} is too much like {other!r} (case, or . against _)",
                code=Code.INVALID_TOPIC_EXCEPTION,
            )
    _check_partition_count(image, partition_count, partition_count)
    factor = min(3, len(brokers)) if replication_factor == -1 else replication_factor
    if not 1 <= factor <= len(brokers):
        raise InvalidRequest(
            f"replication factor {factor}: 1 to {len(brokers)}, one replica a broker",
            code=Code.INVALID_REPLICATION_FACTOR,
        )
    checked = check_all(configs, TOPIC_SETTINGS)
    TopicConfig(**{**image.topic_defaults, **checked})  # rules between settings
    records: list[Record] = [TopicRecord(topic_id, name, partition_count)]
    records += _new_partitions(topic_id, 0, partition_count, factor, brokers)
    records += [ConfigRecord(topic_id, key, value) for key, value in sorted(checked.items())]
    return records


def _check_partition_count(image: Image, count: int, added: int) -> None:
    if not 1 <= count <= PARTITIONS_MAX:
        raise InvalidRequest(
            f"{count} partitions: 1 to {PARTITIONS_MAX}", code=Code.INVALID_PARTITIONS
        )
    total = added + sum(len(topic.partitions) for topic in image.topics.values())
    if total > REPLICAS_MAX:
        raise InvalidRequest(
            f"{total} replicas on this broker: at most {REPLICAS_MAX}",
            code=Code.INVALID_PARTITIONS,
        )


def _new_partitions(
    topic_id: bytes, first: int, count: int, factor: int, brokers: Sequence[int]
) -> list[PartitionRecord]:
    return [
        PartitionRecord(
            topic_id=topic_id,
            partition=first + index,
            replicas=replicas,
            leader=replicas[0],
            leader_epoch=1,
            partition_epoch=1,
            isr=replicas,
        )
        for index, replicas in enumerate(place(topic_id, first, count, factor, brokers))
    ]


def add_partitions(
    image: Image, *, name: str, partition_count: int, brokers: Sequence[int]
) -> list[Record]:
    """More partitions for a topic; the number never falls (37)."""
    topic = topic_of(image, name)
    have = len(topic.partitions)
    if partition_count <= have:
        raise InvalidRequest(
            f"topic {name!r} has {have} partitions: the new number must be larger",
            code=Code.INVALID_PARTITIONS,
        )
    _check_partition_count(image, partition_count, partition_count - have)
    factor = len(topic.partitions[0].replicas)
    added = _new_partitions(topic.topic_id, have, partition_count - have, factor, brokers)
    return [TopicRecord(topic.topic_id, name, partition_count), *added]


def alter_topic(
    image: Image, *, name: str, set_values: Mapping[str, Any], delete: Sequence[str]
) -> list[Record]:
    """Change a topic's own settings, all or none."""
    topic = topic_of(image, name)
    checked = check_all(set_values, TOPIC_SETTINGS)
    gone = {resolve(key, TOPIC_SETTINGS).native for key in delete}
    if both := gone & set(checked):
        raise InvalidRequest(f"{', '.join(sorted(both))}: both set and deleted")
    kept = {key: value for key, value in topic.overrides.items() if key not in gone}
    TopicConfig(**{**image.topic_defaults, **kept, **checked})
    records: list[Record] = [
        ConfigRecord(topic.topic_id, key, value) for key, value in sorted(checked.items())
    ]
    records += [
        ConfigRecord(topic.topic_id, key, None) for key in sorted(gone & set(topic.overrides))
    ]
    return records


def delete_topic(image: Image, *, name: str) -> list[Record]:
    """Remove a topic."""
    return [RemoveTopicRecord(topic_of(image, name).topic_id)]


def delete_records(
    image: Image, *, name: str, partition: int, offset: int, high_watermark: int
) -> list[Record]:
    """Raise a partition's log start to `offset` (at most its high watermark)."""
    topic = topic_of(image, name)
    if not 0 <= partition < len(topic.partitions):
        raise UnknownTopic(f"topic {name!r} has no partition {partition}", topic=name)
    old = topic.partitions[partition]
    if not 0 <= offset <= high_watermark:
        raise OffsetOutOfRange(
            f"offset {offset}: the log of {name}-{partition} ends at {high_watermark}",
            log_start=old.log_start,
            high_watermark=high_watermark,
        )
    if offset <= old.log_start:
        return []
    return [
        PartitionRecord(
            topic_id=old.topic_id,
            partition=partition,
            replicas=old.replicas,
            leader=old.leader,
            leader_epoch=old.leader_epoch,
            partition_epoch=old.partition_epoch + 1,
            isr=old.isr,
            log_start=offset,
        )
    ]


def take_producer_ids(image: Image, *, broker: int) -> list[Record]:
    """The next block of producer ids for a broker."""
    return [ProducerIdsRecord(broker, image.next_producer_id + PRODUCER_ID_BLOCK)]
