"""The pytest plugin in a session of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process


@pytest.mark.parametrize(("ini", "brokers"), [("", 1), ("shmlog_brokers = 2\n", 2)])
def test_the_sessions_cluster_has_as_many_brokers_as_the_ini_says(
    tmp_path: Path, ini: str, brokers: int
) -> None:
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{ini}")
    (tmp_path / "test_it.py").write_text(
        f"def test_it(shmlog_cluster):\n    assert set(shmlog_cluster.pids) == set(range({brokers}))\n"
    )
    plugin = [] if _is_installed() else ["-p", "shmlog.testing.plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def _is_installed() -> bool:
    from importlib.metadata import entry_points

    return any(point.name == "shmlog" for point in entry_points(group="pytest11"))
