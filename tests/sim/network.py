"""How messages travel: between brokers (lost, doubled, late, out of order), and between a client and a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from node.io.wire import Received

from .ports import MS, US

if TYPE_CHECKING:
    from .world import Process, World


class Network:
    """Messages between brokers: each connection is of one process to another, and needs a moment to be made."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._connected_ns: dict[tuple[int, int], int] = {}  # processes -> when
        self._last_ns: dict[tuple[int, int], int] = {}
        self._resets: dict[tuple[int, int], int] = {}
        self.cuts: set[tuple[int, int]] = set()
        self.drop = self.double = self.shuffle = 0.0
        self.slow = 0.0
        self.slow_ns = 0

    def send(self, sender: Process, to: int, frames: list[bytes]) -> None:
        world = self._world
        target = world.processes.get(to)
        world.trace("message", sender.broker, to, frames[0])
        if target is None or not target.alive or target.wire.closed:
            return
        key = (sender.number, target.number)
        since_ns = self._connected_ns.get(key)
        rng = world.rng
        if since_ns is None:
            earliest = max(sender.began_ns, target.began_ns)
            since_ns = self._connected_ns[key] = earliest + rng.randrange(MS, 100 * MS)
        if world.now_ns < since_ns or (sender.broker, to) in self.cuts:
            return
        if self.drop and rng.random() < self.drop:
            return
        for _ in range(1 + (self.double > 0 and rng.random() < self.double)):
            delay_ns = rng.randrange(15 * US, 150 * US)
            if self.slow and rng.random() < self.slow:
                delay_ns += rng.randrange(self.slow_ns)
            at_ns = world.now_ns + delay_ns
            if not (self.shuffle and rng.random() < self.shuffle):
                at_ns = self._last_ns[key] = max(at_ns, self._last_ns.get(key, 0) + 1)
            world.at(at_ns, self._arrive, sender, target, frames, self._resets.get(key, 0))

    def _arrive(self, sender: Process, target: Process, frames: list[bytes], resets: int) -> None:
        if not target.alive or target.wire.closed:
            return
        if resets != self._resets.get((sender.number, target.number), 0):
            return
        if (sender.broker, target.broker) in self.cuts:
            return
        target.wire.messages.append(frames)
        target.wake()

    def reset(self, sender: Process, to: int) -> None:
        target = self._world.processes.get(to)
        if target is not None:
            key = (sender.number, target.number)
            self._resets[key] = self._resets.get(key, 0) + 1
            delay_ns = self._world.rng.randrange(MS, 20 * MS)
            self._connected_ns[key] = self._world.now_ns + delay_ns


class Link:
    """A client's connection to one process: in order, reliable, until it breaks."""

    def __init__(self, world: World, client: Any, process: Process) -> None:
        self._world = world
        self.client = client
        self.process = process
        self.session = b"s%d" % next(world.numbers)
        self.open = True
        self._to_broker_ns = self._to_client_ns = 0
        world.links[self.session] = self

    def send(self, frames: list[bytes]) -> None:
        world = self._world
        if not self.open:
            return
        at_ns = max(world.now_ns + world.client_delay_ns(), self._to_broker_ns + 1)
        self._to_broker_ns = at_ns
        world.at(at_ns, self._arrive, frames)

    def _arrive(self, frames: list[bytes]) -> None:
        process = self.process
        if process.alive and not process.wire.closed:
            process.wire.requests.append(Received(self.session, frames, self.client.pid))
            process.wake()

    def to_client(self, frames: list[bytes]) -> None:
        world = self._world
        if not self.open:
            return
        at_ns = max(world.now_ns + world.client_delay_ns(), self._to_client_ns + 1)
        self._to_client_ns = at_ns
        world.at(at_ns, self._deliver, frames)

    def _deliver(self, frames: list[bytes]) -> None:
        if self.open:
            self.client.received(self, frames)

    def close(self) -> None:
        """By the client: what it has sent may still arrive."""
        self.open = False
        self._world.links.pop(self.session, None)
        self._world.checker.session_closed(self.session)

    def cut(self, *, told: bool) -> None:
        """By the world. `told`: the client notices."""
        if not self.open:
            return
        world = self._world
        world.links.pop(self.session, None)
        world.checker.session_closed(self.session)
        if told:
            delay_ns = world.rng.randrange(20 * US, 5 * MS)
            world.at(max(world.now_ns + delay_ns, self._to_client_ns + 1), self._broken)

    def _broken(self) -> None:
        if self.open:
            self.open = False
            self.client.disconnected(self)
