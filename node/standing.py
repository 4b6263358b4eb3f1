"""This broker's standing in the cluster: it registers, leads what it was given, gives back, and leaves.

    starting --(logs are open)--> registering --(in the image)--> registered --(stop)--> leaving --> left
                                                                     ^  |
                                    each new controller is told again +--+

Leaving: what is led here is handed to a replica that has stored all of it (for at most HAND_OVER_NS, while new
produce is refused as retriable), then the controller is told; when the image shows that this broker leads nothing,
or after LEAVE_NS, the broker may end.

A partition whose preferred leader (the first of its replicas) has been in sync again for PREFERRED_NS is handed to it,
one a second; `elect` does it at once.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from node import journal
from node.catalog import CHANGE_NS, Catalog
from node.core.cluster.image import Image
from node.handlers.exchange import Context
from node.partition import Partition
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.errors import (
    Code,
    InvalidConfig,
    InvalidRequest,
    LeaderUnavailable,
    Outdated,
    RequestTimedOut,
    ShmlogError,
)
from shmlog.protocol import peers

RETRY_NS = 50 * NS_PER_MS
SETTLE_NS = 500 * NS_PER_MS
HAND_OVER_NS = NS_PER_S
LEAVE_NS = 2 * NS_PER_S
PREFERRED_NS = 10 * NS_PER_S

Moved = Callable[[ShmlogError | None], None]
Vacancies = frozenset[
    tuple[bytes, int, int]
]  # (topic id, partition, leader epoch) without a leader


class _Move:
    """A hand-over under way."""

    def __init__(self, target: int, end: int, deadline_ns: int, done: Moved) -> None:
        self.target = target
        self.end = end
        self.deadline_ns = deadline_ns
        self.done = done
        self.proposed = False


class Standing:
    """Registers, moves leaderships, leaves. One owner: the loop."""

    def __init__(
        self,
        context: Context,
        catalog: Catalog,
        registration: peers.RegisterBroker,
        registered: Callable[[], None],
    ) -> None:
        self._context = context
        self._catalog = catalog
        self._registration = registration
        self._registered = registered
        self._opened = False
        self.is_registered = False
        self._told: tuple[int, int] | None = None  # (controller, term) that knows this broker
        self._told_of: Vacancies = frozenset()  # and how far its replicas of these reach
        self._vacancies: Vacancies = frozenset()
        self._asking = False
        self._refusal = ""  # that was told
        self._retry_ns = 0
        self._publish_ns = 0  # by when to be found
        self._moves: dict[Partition, _Move] = {}
        self._in_sync_since: dict[
            Partition, int
        ] = {}  # the preferred leader, where it does not lead
        self._next_preferred_ns = 0
        self._leaving_since_ns: int | None = None
        self._left_told = False

    # -- registering ----------------------------------------------------------------------------------

    def turn(self, now_ns: int) -> None:
        """Go on with what can go on."""
        metadata = self._context.metadata
        if not self._opened:
            if not metadata.is_caught_up:
                return
            self._opened = self._context.knows_image = True
            self._catalog.begin()
        if not self._catalog.is_open:
            return
        self._register(now_ns)
        self._maybe_publish(now_ns)
        self._move(now_ns)
        if self._leaving_since_ns is not None:
            self._leave(now_ns)

    def next_deadline_ns(self) -> int | None:
        """When `turn` has something to do though nothing comes."""
        due = [move.deadline_ns for move in self._moves.values() if not move.proposed]
        due += [at_ns for at_ns in (self._retry_ns, self._publish_ns) if at_ns]
        if self._leaving_since_ns is not None:
            due.append(self._leaving_since_ns + LEAVE_NS)
        return min(due, default=None)

    def follow(self, image: Image) -> None:
        """The image has changed."""
        mine = image.is_current(self._registration.id, self._registration.incarnation)
        if mine and not self.is_registered:
            self.is_registered = True
            self._catalog.registered()
            self._publish_ns = self._context.clock.monotonic_ns() + SETTLE_NS
        elif self.is_registered and not mine:
            # A later incarnation is registered: it holds the directory, so this cannot be. Do no harm.
            raise InvalidConfig(
                "another process has registered as this broker",
                code=Code.DUPLICATE_BROKER_REGISTRATION,
            )
        # A recovery election may need to know how far this broker's replicas reach.
        self._vacancies = frozenset(
            (state.topic_id, state.partition, state.leader_epoch)
            for topic in image.topics.values()
            for state in topic.partitions
            if state.leader == -1 and self._registration.id in state.replicas
        )

    def _register(self, now_ns: int) -> None:
        metadata = self._context.metadata
        controller = (metadata.controller_id, metadata.raft.term)
        if self._asking or now_ns < self._retry_ns:
            return
        self._retry_ns = (
            0  # also where nobody can be told now: a deadline that has passed would spin
        )
        knows = controller == self._told and self._vacancies <= self._told_of
        if knows or controller[0] == -1:
            return
        self._asking = True
        vacancies, again = self._vacancies, self.is_registered

        def done(_: int, error: ShmlogError | None) -> None:
            self._asking = False
            if error is None:
                # What came meanwhile is still to be told. So is everything after a first registration: a
                # controller before this one may have planned it, then this one has taken no report from it.
                self._told, self._told_of = controller, vacancies if again else frozenset()
                return
            if not (error.retriable or isinstance(error, Outdated)):
                raise error
            if str(error) != self._refusal:
                self._refusal = str(error)
                journal.warning("registration refused, asks again", reason=self._refusal)
            self._retry_ns = self._context.clock.monotonic_ns() + RETRY_NS

        change = self._catalog.registration(self._registration, again=again)
        metadata.submit(change, done, now_ns + CHANGE_NS)

    def _maybe_publish(self, now_ns: int) -> None:
        """Be found, once what this broker is to lead is served; that may depend on others, so not for ever."""
        if not self._publish_ns:
            return
        me = self._registration.id
        waits = any(
            partition.leader is None and partition.state.leader in (-1, me)
            for partition in self._context.partitions.values()
        )
        if not waits or now_ns >= self._publish_ns:
            self._publish_ns = 0
            self._registered()

    # -- hand-over ------------------------------------------------------------------------------------

    def elect_preferred(self, partition: Partition, now_ns: int, done: Moved) -> None:
        """Hand the partition to its preferred leader. `done(None)`: it leads."""
        preferred = partition.state.replicas[0]
        leader = partition.leader
        assert leader is not None
        if preferred == self._registration.id:
            done(
                InvalidRequest(
                    f"{partition.name} is led by its preferred leader",
                    code=Code.ELECTION_NOT_NEEDED,
                )
            )
        elif partition in self._moves:
            done(LeaderUnavailable(f"{partition.name} is being handed over"))
        elif preferred not in leader.present:
            done(
                LeaderUnavailable(
                    f"{partition.name}: broker {preferred} is not in sync",
                    code=Code.PREFERRED_LEADER_NOT_AVAILABLE,
                )
            )
        else:
            self._begin_move(partition, preferred, now_ns, done)

    def _begin_move(self, partition: Partition, target: int, now_ns: int, done: Moved) -> None:
        partition.moving_to = target
        end = partition.log.log_end_offset
        self._moves[partition] = _Move(target, end, now_ns + HAND_OVER_NS, done)

    def _move(self, now_ns: int) -> None:
        for partition, move in list(self._moves.items()):
            leader = partition.leader
            if leader is None or partition.moving_to != move.target:
                del self._moves[partition]
                move.done(None)  # the image has moved it
            elif not move.proposed and leader.has_stored(move.target, move.end):
                move.proposed = True
                self._propose_move(partition, move, now_ns)
            elif not move.proposed and now_ns >= move.deadline_ns:
                self._end_move(
                    partition,
                    move,
                    RequestTimedOut(
                        f"broker {move.target} does not catch up with {partition.name}"
                    ),
                )

    def _end_move(self, partition: Partition, move: _Move, error: ShmlogError) -> None:
        if self._moves.pop(partition, None) is move:
            partition.moving_to = None
            move.done(error)

    def _propose_move(self, partition: Partition, move: _Move, now_ns: int) -> None:
        change = peers.HandOver(
            topic_id=partition.topic_id,
            partition=partition.name.partition,
            leader=self._registration.id,
            leader_epoch=partition.leader_epoch,
            target=move.target,
        )
        move.deadline_ns = now_ns + CHANGE_NS

        def done(_: int, error: ShmlogError | None) -> None:
            # Resume only on a definite refusal. What was asked may still be committed: ask again.
            if error is not None and error.retriable and self._moves.get(partition) is move:
                move.proposed = False
                move.deadline_ns = self._context.clock.monotonic_ns() + HAND_OVER_NS
            elif error is not None:
                self._end_move(partition, move, error)

        self._context.metadata.submit(change, done, now_ns + CHANGE_NS)

    def move_preferred(self, now_ns: int) -> None:
        """Once a second: give one partition back to a preferred leader that has been in sync for long enough.

        And every one that this broker holds up, because its own disk does not answer (J6), or whose records it cannot
        read. A damaged replica that another broker leads begins anew, with the next start: raises OSError then.
        """
        if self._leaving_since_ns is not None:
            return
        for partition in self._context.partitions.values():
            leader = partition.leader
            if leader is not None and (partition.is_damaged or leader.holds_back(now_ns)):
                target = partition.successor
                if target is not None and partition not in self._moves:
                    self._begin_move(partition, target, now_ns, _say_nothing)
            elif partition.is_damaged and partition.follower is not None:
                self._begin_anew(partition)
        me, since = self._registration.id, {}
        for partition in self._context.partitions.values():
            preferred = partition.state.replicas[0]
            leader = partition.leader
            if leader is not None and preferred != me and preferred in leader.present:
                since[partition] = self._in_sync_since.get(partition, now_ns)
        self._in_sync_since = since
        for partition, at in since.items():
            if now_ns - at >= PREFERRED_NS and partition not in self._moves:
                self._begin_move(partition, partition.state.replicas[0], now_ns, _say_nothing)
                return

    def _begin_anew(self, partition: Partition) -> None:
        """Only a start can judge a log and take its replica out of the in-sync ones (E2)."""
        partition.log.suspect()
        raise OSError(
            errno.EIO,
            f"{partition.name} is damaged, and broker {partition.state.leader} leads it: "
            "what is damaged is set aside and fetched again by the next start",
        )

    # -- leaving --------------------------------------------------------------------------------------

    def leave(self, now_ns: int) -> None:
        """Begin to stop."""
        if self._leaving_since_ns is None:
            self._leaving_since_ns = now_ns
            journal.event("leaving")
            for partition in self._context.partitions.values():
                target = partition.successor
                if target is not None and partition not in self._moves:
                    self._begin_move(partition, target, now_ns, _say_nothing)

    def has_left(self, now_ns: int) -> bool:
        """May the process end?"""
        since = self._leaving_since_ns
        if since is None:
            return False
        alone = len(self._context.identity.brokers) == 1
        image = self._context.metadata.image
        me = self._registration.id
        gone = me in image.fenced and not any(p.leader for p in self._context.partitions.values())
        return alone or not self.is_registered or gone or now_ns - since >= LEAVE_NS

    def _leave(self, now_ns: int) -> None:
        since = self._leaving_since_ns
        assert since is not None
        if self._left_told or (self._moves and now_ns - since < HAND_OVER_NS):
            return
        self._left_told = True
        change = peers.StopBroker(
            id=self._registration.id, incarnation=self._registration.incarnation
        )
        self._context.metadata.submit(change, lambda *_: None, now_ns + CHANGE_NS)


def _say_nothing(error: ShmlogError | None) -> None:
    """Nobody asked for it."""
