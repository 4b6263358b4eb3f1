"""Settings: both spellings, human values, bounds, nearest names, and no setting without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shmlog.errors import InvalidConfig
from shmlog.settings import (
    CLUSTER_SETTINGS,
    NOT_BUILT,
    TOPIC_SETTINGS,
    TopicConfig,
    check_all,
    parse_size,
    resolve,
)

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("key", "value", "native", "parsed"),
    [
        ("segment.bytes", 1048576, "segment_bytes", 1 << 20),
        ("segment_bytes", "1MiB", "segment_bytes", 1 << 20),
        ("ring_bytes", "0", "ring_bytes", 0),
        ("sync.interval.ms", "250", "sync_interval", 250),
        ("sync_interval", "1s", "sync_interval", 1000),
        ("durability", "disk", "durability", "disk"),
        ("retention.ms", "60000", "retention", 60_000),
        ("retention", "7d", "retention", 604_800_000),
        ("retention_bytes", "-1", "retention_bytes", -1),
        ("segment.ms", 1000, "segment_age", 1000),
        ("segment_age", "1h", "segment_age", 3_600_000),
    ],
)
def test_both_spellings_and_human_values_are_understood(
    key: str, value: Any, native: str, parsed: Any
) -> None:
    assert check_all({key: value}, TOPIC_SETTINGS) == {native: parsed}


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("segment_bytez", 1, "did you mean 'segment_bytes'"),
        ("segment_bytes", "1KiB", "65536..1073741824"),
        ("segment_bytes", True, "not a size"),
        ("segment_bytes", "many", "not a size"),
        ("ring_bytes", "4KiB", "0 or 262144"),
        ("sync_interval", "5 apples", "not a duration"),
        ("durability", "ram", "os or disk"),
        ("ring.mode", 1, "not built"),
        ("retention.ms", -2, "-1 or 0.."),
        ("segment.ms", 99, "-1 or 100.."),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(key: str, value: Any, text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        check_all({key: value}, TOPIC_SETTINGS)


def test_settings_have_rules_between_each_other() -> None:
    with pytest.raises(InvalidConfig, match="at least 4 x max_message_bytes"):
        TopicConfig(ring_bytes=1 << 20)
    with pytest.raises(InvalidConfig, match="at least max_message_bytes"):
        TopicConfig(max_message_bytes=2 << 20, max_uncompressed_bytes=1 << 20, ring_bytes=0)


@pytest.mark.parametrize(
    ("retention", "segment_age", "effective"),
    [
        (-1, -1, 86_400_000),
        (604_800_000, -1, 75_600_000),
        (8 * 864_000_000, -1, 86_400_000),
        (4000, -1, 1000),
        (0, -1, 1000),
        (4000, 100, 100),
        (-1, 5000, 5000),
    ],
)
def test_a_segment_is_closed_after_an_eighth_of_retention_unless_told_otherwise(
    retention: int, segment_age: int, effective: int
) -> None:
    config = TopicConfig(retention=retention, segment_age=segment_age)
    assert config.roll_after_ms == effective


def test_a_setting_is_built_or_refused_never_both() -> None:
    assert not NOT_BUILT & (set(TOPIC_SETTINGS) | set(CLUSTER_SETTINGS))
    for name in NOT_BUILT:
        with pytest.raises(InvalidConfig, match="not built"):
            resolve(name, TOPIC_SETTINGS)


def test_every_setting_is_read_by_some_code() -> None:
    sources = [
        path.read_text()
        for folder in ("shmlog", "node")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "settings.py"
    ]
    read_as = {"min_insync_replicas": "minimum_isr", "segment_age": "roll_after_ms"}
    for setting in [*TOPIC_SETTINGS, *CLUSTER_SETTINGS]:
        name = read_as.get(setting, setting)
        assert any(f".{name}" in source for source in sources), name


def test_sizes_are_binary_with_an_i_and_decimal_without() -> None:
    assert [parse_size(t) for t in ("1k", "1KiB", "1.5MiB", "2GB", "7")] == [
        1000,
        1024,
        1536 << 10,
        2 * 10**9,
        7,
    ]
