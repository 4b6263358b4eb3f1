"""Bugs that others had, put back to see that they are caught. Test code only: the product has no switch for them.

Each replaces something of the product in this process; `undo` puts all of it back. The ids are those of
docs/rules.md: B, R and P are bugs that others had, all else is the rule or the invariant that the bug breaks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from node import compaction, replication
from node.catalog import Catalog
from node.core.cluster import elections, replicas
from node.core.groups.group import Group
from node.core.raft.raft import HardState, Raft
from node.core.replica import follower as following
from node.core.replica import isr as rules
from node.core.replica.follower import Follower, State, Truncation
from node.core.replica.isr import Replica
from node.core.replica.leader import Leader
from node.handlers.coordinator import Coordinator
from node.handlers.produce import ProduceWait
from node.handlers.shard import Shard, _Stored
from node.metadata import Metadata
from node.partition import Partition
from shmlog.log import cleaner
from shmlog.log import retention as rules_of_retention
from shmlog.log.checkpoint import EpochHistory
from shmlog.log.cleaning import Compaction
from shmlog.log.log import Log
from shmlog.log.opening import Opening
from shmlog.log.producers import ProducerStates
from shmlog.log.retention import JumpWatch


@dataclass(frozen=True)
class Planted:
    """A bug: `patches` names (owner, attribute, replacement)."""

    id: str
    what: str
    patches: Callable[[], list[tuple[Any, str, Any]]]

    def plant(self) -> Callable[[], None]:
        """Put the bug back; what takes it out again."""
        patches = self.patches()
        before = [(owner, name, owner.__dict__[name]) for owner, name, _ in patches]
        for owner, name, instead in patches:
            setattr(owner, name, instead)

        def undo() -> None:
            for owner, name, original in before:
                setattr(owner, name, original)

        return undo


PLANTED: dict[str, Planted] = {}

# Those that hundreds of lives do not show, and the test that each turns red (tests/test_planted.py proves it).
DIRECTED = {
    "epochs-ignored": "test_replica.test_t1_a_follower_reconciles_before_it_fetches",
    "same-leader-no-cut": "test_replica.test_b04_a_rise_of_the_epoch_is_enough_be_it_the_same_leader",
    "producers-not-told": "test_sim.test_what_a_later_life_has_shown_stays_mended",
    "epochs-not-cut": "test_log_cuts.test_epochs_are_cut_on_every_truncation_also_at_the_end",
    "sync-vouches-behind-cut": "test_log_cuts.test_a_sync_begun_before_a_cut_vouches_for_nothing_behind_it",
    "weaker-reports": "test_replica.test_h1_an_end_counted_by_a_weaker_durability_does_not_count",
    "stale-reports": "test_replica.test_h1_a_report_of_another_epoch_or_incarnation_changes_nothing",
    "no-lease": "test_sim.test_a_leader_that_nobody_hears_stops_to_ack",
    "old-proposal": "test_controller.test_j5_b05_a_proposal_on_facts_that_have_moved_is_refused",
    "commit-old-terms": "test_raft.test_entries_of_older_terms_are_not_committed_by_being_counted",
    "missed-deletes": "test_replica.test_a_follower_that_missed_a_dropped_tombstone_begins_anew",
    "replaced-not-lossy": "test_log_lost.test_in_a_directory_that_was_replaced_every_log_is_lossy",
    "commit-before-sync": "test_raft.test_a_leader_counts_itself_once_its_own_sync_is_done",
}


def _bug(id_: str, what: str) -> Callable[[Callable[[], list[tuple[Any, str, Any]]]], None]:
    def put(patches: Callable[[], list[tuple[Any, str, Any]]]) -> None:
        name = patches.__name__.strip("_").replace("_", "-")
        PLANTED[name] = Planted(id_, what, patches)

    return put


# -- truncation -----------------------------------------------------------------------------------


@_bug("B01", "a follower is cut to its own high watermark")
def _cut_to_hw() -> list[tuple[Any, str, Any]]:
    original = Follower.handle_epochs

    def handle_epochs(self: Follower, *args: Any) -> Truncation | None:
        plan = original(self, *args)
        if plan is None or self.truncation is None:
            return plan
        self.truncation = Truncation(min(plan.end_offset, self.high_watermark), plan.anew)
        return self.truncation

    return [(Follower, "handle_epochs", handle_epochs)]


@_bug("I14", "a replica that begins anew hears nothing of the producers of what it will never get")
def _producers_not_told() -> list[tuple[Any, str, Any]]:
    return [(replication, "_producers", lambda partition, after, room: ([], False))]


@_bug("B02", "the end of an epoch that only one of them knows is believed")
def _cut_by_one_history() -> list[tuple[Any, str, Any]]:
    def plan_truncation(
        mine: Any, my_end: int, theirs: Any, their_end: int, their_log_start: int
    ) -> Truncation:
        if following.last_epoch(mine, my_end) < 0:
            return Truncation(min(my_end, their_end))
        last = following.last_epoch(mine, my_end)
        return Truncation(
            max(min(my_end, following._end_of(last, theirs, their_end)), their_log_start)
        )

    return [(following, "plan_truncation", plan_truncation)]


@_bug("B04", "no truncation where the epoch rose and the leader stayed")
def _same_leader_no_cut() -> list[tuple[Any, str, Any]]:
    original = Follower.follow

    def follow(
        self: Follower, leader: int, leader_epoch: int, started: bool, recovery_epoch: int = -1
    ) -> None:
        if leader == self.leader and self.state is State.FETCHING:
            self.leader_epoch, self.started = leader_epoch, started
            return
        original(self, leader, leader_epoch, started, recovery_epoch)

    return [(Follower, "follow", follow)]


@_bug("B07", "who loses leadership raises its high watermark before it truncates")
def _hw_before_cut() -> list[tuple[Any, str, Any]]:
    original = Partition.resign

    def resign(self: Partition) -> None:
        led = self.leader is not None
        original(self)
        if led:
            self._high_watermark = self.log.log_end_offset

    return [(Partition, "resign", resign)]


@_bug("B08", "a follower's high watermark stays below its log start")
def _hw_below_start() -> list[tuple[Any, str, Any]]:
    return [(Follower, "trimmed", lambda self, log_start: None)]


@_bug("B09", "the epoch history is not cut with the log")
def _epochs_not_cut() -> list[tuple[Any, str, Any]]:
    return [(EpochHistory, "truncate_to", lambda self, end_offset: None)]


@_bug("B21", "a sync begun before a truncation vouches for what is behind it")
def _sync_vouches_behind_cut() -> list[tuple[Any, str, Any]]:
    def vouch_below(self: Log, offset: int) -> None:
        self._generation += 1
        self.synced_end_offset = min(self.synced_end_offset, offset)

    return [(Log, "_vouch_below", vouch_below)]


# -- high watermark and acks ----------------------------------------------------------------------


@_bug("H1", "what is only written counts as synced")
def _weaker_reports() -> list[tuple[Any, str, Any]]:
    def count_by(self: Replica, durability: str) -> None:
        self.stored_end = self.written_end

    return [(Replica, "count_by", count_by)]


@_bug("H1", "a report of an older epoch or incarnation counts")
def _stale_reports() -> list[tuple[Any, str, Any]]:
    original = Leader.report

    def report(
        self: Leader, broker: int, incarnation: int, leader_epoch: int, *args: Any, **more: Any
    ) -> bool:
        replica = self._followers.get(broker)
        if replica is not None:
            incarnation = replica.incarnation
        return original(self, broker, incarnation, self.leader_epoch, *args, **more)

    return [(Leader, "report", report)]


@_bug("H2", "the high watermark moves with fewer in-sync replicas than the minimum")
def _minimum_not_checked() -> list[tuple[Any, str, Any]]:
    original = Leader._recount

    def recount(self: Leader) -> None:
        original(self)
        self._may_move = True

    return [
        (Leader, "_recount", recount),
        (Leader, "has_minimum", property(lambda self: True)),
    ]


@_bug("I7", "acked before the followers have stored it")
def _ack_early() -> list[tuple[Any, str, Any]]:
    original = ProduceWait._reached

    def reached(self: ProduceWait, entry: Any) -> bool:
        done = original(self, entry)
        ledger = entry.partition.leader
        if not done and ledger is not None and self._acks == "all":
            return bool(ledger.stored_end >= entry.appended.end_offset)
        return done

    return [(ProduceWait, "_reached", reached)]


@_bug("E7", "acks without a lease")
def _no_lease() -> list[tuple[Any, str, Any]]:
    return [(Metadata, "has_lease", lambda self, now_ns: True)]


@_bug("B20", "published before it is written")
def _publish_before_write() -> list[tuple[Any, str, Any]]:
    original = Partition._flush

    def flush(self: Partition) -> Any:
        if self._pending and self.leader is not None:
            self._moved(self.leader.written(self.next_offset))
        return original(self)

    return [(Partition, "_flush", flush)]


# -- in-sync replicas and elections ---------------------------------------------------------------


@_bug("B19", "the in-sync replicas are shrunk below the minimum")
def _isr_below_minimum() -> list[tuple[Any, str, Any]]:
    def without_missing(old: Any, isr: Any, minimum: int, alive: Any) -> Any:
        return tuple(broker for broker in isr if broker in alive)

    return [(elections, "without_missing", without_missing)]


@_bug("E1", "who is no member is elected")
def _anybody_elected() -> list[tuple[Any, str, Any]]:
    original = elections.candidate

    def candidate(old: Any, isr: Any, alive: Any) -> int:
        found = original(old, isr, alive)
        return found if found != -1 else next((b for b in old.replicas if b in alive), -1)

    def settle(old: Any, minimum: int, alive: Any, **more: Any) -> Any:
        new = original_settle(old, minimum, alive, **more)
        if new.leader != -1 and new.leader not in new.isr:
            new = elections.structs.replace(new, isr=(*new.isr, new.leader))
        return new

    original_settle = elections.settle
    return [(elections, "candidate", candidate), (elections, "settle", settle)]


@_bug("J3", "a follower joins by a high watermark that lags")
def _join_below_epoch_start() -> list[tuple[Any, str, Any]]:
    def may_join(replica: Replica, high_watermark: int, epoch_start: int) -> bool:
        return replica.stored_end != rules.UNKNOWN and replica.fit

    return [(rules, "may_join", may_join)]


@_bug("B05", "a proposal made before a restart puts the new incarnation into the in-sync replicas")
def _old_proposal() -> list[tuple[Any, str, Any]]:
    return [
        (replicas, "check_partition_epoch", lambda old, change: None),
        (replicas, "check_member", lambda *args, **more: None),
    ]


@_bug("J8", "a proposed member does not count before it is confirmed")
def _proposed_do_not_count() -> list[tuple[Any, str, Any]]:
    return [(rules, "maximal", lambda isr, proposed: set(isr))]


@_bug("B06", "a replica that may have lost something stays in sync")
def _lossy_stays() -> list[tuple[Any, str, Any]]:
    return [(Opening, "_lossy", lambda self, reason: None)]


@_bug("E8", "served before the start of the epoch is committed")
def _serve_before_start() -> list[tuple[Any, str, Any]]:
    original = Catalog._elected

    def elected(self: Catalog, partition: Partition) -> None:
        original(self, partition)
        if partition.elected_epoch == partition.state.leader_epoch and partition.leader is None:
            now_ns = self._context.clock.monotonic_ns()
            partition.lead(self.members(), self._lag_time_ns, now_ns)

    return [(Catalog, "_elected", elected)]


@_bug("I11", "a new incarnation leads by what the old one was elected for")
def _old_incarnation_leads() -> list[tuple[Any, str, Any]]:
    original = Catalog._apply

    def apply(self: Catalog, partition: Partition, topic: Any, state: Any) -> None:
        original(self, partition, topic, state)
        if state.leader == self._context.identity.broker:
            self._apply_leader(partition)

    return [(Catalog, "_apply", apply)]


@_bug("B03", "a follower fetches, and is answered, whatever the epochs")
def _epochs_ignored() -> list[tuple[Any, str, Any]]:
    original = Follower.follow

    def follow(self: Follower, *args: Any) -> None:
        state = self.state
        original(self, *args)
        if state is State.FETCHING and self.state is State.RECONCILING:
            self.state = State.FETCHING

    return [
        (replication, "_epoch_error", lambda asked, current: 0),
        (Follower, "accepts", lambda self, epoch: self.state is State.FETCHING),
        (Follower, "follow", follow),
    ]


# -- Raft -----------------------------------------------------------------------------------------


@_bug("R01", "entries of older terms commit by counting")
def _commit_old_terms() -> list[tuple[Any, str, Any]]:
    def maybe_commit(self: Raft) -> None:
        end = self._majority_has(self._stored_end, lambda progress: progress.match)
        if end > self.commit_offset:
            self.commit_offset = end
            self._say_to_all()

    return [(Raft, "_maybe_commit", maybe_commit)]


@_bug("R03", "term and vote are not kept")
def _vote_not_kept() -> list[tuple[Any, str, Any]]:
    return [(Metadata, "_read_quorum", lambda self: HardState())]


@_bug("R07", "a leader counts what it has not synced")
def _commit_before_sync() -> list[tuple[Any, str, Any]]:
    def maybe_commit(self: Raft) -> None:
        end = self._majority_has(self.end_offset, lambda progress: progress.match)
        if end > max(self._term_start, self.commit_offset):
            self.commit_offset = end
            self._say_to_all()

    return [(Raft, "_maybe_commit", maybe_commit)]


@_bug("I12", "a log that is behind wins votes")
def _vote_for_stale_logs() -> list[tuple[Any, str, Any]]:
    original = Raft._handle_vote_request

    def handle(self: Raft, sender: int, request: Any) -> None:
        request.last_term = 1 << 40
        original(self, sender, request)

    return [(Raft, "_handle_vote_request", handle)]


# -- producers and storage ------------------------------------------------------------------------


@_bug("P01", "a follower does not remember producers")
def _producers_not_replicated() -> list[tuple[Any, str, Any]]:
    original = Partition.append_replica

    def append_replica(self: Partition, *args: Any) -> None:
        before = self.log.producers
        self.log.producers = ProducerStates()
        original(self, *args)
        self.log.producers = before

    return [(Partition, "append_replica", append_replica)]


@_bug("P06", "a truncation leaves the producers as they were")
def _producers_not_cut() -> list[tuple[Any, str, Any]]:
    return [(Log, "_producers_at", lambda self, offset: self.producers)]


@_bug("B22", "what a failed sync has left is not written again")
def _no_rewrite() -> list[tuple[Any, str, Any]]:
    return [(Opening, "_rewrite", lambda self: None)]


@_bug("I30", "a duplicate is answered before it is committed")
def _duplicate_acked_early() -> list[tuple[Any, str, Any]]:
    original = Partition.append

    def append(self: Partition, frame: bytes, acks: str, no_space: str) -> Any:
        before = self.next_offset
        appended = original(self, frame, acks, no_space)
        if appended.end_offset <= before:  # it was there already
            return appended._replace(end_offset=0)
        return appended

    return [(Partition, "append", append)]


# -- retention ------------------------------------------------------------------------------------


@_bug("I22", "the size rule takes one segment more than it may")
def _retention_takes_one_more() -> list[tuple[Any, str, Any]]:
    original = rules_of_retention.too_much

    def too_much(segments: Any, retention_bytes: int, high_watermark: int) -> int:
        count = original(segments, retention_bytes, high_watermark)
        more = count and count + 1 < len(segments)
        return count + 1 if more and segments[count].end_offset <= high_watermark else count

    return [(rules_of_retention, "too_much", too_much)]


@_bug("I22", "retention does not look at the high watermark")
def _retention_above_hw() -> list[tuple[Any, str, Any]]:
    old, much = rules_of_retention.too_old, rules_of_retention.too_much
    return [
        (
            rules_of_retention,
            "too_old",
            lambda s, now_ns, retention_ms, _: old(s, now_ns, retention_ms, 1 << 60),
        ),
        (rules_of_retention, "too_much", lambda s, size, _: much(s, size, 1 << 60)),
    ]


@_bug("I22", "the time rule goes on after a jump of the wall clock")
def _jumps_not_seen() -> list[tuple[Any, str, Any]]:
    return [(JumpWatch, "look", lambda self, wall_ns, steady_ns: 0)]


@_bug("3.2", "a follower keeps what its leader has deleted")
def _follower_keeps_log_start() -> list[tuple[Any, str, Any]]:
    return [(replication.Replication, "_copy_log_start", lambda self, partition, log_start: None)]


@_bug("T1", "a follower whose end lies below the leader's log start is not told to begin anew")
def _no_new_beginning() -> list[tuple[Any, str, Any]]:
    return [(following.Follower, "refused", lambda self, epoch, code: None)]


# -- data directories -----------------------------------------------------------------------------


@_bug("I5", "a data directory that was replaced is taken for what it was")
def _replaced_not_lossy() -> list[tuple[Any, str, Any]]:
    original = Opening._lossy

    def lossy(self: Any, reason: str) -> None:
        if not self._at.replaced or self._directory.endswith("__cluster_metadata-0"):
            original(self, reason)

    return [(Opening, "_lossy", lossy)]


@_bug("I12", "a voter whose data directory was replaced votes as if it were new")
def _replaced_votes() -> list[tuple[Any, str, Any]]:
    original = Metadata._read_quorum

    def read_quorum(self: Any) -> HardState:
        return replace(original(self), abstaining=False)

    return [(Metadata, "_read_quorum", read_quorum)]


# -- compaction -----------------------------------------------------------------------------------


@_bug("I22", "what is not committed replaces what is")
def _compaction_above_hw() -> list[tuple[Any, str, Any]]:
    original = compaction.plan

    def plan(*args: Any, **facts: Any) -> Any:
        return original(*args, **facts | {"safe_end": 1 << 60})

    return [(compaction, "plan", plan)]


@_bug("I22", "two keys are taken for one")
def _keys_confused() -> list[tuple[Any, str, Any]]:
    return [(cleaner, "_digest", lambda key: key[:1])]


@_bug("I22", "a delete goes with the pass that finds it")
def _deletes_go_at_once() -> list[tuple[Any, str, Any]]:
    return [(Compaction, "horizon", lambda self, now_ns, retention_ns: self.cleaned)]


@_bug("3.3", "a follower that has missed a delete goes on")
def _missed_deletes() -> list[tuple[Any, str, Any]]:
    return [
        (following, "misses_deletes", lambda *args: False),
        (Leader, "lowest_end", property(lambda self: 1 << 60)),
    ]


# -- groups ---------------------------------------------------------------------------------------


@_bug("I24", "a group's change is answered before it is committed")
def _group_answered_early() -> list[tuple[Any, str, Any]]:
    def resume(self: Any) -> None:
        if self._shard.leads:
            self._exchange.answer(self._message)
        else:
            self._exchange.fail(self._shard.not_coordinator())

    return [(_Stored, "resume", resume)]


@_bug("I24", "who is no member, or has lost the partition, commits")
def _fenced_commits() -> list[tuple[Any, str, Any]]:
    def commit(self: Group, member: Any, epoch: int, part: Any, offset: Any) -> None:
        self.set_offset(part, offset)

    return [
        (Group, "check_commit", lambda self, member, epoch: self.members.get(member)),
        (Group, "commit", commit),
    ]


@_bug("I24", "a commit that comes late takes the offset back")
def _late_commits() -> list[tuple[Any, str, Any]]:
    original = Group.commit

    def commit(self: Group, member: Any, epoch: int, part: Any, offset: Any) -> None:
        if part in self.offsets:
            self.offsets[part] = replace(self.offsets[part], number=-1)
        original(self, member, epoch, part, offset)

    return [(Group, "commit", commit)]


@_bug("I23", "a partition is given on before its owner has released it")
def _given_before_released() -> list[tuple[Any, str, Any]]:
    original = Group.settle

    def settle(self: Group, now_ns: int = 0) -> None:
        for member in self.members.values():
            target = self.target.get(member.id, set())
            for part in [p for p in member.assigned if p not in target]:
                del member.assigned[part]
        original(self, now_ns)

    return [(Group, "settle", settle)]


@_bug("I24", "a coordinator answers before it has read its shard")
def _shard_not_read() -> list[tuple[Any, str, Any]]:
    def load(self: Shard, now_ns: int) -> bool:
        self.is_loaded, self.end = True, self.partition.log.log_end_offset
        return True

    return [(Shard, "load", load)]


@_bug("I27", "a new coordinator takes members that it has not heard yet for silent")
def _unheard_are_silent() -> list[tuple[Any, str, Any]]:
    original = Coordinator._loaded

    def loaded(self: Coordinator, shard: Shard, now_ns: int) -> None:
        original(self, shard, now_ns)
        for heard in shard.heard.values():
            heard.at_ns, heard.is_watched = 0, False

    return [(Coordinator, "_loaded", loaded)]
