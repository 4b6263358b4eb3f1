"""The planted bugs of tests/sim/planted.py that hundreds of lives do not show: each has a test that it turns red."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from controller_support import Cluster
from sim.planted import DIRECTED, PLANTED


def a_cluster() -> Cluster:
    made = Cluster()
    made.register(0, 1, 2)
    made.topic()
    return made


ARGUMENTS: dict[str, dict[str, Any]] = {
    "no-lease": {"seed": lambda: 1},
    "old-proposal": {"cluster": a_cluster},
    "sync-vouches-behind-cut": {"cut": lambda: 3},
    "producers-not-told": {"seed": lambda: 1450},
    "epochs-not-cut": {"end": lambda: 9},
}


@pytest.mark.parametrize("name", DIRECTED)
def test_a_bug_that_few_lives_show_turns_its_own_test_red(name: str) -> None:
    module, _, function = DIRECTED[name].partition(".")
    test = getattr(importlib.import_module(module), function)

    def run() -> None:
        test(**{key: make() for key, make in ARGUMENTS.get(name, {}).items()})

    run()
    undo = PLANTED[name].plant()
    try:
        # A check of the test, or of the product: both are assertions, and `refused` fails by pytest.
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            run()
    finally:
        undo()
    run()
