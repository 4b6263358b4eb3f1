"""Which brokers work: proofs of death, and beats. Volatile, the controller's own; the image says what was made of it.

A death is a fact (E3): the kernel said so, or a later incarnation spoke, which holds the lock of the same directory. A
hang is a suspicion by time (E5), hence the care of E6: who was late itself accuses nobody, and two late at once are
taken for a stall of the machine, which gets one more session. E: docs/rules.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from node.core.cluster.image import Image

BLOCKED_NS = 10 * 10**9  # E5: what a broker gets that waits for a device
HUNG, DEAD, STOPPING = "hung", "dead", "stopping"  # why a broker is fenced


@dataclass(slots=True)
class _Beat:
    """The newest of a broker's incarnation: when, and which image it had then."""

    incarnation: int
    at_ns: int
    image_offset: int = -1


class Liveness:
    """What one controller has heard. `broker` is its own: it beats by being here."""

    def __init__(
        self,
        broker: int,
        incarnation: int,
        *,
        heartbeat_ns: int,
        hang_timeout_ns: int,
        image: Image,
        now_ns: int,
        last_heard: Mapping[int, int],
    ) -> None:
        self._broker = broker
        self._heartbeat_ns = heartbeat_ns
        self._timeout_ns = hang_timeout_ns
        self._awake_ns = now_ns
        # What they told the controller before is not known here: all begin anew, but for those heard directly (the
        # leader before), who still have time to answer the first heartbeat of this one.
        earliest = now_ns - hang_timeout_ns + 3 * heartbeat_ns // 2
        self._beats = {
            record.broker: _Beat(
                record.incarnation, max(earliest, last_heard.get(record.broker, now_ns))
            )
            for record in image.brokers.values()
        }
        self._dead_below = {broker: incarnation}  # incarnations lower than that are dead
        self._blocked: frozenset[int] = frozenset()
        self._blocked_at: dict[int, int] = {}  # broker -> when it last was

    def awake(self, now_ns: int) -> None:
        """This loop turns. After a gap of more than two heartbeats nobody is late but this one (E6)."""
        if now_ns - self._awake_ns > 2 * self._heartbeat_ns:
            for beat in self._beats.values():
                beat.at_ns = now_ns
        self._awake_ns = now_ns
        self._blocked_at.update(dict.fromkeys(self._blocked, now_ns))

    def beat(self, broker: int, incarnation: int, image_offset: int, now_ns: int) -> None:
        """A broker's loop has answered."""
        self.awake(now_ns)
        known = self._beats.get(broker)
        if known is None or incarnation > known.incarnation:
            self._beats[broker] = _Beat(incarnation, now_ns, image_offset)
        elif incarnation == known.incarnation:
            known.at_ns = now_ns
            known.image_offset = max(known.image_offset, image_offset)
        self._dead_before(broker, incarnation)

    def died(self, broker: int, incarnation: int, now_ns: int) -> None:
        """That incarnation is proven dead (E3)."""
        self.awake(now_ns)
        self._dead_before(broker, incarnation + 1)

    def blocked(self, brokers: Iterable[int]) -> None:
        """Those whose process waits for a device just now (kernel state D)."""
        self._blocked = frozenset(brokers)

    def _dead_before(self, broker: int, incarnation: int) -> None:
        self._dead_below[broker] = max(self._dead_below.get(broker, 0), incarnation)

    def is_dead(self, broker: int, incarnation: int) -> bool:
        """Is this incarnation proven dead?"""
        return incarnation < self._dead_below.get(broker, 0)

    def dead(self, image: Image) -> frozenset[int]:
        """The brokers whose registered incarnation is proven dead."""
        return frozenset(b for b, r in image.brokers.items() if self.is_dead(b, r.incarnation))

    def hung(self, image: Image, now_ns: int) -> frozenset[int]:
        """E5, E6: unfenced brokers to be fenced for their silence. Never this one."""
        peers = image.unfenced() - self.dead(image) - {self._broker}
        silent = {broker: now_ns - self._beat(broker).at_ns for broker in peers}
        late = {broker for broker, for_ns in silent.items() if for_ns >= self._timeout_ns}
        sessions = 1 if len(late) == 1 else 2
        return frozenset(
            broker for broker in late if silent[broker] >= self._patience_ns(broker, sessions)
        )

    def _patience_ns(self, broker: int, sessions: int) -> int:
        """How long the silence of a broker is borne; a blocked one is slow, until a session after it was."""
        blocked_ns = self._blocked_at.get(broker)
        if blocked_ns is not None and self._awake_ns - blocked_ns < self._timeout_ns:
            return BLOCKED_NS
        return sessions * self._timeout_ns

    def returned(self, image: Image) -> frozenset[int]:
        """E5: brokers fenced as hung whose incarnation has beaten with an image that holds the fence."""
        return frozenset(
            broker
            for broker, why in image.fenced.items()
            if why == HUNG
            and not self.is_dead(broker, image.brokers[broker].incarnation)
            and self._image_offset(image, broker) >= image.fenced_at[broker]
        )

    def _image_offset(self, image: Image, broker: int) -> int:
        if broker == self._broker:
            return image.offset
        beat = self._beat(broker)
        is_current = beat.incarnation == image.brokers[broker].incarnation
        return beat.image_offset if is_current else -1

    def _beat(self, broker: int) -> _Beat:
        """Of a registered broker: a registration is the first beat."""
        return self._beats[broker]

    def next_deadline_ns(self, image: Image) -> int:
        """When to look again: within a heartbeat, or when the next one is late."""
        now_ns = self._awake_ns
        peers = image.unfenced() & self._beats.keys() - {self._broker}
        due = [self._beat(broker).at_ns + self._timeout_ns for broker in peers]
        return min([now_ns + self._heartbeat_ns, *(at for at in due if at > now_ns)])
