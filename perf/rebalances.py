"""A group under load whose members are killed, added, stopped and slow; and now and then a broker is killed too.

Three brokers, three replicas; one producer, to 8 partitions; members are processes, of which every other one commits
itself. Before each change the group is whole: each partition has an owner that lives, and has been read since the last
change. What each did is judged at the end (perf/ownership.py); the run fails if a rule was broken.

reassigned    from the kill of a member to `on_assign` of the new owner, for each partition that it had
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from perf import harness
from perf.harness import Child, Cluster, cluster, create_topic
from perf.members import mean_and_tail
from perf.ownership import RULES, Event, judge
from shmlog.client.admin import Admin

TOPIC = GROUP = "rebalances"
PARTITIONS = 8
RATE = 2000
MEMBERS_MAX = 5
_PATIENCE_S = 60
_CHANGES = {"add": 4, "kill": 4, "leave": 3}  # how often which change of members
_TROUBLES = {"nothing": 6, "stop": 2, "slow": 2, "kill broker": 1}  # and what else before it


class _Member:
    """A process, and its diary as far as it was read."""

    def __init__(self, made: Cluster, number: int) -> None:
        self.name = f"m{number}"
        self._file = made.dir / f"{self.name}.diary"
        self._read = 0
        self.killed_ns = 0
        self._child = Child(
            "work", where=str(made.dir), topic=TOPIC, group=GROUP,
            commit="manual" if number % 2 else "auto", diary=str(self._file),
        )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._child.pid, number)

    def kill(self) -> Event:
        """kill -9; what happened before it is in the diary."""
        self.killed_ns = time.monotonic_ns()
        self._child.kill()
        return Event(self.killed_ns, self.name, "killed")

    def leave(self) -> None:
        """Let it close in order, and wait."""
        self.signal(signal.SIGTERM)
        self._child.end()

    def news(self) -> list[Event]:
        """What it has written since the last call: whole lines only."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return [Event.parse(self.name, line) for line in whole.decode().splitlines()]


class _Group:
    """The members, and all that happened."""

    def __init__(self, made: Cluster) -> None:
        self._made = made
        self._number = 0
        self.all: list[_Member] = []
        self.living: list[_Member] = []
        self.events: list[Event] = []
        self._owner: dict[int, str] = {}
        self._took_ns: dict[int, int] = {}

    def add(self) -> None:
        member = _Member(self._made, self._number)
        self._number += 1
        self.all.append(member)
        self.living.append(member)

    def remove(self, member: _Member, *, kill: bool) -> None:
        self.living.remove(member)
        if kill:
            self.events.append(member.kill())
        else:
            member.leave()

    def look(self) -> None:
        """Take in what the members have written."""
        for member in self.all:
            for event in member.news():
                self.events.append(event)
                if event.what == "assigned":
                    self._owner[event.partition] = event.member
                elif event.what == "took":
                    self._took_ns[event.partition] = event.at_ns

    def wait_whole(self, since_ns: int) -> None:
        """Until each partition has been read since then by its owner, which lives, and each member has one."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            self.look()
            living = {member.name for member in self.living}
            stale = [n for n in range(PARTITIONS) if self._took_ns.get(n, 0) < since_ns]
            if not stale and set(self._owner.values()) == living:
                return
            if time.monotonic() > deadline:
                raise SystemExit(f"not whole: {stale} not read, {self._owner} of {sorted(living)}")
            time.sleep(0.005)


def _trouble(kind: str, group: _Group, made: Cluster, admin: Admin, rng: random.Random) -> None:
    member = rng.choice(group.living)
    if kind == "slow":
        member.signal(signal.SIGUSR1)
    elif kind == "stop":
        member.signal(signal.SIGSTOP)
        time.sleep(rng.uniform(0.2, 2))
        member.signal(signal.SIGCONT)
    elif kind == "kill broker":
        os.kill(rng.choice(list(made.pids.values())), signal.SIGKILL)
        _wait_healthy(made, admin)


def _wait_healthy(made: Cluster, admin: Admin) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while set(made.pids) != set(made.brokers):
        if time.monotonic() > deadline:
            raise SystemExit(f"brokers {sorted(made.pids)} of {made.brokers}")
        time.sleep(0.01)
    harness.wait_in_sync(admin, TOPIC, _PATIENCE_S)


def _change(group: _Group, rng: random.Random) -> str:
    possible = dict(_CHANGES)
    if len(group.living) < 2:
        possible = {"add": 1}
    elif len(group.living) == MEMBERS_MAX:
        del possible["add"]
    [kind] = rng.choices(list(possible), list(possible.values()))
    if kind == "add":
        group.add()
    else:
        group.remove(rng.choice(group.living), kill=kind == "kill")
    return kind


def _reassigned(events: list[Event]) -> list[float]:
    """ms from each kill to the next assignment of each partition that the victim had."""
    owner: dict[int, str] = {}
    killed_ns: dict[int, int] = {}
    times = []
    for event in sorted(events):
        if event.what == "killed":
            killed_ns |= {p: event.at_ns for p, name in owner.items() if name == event.member}
        elif event.what == "assigned":
            owner[event.partition] = event.member
            if event.partition in killed_ns:
                times.append((event.at_ns - killed_ns.pop(event.partition)) / 1e6)
        elif event.what in ("revoked", "lost"):
            owner.pop(event.partition, None)
    return times


def _drain(group: _Group, producer: Child, admin: Admin) -> dict[int, int]:
    """Stop the load, wait until all is read, close the members; the committed offsets."""
    producer.go()
    ends = producer.line()["ends"]
    producer.end()
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        group.look()
        done = Counter[int]()
        for event in group.events:
            if event.what == "worked":
                done[event.partition] = max(done[event.partition], event.end)
        if all(done[n] == end for n, end in enumerate(ends)):
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"done up to {dict(done)}, written up to {ends}")
        time.sleep(0.05)
    for member in list(group.living):
        group.remove(member, kill=False)
    group.look()
    final = {p.partition: p.committed for p in admin.describe_group(GROUP).partitions}
    if final != dict(enumerate(ends)):
        raise SystemExit(f"committed up to {final}, written and done up to {ends}")
    return final


def rebalances(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One run; SystemExit if a rule was broken."""
    rng = random.Random(arguments.seed)
    troubles = {
        k: w for k, w in _TROUBLES.items() if k != "kill broker" or max(arguments.brokers) > 1
    }
    changes: Counter[str] = Counter()
    with cluster(max(arguments.brokers)) as made, Admin(made.dir) as admin:
        create_topic(made, TOPIC, PARTITIONS)
        rate = arguments.rate or RATE
        producer = Child(
            "count_up", where=str(made.dir), topic=TOPIC, partitions=PARTITIONS, rate=rate
        )
        group = _Group(made)
        try:
            producer.line()
            group.add()
            group.add()
            for _ in range(arguments.count):
                group.wait_whole(time.monotonic_ns())
                [trouble] = rng.choices(list(troubles), list(troubles.values()))
                _trouble(trouble, group, made, admin, rng)
                changes[trouble] += trouble != "nothing"
                changes[_change(group, rng)] += 1
            group.wait_whole(time.monotonic_ns())
            final = _drain(group, producer, admin)
        finally:
            for member in group.living:
                member.kill()
            producer.kill()
        verdict = judge(group.events, final, exact=not changes["kill broker"])
        if verdict.broken and arguments.out:
            kept = Path(arguments.out).with_suffix(".events")
            kept.write_text("\n".join(map(str, sorted(group.events))))
            print(f"what happened: {kept}")
    for case in verdict.cases:
        print(case)
    row = {
        "what": "rebalances", "changes": arguments.count, **{k: n for k, n in changes.items() if n},
        "records": verdict.done, "again": verdict.again, **{rule: verdict.broken[rule] for rule in RULES},
        **{f"reassigned {k}": v for k, v in mean_and_tail(_reassigned(group.events) or [0.0]).items()},
    }  # fmt: skip
    if verdict.broken:
        raise SystemExit(f"broken: {dict(verdict.broken)} of {row}")
    return [row]
