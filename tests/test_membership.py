"""One member of a group without any socket: what it asks when, and what it makes of the answers."""

from __future__ import annotations

import random

from shmlog.client.membership import Asked, Mark, Membership, Parts
from shmlog.client.session import Backoff, Outcome
from shmlog.clock import NS_PER_S
from shmlog.errors import from_wire
from shmlog.ids import TopicPartition
from shmlog.protocol.group_messages import (
    Commit,
    CommitAnswer,
    GroupHeartbeat,
    GroupHeartbeatAnswer,
    TopicPartitions,
)

ID = "0" * 32
FIRST, SECOND = TopicPartition("t", 0), TopicPartition("t", 1)
COORDINATOR = "ipc:///coordinator"


class Member:
    """A membership, and its clock."""

    def __init__(self) -> None:
        self.now = NS_PER_S
        self.it = Membership(
            "g", ["t"], "m", Backoff(random.Random(1)), commit_interval_ns=NS_PER_S
        )

    def asked(self, kind: type) -> Asked:
        """The only request that is due."""
        (one,) = self.it.requests(self.now)
        assert isinstance(one.message, kind)
        return one

    def quiet(self) -> bool:
        return not self.it.requests(self.now) and self.it.due_ns() > self.now

    def tell(self, asked: Asked, epoch: int, assigned: list[int], releasing: list[int]) -> None:
        answer = GroupHeartbeatAnswer(
            id=1, member_epoch=epoch, state="releasing" if releasing else "stable", reason="",
            assigned=listed(assigned), releasing=listed(releasing), session_timeout_ms=45000,
        )  # fmt: skip
        asked.on_done(Outcome(answer, (), None, True), self.now)

    def fail(self, asked: Asked, code: int, answered: bool = True, **facts: object) -> None:
        error = from_wire(code, "no", **facts)
        asked.on_done(Outcome(None, (), error, answered), self.now)

    def join(self, assigned: list[int]) -> Asked:
        """In the group, everything taken; the heartbeat that waits at the coordinator."""
        self.tell(self.asked(GroupHeartbeat), 1, assigned, [])
        beat = self.asked(GroupHeartbeat)
        self.it.take(self.it.news().assigned)
        return beat


def listed(numbers: list[int]) -> list[TopicPartitions]:
    return [TopicPartitions(topic="t", topic_id=ID, partitions=numbers)] if numbers else []


def owned(asked: Asked) -> list[int]:
    assert isinstance(asked.message, GroupHeartbeat)
    return [p for entry in asked.message.owned or () for p in entry.partitions]


def parts(*tps: TopicPartition) -> Parts:
    return dict.fromkeys(tps, ID)


def test_it_joins_with_epoch_0_and_the_next_heartbeat_is_due_at_once() -> None:
    m = Member()
    join = m.asked(GroupHeartbeat)
    assert (join.endpoint, join.message.member_epoch, owned(join)) == (None, 0, [])
    assert m.quiet()
    m.tell(join, 3, [0, 1], [])
    beat = m.asked(GroupHeartbeat)
    assert (beat.message.member_epoch, owned(beat)) == (3, [0, 1])
    assert m.it.news().assigned == parts(FIRST, SECOND)


def test_what_is_taken_is_given_up_by_the_application_and_told_at_once() -> None:
    m = Member()
    beat = m.join([0, 1])
    assert not m.it.has_news
    m.tell(beat, 1, [0], [1])
    beat = m.asked(GroupHeartbeat)
    assert owned(beat) == [0, 1]  # still in use
    assert m.it.news().releasing == parts(SECOND)
    assert m.quiet()
    m.it.release([SECOND])
    # Another one goes out though the first still waits at the coordinator.
    assert owned(m.asked(GroupHeartbeat)) == [0]
    assert m.quiet()
    assert not m.it.has_news


def test_what_the_application_never_took_is_given_up_without_it() -> None:
    m = Member()
    m.tell(m.asked(GroupHeartbeat), 1, [0, 1], [])
    beat = m.asked(GroupHeartbeat)
    m.it.take(parts(FIRST))
    m.tell(beat, 1, [0], [1])
    assert owned(m.asked(GroupHeartbeat)) == [0]
    assert m.it.take(parts(SECOND)) == {}


def test_a_fenced_member_loses_everything_and_joins_again() -> None:
    m = Member()
    beat = m.join([0])
    m.it.finish(FIRST, Mark(5), m.now)
    m.fail(beat, 110)
    again = m.asked(GroupHeartbeat)
    assert (again.message.member_epoch, again.message.member) == (0, beat.message.member)
    m.tell(again, 4, [0], [])
    news = m.it.news()
    assert (news.lost, news.assigned) == (parts(FIRST), parts(FIRST))  # to be begun anew
    m.now += 2 * NS_PER_S
    m.asked(GroupHeartbeat)
    assert m.quiet()  # what was finished before is no longer this member's to commit


def test_a_late_answer_of_an_earlier_life_changes_nothing() -> None:
    m = Member()
    beat = m.join([0])
    m.it.release([FIRST])
    m.tell(beat, 1, [0], [])
    first = m.asked(GroupHeartbeat)
    m.fail(first, 25)
    join = m.asked(GroupHeartbeat)
    m.tell(first, 9, [0, 1], [])
    assert m.it.epoch == 0
    m.tell(join, 2, [1], [])
    assert m.it.news().assigned == parts(SECOND)


def test_the_coordinator_is_the_one_named_and_lost_ones_are_looked_for() -> None:
    m = Member()
    m.fail(m.asked(GroupHeartbeat), 16, endpoint=COORDINATOR)
    join = m.asked(GroupHeartbeat)
    assert join.endpoint == COORDINATOR
    m.fail(join, 14)  # it is reading its groups: the same one, in a moment
    assert m.quiet()
    m.now = m.it.due_ns()
    join = m.asked(GroupHeartbeat)
    assert join.endpoint == COORDINATOR
    m.fail(join, 1001, answered=False)
    m.now = m.it.due_ns()
    assert m.asked(GroupHeartbeat).endpoint is None


def test_a_refusal_for_good_is_the_end() -> None:
    m = Member()
    beat = m.join([0])
    m.fail(beat, 82)
    assert m.it.fatal is not None
    assert m.it.news().lost == parts(FIRST)
    m.it.release([FIRST])
    assert m.it.news().lost == {}
    assert m.it.has_news
    m.now += 100 * NS_PER_S
    assert m.quiet()


def test_commits_are_gathered_numbered_and_one_at_a_time() -> None:
    m = Member()
    m.join([0, 1])
    assert m.it.finish(FIRST, Mark(5, 2), m.now)
    assert not m.it.finish(FIRST, Mark(9, 2), m.now)
    assert m.quiet()
    m.now = m.it.due_ns()
    commit = m.asked(Commit)
    assert [(o.partition, o.offset, o.leader_epoch) for o in commit.message.offsets] == [(0, 9, 2)]
    m.it.finish(SECOND, Mark(3), m.now)
    m.it.finish(FIRST, Mark(10), m.now)
    m.now += 5 * NS_PER_S
    assert m.quiet()
    m.fail(commit, 1001, answered=False)
    m.now = m.it.due_ns()
    second = m.asked(Commit)
    assert {o.partition: o.offset for o in second.message.offsets} == {0: 10, 1: 3}
    assert second.message.number > commit.message.number
    refused = {"error": 113, "name": "", "retriable": False, "message": "moved"}
    answer = CommitAnswer(id=1, partitions=[{"error": 0}, refused])
    second.on_done(Outcome(answer, (), None, True), m.now)
    assert [error.code for error in m.it.news().refused] == [113]
    assert not m.it.has_news
    assert m.it.unsaved() == {}


def test_no_automatic_commit_goes_back_behind_the_application_s_own() -> None:
    m = Member()
    m.join([0])
    m.it.finish(FIRST, Mark(5), m.now)
    m.now = m.it.due_ns()
    automatic = m.asked(Commit)
    by_hand = m.it.commit({FIRST: Mark(9)})
    assert by_hand.number > automatic.message.number
    m.fail(automatic, 1001, answered=False)
    m.now = m.it.due_ns()
    again = m.asked(Commit)  # while the application's is on its way
    assert (again.message.offsets[0].offset, again.message.number > by_hand.number) == (9, True)
    m.it.stored({FIRST: Mark(9)}, [{"error": 0}])
    m.fail(again, 1001, answered=False)
    m.now += 10 * NS_PER_S
    assert m.quiet()
    m.it.finish(FIRST, Mark(3), m.now)  # sought back
    m.now = m.it.due_ns()
    assert m.asked(Commit).message.offsets[0].offset == 3


def test_a_topic_that_was_made_again_is_lost_and_new() -> None:
    m = Member()
    beat = m.join([0])
    answer = GroupHeartbeatAnswer(
        id=1, member_epoch=2, state="stable", reason="", releasing=[], session_timeout_ms=1,
        assigned=[TopicPartitions(topic="t", topic_id="1" * 32, partitions=[0])],
    )  # fmt: skip
    beat.on_done(Outcome(answer, (), None, True), m.now)
    news = m.it.news()
    assert (news.lost, news.assigned) == (parts(FIRST), {FIRST: "1" * 32})
