"""A process that looks like a broker to its supervisor: arguments --dir DIR --id N.

What it does stands in DIR/behaviour (or behaviour-N): `serve` (default), `exit CODE`, or `ignore-term`. It answers
`describe_cluster` with the broker entries of the registry, and for the rest with DIR/health.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import sys
from pathlib import Path

import posix_ipc
import zmq

from shmlog import clock, directory, process, registry


def answer_until(stop: socket.socket, path: Path, broker: int) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(f"ipc://{directory.client_socket(path, broker)}")
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(stop, zmq.POLLIN)
        while stop.fileno() not in dict(poller.poll()):
            client, _ = router.recv_multipart()
            router.send_multipart([client, json.dumps(described(path)).encode()])


def described(path: Path) -> dict[str, object]:
    health = json.loads((path / "health").read_text()) if (path / "health").exists() else {}
    return {
        "id": 1,
        "error": 0,
        "cluster": "c",
        "controller": 0,
        "controller_term": 1,
        "metadata_offset": 0,
        "voters": [0],
        "brokers": [
            {"broker": entry.broker, "incarnation": entry.incarnation, "alive": True}
            for entry in directory.read_brokers(path).values()
        ],
        "partitions_without_leader": 0,
        "partitions_under_minimum": 0,
        "partitions_not_full": 0,
        **health,
    }


def main() -> int:
    path, broker = Path(sys.argv[2]), int(sys.argv[4])
    words = ["serve"]
    for file in (path / "behaviour", path / f"behaviour-{broker}"):
        words = file.read_text().split() if file.exists() else words
    if words[0] == "exit":
        print("the stand-in gives up", file=sys.stderr)
        return int(words[1])
    stop, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    cluster = directory.load_cluster(path)
    fd = registry.lock_data_dir(cluster.data_dirs[broker])
    starts = registry.Starts(cluster.data_dirs[broker], directory.starts_file(path, broker))
    incarnation = starts.count()
    directory.unlink_memory_of_dead(cluster, broker)
    name = f"/slstandin{os.getpid()}"
    listed = registry.MemoryList(directory.memory_list_file(path, broker))
    listed.append(name)
    memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, size=4096)
    mapped = mmap.mmap(memory.fd, memory.size)
    os.close(memory.fd)
    registration = registry.Registration(directory.registry_file(path, broker))
    registration.publish(
        directory.BrokerEntry(
            cluster=cluster.cluster,
            broker=broker,
            incarnation=incarnation,
            pid=os.getpid(),
            boot_id=process.boot_id(),
            endpoints={"client": f"ipc://{directory.client_socket(path, broker)}"},
            started=clock.SYSTEM_CLOCK.wall_ns(),
        )
    )
    while words[0] == "ignore-term":
        signal.pause()
    answer_until(stop, path, broker)
    directory.client_socket(path, broker).unlink()
    mapped.close()
    memory.unlink()
    listed.clear()
    registration.close()
    os.close(fd)
    return 0


if __name__ == "__main__":
    sys.exit(main())
