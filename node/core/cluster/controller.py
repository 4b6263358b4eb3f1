"""The controller: each change of the cluster as a plan on the newest image, and what facts and time demand.

    plan(image, change)   asked by a client or a broker                         topics.py, replicas.py
    tick(image)           deaths, hangs, returns, missing members, elections    liveness.py, elections.py

It lives where the metadata quorum is led, made anew at each election there. It acts only on what is committed: `image`
is the newest one, each record set made here appended before the next is asked for (the sets commit in that order or
not at all). A plan raises a typed error and then nothing is written. The image is the truth; only what cannot be in it
is kept here: who was heard when, who is proven dead, how far replicas without a leader reach, and since when.

Call `tick` first in every turn in which nothing is on its way to be committed: a death is then fenced, and elected
upon, in the turn that heard of it, by one set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

from node.core.cluster import elections, replicas, topics
from node.core.cluster.image import FenceRecord, Image, PartitionRecord, Record
from node.core.cluster.liveness import DEAD, HUNG, Liveness
from node.core.cluster.replicas import Key
from shmlog.errors import Code, InvalidRequest, Outdated
from shmlog.protocol import peers
from shmlog.settings import ClusterConfig

ENDPOINTS_MAX = 1000  # characters, of both
UNCLEAN_WAIT_NS = 5 * 10**9
_NS_PER_MS = 10**6


class Controller:
    """Plans changes, and fences, elects and lets return. One owner: the loop of the quorum's leader.

    `brokers`: all of the cluster, up or down. `boot_id`: of this machine; None: not checked. `last_heard`: when this
    broker last heard from those it knows directly, the leader before it above all; anybody else has its time from now.
    """

    def __init__(
        self,
        broker: int,
        incarnation: int,
        brokers: Sequence[int],
        settings: ClusterConfig,
        image: Image,
        now_ns: int,
        *,
        boot_id: str | None = None,
        last_heard: Mapping[int, int] | None = None,
        replicas_max: int = topics.REPLICAS_MAX,
    ) -> None:
        self._brokers = tuple(sorted(brokers))
        self._replicas_max = replicas_max
        self._boot_id = boot_id
        self._recovery_wait_ns = settings.recovery_wait * _NS_PER_MS
        self._liveness = Liveness(
            broker,
            incarnation,
            heartbeat_ns=settings.broker_heartbeat * _NS_PER_MS,
            hang_timeout_ns=settings.broker_hang_timeout * _NS_PER_MS,
            image=image,
            now_ns=now_ns,
            last_heard=last_heard or {},
        )
        self._settled: tuple[int, frozenset[int]] | None = (
            None  # image offset and alive, seen to fit
        )
        self._vacant: dict[Key, int] = {}  # partitions without a leader -> since when
        # How far replicas reach, by partition and broker. Kept while no epoch has started since: nobody was followed.
        self._reports: dict[Key, dict[int, peers.ReplicaReport]] = {}

    # -- facts ----------------------------------------------------------------------------------------

    def beat(self, broker: int, incarnation: int, image_offset: int, now_ns: int) -> None:
        """A broker's loop has answered; `image_offset`: of the image that it has published."""
        self._liveness.beat(broker, incarnation, image_offset, now_ns)

    def died(self, broker: int, incarnation: int, now_ns: int) -> None:
        """That incarnation is proven dead (E3)."""
        self._liveness.died(broker, incarnation, now_ns)

    def blocked(self, brokers: Iterable[int]) -> None:
        """All brokers whose process is in kernel state D just now (E5)."""
        self._liveness.blocked(brokers)

    def alive(self, image: Image) -> frozenset[int]:
        """Who may lead and join: registered, not fenced, not proven dead."""
        return image.unfenced() - self._liveness.dead(image)

    # -- changes --------------------------------------------------------------------------------------

    def plan(self, image: Image, change: peers.Change, now_ns: int) -> list[Record]:
        """The record set of a change; empty: nothing to do. Raises a ShmlogError if it is refused."""
        self._liveness.awake(now_ns)
        if isinstance(change, peers.RegisterBroker):
            return self._register(image, change, now_ns)
        if isinstance(change, peers.StartEpochs):
            return self._start_epochs(image, change)
        return self._pure(image, change)

    def _pure(self, image: Image, change: peers.Change) -> list[Record]:
        alive = self.alive(image)
        match change:
            case peers.CreateTopic():
                return topics.create_topic(image, change, self._brokers, alive, self._replicas_max)
            case peers.AlterTopic():
                return topics.alter_topic(image, change)
            case peers.AddPartitions():
                return topics.add_partitions(
                    image, change, self._brokers, alive, self._replicas_max
                )
            case peers.DeleteTopic():
                return topics.delete_topic(image, change)
            case peers.DeleteRecords():
                return topics.delete_records(image, change)
            case peers.TakeProducerIds():
                return topics.take_producer_ids(image, change)
            case peers.ProposeIsr():
                return replicas.propose_isr(image, change, alive)
            case peers.HandOver():
                return replicas.hand_over(image, change, alive)
            case peers.StopBroker():
                return replicas.stop(image, change, alive)
        raise InvalidRequest(f"no plan for {type(change).__name__}")

    def _register(self, image: Image, change: peers.RegisterBroker, now_ns: int) -> list[Record]:
        broker, incarnation = change.id, change.incarnation
        if broker not in self._brokers:
            raise InvalidRequest(f"broker {broker} is none of the cluster's {self._brokers}")
        if (
            set(change.endpoints) != {"client", "peer"}
            or len(str(change.endpoints)) > ENDPOINTS_MAX
        ):
            raise InvalidRequest(f"broker {broker}: endpoints client and peer, and nothing else")
        if self._boot_id not in (None, change.boot_id):
            raise InvalidRequest(
                f"broker {broker} runs since another boot than the controller: the brokers of a "
                "cluster share one machine"
            )
        before = image.brokers.get(broker)
        is_older = before is not None and incarnation < before.incarnation
        if is_older or self._liveness.is_dead(broker, incarnation):
            raise Outdated(
                f"incarnation {incarnation} of broker {broker} is dead or has a successor",
                code=Code.STALE_BROKER_EPOCH,
            )
        self._liveness.beat(broker, incarnation, -1, now_ns)
        if image.is_current(broker, incarnation):
            self._refresh_reports(image, change)
            return []
        reports = _reports_of(image, change)
        records = replicas.register(image, change, reports, self.alive(image))
        after = {(r.topic_id, r.partition): r for r in records if isinstance(r, PartitionRecord)}
        for key, report in reports.items():
            record = after.get(key) or image.partition(*key)
            if record is not None and not record.started:
                self._reports.setdefault(key, {})[broker] = report
        return records

    def _refresh_reports(self, image: Image, change: peers.RegisterBroker) -> None:
        """A registered incarnation says anew how far it reaches; it counts only if it follows nobody any more."""
        for report in change.replicas:
            old = image.partition(report.topic_id, report.partition)
            if old is None or change.id not in old.replicas or old.started:
                continue
            if report.leader_epoch == old.leader_epoch:
                key = report.topic_id, report.partition
                self._reports.setdefault(key, {})[change.id] = report

    def _start_epochs(self, image: Image, change: peers.StartEpochs) -> list[Record]:
        records = replicas.start_epochs(image, change)
        for record in records:
            assert isinstance(record, PartitionRecord)
            self._reports.pop((record.topic_id, record.partition), None)
        return records

    # -- facts and time -------------------------------------------------------------------------------

    def tick(self, image: Image, now_ns: int) -> list[Record]:
        """What facts and time demand, as one set: fences and returns, the elections and removals that follow from
        them, and elections of who is no member, where nothing else is left.
        """
        self._liveness.awake(now_ns)
        alive = self.alive(image)
        dead = image.unfenced() - alive
        hung = self._liveness.hung(image, now_ns)
        back = self._liveness.returned(image)
        alive = (alive - hung) | back
        records: list[Record] = [
            FenceRecord(b, image.brokers[b].incarnation, b not in back, _why(b, dead, hung))
            for b in sorted(dead | hung | back)
        ]
        records += self._settle(image, alive, now_ns)
        records += self._recover(image, alive, now_ns)
        return records

    def next_deadline_ns(self, image: Image) -> int:
        """When `tick` may have something to do though nothing happens: at most one heartbeat from the last call."""
        return self._liveness.next_deadline_ns(image)

    def _settle(self, image: Image, alive: frozenset[int], now_ns: int) -> list[PartitionRecord]:
        """Every partition put in order; looked through only if the image or who is alive has changed."""
        if self._settled == (image.offset, alive):
            return []
        records = replicas.settle_all(image, alive)
        if records:
            return records  # they are looked at again once committed
        self._settled = image.offset, alive
        vacant, waiting = {}, {}
        for partition, _ in replicas.partitions_of(image):
            key = partition.topic_id, partition.partition
            if partition.leader == -1:
                vacant[key] = self._vacant.get(key, now_ns)
            if not partition.started and key in self._reports:
                waiting[key] = self._reports[key]
        self._vacant, self._reports = vacant, waiting
        return []

    def _recover(self, image: Image, alive: Set[int], now_ns: int) -> list[PartitionRecord]:
        """Recovery and unclean elections: for partitions that had no candidate when the image was last looked
        through, and have none now.
        """
        records = []
        for key, since_ns in self._vacant.items():
            topic, old = image.by_id(key[0]), image.partition(*key)
            if topic is None or old is None or old.leader != -1 or alive & set(old.isr):
                continue
            reports = self._reports.get(key, {})
            waited_ns = now_ns - since_ns
            if elections.may_recover(
                old,
                topic.config,
                alive,
                reports,
                rebooted=self._rebooted(image),
                is_wait_over=0 <= self._recovery_wait_ns <= waited_ns,
                is_unclean_due=waited_ns >= UNCLEAN_WAIT_NS,
            ):
                new = elections.recovered(old, alive, reports)
                if new is not old:
                    records.append(new)
        return records

    def _rebooted(self, image: Image) -> frozenset[int]:
        """Brokers not seen since the machine was started."""
        boots = {b: r.boot_id for b, r in image.brokers.items()}
        return frozenset(b for b, boot in boots.items() if self._boot_id not in (None, boot))


def _why(broker: int, dead: Set[int], hung: Set[int]) -> str:
    return DEAD if broker in dead else HUNG if broker in hung else ""


def _reports_of(image: Image, change: peers.RegisterBroker) -> dict[Key, peers.ReplicaReport]:
    """A report for each replica that the broker has by the image. One it left out it does not find: all that it
    had is lost, if ever a leader served.
    """
    given = {(report.topic_id, report.partition): report for report in change.replicas}
    reports = {}
    for old, _ in replicas.partitions_of(image):
        if change.id in old.replicas:
            key = old.topic_id, old.partition
            absent = peers.ReplicaReport(*key, -1, 0, lossy=old.last_leader is not None)
            reports[key] = given.get(key, absent)
    return reports
