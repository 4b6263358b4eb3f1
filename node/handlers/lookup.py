"""From the names in a request to the partition that serves it, in the order of checks of the protocol."""

from __future__ import annotations

from typing import Any

from node.core.cluster.image import PartitionRecord, Topic
from node.core.cluster.topics import check_topic_name, topic_of
from node.handlers.exchange import Context
from node.partition import Partition
from shmlog.errors import Code, LeaderUnavailable, NotLeader, ShmlogError, UnknownTopic


def find_topic(context: Context, name: str, topic_id: str = "") -> Topic:
    """The topic. Raises 3, 17, 29, 100, 103."""
    image = context.metadata.image
    if name not in image.topics:
        if topic_id and bytes.fromhex(topic_id) not in image.names:
            raise UnknownTopic(
                f"topic {name[:60]!r} with id {topic_id} was deleted",
                code=Code.UNKNOWN_TOPIC_ID,
                topic=name,
            )
        check_topic_name(name)
    topic = topic_of(image, name)
    if topic_id and topic.topic_id.hex() != topic_id:
        known = bytes.fromhex(topic_id) in image.names
        raise UnknownTopic(
            f"topic {name!r} has the id {topic.topic_id.hex()}, not {topic_id}",
            code=Code.INCONSISTENT_TOPIC_ID if known else Code.UNKNOWN_TOPIC_ID,
            topic=name,
        )
    return topic


def find_partition(
    context: Context, name: str, index: int, topic_id: str = "", leader_epoch: int = -1
) -> Partition:
    """The partition, led here. Raises 3, 17, 29, 100, 103, then 5, 6, 74, 75."""
    topic = find_topic(context, name, topic_id)
    if not 0 <= index < len(topic.partitions):
        raise UnknownTopic(
            f"topic {name!r} has {len(topic.partitions)} partitions, no partition {index}",
            topic=name,
            partition=index,
        )
    state = topic.partitions[index]
    if state.leader != context.identity.broker:
        raise not_leader(context, name, state)
    partition = context.partitions.get((name, index))
    if partition is None or partition.topic_id != topic.topic_id or partition.leader is None:
        raise LeaderUnavailable(
            f"{name}-{index} begins leader epoch {state.leader_epoch}",
            topic=name,
            partition=index,
            leader=state.leader,
            leader_epoch=state.leader_epoch,
        )
    if leader_epoch >= 0 and leader_epoch != state.leader_epoch:
        older = leader_epoch < state.leader_epoch
        raise NotLeader(
            f"{name}-{index} is at leader epoch {state.leader_epoch}, the request at {leader_epoch}",
            code=Code.FENCED_LEADER_EPOCH if older else Code.UNKNOWN_LEADER_EPOCH,
            topic=name,
            partition=index,
            leader=state.leader,
            leader_epoch=state.leader_epoch,
        )
    return partition


def not_leader(context: Context, name: str, state: PartitionRecord) -> ShmlogError:
    """Why this broker does not serve the partition: who leads it, and where that one is asked."""
    facts: dict[str, Any] = {
        "topic": name,
        "partition": state.partition,
        "leader_epoch": state.leader_epoch,
    }
    leader = context.metadata.image.brokers.get(state.leader)
    if leader is None:
        return LeaderUnavailable(f"{name}-{state.partition} has no leader now", leader=-1, **facts)
    return NotLeader(
        f"{name}-{state.partition} is led by broker {state.leader}",
        leader=state.leader,
        endpoint=leader.endpoints["client"],
        **facts,
    )


def not_coordinator(context: Context, state: PartitionRecord) -> ShmlogError:
    """Why this broker does not answer for a group of that partition of the internal topic, and who does."""
    leader = context.metadata.image.brokers.get(state.leader)
    if leader is None or not state.started:
        return LeaderUnavailable(
            "the group's coordinator is being elected", code=Code.COORDINATOR_NOT_AVAILABLE
        )
    if state.leader == context.identity.broker:
        return LeaderUnavailable(
            "the group's coordinator is reading its groups", code=Code.COORDINATOR_LOAD_IN_PROGRESS
        )
    return NotLeader(
        f"broker {state.leader} is the group's coordinator",
        code=Code.NOT_COORDINATOR,
        leader=state.leader,
        leader_epoch=state.leader_epoch,
        endpoint=leader.endpoints["client"],
    )
