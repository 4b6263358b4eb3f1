"""The clients of other languages in examples/clients run against a real broker, as their users run
them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shmlog import directory

pytestmark = pytest.mark.process
CLIENTS = Path(__file__).parents[1] / "examples" / "clients"
PATIENCE_S = 30


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
