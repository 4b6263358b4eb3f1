"""A broker that samples itself: `python -m perf.profiled --dir DIR --id N`, in place of `python -m node`.

Between one SIGUSR1 and the next, every millisecond of the process's CPU time a signal looks where the loop's thread
is; its stack is counted at the next bytecode, so time inside a C call belongs to the line that made it, and so does
the time that other threads (libzmq's, the workers) use meanwhile. At the end profile-N.json in DIR has how often each
function was found at work, itself or below it, by what share of all samples.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from node.__main__ import main

_ROOT = str(Path(__file__).parents[1]) + "/"
_TOP = 40


def _name(frame: FrameType) -> str:
    code = frame.f_code
    return (
        f"{code.co_filename.removeprefix(_ROOT).rpartition('site-packages/')[2]}:{code.co_qualname}"
    )


class Sampler:
    """Counts of lines and functions."""

    def __init__(self) -> None:
        self.is_on = False
        self.count = 0
        self.own: Counter[str] = Counter()  # the line at work
        self.below: Counter[str] = Counter()  # each function on the stack, once

    def __call__(self, _: int, frame: FrameType | None) -> None:
        """One sample."""
        self.count += 1
        at, seen = frame, set()
        while at is not None:
            name = _name(at)
            if at is frame:
                self.own[f"{name}:{at.f_lineno}"] += 1
            seen.add(name)
            at = at.f_back
        self.below.update(seen)

    def toggle(self, *_: object) -> None:
        """Begin or end."""
        self.is_on = not self.is_on
        interval = 0.001 if self.is_on else 0.0
        signal.setitimer(signal.ITIMER_PROF, interval, interval)

    def write(self, file: Path) -> None:
        """As JSON: shares in percent, the largest first."""
        total = max(1, self.count)
        tables = {
            kind: {name: round(100 * n / total, 1) for name, n in table.most_common(_TOP)}
            for kind, table in (("own", self.own), ("below", self.below))
        }
        file.write_text(json.dumps({"samples": self.count, **tables}))


if __name__ == "__main__":
    where, broker = (sys.argv[sys.argv.index(f"--{name}") + 1] for name in ("dir", "id"))
    sampler = Sampler()
    signal.signal(signal.SIGPROF, sampler)
    signal.signal(signal.SIGUSR1, sampler.toggle)
    code = main()
    sampler.write(Path(where) / f"profile-{broker}.json")
    sys.exit(code)
