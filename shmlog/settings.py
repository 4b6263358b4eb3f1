"""Each setting once: name, unit, default, bounds, meaning.

Two spellings of one name. *Native* (Python, command line, cluster.toml, wire): `_` for `.`, a final `.ms`
dropped; values are human ("7d", "64MiB") or integers in the setting's unit. *Kafka's* (accepted where a
setting is given by name): `segment.bytes`, integers in Kafka's unit, which here is the same.

A setting that Kafka or a later version knows, but this one has not built, is refused by name; nothing is
accepted without effect.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from shmlog.errors import InvalidConfig

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
INT64_MAX = (1 << 63) - 1
DAY_MS = 86_400_000
PAGE = 4096
# At most 19 digits: what has more does not fit int64, and numbers of any length cost any time.
_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,19})?)\s*([kmgt]?)(i?)b?", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(\d{1,19}(?:\.\d{1,19})?)\s*(ns|us|ms|s|m|h|d)", re.ASCII)
_INTEGER = re.compile(r"-?\d{1,19}", re.ASCII)
_SHOWN_MAX = 60
_DURATION_NS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
}
_SIZE_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str | int) -> int:
    """Bytes of "64MiB", "1 GB" or a plain number. Raises InvalidConfig."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = _SIZE.fullmatch(str(text).strip())
    if not match:
        raise InvalidConfig(f"not a size: {shown(text)}; write 1048576, 64MiB or 1GB")
    number, unit, binary = match.groups()
    factor = (1024 if binary else 1000) ** _SIZE_POWER[unit.lower()]
    return _within_int64(_product(number, factor), text)


def _product(number: str, factor: int) -> int:
    return int(float(number) * factor) if "." in number else int(number) * factor


def _within_int64(value: int, text: Any) -> int:
    if abs(value) > INT64_MAX:
        raise InvalidConfig(f"too large: {shown(text)}; at most {INT64_MAX}")
    return value


def shown(value: Any) -> str:
    """A value in a message: cut, for it may have any length."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number beyond 64 bits"
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."


def parse_duration_ns(text: str) -> int:
    """Nanoseconds of "5ms", "7d" or "1h30m". Raises InvalidConfig."""
    squeezed = text.replace(" ", "")
    parts = _DURATION.findall(squeezed)
    if not parts or "".join(n + u for n, u in parts) != squeezed:
        raise InvalidConfig(f"not a duration: {shown(text)}; write 250us, 5ms, 30s, 1h30m or 7d")
    return _within_int64(sum(_product(number, _DURATION_NS[unit]) for number, unit in parts), text)


def format_size(size: int) -> str:
    """A size for people: "64 MiB"."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def duration_ms(value: Any) -> int:
    """Milliseconds: an integer as it is (the unit of names that end in .ms), or text such as "100ms"."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = value.strip()
        if _INTEGER.fullmatch(text):
            return int(text)
        return parse_duration_ns(text) // 10**6
    raise InvalidConfig(f"not a duration: {shown(value)}")


def size_bytes(value: Any) -> int:
    """Bytes: an integer, or text such as "64MiB"."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InvalidConfig(f"not a size: {shown(value)}")
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)  # -1 too; what it may be, the bounds say
    return parse_size(value)


def integer(value: Any) -> int:
    """A whole number, or its text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or not _INTEGER.fullmatch(value.strip()):
        raise InvalidConfig(f"not a whole number: {shown(value)}")
    return int(value)


def boolean(value: Any) -> bool:
    """true or false, or their text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise InvalidConfig(f"not true or false: {shown(value)}")


def ratio(value: Any) -> float:
    """A number with or without a fraction, or its text."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
        if number != number:
            raise ValueError
    except (ValueError, OverflowError):
        raise InvalidConfig(f"not a number: {shown(value)}") from None
    return number


def name_list(value: Any) -> str:
    """A list of names, or its text: sorted, without repetitions, joined by commas."""
    names = value if isinstance(value, list | tuple) else name(value).split(",")
    return ",".join(sorted({name(item).strip() for item in names}))


def name(value: Any) -> str:
    """Text."""
    if not isinstance(value, str):
        raise InvalidConfig(f"not text: {shown(value)}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting. `kafka` is Kafka's spelling; bounds are inclusive, in the parsed unit."""

    kafka: str
    parse: Callable[[Any], Any]
    default: Any
    meaning: str
    low: int | None = None
    high: int | None = None
    choices: tuple[str, ...] = ()
    extra: tuple[int, ...] = ()  # values outside the bounds that are allowed too
    live: bool = True

    @property
    def native(self) -> str:
        """The native spelling."""
        return native_name(self.kafka)

    def check(self, value: Any) -> Any:
        """The parsed value. Raises InvalidConfig naming the setting and its bounds."""
        try:
            parsed = self.parse(value)
        except InvalidConfig as error:
            raise InvalidConfig(f"{self.native}: {error}", setting=self.native) from None
        if self.choices and parsed not in self.choices:
            allowed = " or ".join(self.choices)
            raise InvalidConfig(f"{self.native} = {shown(value)}: must be {allowed}")
        below = self.low is not None and parsed < self.low
        above = not isinstance(parsed, str) and parsed > self.top
        if (below or above) and parsed not in self.extra:
            raise InvalidConfig(
                f"{self.native} = {shown(value)}: must be {self._bounds()}", setting=self.native
            )
        return parsed

    @property
    def top(self) -> int:
        """The upper bound; every number fits int64."""
        return INT64_MAX if self.high is None else self.high

    def _bounds(self) -> str:
        return " or ".join([*map(str, self.extra), f"{self.low}..{self.top}"])


def native_name(kafka: str) -> str:
    """Kafka's spelling to the native one: `segment.ms` is `segment_age` by exception."""
    if kafka == "segment.ms":
        return "segment_age"
    return kafka.removesuffix(".ms").replace(".", "_")


TOPIC_SETTINGS: dict[str, Setting] = {
    s.native: s
    for s in (
        Setting(
            kafka="durability",
            parse=name,
            default="os",
            choices=("os", "disk"),
            meaning="a batch counts as stored when it is written (os) or synced (disk)",
        ),
        Setting(
            kafka="min.insync.replicas",
            parse=integer,
            default=-1,
            low=1,
            extra=(-1,),
            meaning="acks=all is refused with fewer in-sync replicas; -1 = max(1, replicas - 1)",
        ),
        Setting(
            kafka="unclean.leader.election",
            parse=boolean,
            default=False,
            meaning="elect a replica that may lack committed records when no other is left for 5 s",
        ),
        Setting(
            kafka="sync.interval.ms",
            parse=duration_ms,
            default=100,
            low=10,
            high=60_000,
            meaning="at durability os: how often what was written is synced in the background",
        ),
        Setting(
            kafka="segment.bytes",
            parse=size_bytes,
            default=64 * MIB,
            low=64 * KIB,
            high=GIB,
            meaning="a new segment file begins before this size is exceeded",
        ),
        Setting(
            kafka="segment.ms",
            parse=duration_ms,
            default=-1,
            low=100,
            extra=(-1,),
            meaning="a new segment file begins so long after the first batch of the last one; -1 = an eighth of "
            "retention, within 1 s and 1 d",
        ),
        Setting(
            kafka="retention.ms",
            parse=duration_ms,
            default=7 * DAY_MS,
            low=0,
            extra=(-1,),
            meaning="a segment is deleted so long after its newest batch was appended; -1 = never",
        ),
        Setting(
            kafka="retention.bytes",
            parse=size_bytes,
            default=-1,
            low=0,
            extra=(-1,),
            meaning="the oldest segments of a partition are deleted while so much is left without them; -1 = never",
        ),
        Setting(
            kafka="index.interval.bytes",
            parse=size_bytes,
            default=4096,
            low=512,
            high=MIB,
            meaning="one index entry per so many bytes of log; at the next roll",
        ),
        Setting(
            kafka="max.message.bytes",
            parse=size_bytes,
            default=MIB,
            low=KIB,
            high=8 * MIB,
            meaning="largest stored batch, header included",
        ),
        Setting(
            kafka="max.uncompressed.bytes",
            parse=size_bytes,
            default=16 * MIB,
            low=KIB,
            high=256 * MIB,
            meaning="largest batch body once decompressed; at least max.message.bytes",
        ),
        Setting(
            kafka="message.timestamp.after.max.ms",
            parse=duration_ms,
            default=3_600_000,
            low=0,
            meaning="a record may lie so far in the future of the broker's clock",
        ),
        Setting(
            kafka="cleanup.policy",
            parse=name_list,
            default="delete",
            choices=("delete", "compact", "compact,delete"),
            meaning="what is done about old records: delete them by age and size, compact by key, or both",
        ),
        Setting(
            kafka="min.cleanable.dirty.ratio",
            parse=ratio,
            default=0.5,
            low=0,
            high=1,
            meaning="compact once so much of what may be compacted has come since the last pass",
        ),
        Setting(
            kafka="min.compaction.lag.ms",
            parse=duration_ms,
            default=0,
            low=0,
            meaning="a record is not compacted before it is so old",
        ),
        Setting(
            kafka="max.compaction.lag.ms",
            parse=duration_ms,
            default=-1,
            low=1,
            extra=(-1,),
            meaning="compact whatever the ratio once a record has waited so long for it; -1 = off",
        ),
        Setting(
            kafka="delete.retention.ms",
            parse=duration_ms,
            default=86_400_000,
            low=0,
            meaning="a null value (tombstone) goes so long after the first pass that kept it",
        ),
        Setting(
            kafka="ring.bytes",
            parse=size_bytes,
            default=8 * MIB,
            low=256 * KIB,
            high=GIB,
            extra=(0,),
            meaning="the partition's window in shared memory; 0 = none; at the next ring",
        ),
    )
}

CLUSTER_SETTINGS: dict[str, Setting] = {
    s.native: s
    for s in (
        Setting(
            kafka="auto.create.topics",
            parse=boolean,
            default=False,
            meaning="a producer's first use of a topic creates it, with the defaults",
        ),
        Setting(
            kafka="producer.id.expiration.ms",
            parse=duration_ms,
            default=86_400_000,
            low=1000,
            meaning="a producer's sequence state is dropped after so long without a batch",
        ),
        Setting(
            kafka="replica.lag.time.max.ms",
            parse=duration_ms,
            default=10_000,
            low=500,
            meaning="a follower that has not caught up for so long leaves the in-sync replicas",
        ),
        Setting(
            kafka="recovery.wait.ms",
            parse=duration_ms,
            default=60_000,
            low=-1,
            meaning="after a reboot: how long a partition waits for its last in-sync replicas; -1 = for ever",
        ),
        Setting(
            kafka="broker.heartbeat.ms",
            parse=duration_ms,
            default=250,
            low=50,
            high=10_000,
            meaning="how often brokers hear from the controller, and answer",
        ),
        Setting(
            kafka="broker.hang.timeout.ms",
            parse=duration_ms,
            default=1500,
            low=500,
            high=60_000,
            meaning="a broker whose loop has not answered for so long is fenced; at least 4 heartbeats",
        ),
        Setting(
            kafka="ring.budget.bytes",
            parse=size_bytes,
            default=-1,
            low=0,
            extra=(-1,),
            meaning="shared memory for the rings of one broker; -1 = its share of half of /dev/shm",
        ),
        Setting(
            kafka="session.timeout.ms",
            parse=duration_ms,
            default=45_000,
            low=6000,
            high=300_000,
            meaning="a group's member that no pidfd watches is dead after so long without a heartbeat; a static one "
            "has so long to come back",
        ),
        Setting(
            kafka="stalled.member.timeout.ms",
            parse=duration_ms,
            default=300_000,
            low=6000,
            extra=(-1,),
            meaning="a member whose process lives, but is silent for so long, leaves its group; -1 = never",
        ),
        Setting(
            kafka="offsets.retention.ms",
            parse=duration_ms,
            default=-1,
            low=0,
            extra=(-1,),
            meaning="committed offsets of a group are dropped so long after its last member left; -1 = never",
        ),
        Setting(
            kafka="disk.budget.bytes",
            parse=size_bytes,
            default=-1,
            low=0,
            extra=(-1,),
            meaning="one broker's files of partitions; above it its oldest segments are deleted; -1 = no limit",
        ),
        Setting(
            kafka="disk.reserve.bytes",
            parse=size_bytes,
            default=-1,
            low=0,
            extra=(-1,),
            meaning="produce is refused while less is free on the disk; -1 = the larger of 1 GiB and 5 %, at most "
            "20 % of it; 0 = never",
        ),
        Setting(
            kafka="request.memory.bytes",
            parse=size_bytes,
            default=64 * MIB,
            low=16 * MIB,
            meaning="admitted but unanswered requests of one broker; above it BUSY",
        ),
    )
}

# Known to Kafka's users or to a later version: refused by name, with this reason.
NOT_BUILT = frozenset(
    native_name(k)
    for k in (
        "partitioner "
        "message.timestamp.type ring.mode replication.factor compression.type retention.check.ms "
        "max.clients fence.kill lane.bytes"
    ).split()
)


def resolve(key: str, table: Mapping[str, Setting]) -> Setting:
    """The setting of either spelling. Raises InvalidConfig with the nearest name."""
    native = native_name(key) if "." in key else key
    if native in table:
        return table[native]
    if native in NOT_BUILT:
        raise InvalidConfig(f"{key} is known, but not built in this version", setting=key)
    raise InvalidConfig(f"unknown setting {shown(key)}{did_you_mean(native, table)}", setting=key)


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The end of a message about an unknown word: the nearest one there is, else all."""
    known = sorted(words)
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def check_all(values: Mapping[str, Any], table: Mapping[str, Setting]) -> dict[str, Any]:
    """Every name resolved and every value parsed and bounded; {native name: value}."""
    return {(s := resolve(key, table)).native: s.check(value) for key, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicConfig:
    """The settings in force for a topic; meanings and bounds in TOPIC_SETTINGS."""

    durability: str = TOPIC_SETTINGS["durability"].default
    min_insync_replicas: int = TOPIC_SETTINGS["min_insync_replicas"].default
    unclean_leader_election: bool = TOPIC_SETTINGS["unclean_leader_election"].default
    sync_interval: int = TOPIC_SETTINGS["sync_interval"].default
    segment_bytes: int = TOPIC_SETTINGS["segment_bytes"].default
    segment_age: int = TOPIC_SETTINGS["segment_age"].default
    retention: int = TOPIC_SETTINGS["retention"].default
    retention_bytes: int = TOPIC_SETTINGS["retention_bytes"].default
    index_interval_bytes: int = TOPIC_SETTINGS["index_interval_bytes"].default
    max_message_bytes: int = TOPIC_SETTINGS["max_message_bytes"].default
    max_uncompressed_bytes: int = TOPIC_SETTINGS["max_uncompressed_bytes"].default
    message_timestamp_after_max: int = TOPIC_SETTINGS["message_timestamp_after_max"].default
    cleanup_policy: str = TOPIC_SETTINGS["cleanup_policy"].default
    min_cleanable_dirty_ratio: float = TOPIC_SETTINGS["min_cleanable_dirty_ratio"].default
    min_compaction_lag: int = TOPIC_SETTINGS["min_compaction_lag"].default
    max_compaction_lag: int = TOPIC_SETTINGS["max_compaction_lag"].default
    delete_retention: int = TOPIC_SETTINGS["delete_retention"].default
    ring_bytes: int = TOPIC_SETTINGS["ring_bytes"].default

    def __post_init__(self) -> None:
        # A ring is made of whole pages.
        object.__setattr__(self, "ring_bytes", -(-self.ring_bytes // PAGE) * PAGE)
        if self.ring_bytes and self.ring_bytes < 4 * self.max_message_bytes:
            raise InvalidConfig(
                f"ring_bytes = {self.ring_bytes}: must be 0 or at least 4 x max_message_bytes "
                f"({self.max_message_bytes})"
            )
        if self.max_uncompressed_bytes < self.max_message_bytes:
            raise InvalidConfig(
                f"max_uncompressed_bytes = {self.max_uncompressed_bytes}: must be at least "
                f"max_message_bytes ({self.max_message_bytes})"
            )
        if 0 <= self.max_compaction_lag < self.min_compaction_lag:
            raise InvalidConfig(
                f"max_compaction_lag = {self.max_compaction_lag}: must be -1 or at least "
                f"min_compaction_lag ({self.min_compaction_lag})"
            )

    @property
    def is_compacted(self) -> bool:
        """Is only the newest record of each key kept? Then every record has a key."""
        return "compact" in self.cleanup_policy

    @property
    def roll_after_ms(self) -> int:
        """The effective age at which a segment is closed: so a record outlives `retention` by an eighth of it."""
        if self.segment_age != -1:
            return self.segment_age
        if self.retention == -1:
            return DAY_MS
        return min(max(self.retention // 8, 1000), DAY_MS)

    def minimum_isr(self, replication_factor: int) -> int:
        """The effective minimum of in-sync replicas: never more than there are replicas."""
        wanted = self.min_insync_replicas
        return min(max(1, replication_factor - 1) if wanted == -1 else wanted, replication_factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """The settings in force for the cluster; meanings and bounds in CLUSTER_SETTINGS."""

    auto_create_topics: bool = CLUSTER_SETTINGS["auto_create_topics"].default
    producer_id_expiration: int = CLUSTER_SETTINGS["producer_id_expiration"].default
    replica_lag_time_max: int = CLUSTER_SETTINGS["replica_lag_time_max"].default
    recovery_wait: int = CLUSTER_SETTINGS["recovery_wait"].default
    broker_heartbeat: int = CLUSTER_SETTINGS["broker_heartbeat"].default
    broker_hang_timeout: int = CLUSTER_SETTINGS["broker_hang_timeout"].default
    ring_budget_bytes: int = CLUSTER_SETTINGS["ring_budget_bytes"].default
    session_timeout: int = CLUSTER_SETTINGS["session_timeout"].default
    stalled_member_timeout: int = CLUSTER_SETTINGS["stalled_member_timeout"].default
    offsets_retention: int = CLUSTER_SETTINGS["offsets_retention"].default
    disk_budget_bytes: int = CLUSTER_SETTINGS["disk_budget_bytes"].default
    disk_reserve_bytes: int = CLUSTER_SETTINGS["disk_reserve_bytes"].default
    request_memory_bytes: int = CLUSTER_SETTINGS["request_memory_bytes"].default

    def __post_init__(self) -> None:
        if self.broker_hang_timeout < 4 * self.broker_heartbeat:
            raise InvalidConfig(
                f"broker_hang_timeout = {self.broker_hang_timeout} ms: must be at least 4 x "
                f"broker_heartbeat ({self.broker_heartbeat} ms)"
            )


assert {f.name for f in fields(TopicConfig)} == set(TOPIC_SETTINGS)
assert {f.name for f in fields(ClusterConfig)} == set(CLUSTER_SETTINGS)
