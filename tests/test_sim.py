"""The simulated cluster, a short run of it: `python -m tests.sim` is the long one (tests/sim).

No life of a cluster breaks the invariants of docs/rules.md. The checks are proven first: hand-made histories
with one anomaly each are flagged, random valid ones are not, and planted bugs are caught (here those that few seeds
find; `--planted all` tries every one, and test_planted.py those that seeds do not find).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sim.history import History, Poll, Send, anomalies
from sim.life import MS, Life, Options, live, options_of
from sim.planted import PLANTED

# -- the history checker --------------------------------------------------------------------------


def _sent(process: int, values: list[bytes], at: tuple[int, int], offset: int = -1) -> Send:
    send = Send(process, "k", values, at[0])
    if offset >= 0:
        send.ok(offset, at[1])
    return send


def _good() -> History:
    history = History()
    history.sends = [
        _sent(1, [b"a", b"b"], (0, 10), 0),
        _sent(1, [b"c"], (11, 20), 2),
        _sent(2, [b"d"], (12, 30), 3),
    ]
    history.polls = [Poll(9, "k", [(0, b"a"), (1, b"b")]), Poll(9, "k", [(2, b"c"), (3, b"d")])]
    return history


def _lose(h: History) -> None:
    h.polls = [Poll(9, "k", [(0, b"a"), (1, b"b")]), Poll(8, "k", [(3, b"d")], reset=True)]


def _unseen(h: History) -> None:
    h.polls = [Poll(9, "k", [(0, b"a"), (1, b"b"), (2, b"c")])]


def _two_at_one_offset(h: History) -> None:
    h.polls.append(Poll(8, "k", [(2, b"x")]))


def _twice(h: History) -> None:
    h.polls.append(Poll(9, "k", [(4, b"c")]))


def _refused_and_read(h: History) -> None:
    h.sends[2] = Send(2, "k", [b"d"], 12)
    h.sends[2].fail(30)


def _half_of_an_unknown_send(h: History) -> None:
    h.sends.append(Send(3, "k", [b"e", b"f"], 40))
    h.polls.append(Poll(9, "k", [(4, b"e")]))


def _skip(h: History) -> None:
    h.polls = [Poll(8, "k", [(0, b"a"), (1, b"b"), (2, b"c"), (3, b"d")])]
    h.polls += [Poll(9, "k", [(0, b"a")]), Poll(9, "k", [(2, b"c")])]


def _back(h: History) -> None:
    h.polls.append(Poll(9, "k", [(1, b"b")]))


def _reordered(h: History) -> None:
    h.sends = [
        _sent(1, [b"c"], (0, 10), 2),
        _sent(1, [b"a", b"b"], (1, 20), 0),
        _sent(2, [b"d"], (12, 30), 3),
    ]


def _against_real_time(h: History) -> None:
    h.sends = [
        _sent(2, [b"d"], (0, 5), 3),
        _sent(1, [b"a", b"b"], (6, 10), 0),
        _sent(1, [b"c"], (11, 20), 2),
    ]


def _gap(h: History) -> None:
    h.sends.pop(1)
    h.polls = [Poll(9, "k", [(0, b"a"), (1, b"b")]), Poll(8, "k", [(3, b"d")])]


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (_lose, "lost-write"),
        (_unseen, "unseen"),
        (_two_at_one_offset, "inconsistent-offsets"),
        (_twice, "duplicate"),
        (_refused_and_read, "aborted-read"),
        (_half_of_an_unknown_send, "lost-write"),
        (_skip, "poll-skip"),
        (_back, "nonmonotonic-poll"),
        (_reordered, "nonmonotonic-send"),
        (_against_real_time, "real-time order"),
        (_gap, "contiguous"),
    ],
)
def test_a_history_with_this_anomaly_is_flagged(harm: Callable[[History], None], name: str) -> None:
    history = _good()
    assert anomalies(history) == []
    harm(history)
    assert name in {found.split(" k")[0].split(" (")[0] for found in anomalies(history)}


def _random_history(rng: random.Random) -> History:
    """A log that was filled in order by sends whose answers overlap; some answers are lost, some sends refused."""
    history, log, now = History(), [], 0
    for number in range(rng.randrange(1, 12)):
        values = [b"%d.%d" % (number, i) for i in range(rng.randrange(1, 4))]
        send = Send(rng.randrange(3), "k", values, now)
        history.sends.append(send)
        fate = rng.choice(("ok", "ok", "ok", "info", "unwritten", "fail"))
        now += rng.randrange(1, 5)
        if fate in ("ok", "info"):
            offset = len(log)
            log += values
        if fate == "ok":
            send.ok(offset, now)
        elif fate == "fail":
            send.fail(now)
    for reader in range(2):
        position = 0
        while position < len(log):
            end = min(len(log), position + rng.randrange(1, 5))
            records = list(enumerate(log[position:end], position))
            history.polls.append(Poll(reader, "k", records))
            position = end
    return history


def test_valid_histories_are_clean() -> None:
    rng = random.Random(7)
    for _ in range(3000):
        history = _random_history(rng)
        assert anomalies(history) == []


# -- lives ----------------------------------------------------------------------------------------


# What once broke an invariant, and why.
REGRESSIONS = {
    42: "a vote that was read beside its file was in the page cache only when it counted",
    1906: "an answer to a broker's last incarnation counted for the next one, which took itself for registered",
    1778: "a vacancy that came while the controller was told of the replicas was never told",
    29: "a controller that did not plan a first registration took no report from it and was told of none again",
    1599: "a topic whose answer came late had the load write on, and its readers never came to an end",
    2042: "batches that were committed after the last readers had come to the end counted as unseen",
    626: "what all members had stored was called wrong when a deposed leader heard of it after the next epoch's start",
    872: "the winner of a recovery election has other batches than were committed, below its end too",
    1520: "a first start that was killed before its uptime stood made the next one look like another boot",
}


# The same, of lives as they are now.
LATER = {
    295: "a sync that ended while a log's level went from disk to os took the level back",
    509: "epochs whose batches compaction had taken were forgotten at a kill, and a follower stopped for good",
    1450: "a replica that began anew did not know the producers of what it had never got, and refused one",
    5530: "compaction took batches whose producers were in no snapshot yet, and a kill made them unknown",
    7911: "a broker that had been stopped had its lease before it had heard that it was fenced",
    8692: "a coordinator that had just ceased to lead stored a group's change once more, and ended",
    9443: "a member that joined again while its heartbeat waited was not known",
    14067: "a log that found no space to be opened was taken for lost, and a replica with less was elected",
    16094: "of a vote file only the generation before was left by a power cut, and a lone voter never voted again",
    19050: "a cut took a producer's last five batches, and those before them were not known any more",
    20428: "the name of a file that a killed broker had made was not durable; a power cut took it",
    20841: "a replica that was cut below a delete that its leader had dropped kept the key",
    4638: "a refusal of a question of an older epoch, come late, had a follower wait for ever",
    1940: "a replica that began anew at a log start within a batch never got its first batch",
}


@pytest.mark.parametrize("seed", LATER)
def test_what_a_later_life_has_shown_stays_mended(seed: int) -> None:
    assert live(seed)[0].violation is None


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_what_a_life_has_shown_stays_mended(seed: int) -> None:
    assert live(seed, options_of(seed, later=False))[0].violation is None


@pytest.mark.parametrize(
    "name",
    [
        "serve-before-start",
        "anybody-elected",
        "isr-below-minimum",
        "vote-not-kept",
        "cut-to-hw",
        "retention-takes-one-more",
        "retention-above-hw",
        "compaction-above-hw",
        "keys-confused",
        "replaced-votes",
        "group-answered-early",
        "fenced-commits",
        "given-before-released",
        "shard-not-read",
    ],
)
def test_a_planted_bug_is_caught(name: str) -> None:
    undo = PLANTED[name].plant()
    try:
        assert any(live(seed)[0].violation is not None for seed in range(1, 41))
    finally:
        undo()


def _quiet() -> Options:
    """Three brokers, one topic at acks=1, and no faults."""
    return replace(
        options_of(1),
        brokers=3,
        voters=3,
        trouble_ms=9000,
        faults=(),
        changes=(),
        topics=1,
        durabilities=("os",),
        acks=("1",),
        drop=0.0,
        double=0.0,
        shuffle=0.0,
        slow=0.0,
        groups=False,
    )


@pytest.mark.parametrize("seed", range(1, 4))
def test_a_leader_that_nobody_hears_stops_to_ack(seed: int) -> None:
    """E7: its clients still reach it, so at acks=1 nothing but the lease keeps it from acking (I13)."""
    life = Life(seed, _quiet())
    world = life.world

    def cut_off() -> None:
        image = life.checker.image
        leader = next(p.leader for topic in image.topics.values() for p in topic.partitions)
        for other in set(world.brokers) - {leader}:
            world.network.cuts |= {(leader, other), (other, leader)}

    world.after(3500 * MS, cut_off)
    life.run()
    assert len(world.network.cuts) == 0  # it was healed, and all came in sync again
    assert life.load.acked > 20


@pytest.mark.parametrize("first", range(1, 25, 4))
def test_no_life_breaks_an_invariant(first: int) -> None:
    for seed in range(first, first + 4):
        result, _ = live(seed)
        assert result.violation is None, f"python -m tests.sim --seed {seed} --log"


_DIGESTS = "from sim.life import live; print([live(seed)[0].digest for seed in (3, 7, 26)])"


def test_a_seed_is_one_life_whatever_the_hash_seed() -> None:
    found = set()
    for hash_seed in "0", "1":
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        ran = subprocess.run(
            [sys.executable, "-c", _DIGESTS],
            env=environment,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(ran.stdout)
    assert len(found) == 1
