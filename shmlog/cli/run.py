"""up, down, restart: starting and ending a cluster's processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from shmlog import control, directory, launch
from shmlog.cli.settings import Settings
from shmlog.errors import BrokerGone, ClusterNotFound, InvalidConfig, ShmlogError

DOWN_TIMEOUT_S = 30.0
NOT_FOUND = 3
PARTLY = 6


def brokers_option(default: int | None = None) -> Callable[[Any], Any]:
    """The option -n of the commands that make a cluster."""
    return click.option(
        "-n",
        "--brokers",
        type=click.IntRange(min=1),
        default=default,
        show_default=default is not None,
        help="How many brokers.",
    )


@click.command()
@brokers_option()
@click.option("--detach", is_flag=True, help="Return when every broker is ready.")
@click.pass_obj
def up(settings: Settings, brokers: int | None, detach: bool) -> int:
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
    adopted = directory.read_brokers(path)
    supervisor = launch.Background(path)
    try:
        ready = supervisor.wait_ready(settings.timeout_s or launch.START_TIMEOUT_S)
    except KeyboardInterrupt:
        if not adopted:
            supervisor.stop()
        raise
    except ShmlogError as error:
        serving = sorted(directory.read_brokers(path))
        if not serving:
            supervisor.stop()
            raise
        # No reason to end those who serve, nor the one who keeps them so.
        click.echo(f"error: {error}", err=True)
        click.echo(f"running: brokers {serving}; stop them with:  shmlog -d {path} down", err=True)
        return PARTLY
    for broker, entry in sorted(ready.items()):
        settings.say(f"broker {broker}   ready   pid {entry.pid}")
    settings.say(f"stop it with:  shmlog -d {path} down")
    return 0


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
    if directory.cluster_file(path).exists():
        settings.say(f"stopped; start again with:  shmlog up --dir {path}")
    else:
        settings.say(f"stopped; {path} was a throw-away cluster and is removed")


@click.command()
@click.argument("broker", type=click.IntRange(min=0), required=False)
@click.option("--rolling", is_flag=True, help="All brokers, one after the other.")
@click.pass_obj
def restart(settings: Settings, broker: int | None, rolling: bool) -> int:
    """Restart BROKER, or all with --rolling; leaders are handed over first.

    Returns when what was restarted serves again and the cluster is as healthy as before.
    """
    if rolling == (broker is not None):
        raise click.UsageError("name a broker, or say --rolling")
    path = found_directory(settings)
    brokers = directory.load_cluster(path).brokers
    if broker is not None and broker not in brokers:
        click.echo(f"no broker {broker}: there are {', '.join(map(str, brokers))}", err=True)
        return NOT_FOUND
    supervisor = directory.read_supervisor(path)
    if supervisor is None:
        raise ClusterNotFound(f"no supervisor runs on {path}\n  start one:  shmlog up --dir {path}")
    wanted: dict[str, Any] = {"rolling": True} if rolling else {"broker": broker}
    count = len(brokers) if rolling else 1
    answer = control.ask(
        supervisor, "restart", settings.timeout_s or control.RESTART_TIMEOUT_S * count, **wanted
    )
    for status in answer.brokers:
        if rolling or status.broker == broker:
            settings.say(f"broker {status.broker}   {status.state}   pid {status.pid}")
    return 0


def found_directory(settings: Settings) -> Path:
    """The directory of the cluster that is meant. Raises InvalidConfig: an endpoint has none."""
    path = directory.find_cluster(settings.where).directory
    if path is None:
        raise InvalidConfig("an endpoint does not say which directory: use --dir DIR")
    if not directory.cluster_file(path).exists():
        raise directory.nobody_lives(path)
    return path
