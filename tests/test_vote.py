"""Term and vote of a voter: what a start has read is durable before it counts (I12)."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace
from typing import Any

import pytest

from node.metadata import Metadata, Quorum
from shmlog.log import checkpoint
from shmlog.log.storage import MemoryStorage

PATH = "data/quorum"


def started(storage: MemoryStorage) -> int:
    """The term that a voter starts with."""
    log = SimpleNamespace(log_end_offset=0, recovery=SimpleNamespace(lossy=False, lossy_reason=""))
    voter: Any = SimpleNamespace(_storage=storage, _quorum_file=PATH, log=log)
    return Metadata._read_quorum(voter).term


@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_a_term_that_a_start_has_found_survives_a_power_cut(earlier: int) -> None:
    storage = MemoryStorage()
    storage.make_dir("data")
    for term in range(1, earlier + 1):
        checkpoint.write(storage, PATH, Quorum(term, -1, False))
    images: list[MemoryStorage] = []

    def take(*_: str) -> None:
        storage.on_operation = None
        images.append(
            copy.deepcopy(storage)
        )  # killed here: what was not synced is in the page cache
        storage.on_operation = take

    take()
    checkpoint.write(storage, PATH, Quorum(earlier + 1, -1, False))
    take()
    for image in images:
        image.on_operation = None
        term = started(image)
        assert earlier <= term <= earlier + 1
        for seed in range(20):
            assert started(image.after_power_cut(random.Random(seed))) >= term


def test_a_power_cut_while_a_vote_is_written_leaves_that_one_or_the_one_before() -> None:
    storage = MemoryStorage()
    storage.make_dir("data")
    storage.sync_dir("")
    for term in (1, 2):
        checkpoint.write(storage, PATH, Quorum(term, -1, False), is_gapless=True)

    def cut(*_: str) -> None:
        for seed in range(40):
            storage.on_operation = None
            assert started(storage.after_power_cut(random.Random(seed))) in (2, 3)
            storage.on_operation = cut

    storage.on_operation = cut
    checkpoint.write(storage, PATH, Quorum(3, -1, False), is_gapless=True)
