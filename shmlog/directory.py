"""The cluster directory: what is in it, who lives there, and how it is found.

    DIR/                0700, of the user who runs the cluster
      cluster.toml      format, cluster id, brokers, voters, data directories elsewhere, defaults
      run/              broker-N.json supervisor.json   who lives (registry.py)
                        broker-N.sock broker-N.peer.sock supervisor.sock   where they listen
                        broker-N.shm                    names of its shared memory
                        broker-N.log supervisor.log     of detached processes
      broker-N/         data, `lock`, `incarnation`; or where [broker.N] says

A directory that other users may write to, or that belongs to somebody else, is refused: whoever may
enter it may do everything. A cluster is found by option, then environment, then the `shmlog dev`
that this user runs; two candidates are an error, never a guess.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import stat
import string
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shmlog import clock, process, registry
from shmlog.errors import ClusterNotFound, InvalidConfig
from shmlog.registry import Entry, Found, MemoryList, Registration
from shmlog.settings import (
    CLUSTER_SETTINGS,
    TOPIC_SETTINGS,
    ClusterConfig,
    TopicConfig,
    check_all,
    did_you_mean,
    shown,
)

FORMAT = 1
SOCKET_PATH_BYTES_MAX = 107  # sun_path of unix(7), less its closing NUL
_KEYS = ("format", "cluster", "brokers", "voters", "broker", "topic", "settings")
_BROKER_KEYS = ("data",)
_ID_LETTERS = string.ascii_letters + string.digits
_OWN_FILES = ("run", "lost+found")  # may lie in a directory that has no cluster.toml yet

Where = str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """`cluster.toml`, checked. `topic_defaults` holds what the file sets, under native names."""

    path: Path
    cluster: str
    brokers: tuple[int, ...]
    voters: tuple[int, ...]  # the metadata quorum; fixed
    data_dirs: dict[int, Path]
    topic_defaults: dict[str, Any]
    settings: ClusterConfig


class BrokerEntry(Entry, frozen=True, kw_only=True):
    """`run/broker-N.json`: one incarnation of a broker."""

    kind: str = "broker"
    cluster: str
    broker: int
    incarnation: int
    endpoints: dict[str, str]  # client, peer: ipc:// addresses


class SupervisorEntry(Entry, frozen=True, kw_only=True):
    """`run/supervisor.json`."""

    kind: str = "supervisor"
    cluster: str
    endpoints: dict[str, str]  # control: an ipc:// address


class DevEntry(Entry, frozen=True, kw_only=True):
    """`dev-PID.json` outside the directory: a `shmlog dev` of this user."""

    kind: str = "dev"
    directory: str


@dataclass(frozen=True, slots=True)
class Location:
    """Where a client goes: a cluster directory, or one broker's endpoint; exactly one is set."""

    directory: Path | None
    endpoint: str | None


# -- places ---------------------------------------------------------------------------------------


def absolute(path: str | os.PathLike[str]) -> Path:
    """The directory as the registry names it; symbolic links stay: they may keep it short."""
    return Path(os.path.abspath(path))


def cluster_file(path: Path) -> Path:
    return path / "cluster.toml"


def run_dir(path: Path) -> Path:
    """Sockets, registry, logs: all that means nothing after a reboot."""
    return absolute(path) / "run"


def client_socket(path: Path, broker: int) -> Path:
    """Where a broker's clients connect. Raises InvalidConfig: too long for a socket."""
    return _socket(path, f"broker-{broker}.sock")


def peer_socket(path: Path, broker: int) -> Path:
    """Where other brokers connect. Raises InvalidConfig: too long for a socket."""
    return _socket(path, f"broker-{broker}.peer.sock")


def supervisor_socket(path: Path) -> Path:
    """The supervisor's control socket. Raises InvalidConfig: too long for a socket."""
    return _socket(path, "supervisor.sock")


def _socket(path: Path, name: str) -> Path:
    file = run_dir(path) / name
    size = len(os.fsencode(file))
    if size > SOCKET_PATH_BYTES_MAX:
        raise InvalidConfig(
            f"socket path is {size} bytes, the system allows {SOCKET_PATH_BYTES_MAX}: "
            f"choose a shorter --dir ({file})",
            size=size,
        )
    return file


def registry_file(path: Path, broker: int) -> Path:
    return run_dir(path) / f"broker-{broker}.json"


def supervisor_file(path: Path) -> Path:
    return run_dir(path) / "supervisor.json"


def memory_list_file(path: Path, broker: int) -> Path:
    return run_dir(path) / f"broker-{broker}.shm"


def starts_file(path: Path, broker: int) -> Path:
    """The copy of a broker's count of starts that outlives its data directory."""
    return run_dir(path) / f"broker-{broker}.incarnation"


def broker_log(path: Path, broker: int) -> Path:
    return run_dir(path) / f"broker-{broker}.log"


def supervisor_log(path: Path) -> Path:
    return run_dir(path) / "supervisor.log"


def open_log(file: Path) -> BinaryIO:
    """A log to append to, for this user's eyes only."""
    return open(file, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


# -- cluster.toml ---------------------------------------------------------------------------------


def create_cluster(
    path: Path,
    brokers: int,
    *,
    topic: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ClusterFile:
    """Make the directory and its `cluster.toml` with a new id; a faster process's file is kept.

    Raises: InvalidConfig: a setting is wrong, the directory is not ours, or holds something else.
    """
    path = absolute(path)
    ids = list(range(brokers))
    voters = default_voters(ids)
    cluster = "".join(random.SystemRandom().choices(_ID_LETTERS, k=22))
    tables = {
        "topic": check_all(topic or {}, TOPIC_SETTINGS),
        "settings": check_all(settings or {}, CLUSTER_SETTINGS),
    }
    head = {"format": FORMAT, "cluster": cluster, "brokers": ids, "voters": voters}
    _checked(path, {**head, **tables})
    peer_socket(path, ids[-1])  # the longest name
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if cluster_file(path).exists():
        raise InvalidConfig(f"{cluster_file(path)} exists")
    strangers = [x for x in os.listdir(path) if x not in _OWN_FILES and not x.endswith(".tmp")]
    if strangers:
        raise InvalidConfig(
            f"{path} holds {strangers[0]!r} and no cluster.toml: choose an empty or a new --dir"
        )
    _check_owner(path)
    path.chmod(0o700)
    run_dir(path).mkdir(mode=0o700, exist_ok=True)
    text = _toml(head) + "".join(f"\n[{name}]\n{_toml(x)}" for name, x in tables.items() if x)
    with contextlib.suppress(FileExistsError):
        registry.write_durably(cluster_file(path), text.encode(), replace=False)
    return load_cluster(path)


def _toml(values: Mapping[str, Any]) -> str:
    # Numbers, booleans, plain text and lists of them look the same in JSON.
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def open_cluster(path: Path, brokers: int | None = None) -> ClusterFile:
    """Load the cluster, or make it on first use (with one broker, if no number is given).

    Raises: InvalidConfig: as `create_cluster` and `load_cluster`, or another number of brokers.
    """
    if not cluster_file(path).exists():
        try:
            return create_cluster(path, 1 if brokers is None else brokers)
        except OSError as error:
            raise InvalidConfig(f"no cluster can be made in {path}: {error.strerror}") from None
    cluster = load_cluster(path)
    if brokers is not None and brokers != len(cluster.brokers):
        raise InvalidConfig(
            f"{path} is a cluster of {len(cluster.brokers)}, not of {brokers}: leave -n out, or "
            "choose another --dir"
        )
    peer_socket(path, max(cluster.brokers))  # it may have been moved
    run_dir(path).mkdir(mode=0o700, exist_ok=True)
    return cluster


def load_cluster(path: Path) -> ClusterFile:
    """Read and check `cluster.toml`.

    Raises:
        ClusterNotFound: there is none.
        InvalidConfig: an unknown key, a value out of bounds, another format, or a directory that
            belongs to somebody else or that others may write to.
    """
    path = absolute(path)
    file = cluster_file(path)
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ClusterNotFound(f"no cluster in {path}: there is no cluster.toml") from None
    _check_private(path)
    try:
        cluster = _checked(path, tomllib.loads(content.decode()))
    except (ValueError, RecursionError, InvalidConfig) as error:  # not UTF-8, not TOML, or absurd
        raise InvalidConfig(f"{file}: {error}") from None
    for place in cluster.data_dirs.values():
        if place.exists():
            _check_private(place)
    return cluster


def _check_owner(path: Path) -> None:
    owner = path.stat().st_uid
    if owner != os.geteuid():
        raise InvalidConfig(f"{path} belongs to uid {owner}, this process runs as {os.geteuid()}")


def _check_private(path: Path) -> None:
    _check_owner(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o022:
        raise InvalidConfig(f"{path} has mode {mode:04o}: others may write to it; chmod 700 it")


def default_voters(brokers: Sequence[int]) -> list[int]:
    """The first 1, 3 or 5 brokers: an even number would survive no more deaths than one less."""
    return list(brokers[: min(5, (len(brokers) - 1) // 2 * 2 + 1)])


def _checked(path: Path, toml: dict[str, Any]) -> ClusterFile:
    for key in toml:
        if key not in _KEYS:
            raise InvalidConfig(f"unknown key {key!r}{did_you_mean(key, _KEYS)}")
    if toml.get("format") != FORMAT:
        raise InvalidConfig(f"format {shown(toml.get('format'))}: this version reads {FORMAT}")
    cluster, brokers = toml.get("cluster"), toml.get("brokers")
    if not (isinstance(cluster, str) and cluster.isalnum() and cluster.isascii()):
        raise InvalidConfig(f"cluster = {shown(cluster)}: must be letters and digits")
    brokers = _ids("brokers", brokers)
    voters = _ids("voters", toml.get("voters", default_voters(brokers)))
    if len(voters) not in (1, 3, 5) or not set(voters) <= set(brokers):
        raise InvalidConfig(f"voters = {shown(voters)}: must be 1, 3 or 5 of the brokers {brokers}")
    data_dirs = _data_dirs(path, brokers, toml.get("broker", {}))
    topic_defaults, settings = toml.get("topic", {}), toml.get("settings", {})
    if not (isinstance(topic_defaults, dict) and isinstance(settings, dict)):
        raise InvalidConfig("topic and settings must be tables: [topic], [settings]")
    topic_defaults = check_all(topic_defaults, TOPIC_SETTINGS)
    TopicConfig(**topic_defaults)  # raises where they contradict each other
    settings = ClusterConfig(**check_all(settings, CLUSTER_SETTINGS))
    return ClusterFile(
        path, cluster, tuple(brokers), tuple(voters), data_dirs, topic_defaults, settings
    )


def _ids(key: str, value: Any) -> list[int]:
    if not (isinstance(value, list) and all(type(b) is int and b >= 0 for b in value)):
        raise InvalidConfig(f"{key} = {shown(value)}: must be a list of whole numbers from 0")
    if not value or len(set(value)) < len(value):
        raise InvalidConfig(f"{key} = {shown(value)}: must be at least one, each once")
    return value


def _data_dirs(path: Path, brokers: Sequence[int], tables: Any) -> dict[int, Path]:
    """Where each broker's data is: what [broker.N] says, else broker-N."""
    found = {broker: path / f"broker-{broker}" for broker in brokers}
    by_name = {str(broker): broker for broker in brokers}
    if not isinstance(tables, dict):
        raise InvalidConfig("broker must be tables: [broker.0]")
    for name, table in tables.items():
        if name not in by_name or not isinstance(table, dict):
            raise InvalidConfig(f"[broker.{name}]: there are brokers {', '.join(by_name)}")
        for key in table:
            if key not in _BROKER_KEYS:
                wanted = did_you_mean(key, _BROKER_KEYS)
                raise InvalidConfig(f"[broker.{name}]: unknown key {key!r}{wanted}")
        data = table.get("data", f"broker-{name}")
        if not isinstance(data, str) or not data or "\0" in data:
            raise InvalidConfig(f"[broker.{name}] data = {data!r}: must be a path")
        found[by_name[name]] = absolute(path / data)
    _check_apart(path, found)
    return found


def _check_apart(path: Path, data_dirs: Mapping[int, Path]) -> None:
    """No data directory is, or lies in, another one; none holds the cluster directory."""
    for broker, place in data_dirs.items():
        others = [other for b, other in data_dirs.items() if b != broker] + [path / "run"]
        if any(place.is_relative_to(other) for other in others) or path.is_relative_to(place):
            raise InvalidConfig(f"[broker.{broker}] data = {str(place)!r}: is in use already")


# -- who lives ------------------------------------------------------------------------------------


def read_entries(path: Path) -> dict[int, Found[BrokerEntry]]:
    """Every broker's last registration, of the living and of those who did not stop cleanly."""
    files = sorted(run_dir(path).glob("broker-*.json"))
    seen = [found for file in files if (found := registry.read(file, BrokerEntry)) is not None]
    return {found.entry.broker: found for found in seen}


def read_brokers(path: Path) -> dict[int, BrokerEntry]:
    """The living brokers, by id."""
    return {broker: seen.entry for broker, seen in read_entries(path).items() if seen.alive}


def read_supervisor(path: Path) -> SupervisorEntry | None:
    """The living supervisor's entry; None if there is none."""
    found = registry.read(supervisor_file(path), SupervisorEntry)
    return found.entry if found is not None and found.alive else None


def nobody_lives(path: Path) -> ClusterNotFound:
    """The error for a directory without a living broker: says who died, and when if known."""
    how = f"shmlog up --dir {path}"
    if not cluster_file(path).exists():
        return ClusterNotFound(
            f"no cluster in {path}: there is no cluster.toml\n  start one:  {how}"
        )
    dead = ", ".join(f"broker {broker} {seen}" for broker, seen in read_entries(path).items())
    why = f": {dead}" if dead else ""
    return ClusterNotFound(f"no broker of {path} is running{why}\n  start it:  {how}")


def watch_broker(path: Path, broker: int) -> tuple[BrokerEntry, int] | None:
    """A living broker's entry, and a pidfd that is readable once this very process has ended.

    The pid may belong to another process by the time the pidfd is made: so the entry is read again,
    and its lock must still be held (E4).
    """
    file = registry_file(path, broker)
    seen = registry.read(file, BrokerEntry)
    if seen is None or not seen.alive:
        return None
    pidfd = process.open_pidfd(seen.entry.pid)
    if pidfd is None:
        return None
    if registry.read(file, BrokerEntry) != seen:
        os.close(pidfd)
        return None
    return seen.entry, pidfd


def stamp_death(path: Path, broker: int) -> None:
    """Note in the registration of a dead broker that it died now. Only for whoever saw it die."""
    file = registry_file(path, broker)
    if file.exists() and not process.is_locked(file):
        now_ns = clock.SYSTEM_CLOCK.wall_ns()
        os.utime(file, ns=(now_ns, now_ns))


def unlink_memory_of_dead(cluster: ClusterFile, broker: int) -> list[str]:
    """Unlink the shared memory that a dead incarnation left, by its list; return the names on it.

    Does nothing while the broker lives, be it before or after its registration; the broker itself
    may call this when it has locked its data directory, before it makes memory of its own.
    """
    from shmlog.ring import posix

    path = cluster.path
    owner = registry.data_dir_owner(cluster.data_dirs[broker])
    if process.is_locked(registry_file(path, broker)) or owner not in (None, os.getpid()):
        return []
    listed = MemoryList(memory_list_file(path, broker))
    names = listed.names()
    for name in names:
        posix.unlink(name)
    listed.clear()
    return names


# -- finding a cluster ----------------------------------------------------------------------------


def find_cluster(where: Where = None) -> Location:
    """The cluster meant: `where` > SHMLOG_DIR or SHMLOG_ENDPOINT > this user's `shmlog dev`.

    Raises:
        ClusterNotFound: nothing is named and no `shmlog dev` runs.
        InvalidConfig: two candidates, or an endpoint that is not ipc://.
    """
    if where is not None:
        return _location(os.fspath(where))
    named, endpoint = os.environ.get("SHMLOG_DIR"), os.environ.get("SHMLOG_ENDPOINT")
    if named and endpoint:
        raise InvalidConfig("SHMLOG_DIR and SHMLOG_ENDPOINT are both set: choose with -d DIR")
    if named:
        return _location(named)
    if endpoint:
        if "://" not in endpoint:
            raise InvalidConfig(
                f"not an endpoint: {endpoint!r}; write ipc:///DIR/run/broker-0.sock"
            )
        return _location(endpoint)
    entries = [registry.read(file, DevEntry) for file in _dev_dir().glob("dev-*.json")]
    running = sorted(seen.entry.directory for seen in entries if seen is not None and seen.alive)
    if len(running) > 1:
        count = "two" if len(running) == 2 else len(running)
        raise InvalidConfig(
            f"{count} clusters are running: {' and '.join(running)}: choose with -d DIR"
        )
    if not running:
        raise ClusterNotFound(
            "no cluster found: SHMLOG_DIR is not set, no `shmlog dev` is running\n"
            "  start one:  shmlog dev          or name one:  shmlog -d DIR ..."
        )
    return Location(Path(running[0]), None)


def _location(text: str) -> Location:
    scheme, colon, _ = text.partition("://")
    if not colon:
        path = absolute(text)
        if path.is_file():
            raise InvalidConfig(f"{path} is a file: name the directory, {path.parent}")
        return Location(path, None)
    if scheme != "ipc":
        raise InvalidConfig(f"endpoint {text!r}: this version speaks ipc:// only")
    return Location(None, text)


def _dev_dir() -> Path:
    """Where this user's `shmlog dev` processes register; made 0700."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    found = runtime and os.path.isdir(runtime)
    place = Path(runtime, "shmlog") if found else Path(f"/tmp/shmlog-{os.getuid()}")
    place.mkdir(mode=0o700, exist_ok=True)
    info = place.lstat()
    if info.st_uid != os.geteuid() or not stat.S_ISDIR(info.st_mode) or info.st_mode & 0o022:
        raise InvalidConfig(f"{place} is not a directory of yours alone: remove it")
    return place


@contextlib.contextmanager
def register_dev(path: Path) -> Iterator[None]:
    """While open, clients of this user find `path` without naming it. Removes dead entries."""
    place = _dev_dir()
    for file in place.glob("dev-*.json"):
        if not process.is_locked(file):
            file.unlink(missing_ok=True)
    registration = Registration(place / f"dev-{os.getpid()}.json")
    registration.publish(
        DevEntry(
            directory=str(absolute(path)),
            pid=os.getpid(),
            boot_id=process.boot_id(),
            started=clock.SYSTEM_CLOCK.wall_ns(),
        )
    )
    with contextlib.closing(registration):
        yield
