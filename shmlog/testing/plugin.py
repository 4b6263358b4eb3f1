"""The pytest plugin: real clusters for tests, and an error if one leaves anything behind.

`shmlog_cluster` lives for the session (with xdist: one a worker), `shmlog_topic` is a topic name
that no other test has, `shmlog_client` is a client of the session's cluster, and
`shmlog_cluster_factory` makes clusters that end with the test. Ending a cluster checks that no
process, socket or shared memory is left.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

import shmlog

_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The ini setting `shmlog_brokers`."""
    parser.addini("shmlog_brokers", "brokers of the session's cluster", default="1")


@pytest.fixture(scope="session")
def shmlog_cluster(pytestconfig: pytest.Config) -> Iterator[shmlog.LocalCluster]:
    """The session's cluster; topics appear on first use."""
    brokers = int(pytestconfig.getini("shmlog_brokers"))
    with shmlog.LocalCluster(brokers, settings={"auto_create_topics": True}) as cluster:
        yield cluster


@pytest.fixture
def shmlog_topic(request: pytest.FixtureRequest) -> str:
    """A prefix for topic names that is this test's own: its name, the process, a number."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:60].strip("-")
    return f"{words}-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def shmlog_client(shmlog_cluster: shmlog.LocalCluster) -> Iterator[shmlog.Client]:
    """A client of the session's cluster; take topic names from `shmlog_topic`."""
    with shmlog.connect(shmlog_cluster.dir) as client:
        yield client


@pytest.fixture
def shmlog_cluster_factory() -> Iterator[Callable[..., shmlog.LocalCluster]]:
    """Call it with the arguments of LocalCluster: a started cluster that ends with the test."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(shmlog.LocalCluster(*args, **kwargs))
