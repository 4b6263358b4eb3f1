"""A durable, partitioned commit log for one machine: Kafka's promises at memory speed.

    import shmlog
    with shmlog.connect() as log:
        log.produce("orders", b"hello", key=b"k1")
        for record in log.consume("orders", start="earliest", stop="latest"):
            print(record.offset, record.key, record.value)

The face is lazy (PEP 562): a name is imported when it is first used, so that `import shmlog` and
the command line's help cost nothing that they do not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shmlog import aio, errors, serde
    from shmlog.client.admin import Admin
    from shmlog.client.client import Client, connect
    from shmlog.client.consumer import Consumer
    from shmlog.client.producer import Producer
    from shmlog.client.table import read
    from shmlog.errors import DeliveryError, ShmlogError
    from shmlog.testing.cluster import LocalCluster

__version__ = "0.1.0"

__all__ = [
    "Admin",
    "Client",
    "Consumer",
    "DeliveryError",
    "LocalCluster",
    "Producer",
    "ShmlogError",
    "__version__",
    "aio",
    "connect",
    "errors",
    "read",
    "serde",
]

_HOMES = {
    "Admin": "shmlog.client.admin",
    "Client": "shmlog.client.client",
    "Consumer": "shmlog.client.consumer",
    "DeliveryError": "shmlog.errors",
    "LocalCluster": "shmlog.testing.cluster",
    "Producer": "shmlog.client.producer",
    "ShmlogError": "shmlog.errors",
    "connect": "shmlog.client.client",
    "read": "shmlog.client.table",
}


def __getattr__(name: str) -> Any:
    if name in ("aio", "errors", "serde"):
        return import_module(f"shmlog.{name}")  # sets the attribute too
    if name not in _HOMES:
        raise AttributeError(f"module 'shmlog' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
