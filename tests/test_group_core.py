"""A group's rules without a broker: news that cross a request on its way cost a member nothing."""

from __future__ import annotations

import pytest

from node.core.groups.group import Group
from node.core.groups.state import Offset, Process
from shmlog.errors import Code, PartitionMoved

TOPICS = {"t": (b"t" * 16, 4)}
PARTS = [(b"t" * 16, p) for p in range(4)]


def joined(group: Group, member: str) -> None:
    group.join(member, instance="", client="", topics=["t"], assignor="uniform", process=Process())
    group.plan(TOPICS, 0)


@pytest.fixture
def group() -> Group:
    """Member a has all; then b and c have come and gone, and a, at epoch 1 for all it knows, is two further."""
    made = Group("g")
    joined(made, "a")
    member = made.members["a"]
    made.heard(member, member.epoch, PARTS, None)
    for other in ("b", "c"):
        made.join(
            other, instance="", client="", topics=["x"], assignor="uniform", process=Process()
        )
        made.plan(TOPICS, 0)
    assert (member.epoch, len(member.assigned)) == (3, 4)
    return made


def test_a_heartbeat_and_a_commit_of_an_earlier_epoch_are_taken(group: Group) -> None:
    found = group.check("a", 1)
    group.heard(found, 1, PARTS, None)
    committer = group.check_commit("a", 1)
    group.commit(committer, 1, PARTS[0], Offset(5, 1, "", 0, 1, "a"))
    assert group.offsets[PARTS[0]].offset == 5


def test_what_it_has_to_give_up_by_now_it_may_still_use_and_commit(group: Group) -> None:
    joined(group, "d")
    a = group.members["a"]
    gone = min(a.releasing)
    group.heard(group.check("a", 1), 1, PARTS, None)
    group.commit(group.check_commit("a", 1), 1, gone, Offset(5, 1, "", 0, 1, "a"))
    group.heard(a, 1, set(PARTS) - a.releasing.keys(), None)
    with pytest.raises(PartitionMoved):
        group.commit(group.check_commit("a", a.epoch), a.epoch, gone, Offset(6, 1, "", 0, 2, "a"))


def test_an_epoch_below_what_it_has_said_or_above_what_it_has_is_left_behind(group: Group) -> None:
    a = group.members["a"]
    group.heard(group.check("a", 3), 3, PARTS, None)
    for epoch in (1, 4):
        with pytest.raises(PartitionMoved) as caught:
            group.check("a", epoch)
        assert caught.value.code is Code.FENCED_MEMBER_EPOCH
    with pytest.raises(PartitionMoved):
        group.heard(a, 3, [*PARTS, (b"t" * 16, 9)], None)
