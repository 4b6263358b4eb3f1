"""Raft under a bad network and bad luck: one seed, one run, the same every time.

Messages are dropped, doubled, late and out of order, links are cut in one direction, brokers are killed with or without
the power, stopped and continued, one disk may be lost. After every event I12 is checked; then all heals, and there must
be a leader whose log everybody commits (L1, L5); at last one link goes again and must not (R13, B18) or must (B16) cost
the leadership. Ids: docs/rules.md.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from raft_support import MS, Disk, Node

from node.core.raft.progress import Progress
from node.core.raft.raft import Entry, Envelope, HardState, Raft, Role

CHAOS_NS = 5000 * MS
HEALED_NS = 5000 * MS
AFTER_NS = 4500 * MS


class Simulation:
    """One run. `options` says what the seed made of it."""

    def __init__(
        self,
        seed: int,
        raft_class: type[Raft] = Raft,
        restarted: Callable[[Disk], None] = lambda disk: None,
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.raft_class = raft_class
        self.restarted = restarted
        count = rng.choice([1, 2, 3, 3, 3, 3, 5, 5])
        self.voters = list(range(1, count + 1)) if count != 2 else [1]
        self.brokers = [*range(1, count + 1), *([9] if rng.random() < 0.2 else [])]
        self.drop = rng.choice([0.0, 0.0, 0.05, 0.2])
        self.double = rng.choice([0.0, 0.1, 0.3])
        self.slow_network = rng.random() < 0.4
        self.sync_ms = rng.choice([1, 5, 30, 200])
        self.trouble_ms = rng.choice([100, 250, 600])
        self.damage = len(self.voters) >= 3 and rng.random() < 0.25
        self.frame_entries = rng.choice([1, 2, 100])
        self.now_ns = 10**9
        self.events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.count = 0
        self.chaos = True
        self.proposals = True
        self.cuts: set[tuple[int, int]] = set()
        self.nodes: dict[int, Node] = {}
        self.disks = {broker: Disk() for broker in self.brokers}
        self.incarnations = dict.fromkeys(self.brokers, 0)
        self.stopped: dict[int, list[tuple[Callable[..., None], tuple[Any, ...]]]] = {}
        self.ticks: dict[int, int] = {}
        # What I12 is checked against.
        self.leaders: dict[int, int] = {}
        self.written: dict[tuple[int, int], tuple[Entry, Entry | None]] = {}
        self.committed: list[Entry] = []
        self.committed_in: list[int] = []  # the term of the leader that committed it
        self.seen: dict[int, tuple[int, int]] = {}  # broker -> committed entries and offset checked
        self.matches: dict[tuple[int, int], dict[int, tuple[Progress, int]]] = {}
        self.lost_a_disk = False

    # -- events ---------------------------------------------------------------------------------------

    def after(self, delay_ns: int, action: Callable[..., None], *args: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now_ns + delay_ns, self.count, action, args))

    def run_until(self, end_ns: int) -> None:
        while self.events and self.events[0][0] <= end_ns:
            self.now_ns, _, action, args = heapq.heappop(self.events)
            action(*args)
        self.now_ns = end_ns

    def on(self, broker: int, incarnation: int, action: Callable[..., None], *args: Any) -> None:
        """Let something happen in a broker: now, once it is continued, or never if that uptime is over."""
        if incarnation and incarnation != self.incarnations[broker]:
            return
        node = self.nodes.get(broker)
        if node is None:
            return
        if broker in self.stopped:
            self.stopped[broker].append((action, args))
            return
        action(node, *args)
        self.check(node)
        self.wake_up(node)

    def wake_up(self, node: Node) -> None:
        due = node.raft.next_deadline_ns
        if due < self.ticks.get(node.broker, 1 << 62):
            self.ticks[node.broker] = due
            delay = max(due - self.now_ns, 0) + self.rng.randrange(2 * MS)
            self.after(delay, self.tick, node.broker, node.incarnation, due)

    def tick(self, broker: int, incarnation: int, due: int) -> None:
        if self.ticks.get(broker) == due and incarnation == self.incarnations[broker]:
            self.on(broker, incarnation, self.do_tick)

    def do_tick(self, node: Node) -> None:
        self.ticks.pop(node.broker, None)
        node.tick(self.now_ns)

    # -- the world ------------------------------------------------------------------------------------

    def send(self, node: Node, envelope: Envelope, entries: list[Entry]) -> None:
        rng = self.rng
        if (node.broker, envelope.to) in self.cuts:
            return
        copies = 1
        if self.chaos:
            if rng.random() < self.drop:
                return
            copies += rng.random() < self.double
        for _ in range(copies):
            delay = rng.randrange(MS // 10, MS)
            if self.chaos and self.slow_network and rng.random() < 0.3:
                delay = rng.randrange(400 * MS)
            args = (node.broker, node.incarnation, envelope.message, entries)
            self.after(delay, self.on, envelope.to, 0, self.receive, *args)

    def receive(self, node: Node, sender: int, incarnation: int, *args: Any) -> None:
        node.receive(sender, incarnation, *args, self.now_ns)

    def begin_sync(self, node: Node) -> None:
        delay = self.rng.randrange(MS // 2, self.sync_ms * MS) if self.chaos else MS
        self.after(delay, self.on, node.broker, node.incarnation, lambda n: n.synced(self.now_ns))

    def start(self, broker: int) -> None:
        if broker in self.nodes:
            return
        self.incarnations[broker] += 1
        self.restarted(self.disks[broker])
        self.seen[broker] = (0, 0)
        self.ticks.pop(broker, None)
        node = self.nodes[broker] = Node(
            broker,
            self.brokers,
            self.voters,
            self.disks[broker],
            random.Random(self.rng.random()),
            self.now_ns,
            incarnation=self.incarnations[broker],
            raft_class=self.raft_class,
            frame_entries=self.frame_entries,
            send=self.send,
            begin_sync=self.begin_sync,
        )
        self.wake_up(node)

    def kill(self, broker: int) -> None:
        if self.nodes.pop(broker, None) is None:
            return
        self.stopped.pop(broker, None)
        disk, incarnation = self.disks[broker], self.incarnations[broker]
        if self.rng.random() < 0.5:
            disk.power_cut(self.rng)
        else:
            disk.kill()
        if self.damage and self.rng.random() < 0.5 and broker in self.voters:
            # At most one: two lost disks may be two of two copies.
            self.damage, self.lost_a_disk = False, True
            disk.cut(self.rng.choice([0, disk.end_offset // 2]))
            disk.power_cut(self.rng)
            disk.entries = disk.entries[: len(disk.entries) // 2]
            disk.durable, disk.vouched_end = list(disk.entries), disk.end_offset
            disk.hard_state = HardState(abstaining=True)
        for other in sorted(self.nodes):
            delay = self.rng.choice([0, 2, 300]) * MS + self.rng.randrange(MS)
            self.after(delay, self.on, other, 0, self.tell_death, broker, incarnation)
        self.after(self.rng.randrange(50, 1500) * MS, self.start, broker)

    def tell_death(self, node: Node, broker: int, incarnation: int) -> None:
        node.peer_died(broker, incarnation, self.now_ns)

    def stop(self, broker: int) -> None:
        if broker in self.nodes and broker not in self.stopped:
            self.stopped[broker] = []
            self.after(self.rng.randrange(100, 2500) * MS, self.go_on, broker)

    def go_on(self, broker: int) -> None:
        for action, args in self.stopped.pop(broker, []):
            self.on(broker, 0, action, *args)

    def cut(self, link: tuple[int, int]) -> None:
        self.cuts.add(link)
        self.after(self.rng.randrange(100, 2000) * MS, self.cuts.discard, link)

    def trouble(self) -> None:
        if not self.chaos:
            return
        rng = self.rng
        broker, other = rng.choice(self.brokers), rng.choice(self.brokers)
        leaders = [n.broker for n in self.nodes.values() if n.raft.role is Role.LEADER]
        if leaders and rng.random() < 0.5:
            broker = rng.choice(leaders)
        match rng.randrange(5):
            case 0:
                self.kill(broker)
            case 1:
                self.stop(broker)
            case 2:
                self.cut((broker, other))
            case 3:
                for peer in self.brokers:
                    self.cut((broker, peer))
                    if rng.random() < 0.5:
                        self.cut((peer, broker))
            case 4 if rng.random() < 0.3:
                for one in self.brokers:
                    self.kill(one)
        self.after(rng.randrange(1, self.trouble_ms * 2) * MS, self.trouble)

    def propose(self) -> None:
        for broker in sorted(self.nodes):
            if self.proposals and self.nodes[broker].raft.role is Role.LEADER:
                self.on(broker, 0, self.do_propose)
        self.after(self.rng.randrange(5, 120) * MS, self.propose)

    def do_propose(self, node: Node) -> None:
        if node.raft.role is Role.LEADER:
            self.count += 1
            node.append(f"{node.broker}.{self.count}", self.now_ns)
            node.do(self.now_ns)

    # -- I12 ------------------------------------------------------------------------------------------

    def check(self, node: Node) -> None:
        raft = node.raft
        if raft.role is Role.LEADER:
            leader = self.leaders.setdefault(raft.term, node.broker)
            assert leader == node.broker, f"two leaders in term {raft.term}"
            self.check_leader(node)
        self.check_log(node)
        count, commit = self.seen[node.broker]
        assert raft.commit_offset >= commit, "the commit offset went back"
        if raft.commit_offset == commit:
            return
        new = raft.commit_offset > (self.committed[-1].end_offset if self.committed else 0)
        entries = node.disk.entries
        while count < len(entries) and entries[count].end_offset <= raft.commit_offset:
            if count == len(self.committed):
                self.committed.append(entries[count])
                self.committed_in.append(raft.term)
            assert entries[count] == self.committed[count], "committed twice, differently"
            count += 1
        end = entries[count - 1].end_offset if count else 0
        assert end == raft.commit_offset, "half an entry"
        self.seen[node.broker] = (count, raft.commit_offset)
        if new:
            assert entries[count - 1].term == raft.term, "an older term committed by counting"
            self.check_stored(count)

    def check_leader(self, node: Node) -> None:
        matches = self.matches.setdefault((node.broker, node.raft.term), {})
        if not matches:
            # Of an older term it may be, elected while it was stopped: then only what was committed before.
            count = bisect_left(self.committed_in, node.raft.term)
            held = node.disk.entries[:count]
            assert held == self.committed[:count], "a leader lacks what was committed"
        for peer, progress in node.raft._progress.items():
            before, match = matches.get(peer, (progress, 0))
            if before is progress:  # else it is a new incarnation's
                assert progress.match >= match, "a match offset went back"
            assert progress.match <= progress.next <= node.raft.end_offset
            matches[peer] = (progress, progress.match)

    def check_log(self, node: Node) -> None:
        entries = node.disk.entries
        for place in range(len(entries) - 1, -1, -1):
            entry, before = entries[place], entries[place - 1] if place else None
            known = self.written.setdefault((entry.base_offset, entry.term), (entry, before))
            if known[0] is entry and known[1] is before:
                break  # and, as was checked then, all before
            assert known == (entry, before), "logs do not match"

    def check_stored(self, count: int) -> None:
        """What is committed first, a majority of the voters has on disk."""
        if not self.lost_a_disk:
            disks = [self.disks[voter] for voter in self.voters]
            holders = [d for d in disks if d.durable[:count] == self.committed[:count]]
            assert len(holders) > len(disks) // 2, "committed without a majority of disks"

    # -- a run ----------------------------------------------------------------------------------------

    def leader(self) -> Node:
        leaders = [n for n in self.nodes.values() if n.raft.is_leader_ready]
        newest = max(leaders, key=lambda n: n.raft.term, default=None)
        assert newest is not None, "no leader"
        return newest

    def run(self) -> None:
        for broker in self.brokers:
            self.start(broker)
        self.after(1000 * MS, self.trouble)
        self.propose()
        self.run_until(self.now_ns + CHAOS_NS)
        self.chaos = False
        self.cuts.clear()
        for broker in self.brokers:
            self.go_on(broker)
            self.start(broker)
        self.run_until(self.now_ns + HEALED_NS)
        self.cuts.clear()
        self.check_all_agree()
        if len(self.voters) >= 3:
            self.partial_connectivity()

    def check_all_agree(self) -> None:
        self.proposals = False
        self.run_until(self.now_ns + 1000 * MS)
        self.proposals = True
        leader = self.leader()
        for node in self.nodes.values():
            raft = node.raft
            assert not raft.is_abstaining, f"{raft} abstains for ever"
            assert raft.leader == leader.broker, f"{raft} does not follow {leader.raft}"
            assert raft.commit_offset == leader.raft.end_offset, f"{raft}, {leader.raft}"
            assert raft.lease_until_ns > self.now_ns, f"{raft} has no lease"

    def partial_connectivity(self) -> None:
        leader = self.leader()
        term = leader.raft.term
        deaf = self.rng.choice([voter for voter in self.voters if voter != leader.broker])
        if self.rng.random() < 0.6:
            # With nothing new in the log, a deaf voter's log is as good as any.
            self.proposals = self.rng.random() < 0.5
            self.cuts.add((leader.broker, deaf))
            self.run_until(self.now_ns + AFTER_NS)
            self.cuts.clear()
            self.run_until(self.now_ns + 1000 * MS)
            assert self.leader().raft.term == term, "a deaf voter deposed a leader with a majority"
        else:
            self.cuts = {(peer, leader.broker) for peer in self.brokers}
            self.run_until(self.now_ns + AFTER_NS)
            assert self.leader() is not leader, "a leader that nobody answers stays"
            assert leader.raft.role is not Role.LEADER
            assert leader.raft.lease_until_ns < self.now_ns + 1500 * MS
            self.cuts.clear()
            self.run_until(self.now_ns + 1000 * MS)
        self.check_all_agree()
