"""`python -m perf QUESTION [--out FILE]`: one question each, yardsticks beside it.

produce    records per second through a DEALER socket, one producer, one partition; one replica and three, acks=all
consume    records per second of one reader, by ring and by socket, as bytes, batches and records
latency    from a record's intended time to its reader, open loop
startup    from start to ready and to the first ack, memory, and CPU of idle brokers
failover   kill -9 and SIGSTOP of the leader under load: the silence at the client, what was lost, the time line
groups     many groups over one topic, what readers cost a broker, first join and death to first record
rebalances members of a group killed, added, stopped, slow, and brokers killed, under load; what they did is judged
writeback  three brokers write to one disk until the kernel throttles: elections, longest turns
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile

from perf import harness, yardsticks
from perf.failover import failover
from perf.groups import groups
from perf.latency import latency
from perf.rebalances import rebalances
from perf.startup import startup
from perf.throughput import consume, produce
from perf.writeback import writeback

_QUESTIONS = {
    f.__name__: f
    for f in (produce, consume, latency, startup, failover, writeback, groups, rebalances)
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m perf",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("question", choices=list(_QUESTIONS))
    add("--out", help="write the JSON report here")
    add("--runs", type=int, default=3)
    add("--scale", type=float, default=1.0, help="times the number of records")
    add("--size", type=int, default=100, help="bytes a record (produce, consume, writeback)")
    add("--brokers", type=int, nargs="+", default=[1, 3], help="clusters of these sizes, in turn")
    add("--only", help="one row of produce, e.g. send_many/os")
    add("--batch-bytes", help="ceiling of a batch (produce)")
    add("--profile", action="store_true", help="sample the brokers of produce (slows them)")
    add("--rate", type=int, help="records per second: latency 1000, failover 500 a partition")
    add("--kills", type=int, default=20, help="kill -9 of a leader (failover)")
    add("--hangs", type=int, default=3, help="SIGSTOP of a leader (failover)")
    add("--storms", type=int, default=0, help="kill -9 of all brokers at once (failover)")
    add("--count", type=int, default=200, help="changes of the members (rebalances)")
    add("--seed", type=int, default=1, help="which change comes when (rebalances)")
    add("--writers", nargs="+", default=["python", "bare"], choices=["python", "bare"])
    add("--png", help="draw the time line of the kills here (failover)")
    add("--bytes", type=int, default=6 << 30, help="in all logs together (writeback)")
    add("--dir", help="where the clusters are made (writeback); default: for temporary files")
    add("--no-yardsticks", action="store_true", help="skip them: a smoke test")
    return parser


def main() -> None:
    """Ask one question."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clusters are stopped and removed
    before = {} if arguments.no_yardsticks else yardsticks.measure(tempfile.gettempdir())
    rows = _QUESTIONS[arguments.question](arguments)
    harness.report(arguments.question, rows, arguments.out, before)


if __name__ == "__main__":
    main()
