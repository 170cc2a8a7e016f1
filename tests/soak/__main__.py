"""Random lives of drivers and schedulers (`tests/engine/driver_simulation.py`), many more than the tests run.

    make soak                                    a minute, from a seed that the clock chooses
    make soak ARGS="--minutes=60"
    make soak ARGS="--seed=1234 --count=1"       one life again

Each life is longer than those of the tests. The first that breaks a promise ends the run with its seed and status 1.
"""

import argparse
import logging
import sys
import time
import traceback

from tests.engine.driver_simulation import Simulation

SHOW_SECONDS = 10


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make soak", description="Run random lives of drivers and schedulers.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (1)")
    parser.add_argument("--count", type=int, help="how many lives, instead of how long")
    parser.add_argument("--seed", type=int, help="the first seed (of the clock)")
    parser.add_argument("--events", type=int, default=400, help="events in each life (400)")
    options = parser.parse_args(arguments)
    first = options.seed if options.seed is not None else time.time_ns() // 1000 % 10**9
    started = shown = time.monotonic()
    done = 0
    while done < options.count if options.count is not None else time.monotonic() - started < options.minutes * 60:
        seed = first + done
        try:
            Simulation(seed).run(options.events)
        except Exception:
            traceback.print_exc()
            print(f"\nbroken: make soak ARGS='--seed={seed} --count=1 --events={options.events}'", file=sys.stderr)
            return 1
        done += 1
        if time.monotonic() - shown > SHOW_SECONDS:
            shown = time.monotonic()
            print(f"{done} lives of {options.events} events, from seed {first}", flush=True)
    print(f"{done} lives of {options.events} events, from seed {first}: every promise was kept")
    return 0


if __name__ == "__main__":
    # Sequences begun twice are warned of, by the thousand.
    logging.getLogger("merrow").setLevel(logging.CRITICAL)
    sys.exit(main())
