"""What the members of a group did, judged: was a record left out, done twice without need, or done by two at once?

Each member writes down what happens to it, a line each, as it happens (`Event.parse`); the driver adds `killed`.

    assigned P        P is read from now on                revoked P    it goes, in order
    took P BASE END   a batch is handed out                lost P       it went before: the member was thrown out
    worked P BASE END and done                             refused P    a commit was refused
    committed P END   a commit of this member has          wrong P N    the record at offset N is another one
                      returned                             left         the member has closed
    killed            kill -9

The rules, each of which `judge` counts by its name:

    skipped      below the final committed offset every record was done by somebody
    redelivered  what is done again was not known to be committed when its new owner got the partition, and nothing
                 at all is done again after a hand-over in order (`exact`: while no broker dies)
    disordered   within one ownership each batch begins where the one before ended
    two owners   a partition has one owner at a time, and only its owner does anything with it
    evicted      no member that lives loses a partition or is refused a commit, however slow it is
    wrong        each offset has the record that was written there
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

RULES = ("skipped", "redelivered", "disordered", "two owners", "evicted", "wrong")


class Event(NamedTuple):
    """A line of a member. `at_ns`: CLOCK_MONOTONIC."""

    at_ns: int
    member: str
    what: str
    partition: int = -1
    base: int = -1
    end: int = -1

    @classmethod
    def parse(cls, member: str, line: str) -> Event:
        """From "AT WHAT [PARTITION [BASE [END]]]"."""
        at, what, *numbers = line.split()
        return cls(int(at), member, what, *map(int, numbers))


@dataclass
class _Partition:
    owner: str | None = None
    handed_over: bool = False  # by the last owner, in order
    next_base: int = -1  # of the owner's next batch; -1: it has had none
    floor: int = 0  # known to be committed when the owner got it
    committed: int = 0
    done_end: int = 0
    done: Counter[int] = field(default_factory=Counter)


class Verdict(NamedTuple):
    """How often each rule was broken, the first cases, and what was done."""

    broken: Counter[str]
    cases: list[str]
    done: int
    again: int


def judge(events: Iterable[Event], final: Mapping[int, int], *, exact: bool) -> Verdict:
    """Go through all that happened; `final`: the committed offset of each partition at the end."""
    court = _Court(exact=exact)
    for event in sorted(events):
        court.hear(event)
    for partition, end in final.items():
        missing = [n for n in range(end) if n not in court.partitions[partition].done]
        if missing:
            court.blame(
                "skipped", f"{partition}: {len(missing)} records, the first is {missing[0]}"
            )
    counts = [count for p in court.partitions.values() for count in p.done.values()]
    return Verdict(court.broken, court.cases, len(counts), sum(counts) - len(counts))


class _Court:
    def __init__(self, *, exact: bool) -> None:
        self.partitions: defaultdict[int, _Partition] = defaultdict(_Partition)
        self.broken: Counter[str] = Counter()
        self.cases: list[str] = []
        self._exact = exact

    def blame(self, rule: str, case: str) -> None:
        self.broken[rule] += 1
        if len(self.cases) < 20:
            self.cases.append(f"{rule}: {case}")

    def hear(self, event: Event) -> None:
        if event.what == "killed":
            for p in self.partitions.values():
                if p.owner == event.member:
                    p.owner, p.handed_over = None, False
            return
        if event.what == "left":
            return
        p = self.partitions[event.partition]
        if event.what == "assigned":
            self._assigned(p, event)
        elif event.what == "revoked":
            self._owned(p, event)
            p.owner, p.handed_over = None, True
        elif event.what == "took":
            self._took(p, event)
        elif event.what == "worked":
            self._owned(p, event)
            p.done.update(range(event.base, event.end))
            p.done_end = max(p.done_end, event.end)
        elif event.what == "committed":
            p.committed = max(p.committed, event.base)
        else:
            rule = {"lost": "evicted", "refused": "evicted", "wrong": "wrong"}[event.what]
            self.blame(rule, str(event))
            if event.what == "lost":
                p.owner, p.handed_over = None, False

    def _assigned(self, p: _Partition, event: Event) -> None:
        if p.owner is not None:
            self.blame("two owners", f"{p.owner} has it: {event}")
        p.owner, p.next_base, p.floor = event.member, -1, p.committed

    def _owned(self, p: _Partition, event: Event) -> None:
        if p.owner != event.member:
            self.blame("two owners", f"it is {p.owner}'s: {event}")

    def _took(self, p: _Partition, event: Event) -> None:
        self._owned(p, event)
        if p.next_base >= 0:
            if event.base != p.next_base:
                self.blame("disordered", f"{p.next_base} was next: {event}")
        elif event.base > p.done_end:
            self.blame("skipped", f"done up to {p.done_end}: {event}")
        elif event.base < p.floor:
            self.blame("redelivered", f"{p.floor} was committed: {event}")
        elif event.base < p.done_end and p.handed_over and self._exact:
            self.blame("redelivered", f"{p.done_end} was handed over: {event}")
        p.next_base = event.end
