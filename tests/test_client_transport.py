"""The transport: the end of a process and the loss of its connection are one event, in whatever order they show."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from shmlog.client.bootstrap import Watch
from shmlog.client.transport import Event, Transport


class Served:
    """A connection to a socket of this process, of which another process is said to be the owner."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(["sleep", "600"])
        self.watch: Watch | None = Watch(0, 1, self.process.pid, os.pidfd_open(self.process.pid))
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.endpoint = f"ipc://{directory}/s"
        self.router.bind(self.endpoint)
        self.transport = Transport(lambda endpoint: self.watch)
        self.transport.send(self.endpoint, [b"question"])
        while not self.router.poll(10):  # what waits for the connection is sent by `poll`
            assert self.transport.poll(0) == []
        client, _ = self.router.recv_multipart()
        self.router.send_multipart([client, b"answer"])
        [answer] = self.transport.poll(10**10)
        assert answer == Event(self.endpoint, [b"answer"])

    def end(self, *, death: bool, loss: bool) -> list[int]:
        """The descriptors that show it, monitor first."""
        link = self.transport._links[self.endpoint]
        if loss:
            self.router.close(0)
            wait_readable(link.monitor_fd)
        if death:
            self.process.kill()
            wait_readable(self.watch.pidfd)
        return [link.monitor_fd] * loss + [self.watch.pidfd] * death

    def close(self) -> None:
        self.transport.close()
        self.process.kill()
        self.process.wait()
        self.context.destroy(0)


def wait_readable(fd: int) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    assert poller.poll(10_000)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_death_and_the_loss_that_it_caused_are_one_event(
    served: Served, order: tuple[int, ...]
) -> None:
    ready = served.end(death=True, loss=True)
    events = served.transport.receive([ready[i] for i in order])
    assert events == [Event(served.endpoint, None, served.watch)]
    assert served.transport.poll(0) == []


def test_a_death_is_told_though_the_connection_stands(served: Served) -> None:
    ready = served.end(death=True, loss=False)
    assert served.transport.receive(ready) == [Event(served.endpoint, None, served.watch)]
    assert served.endpoint not in served.transport.endpoints


def test_a_loss_alone_names_no_dead(served: Served) -> None:
    ready = served.end(death=False, loss=True)
    assert served.transport.receive(ready) == [Event(served.endpoint, None)]


def test_what_is_sent_to_the_dead_is_lost_at_once(served: Served) -> None:
    served.transport.receive(served.end(death=False, loss=True))
    served.process.kill()
    wait_readable(served.watch.pidfd)
    dead, served.watch = served.watch, None  # it is in no registry any more
    served.transport.send(served.endpoint, [b"again"])
    assert served.transport.poll(10**10) == [Event(served.endpoint, None, dead)]
    assert served.endpoint not in served.transport.endpoints


def test_a_death_in_the_middle_of_a_message_does_not_take_the_client_along(tmp_path: Path) -> None:
    # libzmq aborts the process whose socket is closed with linger 0 then: shmlog/sockets.py.
    program = Path(__file__).with_name("half_written.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path / "s"],
        env={**os.environ, "PYTHONPATH": str(program.parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "25 lives\n"), done.stderr
