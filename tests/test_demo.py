"""The demo: it proves what it says, and its checks do find what would be wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shmlog.cli import flights as checks
from shmlog.cli.flights import Delays, Finding, Flight, load
from shmlog.clock import SYSTEM_CLOCK

DEMO_BUDGET_S = 15
DAY_NS = 86_400 * 10**9


@pytest.fixture(scope="module")
def flights():
    return load()


def pairs(flights):
    return [(f.origin, f.line) for f in flights]


def test_the_data_is_all_there_in_the_order_of_its_dates(flights):
    assert len(flights) == 20_000
    assert flights == sorted(flights, key=lambda f: f.time_ns)
    assert flights[0] == Flight(
        b"DTW",
        b'{"date":"2001/01/01 00:47","delay":66,"distance":1750,"origin":"DTW",'
        b'"destination":"LAS"}',
        978_310_020 * 10**9,
    )


def test_a_lost_a_doubled_and_a_changed_record_are_found(flights):
    some = flights[:100]
    read = pairs(some)
    assert checks.check_complete(some, read[::-1]).holds
    assert checks.check_complete(some, read[1:]) == (
        False,
        "100 records sent: 1 missing, 0 too many or different",
    )
    assert not checks.check_complete(some, [*read, read[5]]).holds
    assert not checks.check_complete(some, [*read[1:], (read[0][0], read[0][1] + b" ")]).holds
    assert not checks.check_complete(some, [*read[1:], (b"XXX", read[0][1])]).holds


def test_two_records_of_one_key_in_the_wrong_order_are_found(flights):
    some = flights[:500]
    read = pairs(some)
    by_key = sorted(read, key=lambda pair: pair[0])
    assert checks.check_order(some, by_key).holds  # between keys there is no order
    places = [i for i, (key, _) in enumerate(read) if key == b"ORD"]
    read[places[0]], read[places[1]] = read[places[1]], read[places[0]]
    finding = checks.check_order(some, read)
    assert not finding.holds
    assert "['ORD']" in finding.text


def test_a_replay_has_what_came_from_then_on_and_nothing_else(flights):
    since_ns = flights[10_000].time_ns // DAY_NS * DAY_NS
    later = [f.line for f in flights if f.time_ns >= since_ns]
    assert checks.check_replay(flights, since_ns, later) == Finding(
        True, f"replay from 2001-02-15: {len(later):,} of {len(later):,} records"
    )
    assert not checks.check_replay(flights, since_ns, later[1:]).holds
    assert not checks.check_replay(flights, since_ns, [flights[0].line, *later]).holds


def test_sums_made_in_parts_are_those_of_the_whole(flights):
    delays = Delays()
    for start in range(0, len(flights), 777):
        delays.add(f.line for f in flights[start : start + 777])
    assert checks.check_delays(flights, delays).holds
    worst = delays.worst(3)
    assert [airport for airport, _, _ in worst] == ["JFK", "SEA", "SMF"]
    assert worst[0][1] == 200
    delays.add([flights[0].line])
    assert not checks.check_delays(flights, delays).holds


@pytest.mark.process
def test_the_demo_ends_well_in_time_and_leaves_nothing(tmp_path):
    started_ns = SYSTEM_CLOCK.monotonic_ns()
    done = subprocess.run(
        [sys.executable, "-c", "from shmlog.cli.main import run; run()", "demo", "-n", "1"],
        capture_output=True,
        text=True,
        timeout=4 * DEMO_BUDGET_S,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert SYSTEM_CLOCK.monotonic_ns() - started_ns < DEMO_BUDGET_S * 10**9
    verdict = done.stdout.splitlines()[-5:]
    assert all(line.startswith("ok ") for line in verdict), verdict
    assert "20,000 of 20,000 records are there, each exactly once" in verdict[0]
    assert re.search(r"kill -9 \d+: broker 0, leader of flights-0, is dead", done.stderr)
    assert re.search(r"broker 0 is back: pid \d+, [\d,]+ ms later", done.stderr)
    assert "\x1b" not in done.stdout + done.stderr
    directory = re.search(rf"{tempfile.gettempdir()}/shmlog-\S+(?=:)", done.stderr)
    assert directory is not None
    assert not Path(directory.group()).exists()


@pytest.mark.process
def test_a_demo_that_is_interrupted_ends_at_once_and_leaves_nothing():
    demo = subprocess.Popen(
        [sys.executable, "-c", "from shmlog.cli.main import run; run()", "demo", "-n", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    told = [demo.stderr.readline() for _ in range(3)]  # the third comes when records flow
    demo.send_signal(signal.SIGINT)
    out, err = demo.communicate(timeout=4 * DEMO_BUDGET_S)
    assert demo.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    directory = re.search(r"/\S+/shmlog-\S+(?=:)", told[0])
    assert directory is not None
    assert not Path(directory.group()).exists()
