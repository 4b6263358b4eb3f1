"""`python -m tests.sim --seeds 2000 --jobs 2`: whole clusters, one life a seed; see `tests.sim`."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter

from .life import Result, live, options_of


def _one(seed: int) -> Result:
    return live(seed)[0]


def _say(result: Result, arguments: argparse.Namespace) -> None:
    planted = f" --planted {arguments.planted}" if arguments.planted else ""
    print(f"\nseed {result.seed}: {result.violation}", flush=True)
    print(f"  replay: python -m tests.sim --seed {result.seed}{planted} --log", flush=True)
    print(options_of(result.seed), flush=True)


def _replay(arguments: argparse.Namespace) -> int:
    result, life = live(arguments.seed, log=arguments.log)
    for line in life.world.log or ():
        print(line)
    print(options_of(arguments.seed))
    print(result._replace(counts={}))
    for what, count in sorted(result.counts.items()):
        print(f"    {what}: {count}")
    return 1 if result.violation else 0


def _hunt(arguments: argparse.Namespace) -> int:
    """Every planted bug until a seed has caught it."""
    from .planted import DIRECTED, PLANTED

    missed = []
    seeds = range(arguments.start, arguments.start + arguments.seeds)
    for name, bug in PLANTED.items():
        began, tried, caught = time.monotonic(), 0, None
        undo = bug.plant()
        with multiprocessing.get_context("fork").Pool(arguments.jobs) as pool:
            for result in pool.imap(_one, seeds):
                tried += 1
                if result.violation is not None:
                    caught = result
                    break
            pool.terminate()
        undo()
        spent = time.monotonic() - began
        if caught is None:
            missed.append(name)
            elsewhere = f"; caught by {DIRECTED[name]}" if name in DIRECTED else ""
            print(
                f"{bug.id:8}{name}: NOT caught by {tried} seeds, {spent:.0f} s{elsewhere}",
                flush=True,
            )
        else:
            what = str(caught.violation)[:90]
            print(
                f"{bug.id:8}{name}: seed {caught.seed}, the {tried}., {spent:.0f} s: {what}",
                flush=True,
            )
    print(f"{len(PLANTED) - len(missed)} of {len(PLANTED)} caught; missed: {missed}")
    return 1 if missed else 0


def _same_twice(arguments: argparse.Namespace) -> int:
    """Every seed under two hash seeds: is it the same life? In processes of their own."""
    command = [sys.executable, "-P", "-m", "tests.sim", "--digests"]
    command += [f"--{name}={getattr(arguments, name)}" for name in ("seeds", "start", "jobs")]
    lives = []
    for hash_seed in "1", "2":
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *sys.path])
        ran = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        lives.append(ran.stdout.splitlines())
    differ = [one.split()[0] for one, other in zip(*lives, strict=True) if one != other]
    print(f"{len(lives[0])} seeds, each twice: {len(differ)} differ {' '.join(differ)}")
    return 1 if differ else 0


def _digests(arguments: argparse.Namespace) -> int:
    seeds = range(arguments.start, arguments.start + arguments.seeds)
    with multiprocessing.get_context("fork").Pool(arguments.jobs) as pool:
        for result in pool.imap(_one, seeds, chunksize=4):
            print(result.seed, result.digest, result.events)
    return 0


def main() -> int:
    """Run seeds; 1 if any of them has a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many lives")
    parser.add_argument("--start", type=int, default=1, help="the first seed")
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--log", action="store_true", help="with --seed: print what happens")
    parser.add_argument(
        "--planted", help="with this bug put back (planted.py); all: each until it is caught"
    )
    parser.add_argument(
        "--determinism", action="store_true", help="each seed under two hash seeds: the same life?"
    )
    parser.add_argument("--digests", action="store_true", help="print the hash of each life")
    parser.add_argument("--first", action="store_true", help="stop at the first violation")
    arguments = parser.parse_args()
    if arguments.determinism:
        return _same_twice(arguments)
    if arguments.digests:
        return _digests(arguments)
    if arguments.planted == "all":
        return _hunt(arguments)
    if arguments.planted:
        from . import planted

        planted.PLANTED[arguments.planted].plant()
    if arguments.seed is not None:
        return _replay(arguments)
    began = shown = time.monotonic()
    events = virtual_ms = lives = acked = 0
    failed: list[int] = []
    counts: Counter[str] = Counter()
    seeds = range(arguments.start, arguments.start + arguments.seeds)
    # Forked, so that a planted bug is there too.
    with multiprocessing.get_context("fork").Pool(arguments.jobs) as pool:
        for result in pool.imap_unordered(_one, seeds, chunksize=4):
            lives += 1
            events += result.events
            acked += result.acked
            virtual_ms += result.virtual_ms
            counts.update(result.counts)
            if result.violation is not None:
                failed.append(result.seed)
                _say(result, arguments)
                if arguments.first:
                    pool.terminate()
                    break
            now = time.monotonic()
            if now - shown > 10:
                shown = now
                print(
                    f"{lives} of {len(seeds)} lives, {events / (now - began):,.0f} events/s, "
                    f"{len(failed)} violations",
                    flush=True,
                )
    spent = time.monotonic() - began
    print(
        f"{lives} lives in {spent:.0f} s ({lives / spent:.1f} a second), {events:,} events "
        f"({events // max(lives, 1)} a life, {events / spent:,.0f} a second), "
        f"{virtual_ms / 1000 / max(lives, 1):.1f} s of virtual time a life, {acked:,} batches acked, "
        f"{len(failed)} violations{': ' + str(sorted(failed)) if failed else ''}"
    )
    for what, count in sorted(counts.items()):
        print(f"    {what}: {count:,}")
    if not failed:
        print(f"    0 of {lives}: at most {3 / max(lives, 1):.2%} of lives fail, at 95 %")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
