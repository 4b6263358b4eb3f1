"""Compaction of one log, by stories: what goes, what stays, and that everything else still knows its way."""

from __future__ import annotations

import itertools

import cleaning_support as cs
import log_support as ls
import pytest

from shmlog.errors import CorruptMessage
from shmlog.log.cleaning import PASSES_MAX, Compaction, SegmentFacts, plan, wants_roll
from shmlog.log.received import check_replica_batches
from shmlog.log.storage import MemoryStorage
from shmlog.log.verify import verify
from shmlog.records.layout import Codec, Flag
from shmlog.records.rewriting import is_header_only

MS = cs.MS
LONG = b"." * 100


def config(**changes):
    return ls.config(
        cleanup_policy="compact",
        segment_bytes=700,
        min_cleanable_dirty_ratio=0.0,
        **{"delete_retention": 1000} | changes,
    )


@pytest.fixture
def storage():
    return MemoryStorage()


def filled(storage, rounds=6, **changes):
    """Keys a and b again and again, one record a batch, some segments."""
    log = ls.open_log(storage, config=config(**changes))
    for number in range(rounds):
        for key in (b"a", b"b"):
            cs.put(log, (key, b"%d" % number + LONG))
    ls.sync(log)
    return log


def test_only_the_newest_of_each_key_is_left_of_the_sealed_segments(storage):
    log = filled(storage)
    before = cs.records(log)
    active = log._segments[-1].base_offset
    assert cs.clean(storage, log) is not None
    after = cs.records(log)
    assert [row for row in after if row[0] >= active] == [r for r in before if r[0] >= active]
    newest = {row[1]: row for row in before if row[0] < active}
    assert [row for row in after if row[0] < active] == sorted(newest.values())
    assert cs.table(after) == cs.table(before)
    assert log.log_end_offset == len(before)


def test_a_pass_after_the_first_merges_what_has_become_small(storage):
    log = filled(storage, rounds=20)
    cs.clean(storage, log)
    many = log.segment_count
    for _ in range(4):
        cs.put(log, (b"c", LONG))
        cs.put(log, (b"a", LONG))
    ls.sync(log)
    cs.clean(storage, log)
    assert log.segment_count < many
    assert [name for name in storage.list(ls.DIRECTORY) if "cleaned" in name] == []
    ends = [(s.base_offset, s.end_offset) for s in log._segments]
    assert all(end == base for (_, end), (base, _) in itertools.pairwise(ends))


def test_every_way_in_leads_past_the_gaps(storage):
    log = filled(storage, rounds=12)
    cs.clean(storage, log)
    rows = cs.records(log)
    offsets = [row[0] for row in rows]
    assert offsets != list(range(log.log_end_offset))
    for offset in range(log.log_end_offset):
        data = log.read(offset, max_bytes=1, end_offset=log.log_end_offset)
        found = cs.RecordBatch(data)
        assert found.header.end_offset > offset
        if len(found) and found.index_at(offset) < len(found):
            at = found.offsets[found.index_at(offset)]
            assert at == min(o for o in offsets if o >= offset)
    log.close(log.log_end_offset)
    found = verify(storage, ls.DIRECTORY)
    assert (found.damage, found.notes, found.records) == ([], [], len(rows))
    assert found.gaps > 0
    again = ls.open_log(storage, config=config(), clean=True)
    assert cs.records(again) == rows
    assert again.compaction == log.compaction
    # Without indexes and after a kill too.
    for name in storage.list(ls.DIRECTORY):
        if name.endswith(".index"):
            storage.unlink(f"{ls.DIRECTORY}/{name}")
    assert cs.records(ls.open_log(storage, config=config())) == rows


def test_a_time_is_found_at_its_record(storage):
    log = ls.open_log(storage, config=config())
    for number in range(20):
        cs.put(
            log, (b"a", LONG), (b"k%d" % number, LONG), timestamps=[10 * number, 10 * number + 5]
        )
    ls.sync(log)
    cs.clean(storage, log)
    end = log.log_end_offset
    # 12 of the records of a are gone: the next one that is left answers.
    rows = {row[0] for row in cs.records(log)}
    for time in range(0, 200, 5):
        offset, at = log.offset_for_time(time, end)
        times = {o: 10 * (o // 2) + 5 * (o % 2) for o in rows}
        assert (offset, at) == min((o, t) for o, t in times.items() if t >= time)


def test_a_tombstone_outlives_the_first_pass_that_kept_it_by_its_retention(storage):
    log = filled(storage, rounds=2)
    cs.put(log, (b"a", None))
    cs.put(log, (b"fill", LONG), (b"fill", LONG), (b"more", LONG * 4))
    cs.put(log, (b"last", LONG * 4))
    ls.sync(log)
    cs.clean(storage, log, now_ns=0)
    assert (4, b"a", None) in cs.records(log)
    assert log.compaction.oldest_tombstone == 4
    assert cs.clean(storage, log, now_ns=999 * MS) is None
    assert cs.clean(storage, log, now_ns=1000 * MS, tombstones_end=4) is None
    result = cs.clean(storage, log, now_ns=1000 * MS)
    assert result.tombstones_dropped == log.compaction.tombstones_dropped == 5
    assert b"a" not in {key for _, key, _ in cs.records(log)}
    assert cs.clean(storage, log, now_ns=5000 * MS) is None
    assert ls.open_log(storage, config=config()).compaction.tombstones_dropped == 5


def test_records_without_a_key_stay(storage):
    log = ls.open_log(storage, config=config())
    for number in range(8):
        cs.put(log, (None, b"%d" % number + LONG), (b"k", LONG))
    ls.sync(log)
    cs.clean(storage, log)
    assert sum(key is None for _, key, _ in cs.records(log)) == 8


def test_compressed_batches_are_opened_and_compressed_again(storage):
    log = ls.open_log(storage, config=config())
    for number in range(12):
        cs.put(log, (b"k", LONG * 9), (b"u%d" % number, LONG * 9), codec=Codec.GZIP)
        cs.put(log, (b"k", LONG * 5))
    ls.sync(log)
    before = cs.table(cs.records(log))
    cs.clean(storage, log)
    assert cs.table(cs.records(log)) == before
    rewritten = [h for h, _ in ls.read_stamped(log) if h.flags & Flag.OFFSETS and h.record_count]
    assert rewritten
    assert {h.codec for h in rewritten} == {Codec.GZIP}


def test_the_header_of_a_producers_newest_batch_stays(storage):
    log = ls.open_log(storage, config=config())
    for producer in range(6):
        identity = {"producer_id": producer, "producer_epoch": 0}
        cs.put(log, (b"k", LONG), (b"k", LONG), base_sequence=0, **identity)
        cs.put(log, (b"k", LONG), (b"k", LONG), base_sequence=2, **identity)
    last = cs.put(log, (b"k", LONG * 7))
    ls.sync(log)
    cs.clean(storage, log)
    headers = [header for header, _ in ls.read_stamped(log)]
    assert any(is_header_only(header) for header in headers)
    for name in ("producers", "producers.previous"):
        storage.unlink(f"{ls.DIRECTORY}/{name}")
    again = ls.open_log(storage, config=config())
    for producer in range(6):
        one = cs.keyed(0, [(b"k", b"v")], producer_id=producer, producer_epoch=0, base_sequence=4)
        assert again.producers.check(one[0]) is None  # the next in turn
        two = cs.keyed(
            0, [(b"k", b"v")] * 2, producer_id=producer, producer_epoch=0, base_sequence=2
        )
        assert again.producers.check(two[0]).base_offset == 4 * producer + 2
    assert last[0].base_offset == 24


def test_what_a_producer_may_send_again_is_known_after_its_batches_are_gone(storage):
    log = ls.open_log(storage, config=config())
    identity = {"producer_id": 7, "producer_epoch": 0}
    for sequence in range(6):
        cs.put(log, (b"k", LONG), base_sequence=sequence, **identity)
        ls.sync(log)  # each at once, in the same instant: when is a snapshot due?
    assert log.compactable_end >= log._segments[-1].base_offset == 4
    cs.clean(storage, log)
    log.close_files()  # as a kill would
    again = ls.open_log(storage, config=config())
    assert [offset for offset, _, _ in cs.records(again)] == [3, 4, 5]
    for sequence in range(1, 6):
        header, _ = cs.keyed(0, [(b"k", LONG)], base_sequence=sequence, **identity)
        assert again.producers.check(header).base_offset == sequence


def test_a_map_that_is_full_ends_the_pass_and_the_next_goes_on(storage):
    log = ls.open_log(storage, config=config())
    for number in range(30):
        cs.put(log, (b"k%d" % (number % 10), LONG))
    ls.sync(log)
    before = cs.table(cs.records(log))
    ends = []
    for _ in range(20):
        if cs.clean(storage, log, keys_max=4) is None:
            break
        ends.append(log.compaction.cleaned)
        assert cs.table(cs.records(log)) == before
    assert ends == sorted(set(ends))
    assert len(ends) > 3
    sealed = [row for row in cs.records(log) if row[0] < log._segments[-1].base_offset]
    assert len(sealed) == 10


def test_damage_stops_a_pass_and_nothing_is_left_of_it(storage):
    log = filled(storage)
    before = cs.records(log)
    content = storage.files[f"{ls.DIRECTORY}/{0:020d}.log"].data
    content[200] ^= 1
    with pytest.raises(CorruptMessage):
        cs.clean(storage, log)
    content[200] ^= 1
    assert cs.records(log) == before
    assert not [name for name in storage.list(ls.DIRECTORY) if "cleaned" in name]


def test_a_follower_takes_a_gap_only_where_it_is_declared(storage):
    log = filled(storage, rounds=12)
    cs.clean(storage, log)
    copy = ls.open_log(storage, "data/copy-3", config=config())
    while copy.log_end_offset < log.log_end_offset:
        data = log.read(copy.log_end_offset, max_bytes=400, end_offset=log.log_end_offset)
        found = check_replica_batches(data, copy.log_end_offset, ls.TOPIC_ID, 3, -1)
        ls.append_replicated(copy, *found)
    assert cs.records(copy) == cs.records(log)
    ls.sync(copy)
    cs.clean(storage, copy)
    copy.close(copy.log_end_offset)
    assert verify(storage, "data/copy-3").damage == []
    assert cs.records(ls.open_log(storage, "data/copy-3", config=config())) == cs.records(log)
    late = ls.batch(log.log_end_offset + 5)[1]
    with pytest.raises(CorruptMessage, match="expected"):
        check_replica_batches(late, log.log_end_offset, ls.TOPIC_ID, 3, -1)


def test_swaps_that_were_overtaken_do_not_happen(storage):
    log = filled(storage)
    due = plan(
        log.swaps.facts(), log.compaction, log.config, safe_end=12, tombstones_end=0, now_ns=0
    )
    result = cs.Cleaner(storage, log.cleaning_task(due), lambda size: None).run()
    base, end = result.made[0]
    segment = cs.open_cleaned(storage, log.directory, base, end, 300)
    log.set_log_start(log.log_end_offset)
    ls.checkpoint(log)
    assert log.swaps.begin(segment) is None
    segment.close()


def test_no_space_for_the_first_name_leaves_all_as_it_was(storage):
    log = filled(storage)
    before = cs.records(log)
    due = plan(
        log.swaps.facts(), log.compaction, log.config, safe_end=12, tombstones_end=0, now_ns=0
    )
    base, end = cs.Cleaner(storage, log.cleaning_task(due), lambda size: None).run().made[0]
    job = log.swaps.begin(cs.open_cleaned(storage, log.directory, base, end, 300))
    storage.fail("rename", 1, 28)
    with pytest.raises(OSError, match="injected"):
        job.run()
    log.swaps.finish(job)
    assert cs.records(log) == before


# -- plans ----------------------------------------------------------------------------------------------


def facts(*sizes, at=0):
    found, offset = [], 0
    for number, size in enumerate(sizes):
        time = at + number * 1000 * MS
        found.append(SegmentFacts(offset, offset + 10, size, time, time + 500 * MS))
        offset += 10
    return found


def due(segments, done=None, *, safe_end=1000, now_ns=10**15, tombstones_end=1 << 60, **settings):
    common = {"segment_bytes": 1 << 16, "min_cleanable_dirty_ratio": 0.5}
    settings = common | {"cleanup_policy": "compact"} | settings
    return plan(
        segments,
        done or Compaction(),
        ls.config(**settings),
        safe_end=safe_end,
        tombstones_end=tombstones_end,
        now_ns=now_ns,
    )


def test_a_pass_is_due_by_the_share_of_what_is_new():
    done = Compaction(passes=((20, 0),))
    assert due(facts(100, 100, 100), done) is None
    assert due(facts(100, 100, 200), done).map_from == 20
    assert due(facts(100, 100, 10), done, min_cleanable_dirty_ratio=0.0).end_offset == 30
    assert due(facts(100, 100), done, min_cleanable_dirty_ratio=0.0) is None
    assert due([]) is None


def test_what_is_not_committed_synced_and_old_enough_is_left_alone():
    assert due(facts(9, 9, 9), safe_end=29).end_offset == 20
    assert due(facts(9, 9, 9), safe_end=9) is None
    now = 2000 * MS
    assert due(facts(9, 9, 9), now_ns=now, min_compaction_lag=1000).end_offset == 10
    assert due(facts(9, 9, 9), now_ns=now, min_compaction_lag=500).end_offset == 20


def test_who_has_waited_too_long_is_compacted_whatever_the_ratio():
    done = Compaction(passes=((20, 0),))
    assert due(facts(100, 100, 1), done, now_ns=3000 * MS, max_compaction_lag=1001) is None
    assert due(facts(100, 100, 1), done, now_ns=3000 * MS, max_compaction_lag=1000) is not None
    settings = ls.config(max_compaction_lag=1000)
    assert wants_roll(0, True, settings, 1000 * MS)
    assert not wants_roll(0, True, settings, 999 * MS)
    assert not wants_roll(0, False, settings, 1000 * MS)
    assert not wants_roll(0, True, ls.config(), 10**18)


def test_groups_are_no_larger_than_a_segment():
    groups = due(facts(30000, 30000, 30000, 70000, 10, 10)).groups
    assert [[segment.size for segment in group] for group in groups] == [
        [30000, 30000],
        [30000],
        [70000],
        [10, 10],
    ]


def test_a_group_is_no_older_than_retention_allows_and_append_times_never_fall_in_it():
    def spans(**settings):
        groups = due(facts(9, 9, 9, 9), segment_age=2500, **settings).groups
        return [len(group) for group in groups]

    assert spans() == [4]
    assert spans(cleanup_policy="compact,delete") == [3, 1]
    back = [
        *facts(9, 9),
        *(s._replace(base_offset=20, end_offset=30) for s in facts(9, at=1499 * MS)),
    ]
    assert [len(group) for group in due(back).groups] == [2, 1]


def test_the_memory_of_passes_is_bounded_and_errs_on_the_late_side():
    done = Compaction()
    truth = []
    for number in range(100):
        done = done.completed(10 * number + 10, -1, number * MS, 1000 * MS)
        truth.append((10 * number + 10, number * MS))
        assert len(done.passes) <= PASSES_MAX
    for now in range(0, 1200 * MS, 7 * MS):
        exact = max((end for end, at in truth if now - at >= 1000 * MS), default=0)
        assert done.horizon(now, 1000 * MS) <= exact
    assert done.horizon(1099 * MS, 1000 * MS) == done.cleaned == 1000
    back = done.completed(2000, -1, 0, 1000 * MS)
    assert back.passes[-1] == (2000, 99 * MS)


def test_a_cut_forgets_what_was_seen_behind_it():
    done = Compaction(passes=((10, 1), (20, 2)), tombstones_dropped=15, compacted_below=20)
    assert done.cut(20) is done
    assert done.cut(12) == Compaction(((10, 1), (12, 2)), 12, 20)
    assert done.cut(10) == Compaction(((10, 1),), 10, 20)
    assert done.cut(0) == Compaction((), 0, 20)
