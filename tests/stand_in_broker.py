"""A process that looks like a broker to its supervisor: arguments --dir DIR --id N.

What it does stands in DIR/behaviour: `serve` (default), `exit CODE`, or `ignore-term`.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from pathlib import Path

import posix_ipc

from shmlog import clock, directory, process, registry


def main() -> int:
    path, broker = Path(sys.argv[2]), int(sys.argv[4])
    words = ["serve"]
    if (path / "behaviour").exists():
        words = (path / "behaviour").read_text().split()
    if words[0] == "exit":
        print("the stand-in gives up", file=sys.stderr)
        return int(words[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    cluster = directory.load_cluster(path)
    fd = registry.lock_data_dir(cluster.data_dirs[broker])
    incarnation = registry.next_incarnation(cluster.data_dirs[broker])
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
    signal.sigwait({signal.SIGTERM})
    mapped.close()
    memory.unlink()
    listed.clear()
    registration.close()
    os.close(fd)
    return 0


if __name__ == "__main__":
    sys.exit(main())
