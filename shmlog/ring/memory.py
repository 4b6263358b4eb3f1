"""Memory that a ring lives in: the interface, and private memory behind it.

Heap memory serves where no shared memory is to be had: the broker reads it, other processes cannot.
"""

from __future__ import annotations

from typing import Protocol


class SharedMemory(Protocol):
    """A piece of memory, zero when new, 8-byte aligned."""

    @property
    def name(self) -> str | None:
        """The name others attach by; None for private memory."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def buffer(self) -> memoryview:
        """The bytes; read-only where attached."""
        ...

    def ring_bell(self) -> None:
        """Wake whoever watches the memory (doorbell.py). For the one who made it."""
        ...

    def close(self) -> None:
        """Let go of it. Views that are still held keep the mapping until they go."""
        ...


class HeapMemory:
    """Private memory."""

    def __init__(self, size: int) -> None:
        self.name: str | None = None
        self.size = size
        self.buffer = memoryview(bytearray(size))

    def ring_bell(self) -> None:
        """Nobody can watch it."""

    def close(self) -> None:
        """Nothing to let go of: the views keep the bytes."""
