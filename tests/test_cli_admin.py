"""`shmlog topic`: what each sub-command does, prints in each output, and refuses with which exit
status."""

from __future__ import annotations

import json
import sys
import time

import click
import pytest

from shmlog.cli import render
from shmlog.cli.main import execute
from shmlog.cli.render import Column
from shmlog.errors import InvalidConfig

pytestmark = pytest.mark.process


@pytest.fixture
def shmlog(shmlog_cluster, capfd):
    """Runs a command line in this process: (exit status, stdout, stderr)."""

    def run(*arguments):
        status = execute(["-d", str(shmlog_cluster.dir), *map(str, arguments)])
        out, err = capfd.readouterr()
        return status, out, err

    return run


def described(shmlog, topic):
    status, out, _ = shmlog("topic", "describe", topic, "--json")
    assert status == 0
    return json.loads(out)


def test_create_says_what_it_made_and_takes_settings_of_both_spellings(shmlog, shmlog_topic):
    assert shmlog(
        *("topic", "create", shmlog_topic, "-p", 3, "-r", 1, "--durability", "disk"),
        *("--set", "segment.bytes=1MiB", "--set", "ring_bytes=0"),
    ) == (0, "", f"created topic {shmlog_topic}: 3 partitions, 1 replica, durability disk\n")
    configs = described(shmlog, shmlog_topic)["configs"]
    assert configs["segment_bytes"] == {"value": 1 << 20, "source": "topic", "default": 64 << 20}
    assert configs["ring_bytes"]["value"] == 0
    assert configs["sync_interval"]["source"] == "default"


def test_create_with_json_prints_the_same_object_as_describe(shmlog, shmlog_topic):
    _, out, _ = shmlog("topic", "create", shmlog_topic, "--json", "-q")
    made = json.loads(out)
    assert made == described(shmlog, shmlog_topic)
    assert list(made)[:4] == ["kind", "v", "topic", "topic_id"]
    assert (made["kind"], made["v"], made["partition_count"]) == ("topic", 1, 1)
    assert made["partitions"][0] == {
        "partition": 0,
        "leader": 0,
        "leader_epoch": made["partitions"][0]["leader_epoch"],
        "replicas": [0],
        "isr": [0],
        "log_start": 0,
        "high_watermark": 0,
        "end_offset": 0,
        "size": 0,
        "segments": 1,
    }


def test_a_taken_name_fails_unless_that_is_fine(shmlog, shmlog_topic):
    shmlog("topic", "create", shmlog_topic)
    status, _, err = shmlog("topic", "create", shmlog_topic)
    assert status == 1
    assert "TOPIC_ALREADY_EXISTS" in err
    status, _, err = shmlog("topic", "create", shmlog_topic, "-p", 2, "--if-not-exists")
    assert (status, err) == (0, f"topic {shmlog_topic} is there already\n")
    assert described(shmlog, shmlog_topic)["partition_count"] == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--retention", "7d"), "No such option"),
        (("--set", "ring.mode=0600"), "not built"),
        (("--set", "segment_byte=1MiB"), "did you mean 'segment_bytes'"),
        (("--set", "segment_bytes=1"), "must be 65536.."),
        (("--set", "nonsense"), "key=value"),
        (("--durability", "paper"), "paper"),
    ],
)
def test_a_wrong_setting_makes_no_topic_and_exits_2(shmlog, shmlog_topic, arguments, complaint):
    status, out, err = shmlog("topic", "create", shmlog_topic, *arguments)
    assert (status, out) == (2, "")
    assert complaint in err
    assert shmlog("topic", "describe", shmlog_topic)[0] == 3


def test_an_unknown_topic_exits_3_and_names_the_nearest(shmlog, shmlog_topic):
    shmlog("topic", "create", shmlog_topic)
    for command in ("describe", "delete", "trim", "alter"):
        extra = {"trim": ("-p", 0, "-o", 0), "alter": ("-p", 2)}.get(command, ())
        status, out, err = shmlog("topic", command, shmlog_topic[:-1] + "x", *extra)
        assert (status, out) == (3, "")
        assert f"did you mean '{shmlog_topic}'" in err


def test_list_shows_the_topics_in_each_output(shmlog, shmlog_topic):
    shmlog("topic", "create", shmlog_topic, "-p", 2)
    _, out, _ = shmlog("topic", "list")
    assert f"{shmlog_topic}\t2\t1\t0\n" in out
    _, out, _ = shmlog("topic", "list", "--output", "table")
    head, *rows = out.splitlines()
    assert head.split() == ["topic", "partitions", "replicas", "without", "leader"]
    assert any(row.split() == [shmlog_topic, "2", "1", "0"] for row in rows)
    listed = {t["topic"]: t for t in json.loads(shmlog("topic", "list", "--json")[1])}
    whole = described(shmlog, shmlog_topic)
    for name, value in listed[shmlog_topic].items():
        if name != "partitions":
            assert value == whole[name]
    _, out, _ = shmlog("topic", "list", "--output", "jsonl")
    assert shmlog_topic in [json.loads(line)["topic"] for line in out.splitlines()]


def test_describe_shows_settings_and_partitions_to_people_and_rows_to_pipes(shmlog, shmlog_topic):
    shmlog("topic", "create", shmlog_topic, "-p", 2, "--durability", "disk")
    _, out, _ = shmlog("topic", "describe", shmlog_topic)
    rows = [line.split("\t") for line in out.splitlines()]
    assert [(r[0], r[1], r[3], r[4], r[5], r[6], r[7]) for r in rows] == [
        ("0", "0", "0", "0", "0", "0", "0"),
        ("1", "0", "0", "0", "0", "0", "0"),
    ]
    _, out, _ = shmlog("topic", "describe", shmlog_topic, "--output", "table")
    assert out.startswith(shmlog_topic)
    assert any(line.split() == ["durability", "disk", "topic"] for line in out.splitlines())
    assert "high watermark" in out


def test_describe_says_how_much_there_is_and_when_the_oldest_goes(
    shmlog, shmlog_topic, shmlog_client
):
    shmlog("topic", "create", shmlog_topic, "--set", "retention=1h")
    _, out, _ = shmlog("topic", "describe", shmlog_topic)
    assert out.rstrip("\n").split("\t")[8:] == ["0 B", "-"]
    before_ns = time.time_ns()
    shmlog_client.produce(shmlog_topic, b"hello")
    found = described(shmlog, shmlog_topic)["partitions"][0]
    assert found["size"] > 100
    assert before_ns <= int(found["oldest_append_time"]) <= time.time_ns()
    goes_ns = int(found["oldest_append_time"]) + 3600 * 10**9
    assert int(found["oldest_goes_at"]) == goes_ns
    _, out, _ = shmlog("topic", "describe", shmlog_topic)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(goes_ns // 10**9))
    assert out.rstrip("\n").split("\t")[8:] == [f"{found['size']} B", stamp]
    shmlog("topic", "alter", shmlog_topic, "--set", "retention=-1")
    assert "oldest_goes_at" not in described(shmlog, shmlog_topic)["partitions"][0]


def test_alter_sets_unsets_and_adds_partitions(shmlog, shmlog_topic):
    shmlog("topic", "create", shmlog_topic)
    status, _, err = shmlog(
        *("topic", "alter", shmlog_topic, "-p", 3, "--durability", "disk"),
        *("--set", "sync.interval.ms=1s"),
    )
    assert (status, err) == (
        0,
        f"altered topic {shmlog_topic}: 3 partitions, 1 replica, durability disk\n",
    )
    assert described(shmlog, shmlog_topic)["configs"]["sync_interval"]["value"] == 1000
    assert shmlog("topic", "alter", shmlog_topic, "--unset", "sync.interval.ms")[0] == 0
    configs = described(shmlog, shmlog_topic)["configs"]
    assert (configs["sync_interval"]["value"], configs["durability"]["value"]) == (100, "disk")


def test_alter_refuses_nothing_nonsense_and_fewer_partitions(shmlog, shmlog_topic):
    shmlog("topic", "create", shmlog_topic, "-p", 2)
    assert shmlog("topic", "alter", shmlog_topic)[0] == 2
    assert shmlog("topic", "alter", shmlog_topic, "--unset", "nonsense")[0] == 2
    both = ("--set", "durability=disk", "--unset", "durability")
    assert shmlog("topic", "alter", shmlog_topic, *both)[0] == 2
    status, _, err = shmlog("topic", "alter", shmlog_topic, "-p", 1)
    assert status == 1
    assert "INVALID_PARTITIONS" in err


def test_trim_needs_a_yes_in_a_script_and_a_dry_run_changes_nothing(
    shmlog, shmlog_topic, shmlog_client
):
    shmlog("topic", "create", shmlog_topic)
    for i in range(10):
        shmlog_client.produce(shmlog_topic, b"%d" % i)
    here = ("topic", "trim", shmlog_topic, "-p", 0)
    status, _, err = shmlog(*here, "-o", 4)
    assert status == 2
    assert "--yes" in err
    status, _, err = shmlog(*here, "-o", 4, "--dry-run")
    assert (status, err) == (
        0,
        f"{shmlog_topic}-0: log start 0 -> 4, 4 records would be dropped; nothing was done\n",
    )
    assert described(shmlog, shmlog_topic)["partitions"][0]["log_start"] == 0
    status, out, err = shmlog(*here, "-o", "-3", "--yes", "--json")
    assert (status, err) == (0, f"{shmlog_topic}-0: log start 0 -> 7, 7 records dropped\n")
    assert json.loads(out) == {
        "kind": "trim",
        "v": 1,
        "topic": shmlog_topic,
        "partition": 0,
        "log_start": 7,
        "records": 7,
        "dry_run": False,
    }
    assert described(shmlog, shmlog_topic)["partitions"][0]["log_start"] == 7
    assert [r.value for r in shmlog_client.consume(shmlog_topic, stop="latest")] == [
        b"7",
        b"8",
        b"9",
    ]
    assert shmlog(*here, "-o", "@-1h", "--yes")[0] == 0  # nothing is older
    assert described(shmlog, shmlog_topic)["partitions"][0]["log_start"] == 7


def test_trim_of_a_partition_that_is_not_there_exits_3(shmlog, shmlog_topic):
    shmlog("topic", "create", shmlog_topic)
    status, _, err = shmlog("topic", "trim", shmlog_topic, "-p", 1, "-o", "latest", "--yes")
    assert status == 3
    assert "has 1 partition" in err
    assert shmlog("topic", "trim", shmlog_topic, "-p", 0, "-o", "soon", "--yes")[0] == 2


def test_delete_needs_a_yes_in_a_script_and_removes_the_topic(shmlog, shmlog_topic, shmlog_client):
    shmlog("topic", "create", shmlog_topic)
    shmlog_client.produce(shmlog_topic, b"x")
    status, _, err = shmlog("topic", "delete", shmlog_topic)
    assert status == 2
    assert "--yes" in err
    status, _, err = shmlog("topic", "delete", shmlog_topic, "--dry-run")
    assert (status, err) == (
        0,
        f"topic {shmlog_topic} (1 partition, 1 record) would be deleted; nothing was done\n",
    )
    assert shmlog("topic", "delete", shmlog_topic, "--yes") == (
        0,
        "",
        f"deleted topic {shmlog_topic}: 1 partition, 1 record\n",
    )
    assert shmlog("topic", "describe", shmlog_topic)[0] == 3


class Terminal:
    def isatty(self):
        return True


def test_on_a_terminal_it_asks_instead(monkeypatch):
    asked = []
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(click, "confirm", lambda text, **kw: asked.append((text, kw)))
    render.confirm("really?", yes=False)
    assert asked == [("really?", {"abort": True, "err": True})]
    render.confirm("really?", yes=True)
    assert len(asked) == 1


def test_tables_are_aligned_and_numbers_stand_to_the_right():
    columns = (Column("name"), Column("count_of", right=True))
    assert render.table([["a", "1"], ["long name", "1,000"]], columns) == (
        "name       count of\na                 1\nlong name     1,000\n"
    )


def test_a_cell_is_one_word_of_a_line():
    values = [None, "", [], True, [1, 2], "a\tb\nc", 7]
    assert list(map(render.cell_text, values)) == ["-", "-", "-", "true", "1,2", "a b c", "7"]


@pytest.mark.parametrize(("text", "numbers"), [("0", [0]), ("3,0-2,1", [0, 1, 2, 3])])
def test_lists_of_partitions_have_ranges(text, numbers):
    assert render.integers(text, "-p") == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "2-1", "1,,2", "0-9999999999"])
def test_what_is_no_list_of_partitions_is_refused(text):
    with pytest.raises(InvalidConfig, match="-p"):
        render.integers(text, "-p")
