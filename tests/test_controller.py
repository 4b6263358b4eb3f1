"""The controller: one story a rule, then random lives of a cluster whose invariants are checked after each record set.

Rules (J, E, 6.6, 6.7) as in the specification of replication, B rows as in the list of bugs that others had.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from node.core.cluster import elections, replicas
from node.core.cluster.controller import Controller
from node.core.cluster.image import (
    Image,
    PartitionRecord,
    Record,
    apply,
    decode_record,
    encode_record,
)
from node.core.cluster.placement import place
from node.core.cluster.topics import REPLICAS_MAX
from shmlog.errors import Code, ShmlogError
from shmlog.protocol import peers
from shmlog.settings import ClusterConfig

MS = 10**6
S = 10**9
SETTINGS = ClusterConfig()
ID = b"t".ljust(16, b".")


class Cluster:
    """Images and the controller of broker 0, which does not lead any partition unless told to."""

    def __init__(
        self, count: int = 3, *, boot: str = "boot", settings: ClusterConfig = SETTINGS
    ) -> None:
        self.image = Image(cluster="c")
        self.brokers = range(count)
        self.now = 1000 * S
        self.boot = boot
        self.settings = settings
        self.controller = self.new_controller()

    def new_controller(
        self, broker: int = 0, last_heard: dict[int, int] | None = None
    ) -> Controller:
        registered = self.image.brokers.get(broker)
        self.controller = Controller(
            broker,
            1 if registered is None else registered.incarnation,
            self.brokers,
            self.settings,
            self.image,
            self.now,
            boot_id=self.boot,
            last_heard=last_heard,
        )
        return self.controller

    def commit(self, records: list[Record]) -> list[Record]:
        decoded = [decode_record(encode_record(record)) for record in records]
        assert decoded == records
        if records:
            self.image = apply(self.image, decoded, self.image.offset + len(records))
        return records

    def change(self, change: peers.Change) -> list[Record]:
        return self.commit(self.controller.plan(self.image, change, self.now))

    def tick(self) -> list[Record]:
        """All that there is to do now, set by set; what the first one held."""
        sets = [self.commit(self.controller.tick(self.image, self.now))]
        while sets[-1]:
            sets.append(self.commit(self.controller.tick(self.image, self.now)))
            assert len(sets) < 5, "it does not come to rest"
        return sets[0]

    def pass_time(self, ns: int, silent: Iterable[int] = ()) -> None:
        """The loops turn; all brokers but the silent ones beat."""
        end = self.now + ns
        while self.now < end:
            self.now = min(end, self.now + 250 * MS)
            for broker, record in self.image.brokers.items():
                if broker not in silent:
                    self.controller.beat(broker, record.incarnation, self.image.offset, self.now)
            self.tick()

    def register(
        self, *brokers: int, incarnation: int = 1, boot: str | None = None, **reports: Any
    ) -> list[Record]:
        records: list[Record] = []
        for broker in brokers:
            records = self.change(self.registration(broker, incarnation, boot, **reports))
        return records

    def registration(
        self,
        broker: int,
        incarnation: int = 1,
        boot: str | None = None,
        *,
        lossy: bool = False,
        end: int = 0,
        epoch: int = -1,
        leader_epoch: int = -1,
        absent: bool = False,
    ) -> peers.RegisterBroker:
        found = tuple(
            peers.ReplicaReport(p.topic_id, p.partition, epoch, end, lossy, leader_epoch)
            for p, _ in replicas.partitions_of(self.image)
            if broker in p.replicas and not absent
        )
        return peers.RegisterBroker(
            id=broker,
            incarnation=incarnation,
            boot_id=self.boot if boot is None else boot,
            pid=100 + broker,
            endpoints={"client": f"ipc:///c{broker}", "peer": f"ipc:///p{broker}"},
            replicas=found,
        )

    def topic(self, count: int = 1, factor: int = 3, **configs: Any) -> PartitionRecord:
        self.change(
            peers.CreateTopic(
                name="t",
                topic_id=ID,
                partition_count=count,
                replication_factor=factor,
                configs=configs,
            )
        )
        self.start()
        return self.p

    def start(self, partition: int = 0, start_offset: int = 0) -> list[Record]:
        """The leader begins its epoch."""
        p = self.partition(partition)
        start = peers.EpochStart(ID, partition, p.leader_epoch, start_offset)
        incarnation = self.image.brokers[p.leader].incarnation
        return self.change(
            peers.StartEpochs(leader=p.leader, incarnation=incarnation, starts=(start,))
        )

    def partition(self, index: int = 0) -> PartitionRecord:
        found = self.image.partition(ID, index)
        assert found is not None
        return found

    @property
    def p(self) -> PartitionRecord:
        return self.partition()

    def die(self, *brokers: int) -> list[Record]:
        for broker in brokers:
            self.controller.died(broker, self.image.brokers[broker].incarnation, self.now)
        return self.tick()

    def proposal(self, *isr: int, partition: int = 0, **fields: int) -> peers.ProposeIsr:
        p = self.partition(partition)
        incarnations = {b: record.incarnation for b, record in self.image.brokers.items()}
        seen: dict[str, Any] = {
            "leader": p.leader,
            "leader_epoch": p.leader_epoch,
            "partition_epoch": p.partition_epoch,
            "isr": tuple(peers.IsrMember(b, incarnations.get(b, 1)) for b in isr),
        }
        return peers.ProposeIsr(topic_id=ID, partition=partition, **{**seen, **fields})

    def hand_over(self, target: int, **fields: int) -> peers.HandOver:
        p = self.p
        seen = {"leader": p.leader, "leader_epoch": p.leader_epoch, "target": target}
        return peers.HandOver(topic_id=ID, partition=0, **{**seen, **fields})

    def others(self) -> list[int]:
        """The replicas that follow."""
        return [broker for broker in self.p.replicas if broker != self.p.leader]


def refused(cluster: Cluster, change: peers.Change, code: Code) -> ShmlogError:
    before = cluster.image
    with pytest.raises(ShmlogError) as caught:
        cluster.change(change)
    assert caught.value.code == code, caught.value
    assert cluster.image is before
    return caught.value


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.register(0, 1, 2)
    made.topic()
    return made


# -- topics -------------------------------------------------------------------------------------------


def test_a_new_topic_is_led_by_its_first_living_replica_and_who_is_down_is_no_member_yet() -> None:
    cluster = Cluster()
    cluster.register(0, 2)
    cluster.topic(count=6)
    for index in range(6):
        p = cluster.partition(index)
        assert sorted(p.replicas) == [0, 1, 2]
        assert p.isr == tuple(b for b in p.replicas if b != 1)
        assert p.leader == p.isr[0]
        assert (p.leader_epoch, p.partition_epoch, p.recovery_epoch) == (1, 1 + p.started, -1)


def test_a_partition_is_never_placed_on_the_dead_alone_and_without_a_living_broker_there_is_none() -> (
    None
):
    cluster = Cluster()
    create = peers.CreateTopic(name="t", topic_id=ID, partition_count=6, replication_factor=1)
    refused(cluster, create, Code.BROKER_NOT_AVAILABLE)
    cluster.register(0, 2)
    cluster.change(create)
    placed = [cluster.partition(index).replicas for index in range(6)]
    assert {broker for replicas_ in placed for broker in replicas_} == {0, 2}


def test_placement_spreads_leaders_and_what_falls_to_each_when_one_dies() -> None:
    placed = place(ID, 0, 12, 2, range(4))
    leaders = [first for first, _ in placed]
    assert {b: leaders.count(b) for b in range(4)} == dict.fromkeys(range(4), 3)
    for dead in range(4):
        assert len({second for first, second in placed if first == dead}) == 3
    assert all(len(set(place(ID, 0, 9, n, range(n))[4])) == n for n in range(1, 6))


def test_what_clients_change_is_refused_with_the_code_that_fits() -> None:
    cluster = Cluster()
    cluster.register(0, 1, 2)

    def create(name: str = "t", **fields: Any) -> peers.CreateTopic:
        return peers.CreateTopic(**{"topic_id": ID, "partition_count": 1, **fields, "name": name})

    refused(cluster, create("a/b"), Code.INVALID_TOPIC_EXCEPTION)
    refused(cluster, create("__x"), Code.INVALID_TOPIC_EXCEPTION)
    refused(cluster, create(replication_factor=4), Code.INVALID_REPLICATION_FACTOR)
    refused(cluster, create(replication_factor=0), Code.INVALID_REPLICATION_FACTOR)
    refused(cluster, create(partition_count=1025), Code.INVALID_PARTITIONS)
    refused(cluster, create(configs={"nope": 1}), Code.INVALID_CONFIG)
    too_many = {"min.insync.replicas": 3}
    refused(cluster, create(replication_factor=2, configs=too_many), Code.INVALID_CONFIG)
    assert cluster.change(create(configs={"segment.bytes": "1MiB"}))
    assert len(cluster.p.replicas) == 3
    assert cluster.image.topics["t"].config.segment_bytes == 1 << 20
    refused(cluster, create(), Code.TOPIC_ALREADY_EXISTS)
    refused(cluster, create("T"), Code.INVALID_TOPIC_EXCEPTION)
    assert cluster.change(create(if_missing=True)) == []
    refused(cluster, peers.AlterTopic(name="u"), Code.UNKNOWN_TOPIC_OR_PARTITION)
    alter = peers.AlterTopic(name="t", set_values={"min_insync_replicas": 4})
    refused(cluster, alter, Code.INVALID_CONFIG)
    drop = peers.AlterTopic(name="t", delete=("segment.bytes",))
    assert cluster.change(drop)
    assert cluster.change(drop) == []
    add = peers.AddPartitions(name="t", partition_count=3)
    assert len(cluster.change(add)) == 3
    refused(cluster, add, Code.INVALID_PARTITIONS)
    assert cluster.change(peers.DeleteTopic(name="t"))
    refused(cluster, peers.DeleteTopic(name="t"), Code.UNKNOWN_TOPIC_OR_PARTITION)


def test_replicas_are_counted_by_broker() -> None:
    cluster = Cluster()
    cluster.register(0, 1, 2)
    for number in range(2):
        cluster.change(
            peers.CreateTopic(
                name=f"t{number}",
                topic_id=bytes([number]) * 16,
                partition_count=900,
                replication_factor=3,
            )
        )
    one_more = {"name": "u", "topic_id": ID, "partition_count": 600}
    assert cluster.controller.plan(  # 3 x 200 more: each broker is full
        cluster.image, peers.CreateTopic(**one_more, replication_factor=1), cluster.now
    )
    error = refused(
        cluster, peers.CreateTopic(**one_more, replication_factor=2), Code.INVALID_PARTITIONS
    )
    assert str(REPLICAS_MAX) in str(error)


def test_records_are_deleted_only_up_to_what_the_current_leader_says(cluster: Cluster) -> None:
    def delete(offset: int, **fields: int) -> peers.DeleteRecords:
        seen = {"partition": 0, "leader_epoch": 1, "high_watermark": 10, **fields}
        return peers.DeleteRecords(name="t", offset=offset, **seen)

    refused(cluster, delete(5, leader_epoch=0), Code.FENCED_LEADER_EPOCH)
    refused(cluster, delete(5, partition=1), Code.UNKNOWN_TOPIC_OR_PARTITION)
    refused(cluster, delete(11), Code.OFFSET_OUT_OF_RANGE)
    before = cluster.p
    assert cluster.change(delete(5))
    assert (cluster.p.log_start, cluster.p.leader_epoch) == (5, before.leader_epoch)
    assert cluster.p.partition_epoch == before.partition_epoch + 1
    assert cluster.change(delete(5)) == []


def test_blocks_of_producer_ids_are_disjoint_and_each_taker_finds_its_own(cluster: Cluster) -> None:
    for taker in (1, 2, 1):
        cluster.change(peers.TakeProducerIds(taker=taker))
    assert cluster.image.producer_blocks == {1: 3000, 2: 2000}


# -- registration -------------------------------------------------------------------------------------


def test_e2_a_later_incarnation_fences_the_one_before_and_is_registered_in_one_set(
    cluster: Cluster,
) -> None:
    leader, epoch = cluster.p.leader, cluster.p.leader_epoch
    records = cluster.register(leader, incarnation=2)
    kinds = [type(record).__name__ for record in records]
    assert kinds == ["FenceRecord", "BrokerRecord", "PartitionRecord"]
    assert cluster.image.brokers[leader].incarnation == 2
    assert leader in cluster.image.unfenced()
    assert cluster.p.leader_epoch == epoch + 1  # of the same broker, too
    assert not cluster.p.started


def test_e2_b05_an_earlier_or_dead_incarnation_and_one_of_another_boot_are_refused(
    cluster: Cluster,
) -> None:
    cluster.register(1, incarnation=3)
    refused(cluster, cluster.registration(1, 2), Code.STALE_BROKER_EPOCH)
    cluster.new_controller()
    refused(cluster, cluster.registration(1, 2), Code.STALE_BROKER_EPOCH)
    cluster.controller.died(2, 5, cluster.now)
    refused(cluster, cluster.registration(2, 5), Code.STALE_BROKER_EPOCH)
    refused(cluster, cluster.registration(1, 4, "other"), Code.INVALID_REQUEST)
    refused(cluster, cluster.registration(7), Code.INVALID_REQUEST)


def test_e2_an_incarnation_that_registers_again_changes_nothing(cluster: Cluster) -> None:
    assert cluster.register(1, end=7, epoch=1, lossy=True) == []


def test_e2_6_7_a_lossy_replica_leaves_at_registration_even_below_the_minimum_and_is_remembered(
    cluster: Cluster,
) -> None:
    leader, (first, second) = cluster.p.leader, cluster.others()
    cluster.die(first)
    assert set(cluster.p.isr) == {leader, second}
    cluster.register(second, incarnation=2, lossy=True)
    assert cluster.p.isr == (leader,)  # the minimum is 2
    assert cluster.p.lossy == (second,)
    assert cluster.p.leader == leader
    assert cluster.p.started
    cluster.register(leader, incarnation=2, lossy=True)
    assert cluster.p.isr == ()
    assert set(cluster.p.lossy) == {leader, second}
    assert cluster.p.leader == -1


def test_6_7_a_replica_that_is_not_found_counts_as_lost_once_a_leader_has_served(
    cluster: Cluster,
) -> None:
    follower = cluster.others()[0]
    cluster.register(follower, incarnation=2, absent=True)
    assert follower not in cluster.p.isr
    fresh = Cluster()
    fresh.register(0, 1, 2)
    fresh.change(peers.CreateTopic(name="t", topic_id=ID, partition_count=1))
    fresh.register(1, incarnation=2, absent=True)
    assert 1 in fresh.p.isr


def test_registration_brings_a_partition_back_that_waits_for_that_broker(cluster: Cluster) -> None:
    cluster.die(*cluster.p.replicas)
    assert cluster.p.leader == -1
    back = cluster.p.isr[-1]
    cluster.register(back, incarnation=2)
    assert cluster.p.leader == back


# -- fencing ------------------------------------------------------------------------------------------


def test_6_6_a_death_is_fenced_and_elected_upon_in_one_set(cluster: Cluster) -> None:
    leader = cluster.p.leader
    records = cluster.die(leader)
    assert {type(record).__name__ for record in records} == {"FenceRecord", "PartitionRecord"}
    assert cluster.image.fenced == {leader: "dead"}
    assert cluster.p.leader == next(b for b in cluster.p.replicas if b != leader)
    assert leader not in cluster.p.isr  # J6, J7: two of three stay
    assert not cluster.p.started


def test_e3_whoever_speaks_with_a_later_incarnation_proves_the_earlier_one_dead(
    cluster: Cluster,
) -> None:
    cluster.controller.beat(1, 2, 0, cluster.now)
    cluster.tick()
    assert cluster.image.fenced == {1: "dead"}
    refused(cluster, cluster.registration(1, 1), Code.STALE_BROKER_EPOCH)


def test_e3_the_controllers_own_earlier_incarnation_is_dead() -> None:
    cluster = Cluster()
    cluster.register(0, 1)
    cluster.controller = Controller(0, 2, cluster.brokers, SETTINGS, cluster.image, cluster.now)
    cluster.tick()
    assert cluster.image.fenced == {0: "dead"}


def test_e5_a_silent_broker_is_fenced_after_the_time_out_and_not_before(cluster: Cluster) -> None:
    cluster.pass_time(1250 * MS, silent=[1])
    assert cluster.image.fenced == {}
    assert cluster.controller.next_deadline_ns(cluster.image) == cluster.now + 250 * MS
    cluster.pass_time(250 * MS, silent=[1])
    assert cluster.image.fenced == {1: "hung"}
    assert cluster.p.leader != 1


def test_e5_the_deadline_names_the_moment_at_which_somebody_is_late(cluster: Cluster) -> None:
    cluster.pass_time(1400 * MS, silent=[1])
    assert cluster.controller.next_deadline_ns(cluster.image) == cluster.now + 100 * MS


def test_e5_a_hung_broker_returns_when_it_beats_with_an_image_that_holds_the_fence(
    cluster: Cluster,
) -> None:
    cluster.pass_time(1500 * MS, silent=[1])
    fence = cluster.image.offset
    cluster.controller.beat(1, 1, fence - 1, cluster.now)
    cluster.tick()
    assert cluster.image.fenced == {1: "hung"}
    cluster.controller.beat(1, 1, fence, cluster.now)
    cluster.tick()
    assert cluster.image.fenced == {}


def test_e5_the_return_of_the_only_candidate_and_its_election_are_one_set() -> None:
    cluster = Cluster()
    cluster.register(1, 2)
    cluster.topic(factor=1)
    leader = cluster.p.leader
    cluster.pass_time(1500 * MS, silent=[leader])
    assert (cluster.p.leader, cluster.p.isr) == (-1, (leader,))
    cluster.controller.beat(leader, 1, cluster.image.offset, cluster.now)
    assert len(cluster.tick()) == 2
    assert cluster.p.leader == leader


def test_e5_who_stops_or_is_dead_does_not_return_by_a_late_beat(cluster: Cluster) -> None:
    cluster.change(peers.StopBroker(id=1, incarnation=1))
    cluster.die(2)
    for broker in (1, 2):
        cluster.controller.beat(broker, 1, cluster.image.offset, cluster.now)
    cluster.tick()
    assert cluster.image.fenced == {1: "stopping", 2: "dead"}


def test_e5_a_broker_in_kernel_state_d_is_slow_for_ten_seconds(cluster: Cluster) -> None:
    cluster.controller.blocked([1])
    cluster.pass_time(9750 * MS, silent=[1])
    assert cluster.image.fenced == {}
    cluster.pass_time(250 * MS, silent=[1])
    assert cluster.image.fenced == {1: "hung"}


def test_e5_a_broker_whose_device_answered_gets_one_session_to_beat(cluster: Cluster) -> None:
    cluster.controller.blocked([1])
    cluster.pass_time(3 * S, silent=[1])
    cluster.controller.blocked([])
    cluster.pass_time(1250 * MS, silent=[1])
    assert cluster.image.fenced == {}
    cluster.pass_time(250 * MS, silent=[1])
    assert cluster.image.fenced == {1: "hung"}


def test_e6_who_was_late_itself_accuses_nobody(cluster: Cluster) -> None:
    cluster.now += 60 * S
    cluster.tick()
    assert cluster.image.fenced == {}
    cluster.pass_time(1250 * MS, silent=[1])
    assert cluster.image.fenced == {}


def test_e6_two_late_at_once_get_one_more_session(cluster: Cluster) -> None:
    cluster.pass_time(2750 * MS, silent=[1, 2])
    assert cluster.image.fenced == {}
    cluster.pass_time(250 * MS, silent=[1, 2])
    assert cluster.image.fenced == {1: "hung", 2: "hung"}


def test_e6_a_controller_never_fences_itself_and_lets_itself_return(cluster: Cluster) -> None:
    cluster.pass_time(20 * S, silent=[0])
    assert cluster.image.fenced == {}
    cluster.new_controller(1)
    cluster.pass_time(1500 * MS, silent=[0])
    assert cluster.image.fenced == {0: "hung"}
    cluster.new_controller(0)
    cluster.tick()
    assert cluster.image.fenced == {}


def test_a_new_controller_gives_all_their_time_but_the_leader_that_it_heard_before(
    cluster: Cluster,
) -> None:
    cluster.new_controller(0, last_heard={1: cluster.now - 1000 * MS})
    cluster.pass_time(500 * MS, silent=[1])
    assert cluster.image.fenced == {1: "hung"}
    cluster.register(1, incarnation=2)
    cluster.new_controller(0, last_heard={1: cluster.now - 3600 * S})  # heard long ago: may answer
    cluster.pass_time(250 * MS, silent=[1])
    assert cluster.image.fenced == {}


# -- elections ----------------------------------------------------------------------------------------


def test_e1_the_last_leader_comes_first_then_the_order_of_the_replica_list(
    cluster: Cluster,
) -> None:
    first, second, third = cluster.p.replicas
    cluster.change(cluster.hand_over(third))
    assert (cluster.p.leader, cluster.p.last_leader) == (third, (first, 1, 1))
    cluster.die(third)  # before it has begun: the one before is still the last leader
    assert cluster.p.leader == first
    cluster.register(third, incarnation=2)
    cluster.start()
    cluster.change(cluster.proposal(*cluster.p.replicas))
    cluster.change(cluster.hand_over(third))
    cluster.start()
    cluster.change(cluster.hand_over(second))
    cluster.die(second)
    assert cluster.p.leader == third
    cluster.change(peers.StopBroker(id=third, incarnation=2))
    assert cluster.p.leader == first


def test_e1_without_a_candidate_nobody_leads_at_a_higher_epoch_and_all_stay_members(
    cluster: Cluster,
) -> None:
    epoch, isr = cluster.p.leader_epoch, cluster.p.isr
    cluster.die(0, 1, 2)
    assert (cluster.p.leader, cluster.p.leader_epoch, cluster.p.started) == (-1, epoch + 1, False)
    assert cluster.p.isr == isr
    before = cluster.p
    cluster.pass_time(300 * S, silent=[1, 2])
    assert cluster.p == before  # known not to be lossy: waited for


def test_e8_an_epoch_is_started_by_its_current_leader_only(cluster: Cluster) -> None:
    cluster.die(cluster.p.leader)
    leader, epoch = cluster.p.leader, cluster.p.leader_epoch
    other = next(b for b in cluster.p.isr if b != leader)

    def start(broker: int, at: int, incarnation: int = 1) -> peers.StartEpochs:
        starts = (peers.EpochStart(ID, 0, at, 40), peers.EpochStart(ID, 9, at, 40))
        return peers.StartEpochs(leader=broker, incarnation=incarnation, starts=starts)

    assert cluster.change(start(other, epoch)) == []
    assert cluster.change(start(leader, epoch - 1)) == []
    refused(cluster, start(leader, epoch, 2), Code.STALE_BROKER_EPOCH)
    assert cluster.change(start(leader, epoch))
    assert (cluster.p.started, cluster.p.epoch_start) == (True, 40)
    assert cluster.p.last_leader == (leader, 1, epoch)
    assert cluster.change(start(leader, epoch)) == []


def test_6_6_a_hand_over_goes_to_a_living_member_at_the_current_epoch(cluster: Cluster) -> None:
    target, other = cluster.others()
    refused(cluster, cluster.hand_over(target, leader_epoch=0), Code.NEW_LEADER_ELECTED)
    refused(cluster, cluster.hand_over(target, leader=other), Code.NEW_LEADER_ELECTED)
    cluster.controller.died(other, 1, cluster.now)  # not fenced yet
    refused(cluster, cluster.hand_over(other), Code.INELIGIBLE_REPLICA)
    cluster.tick()
    refused(cluster, cluster.hand_over(other), Code.INELIGIBLE_REPLICA)
    cluster.register(other, incarnation=2)
    refused(cluster, cluster.hand_over(other), Code.INELIGIBLE_REPLICA)  # alive, but no member
    assert cluster.change(cluster.hand_over(target))
    assert cluster.p.leader == target
    refused(cluster, cluster.hand_over(target), Code.NEW_LEADER_ELECTED)  # its epoch has not begun


def test_6_6_who_stops_leads_nothing_and_stays_as_missing_where_the_minimum_forbids_to_leave(
    cluster: Cluster,
) -> None:
    first, second, third = cluster.p.replicas
    refused(cluster, peers.StopBroker(id=first, incarnation=7), Code.STALE_BROKER_EPOCH)
    cluster.change(peers.StopBroker(id=first, incarnation=1))
    assert cluster.image.fenced == {first: "stopping"}
    assert (cluster.p.leader, cluster.p.isr) == (second, (second, third))
    assert cluster.change(peers.StopBroker(id=first, incarnation=1)) == []
    cluster.change(peers.StopBroker(id=second, incarnation=1))
    assert (cluster.p.leader, cluster.p.isr) == (third, (second, third))
    cluster.change(peers.StopBroker(id=third, incarnation=1))
    assert (cluster.p.leader, cluster.p.isr) == (-1, (second, third))


# -- in-sync replicas ---------------------------------------------------------------------------------


def test_j5_b05_a_proposal_on_facts_that_have_moved_is_refused(cluster: Cluster) -> None:
    follower, other = cluster.others()
    leader = cluster.p.leader
    shrink = cluster.proposal(leader, other)
    assert cluster.change(shrink)
    assert set(cluster.p.isr) == {leader, other}
    refused(cluster, shrink, Code.INVALID_UPDATE_VERSION)
    join = cluster.proposal(leader, follower, other)
    refused(cluster, cluster.proposal(*cluster.p.replicas, leader_epoch=0), Code.NEW_LEADER_ELECTED)
    refused(cluster, cluster.proposal(follower, leader=follower), Code.NEW_LEADER_ELECTED)
    refused(cluster, cluster.proposal(other), Code.INVALID_REQUEST)
    unknown = peers.ProposeIsr(
        topic_id=bytes(16), partition=0, leader=0, leader_epoch=1, partition_epoch=1, isr=()
    )
    refused(cluster, unknown, Code.UNKNOWN_TOPIC_ID)
    cluster.register(follower, incarnation=2, lossy=True)  # it came back empty meanwhile
    refused(cluster, join, Code.INELIGIBLE_REPLICA)
    assert cluster.change(cluster.proposal(*cluster.p.replicas))
    assert cluster.p.isr == cluster.p.replicas


def test_j4_who_is_dead_fenced_or_stopping_does_not_join(cluster: Cluster) -> None:
    follower, other = cluster.others()
    leader = cluster.p.leader
    cluster.change(cluster.proposal(leader, other))
    cluster.controller.died(follower, 1, cluster.now)
    refused(cluster, cluster.proposal(*cluster.p.replicas), Code.INELIGIBLE_REPLICA)
    cluster.register(follower, incarnation=2)
    cluster.change(peers.StopBroker(id=follower, incarnation=2))
    refused(cluster, cluster.proposal(*cluster.p.replicas), Code.INELIGIBLE_REPLICA)


def test_j7_a_leader_cannot_shrink_below_the_minimum_that_is_in_force_now(
    cluster: Cluster,
) -> None:
    leader, (follower, other) = cluster.p.leader, cluster.others()
    refused(cluster, cluster.proposal(leader), Code.INVALID_UPDATE_VERSION)
    proposed = cluster.proposal(leader, other)
    cluster.change(peers.AlterTopic(name="t", set_values={"min_insync_replicas": 3}))
    refused(cluster, proposed, Code.INVALID_UPDATE_VERSION)
    cluster.change(peers.AlterTopic(name="t", set_values={"min_insync_replicas": 1}))
    assert cluster.change(cluster.proposal(leader))
    cluster.change(peers.AlterTopic(name="t", set_values={"min_insync_replicas": 3}))
    cluster.tick()
    assert cluster.p.isr == (leader,)  # raising the minimum removes nobody, nor forbids a join
    assert cluster.change(cluster.proposal(leader, follower))
    refused(cluster, cluster.proposal(leader, other), Code.INVALID_UPDATE_VERSION)


def test_j6_j7_b19_missing_members_stay_until_a_join_or_a_lower_minimum_admits_their_leaving() -> (
    None
):
    cluster = Cluster(4)
    cluster.register(0, 1, 2, 3)
    cluster.topic(factor=4, min_insync_replicas=2)
    first, second, third, _ = cluster.p.replicas
    cluster.change(cluster.proposal(first, second))
    cluster.die(second)
    assert cluster.p.isr == (first, second)
    cluster.change(cluster.proposal(first, second, third))
    assert cluster.p.isr == (first, third)  # joined and dropped in one set
    cluster.die(third)
    assert cluster.p.isr == (first, third)
    cluster.change(peers.AlterTopic(name="t", set_values={"min_insync_replicas": 1}))
    cluster.tick()
    assert cluster.p.isr == (first,)


def test_b19_a_missing_member_may_lead_for_it_holds_all_that_is_committed(
    cluster: Cluster,
) -> None:
    first, second, third = cluster.p.replicas
    cluster.die(second)
    cluster.die(third)
    assert (cluster.p.leader, cluster.p.isr) == (first, (first, third))
    cluster.die(first)
    cluster.register(third, incarnation=2)
    assert (cluster.p.leader, cluster.p.isr) == (third, (first, third))


# -- elections of 6.7 ---------------------------------------------------------------------------------


def reboot(cluster: Cluster) -> None:
    """The machine comes up again: another boot, a controller that knows nobody of it."""
    cluster.boot += "'"
    cluster.new_controller()
    cluster.controller.died(0, 1, cluster.now)
    cluster.controller.died(1, 1, cluster.now)
    cluster.controller.died(2, 1, cluster.now)
    cluster.tick()


def test_6_7_the_only_replica_of_a_rebooted_broker_recovers_itself_at_once() -> None:
    cluster = Cluster(1)
    cluster.register(0)
    cluster.topic(factor=1)
    cluster.boot = "next"
    cluster.controller = Controller(
        0, 2, cluster.brokers, SETTINGS, cluster.image, cluster.now, boot_id="next"
    )
    cluster.register(0, incarnation=2, lossy=True, end=9, epoch=1)
    cluster.tick()
    assert (cluster.p.leader, cluster.p.isr, cluster.p.lost) == (0, (0,), (9, 9))
    assert cluster.p.recovery_epoch == cluster.p.leader_epoch
    cluster.start(start_offset=9)
    assert cluster.p.lossy == ()


def test_6_7_a_recovery_election_waits_for_all_that_left_and_takes_the_furthest(
    cluster: Cluster,
) -> None:
    reboot(cluster)
    for broker, epoch, end in ((0, 1, 500), (1, 2, 30)):
        cluster.register(broker, incarnation=2, lossy=True, epoch=epoch, end=end)
        cluster.tick()
        assert cluster.p.leader == -1
    cluster.register(2, incarnation=2, lossy=True, epoch=2, end=20)
    cluster.tick()
    assert (cluster.p.leader, cluster.p.isr) == (1, (1,))
    assert cluster.p.lost == (30, 500)
    assert set(cluster.p.lossy) == {0, 2}
    cluster.start()
    assert cluster.p.lossy == ()


def test_6_7_what_a_winner_has_behind_the_start_of_an_epoch_it_knows_nothing_of_is_lost_too(
    cluster: Cluster,
) -> None:
    cluster.die(cluster.p.leader)
    begun = cluster.p.leader_epoch
    cluster.start(start_offset=30)
    reboot(cluster)
    for broker, end in enumerate((20, 25, 40)):
        cluster.register(broker, incarnation=2, lossy=True, epoch=begun - 1, end=end)
    cluster.tick()
    assert (cluster.p.leader, cluster.p.isr) == (2, (2,))
    assert cluster.p.lost == (30, 40)


def test_6_7_who_left_as_lossy_and_is_away_again_is_waited_for(cluster: Cluster) -> None:
    reboot(cluster)
    cluster.register(0, incarnation=2, lossy=True, epoch=1, end=50)
    cluster.die(0)
    cluster.register(1, 2, incarnation=2, lossy=True, epoch=1, end=40)
    cluster.pass_time(59 * S, silent=[0])
    assert (cluster.p.leader, cluster.p.isr) == (-1, ())
    cluster.register(0, incarnation=3, lossy=True, epoch=1, end=50)
    cluster.tick()
    assert cluster.p.leader == 0


def test_6_7_who_does_not_come_back_after_a_reboot_is_taken_for_lossy_when_the_wait_is_over(
    cluster: Cluster,
) -> None:
    leader, isr = cluster.p.leader, cluster.p.isr
    absent = isr[-1]
    present = [broker for broker in isr if broker != absent]
    reboot(cluster)
    for broker in present:
        cluster.register(broker, incarnation=2, lossy=True, epoch=1, end=10 + broker)
    cluster.pass_time(59 * S, silent=[absent])
    assert (cluster.p.leader, cluster.p.isr) == (-1, (absent,))
    cluster.pass_time(2 * S, silent=[absent])
    assert cluster.p.leader == max(present)
    assert absent in cluster.p.lossy
    assert leader != -1


@pytest.mark.parametrize("why", ["disk", "same boot", "for ever"])
def test_6_7_who_may_still_hold_everything_is_waited_for_without_limit(why: str) -> None:
    settings = ClusterConfig(recovery_wait=-1) if why == "for ever" else SETTINGS
    cluster = Cluster(settings=settings)
    cluster.register(0, 1, 2)
    cluster.topic(durability="disk" if why == "disk" else "os")
    absent = cluster.p.isr[-1]
    boot = cluster.boot
    reboot(cluster)
    if why == "same boot":
        cluster.boot = boot
        cluster.new_controller()
    for broker in cluster.brokers:
        if broker != absent:
            cluster.register(broker, incarnation=2, lossy=True)
    cluster.pass_time(600 * S, silent=[absent])
    assert (cluster.p.leader, cluster.p.isr) == (-1, (absent,))
    cluster.register(absent, incarnation=2)
    assert cluster.p.leader == absent


def test_6_7_a_report_counts_only_if_nobody_was_followed_since_it_was_made(
    cluster: Cluster,
) -> None:
    leader, (near, far) = cluster.p.leader, cluster.others()
    cluster.register(near, incarnation=2, lossy=True, end=1, epoch=1)  # then it follows: old news
    cluster.register(far, incarnation=2, lossy=True, end=0, epoch=1)
    cluster.register(leader, incarnation=2, lossy=True, absent=True)
    cluster.tick()
    assert cluster.p.leader == -1
    epoch = cluster.p.leader_epoch
    cluster.register(near, incarnation=2, end=50, epoch=1, leader_epoch=epoch - 1)
    cluster.register(far, incarnation=2, end=40, epoch=1, leader_epoch=epoch)
    cluster.tick()
    assert cluster.p.leader == -1
    cluster.register(near, incarnation=2, end=30, epoch=1, leader_epoch=epoch)
    cluster.tick()
    assert (cluster.p.leader, cluster.p.isr) == (far, (far,))


def test_6_7_a_winner_that_dies_before_its_epoch_starts_does_not_hold_up_the_others_for_ever(
    cluster: Cluster,
) -> None:
    reboot(cluster)
    for broker in cluster.brokers:
        cluster.register(broker, incarnation=2, lossy=True, epoch=1, end=10 * broker)
    cluster.tick()
    assert cluster.p.isr == (2,)
    cluster.die(2)
    cluster.pass_time(59 * S, silent=[2])
    assert cluster.p.leader == -1
    cluster.pass_time(2 * S, silent=[2])
    assert (cluster.p.leader, cluster.p.isr) == (1, (1,))
    assert cluster.p.recovery_epoch == cluster.p.leader_epoch


def test_an_unclean_election_needs_the_topics_leave_and_five_seconds(cluster: Cluster) -> None:
    first, second, third = cluster.p.replicas
    cluster.change(peers.AlterTopic(name="t", set_values={"min_insync_replicas": 1}))
    cluster.change(cluster.proposal(first))
    cluster.die(first)
    epoch = cluster.p.leader_epoch
    cluster.register(second, end=5, epoch=1, leader_epoch=epoch)
    cluster.register(third, end=6, epoch=1, leader_epoch=epoch)
    cluster.pass_time(20 * S, silent=[first])
    assert cluster.p.leader == -1
    cluster.change(peers.AlterTopic(name="t", set_values={"unclean_leader_election": True}))
    cluster.tick()
    assert (cluster.p.leader, cluster.p.isr, cluster.p.lossy) == (third, (third,), (first,))
    cluster.start(start_offset=6)
    cluster.die(third)
    epoch = cluster.p.leader_epoch
    cluster.register(second, end=6, epoch=1, leader_epoch=epoch)
    cluster.pass_time(4750 * MS, silent=[first, third])
    assert cluster.p.leader == -1
    cluster.pass_time(500 * MS, silent=[first, third])
    assert cluster.p.leader == second


# -- any order of anything ----------------------------------------------------------------------------


class Violated(AssertionError):
    """An invariant does not hold."""


def ensure(holds: object, what: str, *facts: object) -> None:
    if not holds:
        raise Violated(what, *facts)


class Life(Cluster):
    """A cluster that is treated badly, with a model of what its replicas really hold.

    `logs[key][broker]`: (epoch of the last batch, end). `holds[key]`: the replicas that hold all that is committed, or
    all that an election of 6.7 has left.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        super().__init__(
            self.rng.choice([1, 2, 3, 3, 4]), settings=ClusterConfig(recovery_wait=5000)
        )
        self.incarnations = dict.fromkeys(self.brokers, 0)
        self.up: set[int] = set()
        self.hung: set[int] = set()
        self.logs: dict[int, dict[int, tuple[int, int]]] = {}
        self.holds: dict[int, set[int]] = {}
        self.in_flight: list[peers.Change] = []
        self.leaders: dict[tuple[int, int], tuple[int, int]] = {}
        self.restart()
        factor = self.rng.randint(1, len(self.brokers))
        self.change(
            peers.CreateTopic(
                name="t",
                topic_id=ID,
                partition_count=2,
                replication_factor=factor,
                configs={"min_insync_replicas": self.rng.randint(1, factor)},
            )
        )

    # What is checked.

    def commit(self, records: list[Record]) -> list[Record]:
        before = self.image
        super().commit(records)
        for new in self.partitions():
            old = before.partition(ID, new.partition)
            minimum = self.image.topics["t"].config.minimum_isr(len(new.replicas))
            self.check(before, old, new, minimum)
            self.serve(new, minimum)
        return records

    def check(
        self, before: Image, old: PartitionRecord | None, new: PartitionRecord, minimum: int
    ) -> None:
        key = new.partition
        is_recovery = old is not None and new.recovery_epoch > old.recovery_epoch
        if old is None or is_recovery:
            self.holds[key] = set(new.isr)
            self.logs.setdefault(key, dict.fromkeys(new.replicas, (-1, 0)))
        ensure(set(new.isr) <= set(new.replicas), "ISR beyond the replicas", new)
        ensure(new.isr or new.lossy, "ISR emptied by nobody lossy", new)
        ensure(new.leader == -1 or new.leader in new.isr, "E1: the leader is no member", new)
        ensure(new.leader not in self.image.fenced, "E5: a fenced broker leads", new)
        ensure(set(new.isr) <= self.holds[key], "J5, J7: a member lacks what is committed", new)
        if new.leader != -1:
            led = new.leader, self.image.brokers[new.leader].incarnation
            known = self.leaders.setdefault((key, new.leader_epoch), led)
            ensure(known == led, "an epoch of two leaders", new)
        if old is None or new == old:
            return
        ensure(new.partition_epoch == old.partition_epoch + 1, "partition epoch", old, new)
        ensure(new.leader_epoch >= old.leader_epoch, "leader epoch fell", old, new)
        ensure(new.leader == old.leader or new.leader_epoch > old.leader_epoch, "epoch", old, new)
        ensure(not (new.started and new.leader_epoch > old.leader_epoch), "E8", old, new)
        if is_recovery:
            self.check_recovery(before, old, new)
            return
        left = set(old.isr) - set(new.isr)
        joined = set(new.isr) - set(old.isr)
        ensure(joined <= self.controller.alive(before), "J4: the dead or fenced joins", old, new)
        willingly = left - set(new.lossy)
        ensure(not willingly or len(new.isr) >= minimum, "J7: below the minimum", old, new)

    def check_recovery(self, before: Image, old: PartitionRecord, new: PartitionRecord) -> None:
        alive = self.controller.alive(self.image)
        ensure(not alive & set(old.isr), "6.7: a member lives", old, new)
        begun = old.last_leader[2] if old.last_leader else -1
        config = before.topics["t"].config
        boots = {before.brokers[b].boot_id for b in old.isr}
        ensure(
            not old.isr
            or old.recovery_epoch > begun
            or config.unclean_leader_election
            or (config.durability != "disk" and self.boot not in boots),
            "6.7: elected without need",
            old,
            new,
        )
        log = self.logs[new.partition]
        told = alive & self.up - self.hung
        furthest = max((log[b] for b in new.replicas if b in told), default=(-1, 0))
        ensure(log[new.leader] >= furthest, "6.7: not the furthest", old, new, log)

    # What happens.

    def partitions(self) -> tuple[PartitionRecord, ...]:
        topic = self.image.topics.get("t")
        return topic.partitions if topic else ()

    def serve(self, p: PartitionRecord, minimum: int) -> None:
        """The leader commits one more record, if all of the maximal ISR (J8) work; the others have it some day."""
        seen = p.leader_epoch, p.partition_epoch
        maximal = {peers.IsrMember(b, self.incarnations[b]) for b in p.isr}
        for change in self.in_flight:
            if not isinstance(change, peers.ProposeIsr) or change.partition != p.partition:
                continue
            if (change.leader_epoch, change.partition_epoch) == seen:
                maximal.update(change.isr)
        works = {peers.IsrMember(b, self.incarnations[b]) for b in self.up - self.hung}
        if p.started and len(p.isr) >= minimum and maximal <= works:
            log = self.logs[p.partition]
            committed = p.leader_epoch, log[p.leader][1] + 1
            self.holds[p.partition] = {member.broker for member in maximal}
            for broker in self.holds[p.partition]:
                log[broker] = committed

    def follow(self, p: PartitionRecord) -> list[int]:
        """Every living follower of a started leader reaches its end."""
        working = self.up - self.hung
        if not p.started or p.leader not in working:
            return []
        followers = [
            b for b in p.replicas if b in working and b in self.controller.alive(self.image)
        ]
        for broker in followers:
            self.logs[p.partition][broker] = self.logs[p.partition][p.leader]
            self.holds[p.partition].add(broker)
        return followers

    def submit(self, change: peers.Change) -> None:
        with contextlib.suppress(ShmlogError):
            self.change(change)

    def start_broker(self, broker: int, *, lossy: bool) -> None:
        if broker in self.up:
            return
        self.up.add(broker)
        self.hung.discard(broker)
        self.incarnations[broker] += 1
        for p in self.partitions():
            if broker in p.replicas and lossy:
                epoch, end = self.logs[p.partition][broker]
                self.logs[p.partition][broker] = epoch, self.rng.randint(0, end)
                self.holds[p.partition].discard(broker)
        self.submit(self.report(broker, lossy=lossy, is_first=True))

    def report(self, broker: int, *, lossy: bool = False, is_first: bool = False) -> peers.Change:
        return peers.RegisterBroker(
            id=broker,
            incarnation=self.incarnations[broker],
            boot_id=self.boot,
            pid=1,
            endpoints={},
            replicas=tuple(
                peers.ReplicaReport(
                    ID,
                    p.partition,
                    *self.logs[p.partition][broker],
                    lossy,
                    -1 if is_first else p.leader_epoch,
                )
                for p in self.partitions()
                if broker in p.replicas
            ),
        )

    def kill(self, broker: int) -> None:
        self.up.discard(broker)
        self.hung.discard(broker)

    def stop(self, broker: int) -> None:
        self.submit(peers.StopBroker(id=broker, incarnation=self.incarnations[broker]))
        if self.rng.random() < 0.8:
            self.kill(broker)

    def bounce(self, broker: int) -> None:
        self.kill(broker)
        self.start_broker(broker, lossy=self.rng.random() < 0.5)

    def restart(self) -> None:
        for broker in self.brokers:
            self.start_broker(broker, lossy=False)

    def new_life(self) -> None:
        """Another broker becomes controller; all that live tell it where they are."""
        working = sorted(self.up - self.hung)
        if working:
            self.new_controller(self.rng.choice(working))
            self.tell()

    def new_controller(self, broker: int = 0, last_heard: Any = None) -> Controller:
        self.controller = Controller(
            broker,
            getattr(self, "incarnations", {}).get(broker, 1),
            self.brokers,
            self.settings,
            self.image,
            self.now,
            boot_id=self.boot,
        )
        return self.controller

    def tell(self) -> None:
        for broker in sorted(self.up - self.hung):
            self.submit(self.report(broker))

    def beat(self) -> None:
        for broker in sorted(self.up - self.hung):
            self.controller.beat(broker, self.incarnations[broker], self.image.offset, self.now)

    def learn_deaths(self) -> None:
        for broker in self.brokers:
            if broker not in self.up:
                self.controller.died(broker, self.incarnations[broker], self.now)

    def reboot(self) -> None:
        self.boot += "'"
        self.up.clear()
        self.hung.clear()
        self.new_controller(self.rng.choice(list(self.brokers)))

    def leaders_act(self) -> None:
        for p in self.partitions():
            if p.leader not in self.up - self.hung:
                continue
            if not p.started:
                at = peers.EpochStart(
                    ID, p.partition, p.leader_epoch, self.logs[p.partition][p.leader][1]
                )
                self.in_flight.append(
                    peers.StartEpochs(
                        leader=p.leader, incarnation=self.incarnations[p.leader], starts=(at,)
                    )
                )
                continue
            caught_up = self.follow(p)
            members = {*p.isr, *caught_up} if self.rng.random() < 0.6 else set(p.isr)
            if self.rng.random() < 0.4:
                members = {b for b in members if b == p.leader or self.rng.random() < 0.6}
            self.in_flight.append(self.proposal(*sorted(members), partition=p.partition))
            if self.rng.random() < 0.2:
                self.in_flight.append(
                    peers.HandOver(
                        topic_id=ID,
                        partition=p.partition,
                        leader=p.leader,
                        leader_epoch=p.leader_epoch,
                        target=self.rng.choice(p.replicas),
                    )
                )

    def deliver(self) -> None:
        """Some of what is in flight arrives: late, doubled, in any order."""
        self.rng.shuffle(self.in_flight)
        for change in self.in_flight[: self.rng.randint(0, 4)]:
            self.submit(change)
        if self.rng.random() < 0.7:
            self.in_flight = self.in_flight[4:]

    def configure(self) -> None:
        factor = len(self.partitions()[0].replicas)
        values = {
            "min_insync_replicas": self.rng.randint(1, factor),
            "durability": self.rng.choice(["os", "disk"]),
            "unclean_leader_election": self.rng.random() < 0.2,
        }
        key = self.rng.choice(sorted(values))
        self.submit(peers.AlterTopic(name="t", set_values={key: values[key]}))

    def step(self) -> None:
        rng = self.rng
        broker = rng.choice(list(self.brokers))
        one: Callable[[], object]
        one = rng.choices(
            [
                self.leaders_act,
                self.deliver,
                lambda: self.kill(broker),
                lambda: self.start_broker(broker, lossy=rng.random() < 0.3),
                lambda: self.hung.add(broker) if broker in self.up else None,
                lambda: self.hung.discard(broker),
                lambda: self.stop(broker),
                lambda: self.bounce(broker),
                self.configure,
                self.new_life,
                self.reboot,
                self.learn_deaths,
                lambda: self.controller.blocked(rng.sample(list(self.brokers), 1)),
            ],
            [30, 40, 8, 12, 3, 6, 2, 8, 5, 2, 1, 15, 2],
        )[0]
        one()
        for p in self.partitions():
            if rng.random() < 0.3:
                self.follow(p)
        self.now += rng.choice([1, 100, 250, 250, 600]) * MS
        if rng.random() < 0.8:
            self.beat()
        if rng.random() < 0.7:
            self.tell()
            self.tick()

    def live(self, steps: int = 150) -> None:
        for _ in range(steps):
            self.step()
        self.heal()

    def heal(self) -> None:
        """All come back: every partition must be led, and come to have all its replicas in sync."""
        self.in_flight.clear()
        self.hung.clear()
        self.learn_deaths()
        stopped = {b for b, why in self.image.fenced.items() if why == "stopping"}
        for broker in stopped:
            self.kill(broker)
        self.restart()
        for _ in range(100):
            self.now += 250 * MS
            self.beat()
            self.tell()
            self.tick()
            for p in self.partitions():
                if p.leader != -1 and not p.started:
                    self.start_of(p)
                elif p.started:
                    self.submit(self.proposal(*self.follow(p), partition=p.partition))
        for p in self.partitions():
            ensure(p.started and p.isr == p.replicas, "not in sync again", p)

    def start_of(self, p: PartitionRecord) -> None:
        at = peers.EpochStart(ID, p.partition, p.leader_epoch, self.logs[p.partition][p.leader][1])
        incarnation = self.incarnations[p.leader]
        self.submit(peers.StartEpochs(leader=p.leader, incarnation=incarnation, starts=(at,)))


def test_no_order_of_events_breaks_an_invariant_and_all_is_in_sync_again_when_they_end() -> None:
    for seed in range(150):
        Life(seed).live()


# Bugs planted here; each must be seen within the lives that the test above has.


def any_replica(old: PartitionRecord, isr: tuple[int, ...], alive: Any) -> int:
    return next((broker for broker in old.replicas if broker in alive), -1)


def below_the_minimum(old: Any, isr: tuple[int, ...], minimum: int, alive: Any) -> tuple[int, ...]:
    return tuple(broker for broker in isr if broker in alive)


def the_nearest(old: PartitionRecord, alive: Any, reports: Any) -> PartitionRecord:
    inverted = {
        b: peers.ReplicaReport(ID, 0, -r.last_epoch, -r.end_offset, False)
        for b, r in reports.items()
    }
    return RECOVERED(old, alive, inverted)


def same_epoch(*arguments: Any, **fields: Any) -> PartitionRecord:
    return SETTLE(*arguments, **{**fields, "deposed": -1})


def lossy_stays(*arguments: Any, **fields: Any) -> PartitionRecord:
    return SETTLE(*arguments, deposed=fields.get("deposed", -1))


def any_member(image: Image, member: peers.IsrMember, *, is_joining: bool, alive: Any) -> None:
    if is_joining and member.broker not in alive:
        CHECK_MEMBER(image, member, is_joining=is_joining, alive=alive)


def nothing(*_: Any, **__: Any) -> None:
    pass


def at_once(*_: Any, **__: Any) -> bool:
    return True


SETTLE, RECOVERED, CHECK_MEMBER = elections.settle, elections.recovered, replicas.check_member
PLANTED = {
    "E1: any replica is elected": (elections, "candidate", any_replica),
    "J7: dead members leave below the minimum": (elections, "without_missing", below_the_minimum),
    "J7: leaders shrink below the minimum": (replicas, "check_minimum", nothing),
    "J5: a stale partition epoch is accepted": (replicas, "check_partition_epoch", nothing),
    "J5, B05: a stale incarnation is accepted": (replicas, "check_member", any_member),
    "J4: the dead and fenced join": (replicas, "check_member", nothing),
    "E2: a new incarnation leads on at its old epoch": (elections, "settle", same_epoch),
    "B06: a lossy replica stays a member": (elections, "settle", lossy_stays),
    "6.7: recovery while members may come back": (elections, "may_recover", at_once),
    "6.7: the recovery election takes the nearest": (elections, "recovered", the_nearest),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_each_planted_bug_is_seen(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong = PLANTED[bug]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(Violated):
        for seed in range(150):
            Life(seed).live()
