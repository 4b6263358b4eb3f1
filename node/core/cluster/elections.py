"""Who leads a partition, and who counts as in sync: pure functions from a partition's record to its next one.

Whatever happens to brokers (a death, a hang, a stop, a return) changes who is alive, and from that alone follows what
becomes of a partition: `settle`. It elects where nobody leads or the leader is gone, and drops missing members as far
as the minimum admits. What is left without a candidate is judged by `may_recover` and `recovered`.

*Alive* here: registered, not fenced, not proven dead. Invariants: a leader is a living member of the ISR; nobody but a
member is elected, save by `recovered`; the ISR never falls below the minimum by `settle`. E, J: docs/rules.md.

The leader epoch rises whenever the leader changes, to nobody too: so one epoch never names two states of leadership,
and of two answers about a partition the one with the higher epoch is the newer. It also rises when the same broker is
elected again, so what its dead incarnation had in flight is never taken for the new one's.

The preferred leader is no business of the controller: only the leader knows when its successor has stored the
whole log. A leader that is not the first of the replica list, and sees in its image that the first has been a living
member for 10 s, hands over by itself (one partition a second and broker); the controller checks that HandOver.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from msgspec import structs

from node.core.cluster.image import PartitionRecord
from shmlog.protocol.peers import ReplicaReport
from shmlog.settings import TopicConfig

Reports = Mapping[int, ReplicaReport]  # of one partition, by broker


def changed(old: PartitionRecord, **fields: Any) -> PartitionRecord:
    """The record with these fields; every change raises the partition epoch."""
    return structs.replace(old, partition_epoch=old.partition_epoch + 1, **fields)


def elected(old: PartitionRecord, leader: int, **fields: Any) -> PartitionRecord:
    """A new leader (-1: nobody), who serves once its epoch is started (E8)."""
    return changed(old, leader=leader, leader_epoch=old.leader_epoch + 1, started=False, **fields)


def candidate(old: PartitionRecord, isr: tuple[int, ...], alive: Set[int]) -> int:
    """E1: the last leader if it is a living member, else the first one of the replica list, else -1."""
    order = old.replicas if old.last_leader is None else (old.last_leader[0], *old.replicas)
    return next((broker for broker in order if broker in isr and broker in alive), -1)


def without_missing(
    old: PartitionRecord, isr: tuple[int, ...], minimum: int, alive: Set[int]
) -> tuple[int, ...]:
    """J6, J7: members not alive are dropped, but never below the minimum; the last leader goes last."""
    last = -1 if old.last_leader is None else old.last_leader[0]
    missing = sorted((b for b in isr if b not in alive), key=lambda broker: broker == last)
    dropped = missing[: max(0, len(isr) - minimum)]
    return tuple(broker for broker in isr if broker not in dropped)


def settle(
    old: PartitionRecord,
    minimum: int,
    alive: Set[int],
    *,
    isr: tuple[int, ...] | None = None,
    lossy: tuple[int, ...] | None = None,
    deposed: int = -1,
) -> PartitionRecord:
    """The record as it has to be while these brokers are alive; `old` itself if it is so already.

    `isr`, `lossy`: to begin with (default: the record's). `deposed`: a leader that needs a new epoch although its
    broker is alive (a new incarnation). Without a leader nobody is dropped: the high watermark stands still
    anyhow, and each member dropped would be one candidate less.
    """
    isr = old.isr if isr is None else isr
    lossy = old.lossy if lossy is None else lossy
    leader = old.leader
    if leader == deposed or leader not in alive or leader not in isr:
        leader = candidate(old, isr, alive)
    if leader != -1:
        isr = without_missing(old, isr, minimum, alive)
    if leader != old.leader or (leader != -1 and leader == deposed):
        return elected(old, leader, isr=isr, lossy=lossy)
    if (isr, lossy) != (old.isr, old.lossy):
        return changed(old, isr=isr, lossy=lossy)
    return old


def last_begun(old: PartitionRecord) -> int:
    """The last epoch whose start was committed, -1 if none: it begins at `epoch_start`."""
    return -1 if old.last_leader is None else old.last_leader[2]


def has_no_isr(old: PartitionRecord) -> bool:
    """Has a lossy removal emptied the ISR? Then nothing but a recovery election helps.

    The same where such an election has made its winner the ISR, but that epoch never started: whoever else held
    what is committed, or what is left of it, still does.
    """
    return not old.isr or old.recovery_epoch > last_begun(old)


def may_recover(
    old: PartitionRecord,
    config: TopicConfig,
    alive: Set[int],
    reports: Reports,
    *,
    rebooted: Set[int],
    is_wait_over: bool,
    is_unclean_due: bool,
) -> bool:
    """May a partition without a candidate be given to somebody who is no member?

    - Recovery election: the ISR is empty, all whom the record remembers live again and all living replicas
      have reported; or the wait is over, and then whoever did.
    - The same, and a member that has not come back by then is taken for lossy where the machine has been rebooted since
      (`rebooted`: brokers whose last registration was before) and the topic is not `disk`.
    - Unclean election, where the topic allows it.
    """
    remembered = {*old.isr, *old.lossy}
    all_reported = all(broker in reports for broker in old.replicas if broker in alive)
    if has_no_isr(old) and all_reported and remembered <= alive:
        return True
    if is_wait_over and has_no_isr(old):
        return True
    if is_wait_over and config.durability != "disk" and rebooted >= set(old.isr):
        return True
    return config.unclean_leader_election and is_unclean_due and all_reported


def recovered(old: PartitionRecord, alive: Set[int], reports: Reports) -> PartitionRecord:
    """The living replica with the highest (epoch of its last batch, end) leads, alone in the ISR.

    `old` itself if no living replica has reported. `lost` runs from where the winner's log leaves the last one that
    served (its end, or the start of that epoch if it has nothing of it) to the furthest offset known to have existed;
    an empty range if none is known.
    """
    known = [broker for broker in old.replicas if broker in alive and broker in reports]
    if not known:
        return old
    winner = max(known, key=lambda broker: (reports[broker].last_epoch, reports[broker].end_offset))
    end = start = reports[winner].end_offset
    if reports[winner].last_epoch < last_begun(old):
        start = min(end, old.epoch_start)
    furthest = max(end, old.epoch_start, *(report.end_offset for report in reports.values()))
    return elected(
        old,
        winner,
        isr=(winner,),
        lossy=tuple(b for b in old.replicas if b != winner and b in {*old.isr, *old.lossy}),
        recovery_epoch=old.leader_epoch + 1,
        lost=(start, furthest),
    )
