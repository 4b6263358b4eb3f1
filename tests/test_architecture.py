"""Every dangerous thing has one owner, layers point one way, and nothing speaks of where it was made."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = sorted((ROOT / "shmlog").rglob("*.py")) + sorted((ROOT / "node").rglob("*.py"))

# Module -> the files that may import it.
OWNERS = {
    "zmq": {
        "shmlog/client/transport.py",
        "shmlog/control.py",
        "node/health.py",
        "node/io/wire.py",
        "node/supervisor.py",
    },
    "posix_ipc": {"shmlog/ring/posix.py"},
    "mmap": {"shmlog/ring/posix.py"},
    "psutil": {"shmlog/process.py"},
    "fcntl": {"shmlog/process.py"},
    "time": {"shmlog/clock.py"},
    "pickle": set(),
    "multiprocessing": set(),
    "asyncio": {
        "shmlog/aio/face.py",
        "shmlog/aio/delivery.py",
        "shmlog/aio/producer.py",
        "shmlog/aio/consumer.py",
    },
}


def imported(path: Path) -> set[str]:
    names = set()
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.Import):
            names |= {alias.name.split(".")[0] for alias in item.names}
        elif isinstance(item, ast.ImportFrom) and item.module and item.level == 0:
            names.add(item.module.split(".")[0])
    return names


@pytest.mark.parametrize("module", OWNERS)
def test_a_dangerous_module_is_imported_by_its_owner_only(module: str) -> None:
    users = {str(p.relative_to(ROOT)) for p in PRODUCT if module in imported(p)}
    assert users <= OWNERS[module]


def calls(path: Path) -> set[str]:
    found = set()
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.Call) and isinstance(item.func, ast.Attribute):
            found.add(f"{ast.unparse(item.func.value)}.{item.func.attr}")
    return found


def test_data_files_are_written_and_synced_by_os_storage_only() -> None:
    banned = {"os.pwrite", "os.pwritev", "os.fdatasync", "os.fsync", "os.posix_fallocate"}
    owners = {"shmlog/log/os_storage.py", "shmlog/registry.py", "shmlog/ring/posix.py"}
    for path in PRODUCT:
        name = str(path.relative_to(ROOT))
        assert name in owners or not calls(path) & banned, name


def test_importing_the_package_loads_neither_numpy_nor_zmq() -> None:
    program = (
        "import sys, shmlog\n"
        "bad = {'numpy', 'zmq', 'msgspec', 'asyncio', 'posix_ipc'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_module_says_what_it_is() -> None:
    for path in PRODUCT:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_no_module_is_named_for_nothing() -> None:
    for path in PRODUCT:
        assert path.stem not in {"utils", "helpers", "common", "base", "manager"}, path
