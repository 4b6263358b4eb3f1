"""The sans-IO cores: purgatory against a plain model, the ledger of a leader without followers."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from node.core.purgatory import Purgatory
from node.core.replica.leader import Leader


class _PlainPurgatory:
    """What the purgatory means, written the slow way."""

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[dict[str, int], int]] = {}

    def wait(self, waiter: int, keys: dict[str, int], deadline: int) -> None:
        self.waiting[waiter] = (keys, deadline)

    def take(self, chosen: list[int]) -> list[int]:
        for waiter in chosen:
            del self.waiting[waiter]
        return chosen

    def advance(self, key: str, value: int) -> list[int]:
        return self.take(
            [w for w, (k, _) in self.waiting.items() if k.get(key, value + 1) <= value]
        )

    def drop(self, key: str) -> list[int]:
        return self.take([w for w, (k, _) in self.waiting.items() if key in k])

    def expire(self, now: int) -> list[int]:
        return self.take([w for w, (_, d) in self.waiting.items() if d <= now])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_purgatory_hands_every_waiter_back_exactly_once_and_when_it_should(seed: int) -> None:
    rng = random.Random(seed)
    real: Purgatory[str, int] = Purgatory()
    plain = _PlainPurgatory()
    deadlines: dict[int, int] = {}
    now = 0
    for step in range(120):
        action = rng.randrange(5)
        key = rng.choice("abc")
        idle = [w for w in range(step) if w not in plain.waiting]
        # A waiter that was handed back waits again, often until the deadline it had.
        waiter = rng.choice(idle) if idle and rng.random() < 0.5 else step
        if action <= 1:
            keys = {k: rng.randrange(50) for k in rng.sample("abc", rng.randrange(1, 4))}
            deadline = deadlines[waiter] = rng.choice(
                [now + rng.randrange(20), deadlines.get(waiter, now)]
            )
            real.wait(waiter, keys.items(), deadline)
            plain.wait(waiter, keys, deadline)
        elif action == 2:
            value = rng.randrange(50)
            assert sorted(real.advance(key, value)) == sorted(plain.advance(key, value))
        elif action == 3:
            assert sorted(real.drop_key(key)) == sorted(plain.drop(key))
        else:
            real.arm()
            now += rng.randrange(10)
            assert sorted(real.expire(now)) == sorted(plain.expire(now))
            waiting = [d for _, d in plain.waiting.values()]
            assert real.next_deadline_ns() == min(waiting, default=None)
        assert len(real) == len(plain.waiting)


def test_purgatory_forgets_deadlines_of_those_that_were_answered() -> None:
    purgatory: Purgatory[str, int] = Purgatory()
    for waiter in range(10_000):
        purgatory.wait(waiter, [("k", waiter)], 10**12)
        purgatory.arm()
        purgatory.advance("k", waiter)
    assert len(purgatory._deadlines) < 200


def test_purgatory_keeps_one_deadline_of_a_waiter_that_waits_again_and_again() -> None:
    purgatory: Purgatory[str, int] = Purgatory()
    for step in range(10_000):
        purgatory.wait(7, [("k", step)], 10**12 + step % 3)
        purgatory.arm()
        assert purgatory.advance("k", step) == [7]
        purgatory.wait(7, [("k", step)], 10**12)
        purgatory.arm()
        assert purgatory.next_deadline_ns() == 10**12
    assert len(purgatory._deadlines) < 200
    assert purgatory.expire(10**12) == [7]
    assert purgatory.expire(10**13) == []


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 100)), max_size=40),
    st.sampled_from(["os", "disk"]),
)
@settings(deadline=None, derandomize=True)
def test_the_high_watermark_never_goes_back_and_never_passes_what_is_stored(
    events: list[tuple[bool, int]], durability: str
) -> None:
    ledger = Leader(written_end=0, synced_end=0, high_watermark=0, durability=durability)
    last = 0
    for is_sync, end in events:
        moved = ledger.synced(end) if is_sync else ledger.written(end)
        assert moved == (ledger.high_watermark > last)
        assert last <= ledger.high_watermark <= ledger.stored_end
        assert ledger.synced_end <= ledger.written_end
        last = ledger.high_watermark
