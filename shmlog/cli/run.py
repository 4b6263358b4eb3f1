"""dev, up, down, status: starting, ending and asking after a cluster's processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click

from shmlog.cli.settings import Settings
from shmlog.errors import BrokerGone, ClusterNotFound, InvalidConfig

DOWN_TIMEOUT_S = 30.0
STATUS_TIMEOUT_S = 10.0
_brokers = click.option(
    "-n", "--brokers", type=int, metavar="N", help="How many brokers (one in this version)."
)


def _named_directory(settings: Settings) -> Path:
    """The directory that `up` is to use: it is always named, never found."""
    from shmlog import directory

    if settings.endpoint is not None:
        raise InvalidConfig("--endpoint names a running broker: use --dir DIR")
    named = settings.dir or os.environ.get("SHMLOG_DIR")
    if not named:
        raise click.UsageError("no directory: name one with --dir DIR")
    return directory.absolute(named)


def _found_directory(settings: Settings) -> Path:
    """The directory of the cluster that is meant; an endpoint has none."""
    from shmlog import directory

    location = directory.find_cluster(settings.where)
    if location.directory is None:
        raise InvalidConfig("an endpoint does not say which directory: use --dir DIR")
    if not directory.cluster_file(location.directory).exists():
        raise directory.nobody_lives(location.directory)
    return location.directory


@click.command()
@_brokers
@click.option("--detach", is_flag=True, help="Return when every broker is ready.")
@click.pass_obj
def up(settings: Settings, brokers: int | None, detach: bool) -> None:
    """Start the cluster of a directory: its supervisor and brokers.

    Makes DIR and its cluster.toml on first use. Stays in the foreground unless --detach is given;
    then logs go to DIR/run/.
    """
    path = _named_directory(settings)
    if not detach:
        from shmlog.launch import supervisor_command

        options = [] if brokers is None else ["-n", str(brokers)]
        command = supervisor_command(path, *options)
        os.execv(command[0], command)
    _up_detached(settings, path, brokers)


def _up_detached(settings: Settings, path: Path, brokers: int | None) -> None:
    from shmlog import directory, launch
    from shmlog.errors import ShmlogError

    os.umask(0o077)
    directory.open_cluster(path, brokers)
    living = directory.read_supervisor(path)
    if living is not None:
        raise InvalidConfig(f"a supervisor already runs on {path} (pid {living.pid})")
    supervisor = launch.Background(path)
    try:
        ready = supervisor.wait_ready(settings.timeout_s or launch.START_TIMEOUT_S)
    except (ShmlogError, KeyboardInterrupt):
        supervisor.stop()
        raise
    if not settings.quiet:
        for broker, entry in sorted(ready.items()):
            click.echo(f"broker {broker}   ready   pid {entry.pid}", err=True)
        click.echo(f"stop it with:  shmlog -d {path} down", err=True)


@click.command()
@click.pass_obj
def down(settings: Settings) -> None:
    """Stop the brokers and the supervisor of a cluster, and wait until they have ended."""
    from shmlog import control, directory, launch

    path = _found_directory(settings)
    timeout_s = settings.timeout_s or DOWN_TIMEOUT_S
    supervisor = directory.read_supervisor(path)
    if supervisor is None:
        stopped = launch.stop_orphans(path, timeout_s)
        if not stopped:
            raise ClusterNotFound(
                f"nothing is running on {path}\n  start it:  shmlog up --dir {path}"
            )
    else:
        try:
            control.ask(supervisor, "down", timeout_s)
        except BrokerGone:
            pass  # it ended by itself while it was asked
        launch.wait_for_end([supervisor.pid], timeout_s)
        launch.stop_orphans(path, timeout_s)
    if not settings.quiet:
        click.echo(f"stopped; start again with:  shmlog up --dir {path}", err=True)


@click.command()
@click.option("--pid", "broker", type=int, metavar="BROKER", help="Print a broker's pid, no more.")
@click.pass_obj
def status(settings: Settings, broker: int | None) -> int:
    """Health check: exit 5 if no cluster runs or a partition has no leader."""
    from shmlog import directory

    if broker is not None:
        living = directory.read_brokers(_found_directory(settings))
        if broker not in living:
            raise ClusterNotFound(f"broker {broker} is not running")
        click.echo(living[broker].pid)
        return 0
    from shmlog.cli.health import ask, print_health

    health = ask(settings.where, settings.timeout_s or STATUS_TIMEOUT_S)
    print_health(health, settings.output)
    return 0 if health.healthy else 5


@click.command()
@_brokers
@click.option("--keep", is_flag=True, help="Keep the directory at the end.")
@click.pass_obj
def dev(settings: Settings, brokers: int | None, keep: bool) -> int:
    """Throw-away cluster in the foreground; topics appear on first use."""
    from shmlog.cli.foreground import run_dev

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    return run_dev(
        brokers or 1, keep=keep, say=lambda text: print(text, file=sys.stderr, flush=True)
    )
