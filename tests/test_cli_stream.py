"""`shmlog produce` and `shmlog consume` against a real broker: what goes in comes out, and how
they end."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import zlib
from collections import Counter

import msgspec
import pytest

from shmlog.cli.main import execute
from shmlog.client import consumer
from shmlog.client.client import Client
from shmlog.clock import SYSTEM_CLOCK

pytestmark = pytest.mark.process
COMMAND = [sys.executable, "-c", "from shmlog.cli.main import run; run()"]
PATIENCE_S = 30


@pytest.fixture
def shmlog(shmlog_cluster, capfdbinary):
    """Runs a command line in this process: (exit status, stdout, stderr text)."""

    def run(*arguments):
        status = execute(["-d", str(shmlog_cluster.dir), *map(str, arguments)])
        out, err = capfdbinary.readouterr()
        return status, out, err.decode()

    run.dir = shmlog_cluster.dir
    return run


@pytest.fixture
def file(tmp_path):
    """Writes bytes to a file; its path."""

    def write(data, name="input"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def start(shmlog_cluster):
    """Starts a command line as a process with pipes."""
    started = []

    def run(*arguments, **options):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [*COMMAND, "-d", shmlog_cluster.dir, *map(str, arguments)], **{**pipes, **options}
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE_S)


def topic_of(shmlog, name, partitions=1):
    assert shmlog("topic", "create", name, "-p", partitions)[0] == 0
    return name


def test_every_line_comes_back_once_spread_over_the_partitions(shmlog, shmlog_topic, file):
    topic = topic_of(shmlog, shmlog_topic, 4)
    lines = [b"%05d %s" % (i, b"x" * (i % 90)) for i in range(20_000)]
    status, out, err = shmlog("produce", topic, file(b"\n".join(lines) + b"\n"))
    assert (status, out) == (0, b"")
    assert re.fullmatch(rf"sent 20,000, failed 0: [\d,]+ bytes, {topic}, \d partitions\n", err)
    status, out, _ = shmlog("consume", topic, "-e", "-f", r"%p %o %v\n")
    assert status == 0
    rows = [line.split(b" ", 2) for line in out.splitlines()]
    assert Counter(row[2] for row in rows) == Counter(lines)
    used = {row[0] for row in rows}
    assert len(used) > 1
    for partition in used:
        offsets = [int(row[1]) for row in rows if row[0] == partition]
        assert offsets == list(range(len(offsets)))


def test_a_key_decides_the_partition_and_keeps_its_order(shmlog, shmlog_topic, file):
    topic = topic_of(shmlog, shmlog_topic, 8)
    pairs = [(b"k%d" % (i % 97), b"%d" % i) for i in range(5000)]
    source = file(b"".join(b"%s\t%s\n" % pair for pair in pairs))
    assert shmlog("produce", topic, source, "-f", r"%k\t%v\n")[0] == 0
    _, out, _ = shmlog("consume", topic, "-e", "-f", r"%p %k %v\n")
    rows = [line.split() for line in out.splitlines()]
    assert sorted((k, v) for _, k, v in rows) == sorted(pairs)
    assert all(int(p) == zlib.crc32(k) % 8 for p, k, _ in rows)
    for key in {k for k, _ in pairs}:
        values = [int(v) for _, k, v in rows if k == key]
        assert values == sorted(values)


def test_json_out_and_in_again_loses_nothing(shmlog, shmlog_topic, shmlog_client, file):
    first, second = topic_of(shmlog, shmlog_topic), topic_of(shmlog, f"{shmlog_topic}.copy")
    with shmlog_client.producer() as p:
        p.send(first, b"\xff\x00", key=b"", timestamp=1_000_000_007)
        p.send(first, None, key=b"gone", timestamp=2)
        p.send(first, b"", headers=[("a", b"1"), ("a", None), ("ü", b"\xfe")], timestamp=3)
        p.send(first, 'tab\t "quoted" ü\n'.encode(), timestamp=0)
    _, lines, _ = shmlog("consume", first, "-e", "-f", "json")
    assert shmlog("consume", first, "-e", "--json")[1] == lines
    assert shmlog("produce", second, file(lines), "-f", "json")[0] == 0

    def content(topic):
        records = shmlog_client.consume(topic, stop="latest")
        return [(r.timestamp, r.key, r.value, r.headers) for r in records]

    assert content(second) == content(first)
    assert len(content(first)) == 4
    assert json.loads(lines.splitlines()[1])["value"] is None


def test_positions_choose_where_reading_begins_and_ends(shmlog, shmlog_topic, shmlog_client):
    topic = topic_of(shmlog, shmlog_topic)
    start_ns = 1_000_000_000 * 10**9
    with shmlog_client.producer() as p:
        for i in range(20):
            p.send(topic, b"%d" % i, timestamp=start_ns + i * 10**9)

    def read(*arguments):
        status, out, err = shmlog("consume", topic, *arguments)
        assert status == 0, err
        return [int(line) for line in out.split()]

    everything = list(range(20))
    assert read("-e") == everything
    assert read("-e", "-o", "-3") == [17, 18, 19]
    assert read("-e", "-o", "+15") == everything[15:]
    assert read("-o", "5:9") == [5, 6, 7, 8]
    assert read("-e", "-o", "18:400") == [18, 19]
    assert read("-e", "-o", "2:5") == [2, 3, 4]
    assert read("-e", "-o", "earliest:-18") == [0, 1]
    assert read("-e", "-o", "end") == []
    assert read("-e", "-o", "@2001-09-09T01:46:50Z") == everything[10:]
    assert read("-o", "@2001-09-09T01:46:50Z:@2001-09-09T01:46:52Z") == [10, 11]
    assert read("-e", "-o", "@-1h") == []
    assert read("-n", "4") == [0, 1, 2, 3]
    assert read("-n", "0") == []
    assert read("-e", "--grep", "^1.$", "-n", "3") == [10, 11, 12]
    assert read("-e", "-f", r"%i\n", "-o", "-2") == [1, 2]


def test_a_stop_beyond_the_end_of_some_partitions_ends_there_with_e(shmlog, shmlog_topic, file):
    topic = topic_of(shmlog, shmlog_topic, 3)
    shmlog("produce", topic, file(b"a\nb\nc\nd\n"), "-p", 1)
    shmlog("produce", topic, file(b"e\n"), "-p", 2)
    _, out, _ = shmlog("consume", topic, "-e", "-o", "0:3", "-f", "%p%v ")
    assert sorted(out.split()) == [b"1a", b"1b", b"1c", b"2e"]


def test_several_topics_patterns_and_partitions(shmlog, shmlog_topic, file):
    names = [topic_of(shmlog, f"{shmlog_topic}.{i}", 2) for i in range(3)]
    for i, name in enumerate(names):
        shmlog("produce", name, file(b"%d\n" % i), "-p", i % 2)

    def read(*arguments):
        _, out, _ = shmlog("consume", *arguments, "-e")
        return sorted(out.split())

    assert read(*names[:2]) == [b"0", b"1"]
    assert read(f"{shmlog_topic}.*") == [b"0", b"1", b"2"]
    assert read(f"{shmlog_topic}.*", "-p", "0") == [b"0", b"2"]
    assert read(f"{shmlog_topic}.?", "-p", "0-1") == [b"0", b"1", b"2"]


def test_a_pattern_matches_no_topic_of_the_brokers(shmlog, shmlog_topic, file, monkeypatch):
    def with_one_of_theirs(engine, *arguments):
        answer = refresh(engine, *arguments)
        theirs = [msgspec.structs.replace(t, topic=f"__{t.topic}") for t in answer.topics]
        return msgspec.structs.replace(answer, topics=[*answer.topics, *theirs])

    refresh = consumer.Engine.refresh
    topic = topic_of(shmlog, shmlog_topic)
    shmlog("produce", topic, file(b"x\n"))
    monkeypatch.setattr(consumer.Engine, "refresh", with_one_of_theirs)
    assert shmlog("consume", f"*{shmlog_topic}", "-e") == (0, b"x\n", "")
    assert shmlog("consume", f"__{shmlog_topic[:-1]}*", "-e")[0] == 3


def test_key_header_partition_and_codec_of_the_command_line(shmlog, shmlog_topic, file):
    topic = topic_of(shmlog, shmlog_topic, 2)
    status, _, err = shmlog(
        *("produce", topic, file(b"v" * 500 + b"\n"), "-k", "key", "-p", 1),
        *("-H", "a=1", "-H", "b=x=y", "-z", "gzip"),
    )
    assert (status, err) == (0, f"sent 1, failed 0: 503 bytes, {topic}-1 @ 0\n")
    text = r"%t %p %o %k %V %h{%k:%v;} %a %[ %] %e %x\n"
    _, out, _ = shmlog("consume", topic, "-e", "-f", text)
    place = f"{topic} 1 0 key 500 a:1;b:x=y; gzip 0 1 ".encode()
    assert re.fullmatch(re.escape(place) + rb"\d+ \d+\n", out)


def test_a_line_may_choose_its_partition_and_its_time(shmlog, shmlog_topic, file):
    topic = topic_of(shmlog, shmlog_topic, 3)
    source = file(b"2 1000 a\n0 2000 b\n2 3000 c\n")
    _, _, err = shmlog("produce", topic, source, "-f", r"%p %d{ms} %v\n")
    assert err == f"sent 3, failed 0: 3 bytes, {topic}, 2 partitions\n"
    _, out, _ = shmlog("consume", topic, "-e", "-f", r"%p %d{iso} %v\n")
    assert sorted(out.splitlines()) == [
        b"0 1970-01-01T00:00:02.000000Z b",
        b"2 1970-01-01T00:00:01.000000Z a",
        b"2 1970-01-01T00:00:03.000000Z c",
    ]


def test_a_line_that_does_not_fit_stops_with_its_number_after_the_good_ones(
    shmlog, shmlog_topic, file
):
    topic = topic_of(shmlog, shmlog_topic)
    source = file(b"a\t1\nb\t2\nnonsense\nc\t3\n")
    status, _, err = shmlog("produce", topic, source, "-f", r"%k\t%v\n")
    assert status == 6
    assert err.startswith(f"sent 2, failed 0: 4 bytes, {topic}-0 @ 0..1\nline 3: ")
    assert err.endswith("stopped behind record 2: the rest was not read\n")
    assert "serde" not in err
    assert shmlog("consume", topic, "-e")[1] == b"1\n2\n"


def test_a_record_too_large_is_named_and_those_before_it_are_sent(shmlog, shmlog_topic, file):
    topic = shmlog_topic
    shmlog("topic", "create", topic, "--set", "max_message_bytes=2KiB")
    status, _, err = shmlog("produce", topic, file(b"fits\n" + b"x" * 5000 + b"\n"))
    assert status == 6
    assert "MESSAGE_TOO_LARGE" in err
    assert "stopped behind record 1: the rest was not read" in err
    assert shmlog("consume", topic, "-e")[1] == b"fits\n"
    assert "sent 1, failed 0" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("produce", "T", "-f", "%q"),
        ("produce", "T", "-f", r"%o\n"),
        ("produce", "T", "-f", r"%k %v\n", "-k", "x"),
        ("produce", "T", "-f", r"%p %v\n", "-p", "1"),
        ("produce", "T", "/no/such/file"),
        ("produce", "T", "-H", "noequals"),
        ("produce", "T", "--acks", "2"),
        ("produce", "T", "--rate", "0"),
        ("consume",),
        ("consume", "T", "-f", "%q"),
        ("consume", "T", "-o", "soon"),
        ("consume", "T", "-p", "x"),
        ("consume", "T", "--grep", "("),
    ],
)
def test_wrong_usage_exits_2_before_anything_is_sent(shmlog, arguments):
    status, out, err = shmlog(*arguments)
    assert (status, out) == (2, b"")
    assert err


def test_an_unknown_topic_exits_3_with_the_nearest_name(shmlog_cluster_factory, file, capfdbinary):
    cluster = shmlog_cluster_factory()  # one where topics do not appear on first use
    run = ["-d", str(cluster.dir)]
    assert execute([*run, "topic", "create", "greetings"]) == 0
    nothing, one = str(file(b"", "empty")), str(file(b"x\n"))
    for command in (
        ["consume", "greeting", "-e"],
        ["produce", "greeting", one],
        ["produce", "greeting", nothing],
    ):
        capfdbinary.readouterr()
        assert execute([*run, *command]) == 3
        out, err = capfdbinary.readouterr()
        assert out == b""
        assert b"did you mean 'greetings'" in err
        assert b"sent 1" not in err
    assert execute([*run, "consume", "no*match"]) == 3


def test_a_topic_that_appears_on_first_use_is_announced(shmlog, shmlog_topic, file):
    status, _, err = shmlog("produce", shmlog_topic, file(b"hello\n"))
    assert (status, err) == (
        0,
        f"created topic {shmlog_topic}: 1 partition, 1 replica, durability os\n"
        f"sent 1, failed 0: 5 bytes, {shmlog_topic}-0 @ 0\n",
    )
    assert shmlog("produce", shmlog_topic, file(b"again\n"), "-q") == (0, b"", "")


def test_a_rate_is_kept(shmlog, shmlog_topic, file):
    topic = topic_of(shmlog, shmlog_topic)
    before_ns = SYSTEM_CLOCK.monotonic_ns()
    shmlog("produce", topic, file(b"x\n" * 100), "--rate", "200")
    assert SYSTEM_CLOCK.monotonic_ns() - before_ns >= 0.4 * 10**9
    _, out, _ = shmlog("consume", topic, "-e", "-f", r"%d\n")
    times = list(map(int, out.split()))
    assert len(times) == 100
    assert times[-1] - times[0] >= 0.4 * 10**9


def test_what_is_typed_is_sent_at_once_and_what_arrives_is_shown_at_once(
    shmlog, start, shmlog_topic
):
    topic = topic_of(shmlog, shmlog_topic)
    consumer, producer = start("consume", topic), start("produce", topic)
    for line in (b"one\n", b"two\n"):
        producer.stdin.write(line)
        producer.stdin.flush()
        assert consumer.stdout.readline() == line  # the producer's input is still open
    producer.stdin.write(b"no newline")
    producer.stdin.close()
    producer.stdin = None
    assert consumer.stdout.read(10) == b"no newline"
    assert producer.wait(PATIENCE_S) == 0
    consumer.send_signal(signal.SIGINT)
    assert consumer.wait(PATIENCE_S) == 130
    assert consumer.stderr.read().strip() == b""


def test_ctrl_c_ends_produce_with_130_and_its_account(shmlog, start, shmlog_topic):
    topic = topic_of(shmlog, shmlog_topic)
    consumer, producer = start("consume", topic), start("produce", topic)
    producer.stdin.write(b"one\n")
    producer.stdin.flush()
    assert consumer.stdout.readline() == b"one\n"
    producer.send_signal(signal.SIGINT)
    assert producer.wait(PATIENCE_S) == 130
    account = producer.stderr.read().decode().strip()
    assert account == f"sent 1, failed 0: 3 bytes, {topic}-0 @ 0"


def test_a_closed_pipe_ends_consume_silently(shmlog, start, shmlog_topic, file):
    topic = topic_of(shmlog, shmlog_topic)
    shmlog("produce", topic, file(b"some line\n" * 50_000))
    consumer = start("consume", topic)
    assert consumer.stdout.readline() == b"some line\n"
    consumer.stdout.close()
    consumer.stdout = None
    assert consumer.wait(PATIENCE_S) == 0
    assert consumer.stderr.read() == b""


def test_a_terminal_is_shown_no_control_characters(shmlog, start, shmlog_topic, file):
    topic = topic_of(shmlog, shmlog_topic)
    shmlog("produce", topic, file(b"\x1b[2Jred\n"))
    ours, theirs = pty.openpty()
    try:
        consumer = start("consume", topic, "-e", stdout=theirs)
        assert consumer.wait(PATIENCE_S) == 0
        assert os.read(ours, 100) == b"\\x1b[2Jred\r\n"
    finally:
        os.close(ours)
        os.close(theirs)


def test_several_files_are_read_in_order_and_each_has_its_own_lines(shmlog, shmlog_topic, file):
    topic = topic_of(shmlog, shmlog_topic)
    assert shmlog("produce", topic, file(b"a\nb", "1"), file(b"c\n", "2"))[0] == 0
    assert shmlog("consume", topic, "-e")[1] == b"a\nb\nc\n"
    assert shmlog("produce", topic, file(b"x\ny\n", "3"), "-f", "raw")[0] == 0
    assert shmlog("consume", topic, "-o", "-1", "-e", "-f", "hex")[1] == b"780a790a\n"


def test_records_written_after_the_start_are_beyond_the_end(
    shmlog, shmlog_topic, shmlog_client, monkeypatch
):
    class Slow(consumer.Consumer):
        def lag(self):
            found = super().lag()
            shmlog_client.produce(topic, b"late", partition=0)
            return found

    topic = topic_of(shmlog, shmlog_topic, 2)
    shmlog_client.produce(topic, b"early", partition=0)
    for i in range(20):  # as many batches: the late one is read before the last of these
        shmlog_client.produce(topic, b"%d" % i, partition=1)
    monkeypatch.setattr(consumer, "Consumer", Slow)
    _, out, _ = shmlog("consume", topic, "-e", "-o", "0:400")
    assert sorted(out.split()) == sorted([b"early", *(b"%d" % i for i in range(20))])


def test_what_the_broker_refuses_is_counted_and_decides_the_exit_status(shmlog, shmlog_topic, file):
    topic = topic_of(shmlog, shmlog_topic, 2)
    form = ("-f", r"%p %d %v\n")
    in_2200 = 7_258_118_400 * 10**9
    status, out, err = shmlog("produce", topic, file(b"0 5 good\n1 %d bad\n" % in_2200), *form)
    assert (status, out) == (6, b"")
    summary, cause, place = err.splitlines()
    assert place == "stopped behind record 2: the rest was not read"
    assert summary == f"sent 1, failed 1: 7 bytes, {topic}-0 @ 0"
    assert cause.startswith("first failure: ")
    assert shmlog("consume", topic, "-e")[1] == b"good\n"
    status, _, err = shmlog("produce", topic, file(b"1 %d bad\n" % in_2200), *form)
    assert status == 1
    assert err.startswith(f"sent 0, failed 1: 3 bytes, {topic}\n")


# -- time-outs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [("-n", 3), ("-n", 3, "-o", "1:")])
def test_consume_that_is_to_end_ends_with_4_when_its_time_is_up(shmlog, shmlog_topic, limit):
    topic = topic_of(shmlog, shmlog_topic)
    with Client(shmlog.dir) as client:
        client.produce(topic, b"one")
        client.produce(topic, b"two")
    started = SYSTEM_CLOCK.monotonic_ns()
    status, out, err = shmlog("consume", topic, *limit, "--timeout", "300ms")
    assert status == 4
    assert out.endswith(b"two\n")  # what is there is shown
    assert err.startswith("the end did not come within 0.3 s")
    assert SYSTEM_CLOCK.monotonic_ns() - started < 5 * 10**9
    assert shmlog("consume", topic, "-e", "--timeout", "30s")[:2] == (0, b"one\ntwo\n")


def test_produce_gives_a_record_up_when_its_time_is_up(shmlog_cluster_factory, monkeypatch, capfd):
    cluster = shmlog_cluster_factory(settings={"auto_create_topics": True})
    client = cluster.client()
    client.produce("t", b"x")
    monkeypatch.setenv("SHMLOG_TIMEOUT", "500ms")
    lines = itertools.chain([b"first\n"], paused_then(cluster, b"second\n"))
    monkeypatch.setattr("shmlog.cli.produce._chunks", lambda source, bar: lines)
    started = SYSTEM_CLOCK.monotonic_ns()
    assert execute(["-d", str(cluster.dir), "produce", "t"]) == 6
    assert SYSTEM_CLOCK.monotonic_ns() - started < 10 * 10**9
    assert "sent 1, failed 1" in capfd.readouterr().err
    cluster.resume(0)


def paused_then(cluster, line):
    cluster.wait_isr("t")
    while b"first" not in [r.value for r in cluster.client().consume("t", stop="latest")]:
        pass
    cluster.pause(0)
    yield line


def test_a_partition_or_codec_that_does_not_exist_is_said_once(shmlog, shmlog_topic, file):
    topic = topic_of(shmlog, shmlog_topic)
    status, _, err = shmlog("produce", topic, file(b"x\n"), "-p", "7")
    assert status == 3
    assert err.splitlines() == [f"topic '{topic}' has partitions 0..0, not 7"]
    status, _, err = shmlog("produce", topic, file(b"x\n"), "-z", "lz5")
    assert status != 0
    assert "pip install" not in err


def test_a_paced_replay_comes_in_the_order_of_time_and_tells_its_lateness(
    shmlog, shmlog_topic, shmlog_client
):
    shmlog_client.admin.create_topic(shmlog_topic, 3)
    with shmlog_client.producer() as producer:
        for number in range(20):
            at_ns = 10**18 + number * 20_000_000
            producer.send(shmlog_topic, b"%d" % number, partition=number % 3, timestamp=at_ns)
    began_ns = SYSTEM_CLOCK.monotonic_ns()
    status, out, err = shmlog("consume", shmlog_topic, "-e", "--pace", "0.5")
    assert (status, out.split()) == (0, [b"%d" % number for number in range(20)])
    assert SYSTEM_CLOCK.monotonic_ns() - began_ns >= 19 * 10_000_000
    assert re.fullmatch(r"at most \d+\.\d{3} s late\n", err)
    assert shmlog("consume", shmlog_topic, "--pace", "0")[0] == 2
