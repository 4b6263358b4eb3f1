"""Administration: topics, their settings and ends, groups, the cluster. Answers are the protocol's structs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from shmlog.client.arguments import Duration, duration_ns
from shmlog.client.bootstrap import Where
from shmlog.client.ends import ask_ends
from shmlog.client.engine import API_TIMEOUT_NS, Engine
from shmlog.client.group_admin import GroupAdmin
from shmlog.errors import Code, InvalidRequest, UnknownTopic
from shmlog.ids import TopicPartition
from shmlog.protocol.messages import (
    METADATA_RECORDS_MAX,
    AddPartitions,
    AlterTopic,
    ChangeAnswer,
    CreateTopic,
    CreateTopicAnswer,
    DeleteRecords,
    DeleteTopic,
    DescribeCluster,
    DescribeClusterAnswer,
    DescribeTopic,
    DescribeTopicAnswer,
    Elect,
    Epochs,
    EpochsAnswer,
    Hello,
    HelloAnswer,
    MetadataAnswer,
    MetadataLog,
    MetadataLogAnswer,
    Request,
    TrimPartition,
)


class Admin(GroupAdmin):
    """Questions and changes about the cluster. Calls of several threads are served one by one.

    A call asks any broker, which brings changes to the controller by itself; questions that only a
    partition's leader can answer go there, also when it changes. What is retriable is repeated with
    backoff; a broker that died or hangs does not hold a call up. A call raises the broker's error,
    or after `timeout` (default 60 s) the last reason why it could not be done, or RequestTimedOut.
    A change that was repeated after the loss of a broker may have been made by the first attempt:
    then `create_topic` says TopicExists, and `delete_topic` UnknownTopic.
    """

    def __init__(self, where: Where = None, *, timeout: Duration = API_TIMEOUT_NS / 1e9) -> None:
        self._timeout_ns = duration_ns(timeout, "timeout")
        self._engine = Engine(where)
        if not self._engine.sees_registry:
            self._engine.refresh([], self._timeout_ns)  # whom to ask when that one broker is gone

    def hello(self) -> HelloAnswer:
        """Who answers, and what it can do."""
        answer: HelloAnswer = self._ask(Hello(op="hello", id=0, client="shmlog-python"))
        return answer

    def metadata(self, topics: Sequence[str] | None = None) -> MetadataAnswer:
        """Brokers, and the topics named (None: all) with their leaders."""
        return self._engine.refresh(topics, self._timeout_ns)

    def list_topics(self) -> list[str]:
        """The names of all topics, sorted."""
        return sorted(topic.topic for topic in self.metadata().topics)

    def create_topic(
        self,
        name: str,
        partition_count: int = 1,
        replication_factor: int | None = None,
        configs: Mapping[str, Any] | None = None,
        validate_only: bool = False,
        timeout: Duration | None = None,
    ) -> CreateTopicAnswer:
        """Make a topic; returns when every partition has a leader, or (`ready` False) at the
        deadline.

        Raises: TopicExists, InvalidConfig, InvalidRequest (name, partitions, replication factor).
        """
        message = CreateTopic(
            op="create_topic",
            id=0,
            topic=name,
            partition_count=partition_count,
            replication_factor=-1 if replication_factor is None else replication_factor,
            configs=dict(configs or {}),
            validate_only=validate_only,
        )
        timeout_ns = None if timeout is None else duration_ns(timeout, "timeout")
        answer: CreateTopicAnswer = self._ask(message, timeout_ns)
        return answer

    def alter_topic(
        self, name: str, set: Mapping[str, Any] | None = None, delete: Sequence[str] | None = None
    ) -> ChangeAnswer:
        """Set and unset a topic's settings, all or none. Raises: UnknownTopic, InvalidConfig."""
        message = AlterTopic(
            op="alter_topic", id=0, topic=name, set=dict(set or {}), delete=list(delete or ())
        )
        answer: ChangeAnswer = self._ask_topic(name, message)
        return answer

    def add_partitions(self, name: str, count: int) -> ChangeAnswer:
        """Raise a topic's number of partitions to `count`; keys map differently from then on."""
        message = AddPartitions(op="add_partitions", id=0, topic=name, partition_count=count)
        answer: ChangeAnswer = self._ask_topic(name, message)
        return answer

    def delete_topic(self, name: str) -> ChangeAnswer:
        """Remove a topic and its data. Raises: UnknownTopic."""
        answer: ChangeAnswer = self._ask_topic(
            name, DeleteTopic(op="delete_topic", id=0, topic=name)
        )
        return answer

    def describe_topic(self, name: str) -> DescribeTopicAnswer:
        """Settings with their sources, partitions with leaders and ends. Raises: UnknownTopic.

        Each leader is asked for the ends of its partitions. They stay -1 where there is no leader (`leader` -1), or
        where the one that there should be does not tell them within 5 s.
        """
        message = DescribeTopic(op="describe_topic", id=0, topic=name)
        return ask_ends(self._engine, self._ask_topic(name, message), message, self._timeout_ns)

    def delete_records(
        self, partitions: Iterable[tuple[str, int, int]]
    ) -> dict[TopicPartition, int]:
        """Drop the records below (topic, partition, offset), -1 = all committed ones.

        Each partition's leader is asked. Returns the new log starts. Raises the first error that
        cannot be repeated; other partitions may have been done.
        """
        wanted = [(TopicPartition(t, p), offset) for t, p, offset in partitions]
        self._engine.refresh(sorted({tp.topic for tp, _ in wanted}), self._timeout_ns)

        def message(asked: Sequence[tuple[TopicPartition, int]]) -> Request:
            trims = [TrimPartition(topic=tp[0], partition=tp[1], offset=o) for tp, o in asked]
            return DeleteRecords(op="delete_records", id=0, partitions=trims)

        found = self._engine.ask_leaders(wanted, message, self._timeout_ns)
        return {tp: entry["log_start"] for (tp, _), (entry, _) in found.items()}

    def list_offsets(
        self, questions: Iterable[tuple[str, int, int]]
    ) -> dict[tuple[str, int, int], int]:
        """The offset for each (topic, partition, timestamp ns, or -1 latest, -2 earliest); -1:
        none.
        """
        wanted = [(TopicPartition(t, p), time) for t, p, time in questions]
        self._engine.refresh(sorted({tp.topic for tp, _ in wanted}), self._timeout_ns)
        found = self._engine.list_offsets(wanted, self._timeout_ns)
        return {(tp.topic, tp.partition, time): found[tp, time].offset for tp, time in wanted}

    def describe_cluster(self) -> DescribeClusterAnswer:
        """Brokers, controller, and how many partitions lack something."""
        answer: DescribeClusterAnswer = self._ask(DescribeCluster(op="describe_cluster", id=0))
        return answer

    def elect(self, topic: str, partition: int) -> bool:
        """Give a partition to its preferred leader now; False if it leads already.

        Raises: UnknownTopic; LeaderUnavailable at the deadline: that replica is not in sync.
        """
        try:
            self._ask_topic(topic, Elect(op="elect", id=0, topic=topic, partition=partition))
        except InvalidRequest as error:
            if error.code is not Code.ELECTION_NOT_NEEDED:
                raise
            return False
        return True

    def rebalance(self) -> dict[TopicPartition, bool]:
        """Elect the preferred leader of every partition that another broker leads.

        Returns those partitions; False: it was left alone, its preferred leader is not in sync.
        """
        found = {}
        for topic in self.metadata().topics:
            for p in topic.partitions:
                if p.replicas and p.leader != p.replicas[0]:
                    in_sync = p.leader >= 0 and p.replicas[0] in p.isr
                    if in_sync:
                        self.elect(topic.topic, p.partition)
                    found[TopicPartition(topic.topic, p.partition)] = in_sync
        return found

    def epochs(self, topic: str, partition: int) -> EpochsAnswer:
        """The leader epochs of a partition and where each begins. Raises: UnknownTopic."""
        message = Epochs(op="epochs", id=0, topic=topic, partition=partition)
        answer: EpochsAnswer = self._ask_topic(topic, message)
        return answer

    def metadata_log(
        self, from_offset: int = 0, max_records: int = METADATA_RECORDS_MAX
    ) -> MetadataLogAnswer:
        """A piece of the metadata log; the next one begins at its `next_offset`."""
        answer: MetadataLogAnswer = self._ask(
            MetadataLog(op="metadata_log", id=0, from_offset=from_offset, max_records=max_records)
        )
        return answer

    def close(self) -> None:
        """Close the connections. Idempotent, from any thread."""
        self._engine.close()

    def __enter__(self) -> Admin:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, message: Request, timeout_ns: int | None = None) -> Any:
        return self._engine.ask(message, self._timeout_ns if timeout_ns is None else timeout_ns)

    def _ask_topic(self, name: str, message: Request) -> Any:
        try:
            return self._ask(message)
        except UnknownTopic:
            if name in self.list_topics():
                raise  # it is the partition that is unknown
            raise self._engine.unknown_topic(name, self._timeout_ns) from None
