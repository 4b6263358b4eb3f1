"""The command line: what it costs, what it takes where, how it ends; a cluster's life."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from shmlog import directory, launch, process, registry
from shmlog.cli import main as cli
from shmlog.cli.settings import Settings
from shmlog.errors import Code, InvalidConfig, ShmlogError, from_wire

SHMLOG = [sys.executable, "-c", "from shmlog.cli.main import run; run()"]
PATIENCE_S = 60


def shmlog(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SHMLOG, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        **options,
    )


# -- the group ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nosuch"], []])
def test_the_way_to_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from shmlog.cli.main import execute; execute(sys.argv[1:])\n"
        "print([x for x in ('numpy', 'zmq', 'asyncio', 'msgspec', 'psutil') if x in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_of_the_table_is_one() -> None:
    context = click.Context(cli.main)
    for name in cli.COMMANDS:
        command = cli.main.get_command(context, name)
        assert isinstance(command, click.Command), name
        assert command.help, name


def seen_settings(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Settings:
    """What a command is handed for a command line."""
    seen: list[Settings] = []
    module = type(sys)("stand_in_commands")

    @click.command()
    @click.option("-n", type=int)
    @click.pass_obj
    def probe(settings: Settings, n: int | None) -> int:
        seen.append(settings)
        return n or 0

    @click.group()
    def outer() -> None: ...

    outer.add_command(probe, "inner")
    module.probe, module.outer = probe, outer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stand_in_commands", module)
    for name in ("probe", "outer"):
        monkeypatch.setitem(cli.COMMANDS, name, cli.Lazy("stand_in_commands", name, "."))
    assert cli.execute(arguments) == 0
    return seen[0]


@pytest.mark.parametrize(
    "line",
    [
        "-d /c --json --timeout 5s -q probe",
        "probe -d /c --json --timeout 5s -q",
        "-d /c -q probe --output json --timeout 5",
        "-d /other --output table outer --timeout 1h -q inner -d /c --json --timeout 5s",
    ],
)
def test_global_options_are_taken_before_and_after_the_command(
    monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    settings = seen_settings(monkeypatch, *line.split())
    assert (settings.where, settings.output, settings.timeout_s) == ("/c", "json", 5.0)
    assert settings.quiet


def test_the_environment_stands_in_for_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMLOG_OUTPUT", "jsonl")
    monkeypatch.setenv("SHMLOG_TIMEOUT", "250ms")
    settings = seen_settings(monkeypatch, "probe")
    assert (settings.output, settings.timeout_s, settings.where) == ("jsonl", 0.25, None)
    assert seen_settings(monkeypatch, "probe", "--output", "plain").output == "plain"
    monkeypatch.setenv("SHMLOG_OUTPUT", "xml")
    with pytest.raises(InvalidConfig, match="SHMLOG_OUTPUT = 'xml'"):
        _ = seen_settings(monkeypatch, "probe").output


def test_two_names_for_the_cluster_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = seen_settings(monkeypatch, "-d", "/c", "--endpoint", "ipc:///s", "probe")
    with pytest.raises(InvalidConfig, match="choose one"):
        _ = settings.where


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command()
    def fail() -> None:
        raise error

    module = type(sys)("stand_in_commands")
    module.fail = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stand_in_commands", module)
    monkeypatch.setitem(cli.COMMANDS, "fail", cli.Lazy("stand_in_commands", "fail", "."))


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.NONE])
def test_an_error_ends_with_the_status_of_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: Code
) -> None:
    error: ShmlogError = from_wire(code, "it is so")
    raising(monkeypatch, error)
    assert cli.execute(["fail"]) == error.exit_status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("it is so")
    assert (code.name in err) == (error.exit_status == 1)


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert cli.execute(["fail"]) == 130


def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["nosuch"], ["--nosuch"], ["status", "--nosuch"], ["up"], ["fsck"]):
        assert cli.execute(line) == 2, line
        assert "Error" in capsys.readouterr().err


def test_a_closed_pipe_ends_silently_with_0() -> None:
    code = (
        "import sys, click; from shmlog.cli import main\n"
        "@click.command()\ndef much():\n    [click.echo('x' * 1000) for _ in range(1000)]\n"
        "sys.modules['m'] = type(sys)('m'); sys.modules['m'].much = much\n"
        "main.COMMANDS['much'] = main.Lazy('m', 'much', '.'); sys.argv = ['shmlog', 'much']\n"
        "main.run()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.read(10)
    child.stdout.close()
    assert (child.stderr.read(), child.wait(PATIENCE_S)) == (b"", 0)
    child.stderr.close()


# -- a cluster's life ---------------------------------------------------------------------------


@pytest.fixture
def cluster(short_dir: Path) -> Iterator[Path]:
    """A directory for a cluster; whatever runs on it at the end is stopped."""
    path = short_dir / "c"
    yield path
    if directory.cluster_file(path).exists():
        supervisor = directory.read_supervisor(path)
        if supervisor is not None:
            process.kill(supervisor.pid, signal.SIGTERM)
            launch.wait_for_end([supervisor.pid], PATIENCE_S)
        launch.stop_orphans(path, PATIENCE_S)


def pid_of(path: Path) -> int:
    done = shmlog("-d", path, "status", "--pid", 0)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.process
def test_up_status_kill_down_up_by_command(cluster: Path) -> None:
    done = shmlog("up", "--dir", cluster, "-n", 1, "--detach")
    assert done.returncode == 0, done.stderr
    assert "ready" in done.stderr
    assert f"shmlog -d {cluster} down" in done.stderr
    health = json.loads(shmlog("status", "--json", "-d", cluster).stdout)
    (broker,) = health["brokers"]
    assert (health["kind"], health["v"], health["leaderless"]) == ("status", 1, [])
    assert (broker["state"], broker["incarnation"], broker["restarts"]) == ("ready", 1, 0)
    assert broker["pid"] == pid_of(cluster) == registry.data_dir_owner(cluster / "broker-0")
    again = shmlog("up", "--dir", cluster, "--detach")
    assert again.returncode == 2
    assert f"already runs on {cluster} (pid {health['supervisor']})" in again.stderr
    assert shmlog("up", "--dir", cluster).returncode == 2  # in the foreground too
    assert shmlog("fsck", cluster).returncode == 2
    down = shmlog("-d", cluster, "down")
    assert down.returncode == 0, down.stderr
    assert not process.is_alive(broker["pid"])
    assert not process.is_alive(health["supervisor"])
    assert shmlog("-d", cluster, "down").returncode == 5
    assert shmlog("-d", cluster, "status").returncode == 5
    assert shmlog("-d", cluster, "status", "--pid", 0).returncode == 5
    assert shmlog("fsck", cluster).returncode == 0
    assert shmlog("up", "--dir", cluster, "--detach", "-q").stderr == ""
    assert (
        json.loads(shmlog("status", "--json", "-d", cluster).stdout)["brokers"][0]["incarnation"]
        == 2
    )


def kill_supervisor(path: Path) -> None:
    supervisor = directory.read_supervisor(path)
    assert supervisor is not None
    process.kill(supervisor.pid)
    launch.wait_for_end([supervisor.pid], PATIENCE_S)


@pytest.mark.process
def test_down_stops_brokers_that_outlived_their_supervisor(cluster: Path) -> None:
    assert shmlog("up", "--dir", cluster, "--detach").returncode == 0
    kill_supervisor(cluster)
    pid = pid_of(cluster)
    assert shmlog("-d", cluster, "restart", 0).returncode == 5  # nobody would start it again
    assert shmlog("-d", cluster, "down").returncode == 0
    assert not process.is_alive(pid)


@pytest.mark.process
def test_up_adopts_brokers_that_outlived_their_supervisor(cluster: Path) -> None:
    assert shmlog("up", "--dir", cluster, "-n", 2, "--detach").returncode == 0
    kill_supervisor(cluster)
    pids = {b: entry.pid for b, entry in directory.read_brokers(cluster).items()}
    up = shmlog("up", "--dir", cluster, "--detach")
    assert up.returncode == 0, up.stderr
    assert f"broker 1   ready   pid {pids[1]}" in up.stderr
    assert {b: entry.pid for b, entry in directory.read_brokers(cluster).items()} == pids
    assert shmlog("-d", cluster, "down").returncode == 0
    assert not any(map(process.is_alive, pids.values()))
    assert directory.read_supervisor(cluster) is None


@pytest.mark.process
def test_restart_by_command(cluster: Path) -> None:
    assert shmlog("up", "--dir", cluster, "--detach").returncode == 0
    first = pid_of(cluster)
    for arguments in ([0], ["--rolling"]):
        done = shmlog("-d", cluster, "restart", *arguments)
        assert done.returncode == 0, done.stderr
        second = pid_of(cluster)
        assert done.stderr == f"broker 0   ready   pid {second}\n"
        assert second != first
        first = second
    health = json.loads(shmlog("status", "--json", "-d", cluster).stdout)
    assert health["brokers"][0]["restarts"] == 2
    for arguments in ([], [0, "--rolling"], ["x"]):
        assert shmlog("-d", cluster, "restart", *arguments).returncode == 2
    done = shmlog("-d", cluster, "restart", 7)
    assert (done.returncode, done.stderr) == (3, "no broker 7: there are 0\n")


@pytest.mark.process
def test_the_data_may_lie_on_another_disk(cluster: Path, short_dir: Path) -> None:
    directory.create_cluster(cluster, 1)
    with directory.cluster_file(cluster).open("a") as file:
        file.write(f'[broker.0]\ndata = "{short_dir}/disk/zero"\n')
    assert shmlog("up", "--dir", cluster, "--detach").returncode == 0
    assert shmlog("-d", cluster, "topic", "create", "t").returncode == 0
    assert registry.data_dir_owner(short_dir / "disk" / "zero") == pid_of(cluster)
    kill_supervisor(cluster)
    assert shmlog("-d", cluster, "down").returncode == 0  # it finds whom to stop by their data
    assert sorted(x.name for x in cluster.iterdir()) == ["cluster.toml", "run"]
    done = shmlog("fsck", cluster, "--json")
    assert {x["partition"] for x in json.loads(done.stdout)["partitions"]} == {
        "__cluster_metadata-0",
        "t-0",
    }
    lock = registry.lock_data_dir(short_dir / "disk" / "zero")
    assert shmlog("fsck", cluster).returncode == 2  # somebody has the data
    os.close(lock)


@pytest.mark.process
def test_up_in_the_foreground_ends_with_a_signal_and_leaves_nothing(cluster: Path) -> None:
    child = subprocess.Popen(
        [*SHMLOG, "up", "--dir", str(cluster)], stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    events = (json.loads(line) for line in child.stderr if '"pid"' in line)
    broker = next(event["pid"] for event in events if event["event"] == "ready")
    child.send_signal(signal.SIGINT)
    assert [event["event"] for event in events][-1] == "stopped"
    child.stderr.close()
    assert child.wait(PATIENCE_S) == 0
    assert not process.is_alive(broker)


def test_up_says_why_it_cannot(short_dir: Path) -> None:
    long = short_dir / ("d" * 100)
    for detach in ([], ["--detach"]):
        done = shmlog("up", "--dir", long, *detach)
        assert done.returncode == 2
        assert "the system allows 107: choose a shorter --dir" in done.stderr
        assert not long.exists()
        done = shmlog("up", "--dir", short_dir / "c", "-n", 0, *detach)
        assert done.returncode == 2
        assert "x>=1" in done.stderr
    directory.create_cluster(short_dir / "two", 2)
    done = shmlog("up", "--dir", short_dir / "two", "-n", 3)
    assert done.returncode == 2
    assert "is a cluster of 2, not of 3" in done.stderr


def test_nothing_there_is_exit_5(short_dir: Path) -> None:
    for command in (["status"], ["down"], ["status", "--pid", "0"]):
        done = shmlog("-d", short_dir, *command)
        assert done.returncode == 5
        assert "no cluster" in done.stderr
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(short_dir)}
    environment.pop("SHMLOG_DIR", None)
    environment.pop("SHMLOG_ENDPOINT", None)
    done = shmlog("status", env=environment)
    assert done.returncode == 5
    assert "no cluster found: SHMLOG_DIR is not set" in done.stderr


@pytest.mark.process
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_dev_is_found_shows_a_kill_and_leaves_nothing(short_dir: Path, ending: int) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(short_dir)}
    environment.pop("SHMLOG_DIR", None)
    dev = subprocess.Popen([*SHMLOG, "dev"], stderr=subprocess.PIPE, text=True, env=environment)
    assert dev.stderr is not None
    shown: list[str] = []

    def show_until(text: str) -> None:
        for line in dev.stderr or ():
            shown.append(line)
            if text in line:
                return
        raise AssertionError(f"{text!r} never came: {shown}")

    show_until("Ctrl-C stops the brokers and removes everything.")
    path = Path(next(x.split()[1] for x in shown if "directory" in x))
    lines = [x.split() for x in shown if x.startswith("  broker ")]
    assert [x[:4] for x in lines] == [["broker", str(b), "ready", "pid"] for b in range(3)]
    assert [int(x[4]) for x in lines] == [e.pid for e in directory.read_brokers(path).values()]
    assert sum(x[5:] == ["controller"] for x in lines) == 1
    pid = int(shmlog("status", "--pid", 0, env=environment).stdout)
    process.kill(pid)
    show_until(f"broker 0 (pid {pid}) killed by signal 9; restarting in 100 ms")
    show_until("ready again")
    supervisor = directory.read_supervisor(path)
    assert supervisor is not None
    pids = [supervisor.pid, int(shmlog("status", "--pid", 0, env=environment).stdout)]
    dev.send_signal(ending)
    dev.stderr.read()
    dev.stderr.close()
    assert dev.wait(PATIENCE_S) == (-9 if ending == signal.SIGKILL else 130)
    assert launch.wait_for_end(pids, PATIENCE_S) == []
    assert shmlog("status", env=environment).returncode == 5
    assert not path.exists()


@pytest.mark.process
def test_dev_ends_in_order_when_it_is_told_to_by_down(short_dir: Path) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(short_dir)}
    environment.pop("SHMLOG_DIR", None)
    dev = subprocess.Popen(
        [*SHMLOG, "dev", "-n", "1"], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert dev.stderr is not None
    with dev, dev.stderr:
        assert any("removes everything" in line for line in dev.stderr)
        done = shmlog("down", env=environment)
        assert done.returncode == 0
        assert "was a throw-away cluster and is removed" in done.stderr
        assert dev.stderr.read().startswith("told to stop\nstopped, removed ")
        assert dev.wait(PATIENCE_S) == 0


def test_a_broker_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text("x = [")
    command = [sys.executable, "-P", "-m", "node", "--dir", str(tmp_path), "--id", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    [line] = done.stderr.splitlines()
    said = json.loads(line)
    assert (done.returncode, said["event"]) == (2, "cannot start")
    assert said["reason"].startswith(f"{tmp_path}/cluster.toml: ")
    assert "traceback" not in said


def test_a_file_in_place_of_the_directory_is_said(tmp_path: Path) -> None:
    directory.create_cluster(tmp_path, 1)
    file = tmp_path / "cluster.toml"
    done = shmlog("-d", file, "status")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{file} is a file: name the directory, {tmp_path}" in done.stderr


def test_nobody_listening_at_an_endpoint_is_said_at_once(tmp_path: Path) -> None:
    done = shmlog("--endpoint", f"ipc://{tmp_path}/nobody", "topic", "list")
    assert done.returncode == 5
    assert done.stderr.startswith(f"nobody listens at ipc://{tmp_path}/nobody")


@pytest.mark.parametrize("options", [(), ("--detach",)])
def test_a_directory_that_cannot_be_made_is_one_line(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("")
    done = shmlog("up", "--dir", tmp_path / "file" / "c", *options)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "cannot be made" not in done.stdout


def test_fsck_takes_the_directory_either_way(tmp_path: Path) -> None:
    directory.create_cluster(tmp_path / "c", 1)
    for arguments in (("fsck", tmp_path / "c"), ("-d", tmp_path / "c", "fsck")):
        done = shmlog(*arguments)
        assert (done.returncode, done.stderr) == (0, "0 partitions checked, 0 damaged\n")
    named = {**os.environ, "SHMLOG_DIR": str(tmp_path / "c")}
    assert shmlog("fsck", env=named).returncode == 0
    assert shmlog("fsck").returncode == 2


@pytest.mark.process
def test_up_leaves_those_running_that_serve_and_status_tells_when_nobody_controls() -> None:
    path = Path(tempfile.mkdtemp(prefix="shmlog-"))
    try:
        assert shmlog("up", "--dir", path, "-n", 3, "--detach").returncode == 0
        assert shmlog("-d", path, "topic", "create", "solo", "-r", 1, "-p", 3).returncode == 0
        assert shmlog("-d", path, "down").returncode == 0
        shutil.rmtree(next((path / "broker-2").glob("solo-*")))
        started = shmlog("up", "--dir", path, "--detach")
        assert started.returncode == 6
        assert "broker 2 ended with exit code 7" in started.stderr
        assert "is gone, and it held a log" in started.stderr
        assert "broker-0.log" not in started.stderr
        assert sorted(directory.read_brokers(path)) == [0, 1]
        supervisor = directory.read_supervisor(path)
        assert supervisor is not None
        for pid in (supervisor.pid, directory.read_brokers(path)[1].pid):
            os.kill(pid, signal.SIGKILL)
            launch.wait_for_end([pid], PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while (found := shmlog("-d", path, "status")).returncode != 5 or (
            "no controller" not in found.stderr
        ):
            assert time.monotonic() < deadline, found
        states = [line.split("\t")[1] for line in found.stdout.splitlines()]
        assert states == ["ready", "stopped", "fenced"]
    finally:
        shmlog("-d", path, "down")
        shutil.rmtree(path)
