"""What a topic is like, put together from what the leaders of its partitions say."""

from __future__ import annotations

from shmlog.client.engine import Engine
from shmlog.clock import NS_PER_S
from shmlog.protocol.messages import DescribeTopic, DescribeTopicAnswer, PartitionDescription

LEADER_PATIENCE_NS = 5 * NS_PER_S  # a failover takes less; without a quorum there may be none


def ask_ends(
    engine: Engine, answer: DescribeTopicAnswer, message: DescribeTopic, timeout_ns: int
) -> DescribeTopicAnswer:
    """`answer` with the ends of every partition whose leader tells them in time."""
    with engine.lock:
        deadline_ns, attempts = engine.now() + min(timeout_ns, LEADER_PATIENCE_NS), 0
        while _untold(answer):
            brokers = engine.refresh([], timeout_ns).brokers
            leaders = _untold(answer)
            endpoints = [b.endpoint for b in brokers if b.broker in leaders and b.endpoint]
            for outcome in engine.ask_each(endpoints, message, deadline_ns):
                if outcome.answer is not None:
                    _put_together(answer, outcome.answer)
            if not _untold(answer) or engine.now() >= deadline_ns:
                break
            attempts += 1
            pause_ns = engine.session.backoff.ns(attempts)
            engine.wait(lambda: False, min(engine.now() + pause_ns, deadline_ns))
            _put_together(answer, engine.ask(message, timeout_ns))
        return answer


def _untold(answer: DescribeTopicAnswer) -> set[int]:
    """The leaders that have not told the ends of all their partitions."""
    return {p.leader for p in answer.partitions if p.leader >= 0 and p.end_offset < 0}


def _put_together(answer: DescribeTopicAnswer, other: DescribeTopicAnswer) -> None:
    if other.topic_id == answer.topic_id:  # else deleted and made again meanwhile
        for index, pair in enumerate(zip(answer.partitions, other.partitions, strict=False)):
            answer.partitions[index] = max(pair, key=_worth)


def _worth(partition: PartitionDescription) -> tuple[int, bool, bool]:
    """Of two descriptions the later one is the better one; of one epoch, the leader's own."""
    return partition.leader_epoch, partition.end_offset >= 0, partition.leader >= 0
