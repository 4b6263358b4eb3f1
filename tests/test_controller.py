"""The controller: one story a rule.

J, E and B as in docs/rules.md.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from controller_support import ID, MS, SETTINGS, Cluster, S, refused

from node.core.cluster.controller import Controller
from node.core.cluster.placement import place
from node.core.cluster.topics import REPLICAS_MAX
from shmlog.errors import Code
from shmlog.protocol import peers
from shmlog.settings import ClusterConfig


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
    for topic_id in (ID, b"", bytes(17)):  # of another topic, or none
        refused(cluster, create("other", topic_id=topic_id), Code.INVALID_REQUEST)
    refused(cluster, create("x" * (1 << 20)), Code.INVALID_TOPIC_EXCEPTION)
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
    for endpoints in ({}, {"client": "c"}, {"client": "c", "peer": "p" * 1000}):
        change = msgspec.structs.replace(cluster.registration(1, 4), endpoints=endpoints)
        refused(cluster, change, Code.INVALID_REQUEST)


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


# -- recovery and unclean elections -------------------------------------------------------------------


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
