"""What a supervisor is asked and says: its control socket's messages, its events, and how to ask.

Framing is that of the brokers: one multipart message `[header][frame]...`, the header a map with
names.

    {"op":"status","id":1}  ->  {"id":1,"error":0,"brokers":[{"broker","pid","state","restarts"}]}
    {"op":"down","id":2}    ->  the same, once every broker has ended
    {"op":"restart","id":3,"broker":N} or {"op":"restart","id":3,"rolling":true}
                            ->  the same, once they serve again and the cluster is as healthy as it was

Events are one JSON object a line on the supervisor's standard error: {"event": ..., ...}.

`ask` is a zmq owner of its own, apart from the client's: one socket for one request.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from shmlog import process
from shmlog.directory import SupervisorEntry
from shmlog.errors import BrokerGone, RequestTimedOut, from_wire
from shmlog.protocol.header import Codec, decode, encode
from shmlog.protocol.messages import Request

RESTART_TIMEOUT_S = 90.0  # for each broker: the supervisor gives up before


class State(enum.StrEnum):
    """What a supervisor knows of a broker."""

    STARTING = "starting"  # the process runs, it does not serve yet
    READY = "ready"  # it has published its registration, so it serves
    BACKOFF = "backoff"  # it died, the next one is due soon
    STOPPED = "stopped"  # it ended and is not started again


class ControlRequest(Request, kw_only=True, omit_defaults=True):
    """A question to the supervisor; `restart` names a broker, or says `rolling`: all, one by one."""

    broker: int | None = None
    rolling: bool = False


class BrokerStatus(Struct, frozen=True, kw_only=True):
    """One broker of a supervisor; `pid` is None while no process runs."""

    broker: int
    pid: int | None
    state: State
    restarts: int


class StatusAnswer(Struct, kw_only=True):
    """The answer to every operation; with an error, `name` and `message` say which."""

    id: int | None = None
    error: int = 0
    name: str = ""
    message: str = ""
    brokers: list[BrokerStatus] = []


def ask(supervisor: SupervisorEntry, op: str, timeout_s: float, **fields: Any) -> StatusAnswer:
    """Put one question to a supervisor; waits for the answer or for its death.

    Raises: RequestTimedOut: no answer within `timeout_s`; BrokerGone: it died; ShmlogError.
    """
    import zmq

    who = f"the supervisor (pid {supervisor.pid})"
    death = process.open_pidfd(supervisor.pid)
    if death is None:
        raise BrokerGone(f"{who} is gone")
    with os.fdopen(death), zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(supervisor.endpoints["control"])
        socket.send_multipart([encode({"op": op, "id": 1, **fields}, Codec.JSON)])
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(death, zmq.POLLIN)
        events = poller.poll(int(timeout_s * 1000))
        if socket.poll(0):  # an answer counts even if the supervisor has ended since
            answer = decode(socket.recv_multipart()[0], StatusAnswer)
        elif events:
            raise BrokerGone(f"{who} ended before it answered {op!r}")
        else:
            raise RequestTimedOut(f"{who} did not answer {op!r} within {timeout_s:g} s")
    if answer.error:
        raise from_wire(answer.error, answer.message)
    return answer


def cause_of_death(event: Mapping[str, Any]) -> str:
    """How a process ended, for people: "killed by signal 9" or "ended with exit code 8"."""
    if "signal" in event:
        return f"killed by signal {event['signal']}"
    return f"ended with exit code {event['code']}" if "code" in event else "has ended"


def event_text(event: Mapping[str, Any]) -> str:
    """A supervisor's event as one line for people."""
    who = f"broker {event.get('broker')} (pid {event.get('pid')})"
    match event["event"]:
        case "started":
            return f"supervisor (pid {event['pid']}) on {event['directory']}"
        case "ready":
            adopted = "   adopted" if event.get("adopted") else ""
            return f"broker {event['broker']}   ready   pid {event['pid']}{adopted}"
        case "exit":
            text = f"{who} {cause_of_death(event)}"
            if "backoff_ms" in event:
                return f"{text}; restarting in {event['backoff_ms']} ms"
            return f"{text}; not started again" if event.get("unexpected") else text
        case "killed":
            return f"{who} did not stop within {event['waited_ms']} ms: killed"
        case "stopping":
            return f"stopping: {event['reason']}"
        case other:
            return str(other)
