"""A broker's standing: who has to be told of its replicas, and when again."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from node.standing import RETRY_NS, Standing
from shmlog.clock import ManualClock
from shmlog.errors import LeaderUnavailable, ShmlogError
from shmlog.protocol import peers

ME = 1


def image(*vacant_epochs: int, registered: bool = True) -> Any:
    """An image in which partitions 0, 1, .. have no leader, at these epochs."""
    states = [
        SimpleNamespace(topic_id=b"t", partition=i, leader=-1, leader_epoch=epoch, replicas=(ME, 2))
        for i, epoch in enumerate(vacant_epochs)
    ]
    topic = SimpleNamespace(partitions=states)
    return SimpleNamespace(topics={"t": topic}, is_current=lambda *_: registered)


class Harness:
    """A standing whose controller is the test."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.answers: list[Any] = []
        self.clock = ManualClock()
        self.metadata = SimpleNamespace(
            is_caught_up=True,
            controller_id=0,
            raft=SimpleNamespace(term=1),
            submit=lambda change, done, deadline_ns: self.answers.append(done),
        )
        context: Any = SimpleNamespace(metadata=self.metadata, clock=self.clock, partitions={})
        catalog: Any = SimpleNamespace(
            is_open=True,
            begin=lambda: None,
            registered=lambda: None,
            registration=lambda registration, again: self.asked.append(again),
        )
        change: Any = SimpleNamespace(id=ME, incarnation=3)
        self.standing = Standing(context, catalog, change, lambda: None)

    def turn(self) -> int:
        """How often it was told by now."""
        self.standing.turn(self.clock.monotonic_ns())
        return len(self.asked)

    def answer(self, error: ShmlogError | None = None) -> None:
        self.answers.pop()(-1 if error else 7, error)

    def register(self, *vacant_epochs: int) -> None:
        """Told, and in the image."""
        self.turn()
        self.standing.follow(image(*vacant_epochs))
        self.answer()


@pytest.fixture
def harness() -> Harness:
    return Harness()


def test_a_controller_is_told_once_and_a_new_one_again(harness: Harness) -> None:
    harness.register()
    assert harness.asked == [False]
    assert harness.turn() == 1
    harness.metadata.raft.term = 2
    assert harness.turn() == 2
    assert harness.asked[-1] is True


def test_a_vacancy_is_told_once(harness: Harness) -> None:
    harness.register()
    harness.standing.follow(image(4))
    assert harness.turn() == 2
    harness.answer()
    assert harness.turn() == 2
    harness.standing.follow(image(5))
    assert harness.turn() == 3


def test_a_vacancy_that_comes_while_another_is_told_is_told_afterwards(harness: Harness) -> None:
    harness.register()
    harness.standing.follow(image(4))
    harness.turn()
    harness.standing.follow(image(4, 6))
    assert harness.turn() == 2  # one at a time
    harness.answer()
    assert harness.turn() == 3


def test_a_first_registration_tells_a_later_controller_of_no_vacancy(harness: Harness) -> None:
    harness.standing.follow(image(4, registered=False))
    harness.register(4)
    assert harness.turn() == 2
    assert harness.asked == [False, True]
    harness.answer()
    assert harness.turn() == 2


def test_what_was_refused_is_told_again_after_a_pause(harness: Harness) -> None:
    harness.turn()
    harness.answer(LeaderUnavailable("no controller"))
    assert harness.turn() == 1
    harness.clock.advance(RETRY_NS)
    assert harness.turn() == 2


def test_peers_count_their_requests_from_a_place_of_their_incarnations_own() -> None:
    firsts = [peers.first_seq(incarnation) for incarnation in (1, 2, 3)]
    assert all(later - first > 10**9 for first, later in itertools.pairwise(firsts))
