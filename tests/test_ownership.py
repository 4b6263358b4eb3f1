"""The judge of what members of a group did finds each thing that must not happen, and blames nobody for the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))

from perf.ownership import RULES, Event, judge

A = (
    "a assigned 0",
    "a took 0 0 5",
    "a worked 0 0 5",
    "a committed 0 5",
    "a took 0 5 9",
    "a worked 0 5 9",
)


def events(lines: Sequence[str]) -> list[Event]:
    """Of "MEMBER WHAT [NUMBERS]", in the order of time."""
    told = [line.partition(" ") for line in lines]
    return [Event.parse(name, f"{at} {what}") for at, (name, _, what) in enumerate(told)]


@pytest.mark.parametrize(
    "then",
    [
        (
            "a committed 0 9",
            "a revoked 0",
            "a left",
            "b assigned 0",
            "b took 0 9 12",
            "b worked 0 9 12",
        ),
        # Killed before its second commit was known: that one is done again, the first one not.
        (
            "a killed",
            "b assigned 0",
            "b took 0 5 9",
            "b worked 0 5 9",
            "b took 0 9 12",
            "b worked 0 9 12",
        ),
        # The commit was made, but its maker did not live to write it down.
        ("a killed", "b assigned 0", "b took 0 9 12", "b worked 0 9 12"),
        # Handed out, not done: the next one begins there.
        ("a took 0 9 10", "a revoked 0", "b assigned 0", "b took 0 9 12", "b worked 0 9 12"),
    ],
)
def test_nobody_is_blamed_for_what_may_happen(then: tuple[str, ...]) -> None:
    verdict = judge(events([*A, *then]), {0: 12}, exact=True)
    assert (verdict.broken, verdict.cases, verdict.done) == ({}, [], 12)
    assert verdict.again == (4 if then[2] == "b took 0 5 9" else 0)


@pytest.mark.parametrize(
    ("rule", "then"),
    [
        ("skipped", ("a killed", "b assigned 0", "b took 0 10 12", "b worked 0 10 12")),
        ("skipped", ("a took 0 9 12", "a revoked 0")),  # committed up to 12, done by nobody
        ("redelivered", ("a killed", "b assigned 0", "b took 0 4 12", "b worked 0 4 12")),
        ("redelivered", ("a revoked 0", "b assigned 0", "b took 0 5 12", "b worked 0 5 12")),
        ("disordered", ("a took 0 8 12", "a worked 0 8 12")),
        ("disordered", ("a took 0 10 12", "a worked 0 9 12")),
        ("two owners", ("b assigned 0", "b took 0 9 12", "b worked 0 9 12")),
        ("two owners", ("a revoked 0", "a worked 0 9 12")),
        ("two owners", ("a killed", "b took 0 9 12", "b worked 0 9 12")),
        ("evicted", ("a lost 0", "b assigned 0", "b took 0 9 12", "b worked 0 9 12")),
        ("evicted", ("a took 0 9 12", "a worked 0 9 12", "a refused 0")),
        ("wrong", ("a took 0 9 12", "a wrong 0 10", "a worked 0 9 12")),
    ],
)
def test_each_rule_is_seen_broken(rule: str, then: tuple[str, ...]) -> None:
    verdict = judge(events([*A, *then]), {0: 12}, exact=True)
    assert set(verdict.broken) >= {rule}
    assert verdict.cases[0].startswith(f"{rule}: ")
    assert set(verdict.broken) <= set(RULES)


def test_after_a_broker_died_a_hand_over_may_repeat_what_was_not_known_to_be_committed() -> None:
    then = ("a revoked 0", "b assigned 0", "b took 0 5 12", "b worked 0 5 12")
    assert not judge(events([*A, *then]), {0: 12}, exact=False).broken
