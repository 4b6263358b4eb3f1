"""up, down: starting and ending a cluster's processes."""

from __future__ import annotations

import os
from pathlib import Path

import click

from shmlog import control, directory, launch
from shmlog.cli.settings import Settings
from shmlog.errors import BrokerGone, ClusterNotFound, InvalidConfig, ShmlogError

DOWN_TIMEOUT_S = 30.0
BROKERS = click.option(
    "-n", "--brokers", type=int, metavar="N", help="How many brokers (one in this version)."
)


@click.command()
@BROKERS
@click.option("--detach", is_flag=True, help="Return when every broker is ready.")
@click.pass_obj
def up(settings: Settings, brokers: int | None, detach: bool) -> None:
    """Start the cluster of a directory: its supervisor and brokers.

    Makes DIR and its cluster.toml on first use. Stays in the foreground unless --detach is given;
    then logs go to DIR/run/.
    """
    if settings.endpoint is not None:
        raise InvalidConfig("--endpoint names a running broker: use --dir DIR")
    named = settings.dir or os.environ.get("SHMLOG_DIR")
    if not named:
        raise click.UsageError("no directory: name one with --dir DIR")
    path = directory.absolute(named)
    if not detach:
        options = [] if brokers is None else ["-n", str(brokers)]
        command = launch.supervisor_command(path, *options)
        os.execv(command[0], command)
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
    for broker, entry in sorted(ready.items()):
        settings.say(f"broker {broker}   ready   pid {entry.pid}")
    settings.say(f"stop it with:  shmlog -d {path} down")


@click.command()
@click.pass_obj
def down(settings: Settings) -> None:
    """Stop the brokers and the supervisor of a cluster, and wait until they have ended."""
    path = found_directory(settings)
    timeout_s = settings.timeout_s or DOWN_TIMEOUT_S
    supervisor = directory.read_supervisor(path)
    if supervisor is not None:
        try:
            control.ask(supervisor, "down", timeout_s)
        except BrokerGone:
            pass  # it ended by itself while it was asked
        launch.wait_for_end([supervisor.pid], timeout_s)
    elif not launch.stop_orphans(path, timeout_s):
        raise ClusterNotFound(f"nothing is running on {path}\n  start it:  shmlog up --dir {path}")
    settings.say(f"stopped; start again with:  shmlog up --dir {path}")


def found_directory(settings: Settings) -> Path:
    """The directory of the cluster that is meant. Raises InvalidConfig: an endpoint has none."""
    path = directory.find_cluster(settings.where).directory
    if path is None:
        raise InvalidConfig("an endpoint does not say which directory: use --dir DIR")
    if not directory.cluster_file(path).exists():
        raise directory.nobody_lives(path)
    return path
