"""The measuring harness asks its questions at a tiny scale: what it starts ends, what it says is complete."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# `perf/` is measured from a checkout and is in no wheel; appended, so that the installed shmlog is what is tested.
sys.path.append(str(Path(__file__).parents[1]))

from perf import failover, timeline
from perf.harness import ROOT
from perf.ownership import RULES
from perf.throughput import produce

SMALL = {"scale": 0.01, "size": 100, "runs": 1, "batch_bytes": None, "profile": False}


def trial(**fields: object) -> failover.Trial:
    plain = {"kind": "kill", "victim": 0, "was_controller": False, "partitions": (0,)}
    return failover.Trial(**{**plain, "at_ns": 0, "end_ns": 0, "wall_ns": 0, **fields})  # type: ignore[arg-type]


def test_the_silence_of_a_trial_is_its_own_longest_gap_not_that_of_a_later_trial() -> None:
    times = np.array([0, 10, 40, 50, 500], np.int64) * 1_000_000
    found = failover._silence(times, trial(at_ns=12_000_000, end_ns=60_000_000))
    assert found == (30.0, 28.0)


def test_what_was_acked_and_is_not_at_its_offset_counts_as_lost() -> None:
    acks = np.array([[0, 10, 1], [1, 11, 2], [2, 12, 3]], np.int64)
    whole = failover._check({10: 0, 11: 1, 12: 2}, acks, all_in_order=True)
    assert whole == {"acked": 3, "lost": 0, "duplicates": 0, "reordered": 0}
    broken = failover._check({10: 0, 11: 2, 12: 1, 13: 1}, acks, all_in_order=True)
    assert broken == {"acked": 3, "lost": 2, "duplicates": 1, "reordered": 1}


def test_a_picture_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"shmlog\[perf\]"):
        timeline.check()


@pytest.mark.slow
@pytest.mark.process
def test_one_kill_under_load_loses_nothing_and_its_time_line_is_complete(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "perf", "failover", "--kills", "1", "--hangs", "0"]
    options = ["--writers", "python", "--rate", "100", "--no-yardsticks", "--out", str(report)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, *options], check=True, cwd=ROOT, env=environment, timeout=60)
    rows = json.loads(report.read_text())["rows"]
    total = rows[-1]
    assert total["acked"] > 60
    assert [total[key] for key in ("lost", "duplicates", "reordered", "failed")] == [0, 0, 0, 0]
    [silence, *_] = rows[0]["_trials"]
    assert 0 < silence["death"] < silence["leading"] < silence["next ack"]
    assert silence["silence"] < 10_000


@pytest.mark.slow
@pytest.mark.process
def test_three_replicas_are_measured_read_back_and_profiled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = {**SMALL, "brokers": [3], "only": "send_many/os", "profile": True}
    [row] = produce(argparse.Namespace(**asked))
    assert row["replicas"] == 3
    assert row["read back"] == "ok"
    assert row["cpu s/M followers"] >= 0  # in ticks of 10 ms
    assert "follower" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.process
def test_a_group_whose_members_come_go_and_die_leaves_nothing_out(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "perf", "rebalances", "--count", "8", "--brokers", "3"]
    options = ["--rate", "1000", "--no-yardsticks", "--out", str(report)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, *options], check=True, cwd=ROOT, env=environment, timeout=180)
    [row] = json.loads(report.read_text())["rows"]
    assert row["records"] > 500
    assert [row[rule] for rule in RULES] == [0] * len(RULES)


@pytest.mark.slow
@pytest.mark.process
def test_groups_are_measured_and_each_gets_everything(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "perf", "groups", "--brokers", "1", "--scale", "0.01"]
    options = ["--no-yardsticks", "--out", str(report)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, *options], check=True, cwd=ROOT, env=environment, timeout=180)
    rows = json.loads(report.read_text())["rows"]
    assert rows[0]["each got all, in order"] is True
    readers = [row for row in rows if row["what"].startswith("readers")]
    assert len(readers) == 10
    assert all(row["each got all"] for row in readers)
    joins, any_of, all_of = [r for r in rows if "max ms" in r]
    assert joins["max ms"] < 10_000
    assert any_of["max ms"] <= all_of["max ms"] < 10_000
