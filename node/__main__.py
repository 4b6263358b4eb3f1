"""The broker's command line: `python -P -m node --dir DIR --id N`.

Exit status: 0 stopped; 2 configuration, or a living owner; 7 damage it cannot start over; 8 a failed write or sync.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from node import journal
from node.broker import Broker
from shmlog import process
from shmlog.clock import SYSTEM_CLOCK
from shmlog.errors import CorruptLog, ShmlogError

EXIT_CONFIGURATION, EXIT_DAMAGED, EXIT_IO = 2, 7, 8


def main() -> int:
    """Run one broker until it is told to stop; the exit status."""
    parser = argparse.ArgumentParser(prog="python -P -m node", description="A shmlog broker.")
    parser.add_argument("--dir", type=Path, required=True, help="the cluster directory")
    parser.add_argument("--id", type=int, required=True, help="which broker of the cluster")
    parser.add_argument("--owner-pid", type=int, help="stop when this process, the parent, ends")
    arguments = parser.parse_args()
    if arguments.owner_pid is not None:
        process.end_with_parent(arguments.owner_pid)
    if not __debug__:
        parser.exit(EXIT_CONFIGURATION, "the broker's own checks are asserts: no python -O\n")
    journal.start(SYSTEM_CLOCK, arguments.id)
    try:
        Broker(arguments.dir, arguments.id).run()
    except CorruptLog as error:
        journal.failure("the log is damaged: run shmlog fsck", error)
        return EXIT_DAMAGED
    except ShmlogError as error:
        journal.error("cannot start", reason=str(error))
        return EXIT_CONFIGURATION
    except OSError as error:
        journal.failure("the disk failed: the broker ends", error)
        return EXIT_IO
    except Exception as error:  # noqa: BLE001 - the top of the loop: say it, and end the process
        journal.failure("the broker ends", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
