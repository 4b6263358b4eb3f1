"""The examples, as their users run them: what they print is compared with what the file says; the clients of other
languages in examples/clients run against a real broker.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from shmlog import directory

pytestmark = pytest.mark.process
EXAMPLES = Path(__file__).parents[1] / "examples"
CLIENTS = EXAMPLES / "clients"
PATIENCE_S = 30
LINES_MAX = 80


def flights():
    file = Path(directory.__file__).parent / "data" / "flights-20k.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def printed(name):
    """What an example prints, and that it is short."""
    file = EXAMPLES / f"{name}.py"
    assert len(file.read_text().splitlines()) < LINES_MAX
    done = subprocess.run(
        [sys.executable, "-P", str(file)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_board_s_three_groups_each_see_every_flight():
    cents = Counter()
    for flight in flights():
        cents[flight["origin"]] += 11 * flight["distance"]
    most = ", ".join(f"{origin} ${total / 100:,.2f}" for origin, total in cents.most_common(3))
    late = sum(flight["delay"] >= 180 for flight in flights())
    mean = sum(flight["delay"] for flight in flights()) / len(flights())
    assert printed("event_board").splitlines() == [
        f"billing:      ${sum(cents.values()) / 100:,.2f} from {len(cents)} airports; most: {most}",
        f"notification: {late} flights at least 180 minutes late",
        f"analytics:    mean delay {mean:.3f} minutes",
    ]


def test_what_a_bug_has_spoilt_is_made_anew_by_replay():
    before = [f["delay"] for f in flights() if f["date"] < "2001/03/15"]
    after = [f["delay"] for f in flights() if f["date"] >= "2001/03/15"]
    wrong = sum(before) + sum(map(abs, after))
    assert printed("replay_after_bug").splitlines() == [
        f"report of 20000 flights: {wrong} minutes late in all",
        f"going back to 2001-03-15 means {len(after)} flights in 4 partitions",
        f"{len(after)} flights replayed: {sum(before + after)} minutes late in all",
    ]


def test_a_compacted_topic_is_the_same_table_with_less_to_read():
    newest = {(f["origin"], f["destination"]): f["date"] for f in flights()}
    open_routes = sum(date >= "2001/03" for date in newest.values())
    closed = len(newest) - open_routes
    count = len(flights()) + closed
    first, second, third = printed("latest_state").splitlines()
    assert first == f"{count} records: {open_routes} routes, {closed} more are closed"
    assert second == f"a new reader reads {count} records; the same table: True"
    left = re.fullmatch(r"compacted, it reads (\d+) records; the same table: True", third)
    assert left is not None
    assert open_routes <= int(left[1]) <= 4 * open_routes


def run(cluster, topic, *command, cwd):
    endpoint = directory.read_brokers(cluster.dir)[0].endpoints["client"]
    return subprocess.run(
        [*command, endpoint, topic],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def check(cluster, client, topic, language, *command):
    client.admin.create_topic(topic)
    for offset in (0, 1):
        done = run(cluster, topic, *command, cwd=CLIENTS / language)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{offset} key value from ")
    [first, _] = client.consume(topic, stop="latest")
    assert first.key == b"key"
    assert first.value.startswith(b"value from ")
    wrong = run(cluster, "no/topic", *command, cwd=CLIENTS / language)
    assert wrong.returncode == 1
    assert "error 17: " in wrong.stderr


def test_python_produces_and_fetches_in_ten_lines(shmlog_cluster, shmlog_client, shmlog_topic):
    check(shmlog_cluster, shmlog_client, shmlog_topic, "python", sys.executable, "ten_lines.py")


def test_node_produces_and_fetches_in_ten_lines(shmlog_cluster, shmlog_client, shmlog_topic):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (CLIENTS / "node" / "node_modules" / "zeromq").exists():
        pytest.skip("the npm package zeromq is not installed: npm install in examples/clients/node")
    check(shmlog_cluster, shmlog_client, shmlog_topic, "node", node, "ten_lines.mjs")
