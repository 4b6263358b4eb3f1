"""By what uptime a start judges its logs, and what it leaves for the next one."""

from __future__ import annotations

from node import uptime
from node.uptime import Uptime
from shmlog.log.storage import MemoryStorage


def test_a_directory_without_logs_is_of_this_boot_however_many_starts_were_killed_in_it() -> None:
    last = uptime.before(None, MemoryStorage(), "data", "here")
    for incarnation in (1, 2, 3):
        last = uptime.before(last, MemoryStorage(), "data", "here")
        last = uptime.at_start(last, incarnation, replaced=False)
        assert last == Uptime(incarnation, "here", clean=False)


def test_logs_whose_uptime_is_gone_may_be_of_another_boot() -> None:
    storage = MemoryStorage()
    storage.make_dir("data/__cluster_metadata-0")
    assert uptime.before(None, storage, "data", "here") is None
    assert uptime.at_start(None, 2, replaced=False).boot_id == ""


def test_the_last_uptime_counts_until_its_logs_were_judged_by_it() -> None:
    last = Uptime(4, "there", clean=True)
    assert uptime.before(last, MemoryStorage(), "data", "here") == last
    for replaced in (False, True):
        before = Uptime(5, "there", clean=False, replaced=replaced)
        assert uptime.at_start(last, 5, replaced=replaced) == before
        stopped = uptime.after_stop(last, 5, "here", replaced=replaced, recovered=False)
        assert stopped == Uptime(5, "there", clean=True, replaced=replaced)
        stopped = uptime.after_stop(last, 5, "here", replaced=replaced, recovered=True)
        assert stopped == Uptime(5, "here", clean=True)
