"""The command `shmlog`: a lazy group, the options that every command takes, errors as exit
statuses.

Sub-commands are a table of names; a module is imported when its command runs, so `shmlog --help`
costs what click costs (no numpy, zmq, asyncio or msgspec on the way to it). A command is a click
command that takes `@click.pass_obj` `Settings`; it returns None (done) or an exit status, and
raises ShmlogError.

Global options are accepted before and after the sub-command: they are parameters of the group and,
added when a command is loaded, of every command below it; the later one on the line wins.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import click

from shmlog import __version__
from shmlog.cli.settings import OUTPUTS, Settings
from shmlog.errors import ShmlogError

__all__ = ["Settings", "execute", "main", "run"]

INTERRUPTED = 130


class Lazy(NamedTuple):
    """Where a command is, and what it does in a line."""

    module: str
    function: str
    help: str


COMMANDS = {
    "dev": Lazy("shmlog.cli.dev", "dev", "Throw-away cluster in the foreground."),
    "demo": Lazy("shmlog.cli.demo", "demo", "See a leader killed and nothing lost."),
    "up": Lazy("shmlog.cli.run", "up", "Start the cluster of a directory."),
    "down": Lazy("shmlog.cli.run", "down", "Stop brokers and supervisor."),
    "restart": Lazy("shmlog.cli.run", "restart", "Restart one broker, or all in turn."),
    "status": Lazy("shmlog.cli.status", "status", "Health check: exit 5 without a leader."),
    "produce": Lazy("shmlog.cli.produce", "produce", "Write records, one a line."),
    "consume": Lazy("shmlog.cli.consume", "consume", "Read records, and go on following."),
    "export": Lazy("shmlog.cli.export", "export", "A topic into a file: JSON Lines or CSV."),
    "import": Lazy("shmlog.cli.importing", "import_", "A file's records into a topic."),
    "topic": Lazy("shmlog.cli.admin", "topic", "List, create, describe, alter, trim, delete."),
    "group": Lazy("shmlog.cli.groups", "group", "Consumer groups: list, describe, reset, delete."),
    "cluster": Lazy("shmlog.cli.cluster", "cluster", "Brokers, leaders, epochs, what was changed."),
    "stats": Lazy("shmlog.cli.stats", "show", "Counters of the brokers, from shared memory."),
    "fsck": Lazy("shmlog.cli.fsck", "fsck", "Check a stopped cluster's files; changes nothing."),
}


def _store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        setattr(context.find_object(Settings), str(parameter.name), value)


def _version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"shmlog {__version__}")
        context.exit(0)


def global_options() -> list[click.Parameter]:
    """New instances of the options that every command takes; each is a field of `Settings`."""

    def option(*names: str, **attributes: Any) -> click.Option:
        return click.Option(names, expose_value=False, **{"callback": _store, **attributes})

    return [
        option("-d", "--dir", metavar="DIR", help="The cluster directory [SHMLOG_DIR]."),
        option("--endpoint", metavar="EP", help="ipc:// address of a broker [SHMLOG_ENDPOINT]."),
        option(
            "--output",
            "output_given",
            type=click.Choice(OUTPUTS),
            help="Default: table on a terminal, else plain [SHMLOG_OUTPUT].",
        ),
        option("--json", "output_given", flag_value="json", help="The same as --output json."),
        option(
            "--timeout",
            "timeout_given",
            metavar="5s",
            help="For the command, where it has an end of its own [SHMLOG_TIMEOUT].",
        ),
        option("-q", "--quiet", is_flag=True, help="No progress on stderr."),
        option("--no-color", is_flag=True, help="No colour [NO_COLOR]."),
        option(
            "--version", is_flag=True, is_eager=True, callback=_version, help="Print the version."
        ),
    ]


def _add_global_options(command: click.Command) -> None:
    """Add what is missing: a command may use a letter for itself, and loading twice is harmless."""
    taken = {name for parameter in command.params for name in parameter.opts}
    for option in global_options():
        if not taken & set(option.opts):
            command.params.append(option)
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])
    for child in getattr(command, "commands", {}).values():
        _add_global_options(child)


def _forget_output() -> None:
    """Nothing may be written at exit either."""
    with contextlib.suppress(OSError, ValueError):  # no descriptor, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        command: click.Command = getattr(import_module(lazy.module), lazy.function)
        _add_global_options(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            status = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _forget_output()  # whoever read our output has had enough
            return 0
        return status


main = LazyGroup(
    "shmlog",
    params=global_options(),
    help="A durable, partitioned commit log for one machine.",
    epilog="Start with: shmlog dev",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)


def error_text(error: ShmlogError) -> str:
    """What is printed of an error: the message; what to do next, unless the message says so."""
    if error.exit_status == 2 or "\n" in str(error):
        return str(error)
    name = f" ({error.name})" if error.exit_status == 1 else ""
    return f"{error}{name}" + (f"\n  {error.hint}" if error.hint else "")


def execute(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's); its exit status."""
    try:
        status = main.main(
            args=arguments, prog_name="shmlog", standalone_mode=False, obj=Settings()
        )
    except ShmlogError as error:
        click.echo(error_text(error), err=True)
        return error.exit_status
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except OSError as error:
        # Output that cannot be written, an input file that cannot be read: the user's, not a bug.
        click.echo(f"error: {error}", err=True)
        _forget_output()
        return 1
    return status if isinstance(status, int) else 0


def run() -> None:
    """The console script."""
    sys.exit(execute())
