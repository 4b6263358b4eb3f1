"""`shmlog export` and `import` against a real broker: what goes out comes back, both go on where they ended."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmlog.cli import csv_text, resume
from shmlog.cli.main import execute
from shmlog.cli.printing import Columns
from shmlog.client.client import Client

BYTES = st.none() | st.binary(max_size=20) | st.text(max_size=8).map(str.encode)


@given(
    st.lists(
        st.tuples(
            BYTES, BYTES, st.lists(st.tuples(st.text(min_size=1, max_size=4), BYTES), max_size=2)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_record_is_the_same_after_csv(rows):
    columns = Columns(
        topic="t",
        partition=3,
        leader_epoch=0,
        rows=range(len(rows)),
        offsets=list(range(len(rows))),
        timestamps=[5 + i for i in range(len(rows))],
        keys=[key for key, _, _ in rows],
        values=[value for _, value, _ in rows],
        header_of=lambda i: rows[i][2],
        codec="none",
        producer_id=-1,
        producer_epoch=-1,
        log_start=0,
        high_watermark=0,
    )
    text = io.StringIO(newline="")
    csv.writer(text).writerows(csv_text.rows_of(columns))
    read = list(csv.reader(io.StringIO(text.getvalue(), newline="")))
    for i, row in enumerate(read):
        found = csv_text.record_of(dict(zip(csv_text.COLUMNS, row, strict=True)))
        assert found == (rows[i][0], rows[i][1], 5 + i, rows[i][2], 3)


@pytest.fixture
def shmlog(shmlog_cluster, capfdbinary):
    """Runs a command line in this process: (exit status, stdout, stderr text)."""

    def run(*arguments):
        status = execute(["-d", str(shmlog_cluster.dir), *map(str, arguments)])
        out, err = capfdbinary.readouterr()
        return status, out, err.decode()

    run.dir = shmlog_cluster.dir
    return run


def records(shmlog, topic):
    with Client(shmlog.dir) as log:
        return [
            (r.partition, r.offset, r.timestamp, r.key, r.value, r.headers)
            for r in log.consume(topic, stop="latest")
        ]


def fill(shmlog, topic, count, first=0):
    with Client(shmlog.dir) as log, log.producer() as producer:
        for i in range(first, first + count):
            value = (
                None if i % 7 == 0 else b"line\r\nof \xff %d" % i if i % 5 == 0 else b"\\v,%d" % i
            )
            key = None if i % 3 == 0 else b'k"%d' % (i % 11)
            headers = [("h", b"\x00"), ("n", None)] if i % 4 == 0 else None
            producer.send(topic, value, key=key, headers=headers)


@pytest.mark.process
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_out_and_back_again(shmlog, shmlog_topic, tmp_path, suffix):
    assert shmlog("topic", "create", shmlog_topic + ".a", "-p", 3)[0] == 0
    assert shmlog("topic", "create", shmlog_topic + ".b", "-p", 3)[0] == 0
    fill(shmlog, shmlog_topic + ".a", 500)
    file = tmp_path / f"out.{suffix}"
    status, _, err = shmlog("export", shmlog_topic + ".a", "--to", file)
    assert (status, err) == (0, f"500 records of {shmlog_topic}.a written to {file}\n")
    status, _, err = shmlog("import", file, shmlog_topic + ".b", "--keep-partitions")
    assert (status, err) == (0, f"500 records of {file} sent to {shmlog_topic}.b\n")
    assert sorted(records(shmlog, shmlog_topic + ".a")) == sorted(
        records(shmlog, shmlog_topic + ".b")
    )


@pytest.mark.process
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_an_export_goes_on_where_it_ended_and_a_torn_tail_is_cut(
    shmlog, shmlog_topic, tmp_path, suffix
):
    assert shmlog("topic", "create", shmlog_topic, "-p", 2)[0] == 0
    fill(shmlog, shmlog_topic, 100)
    file = tmp_path / f"out.{suffix}"
    assert shmlog("export", shmlog_topic, "--to", file)[0] == 0
    with open(file, "ab") as torn:
        torn.write(b'{"kind":"rec')  # killed in the middle of a write
    fill(shmlog, shmlog_topic, 50, first=100)
    status, _, err = shmlog("export", shmlog_topic, "--to", file)
    assert (status, err) == (0, f"50 records of {shmlog_topic} written to {file}\n")
    assert shmlog("topic", "create", shmlog_topic + ".copy", "-p", 2)[0] == 0
    assert shmlog("import", file, shmlog_topic + ".copy", "--keep-partitions")[0] == 0
    assert records(shmlog, shmlog_topic) == records(shmlog, shmlog_topic + ".copy")


@pytest.mark.process
def test_an_import_goes_on_where_it_ended(shmlog, shmlog_topic, tmp_path):
    file = tmp_path / "in.jsonl"
    lines = [json.dumps({"id": i, "at": f"2026-11-22T10:00:{i:02}Z"}).encode() for i in range(20)]
    file.write_bytes(b"\n".join([*lines[:10], b"no json", *lines[10:]]) + b"\n")
    assert shmlog("topic", "create", shmlog_topic, "-p", 1)[0] == 0
    status, _, err = shmlog("import", file, shmlog_topic, "--key", "id", "--time", "at")
    assert status == 1
    assert "line 11" in err
    assert len(records(shmlog, shmlog_topic)) == 10
    file.write_bytes(file.read_bytes().replace(b"no json\n", b""))
    assert shmlog("import", file, shmlog_topic, "--key", "id", "--time", "at")[0] == 0
    found = records(shmlog, shmlog_topic)
    assert [value for *_, value, _ in found] == lines
    assert [key for *_, key, _, _ in found] == [b"%d" % i for i in range(20)]
    assert found[3][2] == 1795341603 * 10**9


@pytest.mark.process
def test_rows_of_any_csv_become_objects(shmlog, shmlog_topic, tmp_path):
    file = tmp_path / "in.csv"
    file.write_text('name,ts\n"a\nb",1795341603000000000\nc,1795341604000000000\n')
    assert shmlog("topic", "create", shmlog_topic, "-p", 1)[0] == 0
    assert shmlog("import", file, shmlog_topic, "--key", "name", "--time", "ts")[0] == 0
    found = records(shmlog, shmlog_topic)
    assert [(t, key) for _, _, t, key, _, _ in found] == [
        (1795341603 * 10**9, b"a\nb"),
        (1795341604 * 10**9, b"c"),
    ]
    assert msgspec.json.decode(found[0][4]) == {"name": "a\nb", "ts": "1795341603000000000"}


@pytest.mark.process
def test_what_cannot_be_done_is_said(shmlog, shmlog_topic, tmp_path):
    assert shmlog("topic", "create", shmlog_topic, "-p", 1)[0] == 0
    fill(shmlog, shmlog_topic, 3)
    strange = tmp_path / "strange.jsonl"
    strange.write_bytes(b"{}\n")
    assert shmlog("export", shmlog_topic, "--to", tmp_path / "x.txt")[0] == 2
    assert shmlog("export", shmlog_topic, "--to", strange)[0] == 2
    assert shmlog("export", "nosuch", "--to", tmp_path / "x.jsonl")[0] == 3
    assert not Path(tmp_path / "x.jsonl").exists()
    assert shmlog("import", strange, shmlog_topic, "--keep-partitions")[0] == 2
    file = tmp_path / "out.jsonl"
    assert shmlog("export", shmlog_topic, "--to", file)[0] == 0
    assert shmlog("import", file, shmlog_topic, "--key", "id")[0] == 2
    assert shmlog("export", shmlog_topic, "--to", file, "-o", "1")[0] == 2
    (tmp_path / "out.jsonl.progress").write_bytes(b"[]")
    status, _, err = shmlog("export", shmlog_topic, "--to", file)
    assert status == 2
    assert "remove it" in err


def test_a_note_of_progress_is_replaced_in_one_step(tmp_path):
    file = tmp_path / "n"
    assert resume.read(file, resume.Imported) is None
    resume.write(file, resume.Imported(topic="t", size=5))
    resume.write(file, resume.Imported(topic="t", size=9, records=2))
    assert resume.read(file, resume.Imported) == resume.Imported(topic="t", size=9, records=2)
    assert [p.name for p in tmp_path.iterdir()] == ["n"]
