"""A program for test_client_transport: clients whose connection breaks in the middle of a message.

Its argument is a path for a socket. Each round, a broker that reads nothing is killed while the
client's transport has half a message written, and the transport closes the connection.
"""

import os
import random
import signal
import subprocess
import sys
import time

from shmlog.client.bootstrap import Watch
from shmlog.client.transport import Transport

ROUNDS = 25
FRAMES = [b"h" * 100, b"a" * 100_000, b"b" * 100_000]
BROKER = """
import sys, time, zmq
router = zmq.Context().socket(zmq.ROUTER)
router.rcvhwm = 1
router.bind(sys.argv[1])
print("bound", flush=True)
router.recv_multipart()
print("received", flush=True)
time.sleep(600)
"""


def life(endpoint: str, rng: random.Random) -> None:
    broker = subprocess.Popen([sys.executable, "-c", BROKER, endpoint], stdout=subprocess.PIPE)
    assert broker.stdout is not None
    with broker.stdout:
        broker.stdout.readline()
        pidfd = os.pidfd_open(broker.pid)
        transport = Transport(lambda _: Watch(0, 1, broker.pid, os.dup(pidfd)))
        for _ in range(20):
            transport.send(endpoint, FRAMES)
        end = time.monotonic() + 0.02  # the kernel's buffer is full, in the middle of a message
        while time.monotonic() < end:
            transport.poll(1_000_000)
        broker.stdout.readline()
    os.kill(broker.pid, signal.SIGKILL)
    seen = time.perf_counter() + rng.random() * 300e-6
    while time.perf_counter() < seen:
        pass
    transport.close()
    os.close(pidfd)
    broker.wait()


if __name__ == "__main__":
    for number in range(ROUNDS):
        life(f"ipc://{sys.argv[1]}", random.Random(number))
    print(f"{ROUNDS} lives")
