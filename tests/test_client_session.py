"""The session: ids, deadlines, retries, metadata; no socket and no clock but the test's."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest

from shmlog.client.session import SILENCE_NS, Outcome, Session
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.errors import BrokerGone, ClusterNotFound, RequestTimedOut, UnknownTopic
from shmlog.ids import TopicPartition
from shmlog.protocol import header
from shmlog.protocol.messages import (
    BrokerInfo,
    DeleteTopic,
    ErrorAnswer,
    Hello,
    HelloAnswer,
    InitProducer,
    InitProducerAnswer,
    Metadata,
    MetadataAnswer,
    PartitionInfo,
    TopicInfo,
)

A, B = "ipc:///a", "ipc:///b"


class Harness:
    """A session, its outcomes, and what it sent."""

    def __init__(self, endpoints: list[str]) -> None:
        self.endpoints = endpoints
        self.session = Session(self.discover, random.Random(3), request_timeout_ns=NS_PER_S)
        self.outcomes: list[Outcome] = []
        self.now = 10 * NS_PER_S

    def discover(self) -> list[str]:
        if not self.endpoints:
            raise ClusterNotFound("nobody lives")
        return self.endpoints

    def done(self, outcome: Outcome, now: int) -> None:
        self.outcomes.append(outcome)

    def sent(self) -> list[tuple[str, dict[str, object]]]:
        return [
            (endpoint, header.decode(frames[0], dict))
            for endpoint, frames in self.session.take_outgoing()
        ]

    def answer(self, endpoint: str, message: object, *frames: bytes) -> None:
        encoded = header.encode(message, header.Codec.MSGPACK)
        self.session.received(endpoint, [encoded, *frames], self.now)

    def pass_time(self, ns: int) -> None:
        self.now += ns
        self.session.tick(self.now)


def busy(number: object, **facts: int) -> ErrorAnswer:
    return ErrorAnswer(id=number, error=1000, name="BUSY", retriable=True, message="m", **facts)


def new_id(number: object) -> InitProducerAnswer:
    return InitProducerAnswer(id=number, producer_id=header.Big(7), producer_epoch=0)


def test_answers_find_their_requests_in_any_order_and_a_second_one_is_dropped() -> None:
    h = Harness([A])
    for _ in range(2):
        h.session.submit(A, InitProducer(op="init_producer", id=0), (), h.done, h.now)
    (_, first), (_, second) = h.sent()
    assert first["id"] != second["id"]
    h.answer(A, new_id(second["id"]))
    h.answer(A, new_id(second["id"]))
    h.answer(A, new_id(999))
    assert [o.answer.id for o in h.outcomes] == [second["id"]]
    h.answer(A, new_id(first["id"]))
    assert [o.answer.id for o in h.outcomes] == [second["id"], first["id"]]
    assert h.session.in_flight == 0


def test_a_request_without_an_answer_ends_at_its_deadline_with_unknown_fate() -> None:
    h = Harness([A])
    h.session.submit(A, Hello(op="hello", id=0), (), h.done, h.now, timeout_ns=NS_PER_S)
    began_ns = h.now
    while not h.outcomes:
        due = h.session.next_deadline_ns()
        assert due is not None
        h.pass_time(due - h.now)
    (outcome,) = h.outcomes
    assert isinstance(outcome.error, RequestTimedOut)
    assert not outcome.answered
    assert NS_PER_S <= h.now - began_ns <= 2 * NS_PER_S


def test_a_lost_connection_ends_what_was_in_flight_there_and_only_there() -> None:
    h = Harness([A, B])
    h.session.submit(A, Hello(op="hello", id=0), (), h.done, h.now)
    h.session.submit(B, InitProducer(op="init_producer", id=0), (), h.done, h.now)
    sent = h.sent()
    h.session.lost(A, h.now)
    (outcome,) = h.outcomes
    assert isinstance(outcome.error, BrokerGone)
    assert not outcome.answered
    h.answer(B, new_id(sent[1][1]["id"]))
    assert h.outcomes[1].error is None


def test_a_question_that_a_silent_broker_owes_goes_to_another_one_too() -> None:
    h = Harness([A, B])
    h.session.call(Hello(op="hello", id=0), h.done, h.now, h.now + 60 * NS_PER_S)
    [(first, asked)] = h.sent()
    h.pass_time(SILENCE_NS - 1)
    assert h.sent() == []
    h.pass_time(1)
    hellos = [(e, message) for e, message in h.sent() if message["op"] == "hello"]
    [(second, again)] = hellos
    assert {first, second} == {A, B}
    answer = HelloAnswer(
        id=again["id"], version=1, software="", cluster="c", broker=1, incarnation=1,
        ops=[], features=[], limits={},
    )  # fmt: skip
    h.answer(second, answer)
    h.answer(first, msgspec.structs.replace(answer, id=asked["id"]))  # late: it does not count
    assert [outcome.error for outcome in h.outcomes] == [None]


def test_a_change_that_a_silent_broker_owes_is_not_asked_for_twice() -> None:
    h = Harness([A, B])
    h.session.call(
        DeleteTopic(op="delete_topic", id=0, topic="t"), h.done, h.now, h.now + 60 * NS_PER_S
    )
    h.sent()
    h.pass_time(SILENCE_NS)
    assert [message["op"] for _, message in h.sent()] == ["metadata"]


def test_a_call_is_repeated_with_growing_pauses_and_goes_to_another_broker() -> None:
    h = Harness([A, B])
    h.session.call(Hello(op="hello", id=0), h.done, h.now, h.now + 60 * NS_PER_S)
    pauses, endpoints = [], []
    for _ in range(9):
        ((endpoint, _),) = h.sent()
        endpoints.append(endpoint)
        h.session.lost(endpoint, h.now)
        due = h.session.next_deadline_ns()
        assert due is not None
        pauses.append((due - h.now) / NS_PER_MS)
        h.pass_time(due - h.now)
    assert set(endpoints) == {A, B}
    assert all(a != b for a, b in itertools.pairwise(endpoints))
    for number, pause in enumerate(pauses):
        plain = min(5 * 2**number, 1000)
        assert 0.8 * plain <= pause <= 1.2 * plain
    assert len({message["id"] for _, message in h.sent()}) == 1
    assert not h.outcomes


def test_a_call_goes_to_whom_the_answer_names_and_elsewhere_if_that_one_is_gone() -> None:
    h = Harness([A, B])
    h.session.call(InitProducer(op="init_producer", id=0), h.done, h.now, h.now + 60 * NS_PER_S)
    (asked, first) = h.sent()[0]
    other = B if asked == A else A
    named = "ipc:///named"
    not_leader = ErrorAnswer(
        id=first["id"],
        error=6,
        name="NOT_LEADER_OR_FOLLOWER",
        retriable=True,
        message="m",
        leader=2,
        endpoint=named,
    )
    h.answer(asked, not_leader)
    h.pass_time(10 * NS_PER_MS)
    [(endpoint, message)] = h.sent()
    assert endpoint == named
    h.session.lost(named, h.now)
    h.pass_time(20 * NS_PER_MS)
    [(endpoint, message)] = h.sent()
    assert endpoint in (asked, other)
    h.answer(endpoint, new_id(message["id"]))
    assert h.outcomes[0].answer == new_id(message["id"])


def test_busy_waits_as_long_as_the_broker_asks() -> None:
    h = Harness([A])
    h.session.call(Hello(op="hello", id=0), h.done, h.now, h.now + 60 * NS_PER_S)
    ((_, message),) = h.sent()
    h.answer(A, busy(message["id"], retry_after_ms=300))
    h.pass_time(299 * NS_PER_MS)
    assert h.sent() == []
    h.pass_time(NS_PER_MS)
    assert len(h.sent()) == 1


def test_a_call_that_cannot_succeed_ends_at_once() -> None:
    h = Harness([A])
    h.session.call(Metadata(op="metadata", id=0), h.done, h.now, h.now + NS_PER_S)
    ((_, message),) = h.sent()
    h.answer(
        A,
        ErrorAnswer(
            id=message["id"], error=3, name="U", retriable=False, message="no topic", topic="x"
        ),
    )
    (outcome,) = h.outcomes
    assert isinstance(outcome.error, UnknownTopic)
    assert outcome.error.topic == "x"
    assert outcome.answered


def test_a_call_says_at_its_deadline_why_nobody_answered() -> None:
    h = Harness([])
    h.session.call(Hello(op="hello", id=0), h.done, h.now, h.now + NS_PER_S)
    while not h.outcomes:
        due = h.session.next_deadline_ns()
        assert due is not None
        h.pass_time(max(due - h.now, 1))
    assert isinstance(h.outcomes[0].error, ClusterNotFound)
    assert h.now <= 11 * NS_PER_S


@pytest.mark.parametrize("junk", [[], [b""], [b"\xff\xff"], [b"{"], [b"\x81\xa2id\xa1x"]])
def test_an_answer_that_cannot_be_read_is_dropped(junk: list[bytes]) -> None:
    h = Harness([A])
    h.session.submit(A, Hello(op="hello", id=0), (), h.done, h.now)
    h.session.received(A, junk, h.now)
    assert h.outcomes == []
    assert h.session.in_flight == 1


def metadata(number: object, offset: int, epoch: int, leader: int) -> MetadataAnswer:
    partitions = [
        PartitionInfo(partition=0, leader=leader, leader_epoch=epoch, replicas=[], isr=[])
    ]
    return MetadataAnswer(
        id=number,
        cluster="c",
        controller=0,
        brokers=[
            BrokerInfo(broker=n, incarnation=4, endpoint=e, alive=True) for n, e in ((0, A), (1, B))
        ],
        topics=[TopicInfo(topic="t", topic_id="0" * 32, partitions=partitions)],
        metadata_offset=offset,
    )


def test_refreshes_are_one_at_a_time_and_spread() -> None:
    h = Harness([A])
    h.session.topics = {"t"}
    h.session.refresh(h.now)
    h.session.refresh(h.now)
    ((_, message),) = h.sent()
    assert message["topics"] == ["t"]
    h.answer(A, metadata(message["id"], 5, 1, 0))
    assert h.session.metadata.leader(TopicPartition("t", 0)).endpoint == A
    assert h.sent() == []  # asked again meanwhile: after a pause
    h.pass_time(6 * NS_PER_MS)
    assert len(h.sent()) == 1


def test_an_older_leader_epoch_does_not_undo_a_newer_one() -> None:
    h = Harness([A])
    cache, tp = h.session.metadata, TopicPartition("t", 0)
    cache.apply(metadata(1, 5, 2, 0))
    cache.redirect(tp, 1, 3, B)
    assert cache.leader(tp).endpoint == B
    cache.apply(metadata(1, 6, 2, 0))
    assert cache.leader(tp).endpoint == B
    cache.redirect(tp, 0, 2, A)
    assert cache.leader(tp).endpoint == B
    cache.apply(metadata(1, 7, 4, 0))
    assert cache.leader(tp).endpoint == A
    cache.apply(metadata(1, 6, 9, 1))  # an older image as a whole
    assert cache.leader(tp).endpoint == A


def test_metadata_is_renewed_when_it_is_old() -> None:
    harness = Harness([A])
    session = harness.session
    session.topics = {"t"}
    harness.pass_time(0)
    assert harness.sent() == []
    for _ in range(2):
        assert session.next_deadline_ns() == harness.now + 300 * NS_PER_S
        harness.pass_time(299 * NS_PER_S)
        assert harness.sent() == []
        harness.pass_time(NS_PER_S)
        ((_, asked),) = harness.sent()
        assert asked["topics"] == ["t"]
        harness.answer(
            A,
            MetadataAnswer(
                id=asked["id"], cluster="c", controller=0, brokers=[], topics=[], metadata_offset=1
            ),
        )
