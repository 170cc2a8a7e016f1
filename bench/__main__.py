"""Measure merrow and the real Triton side by side, and write what was found to `bench/results/`.

python -m bench                                  # everything, some minutes
python -m bench --scenario python-identity       # one scenario (may be repeated)
python -m bench --quick                          # short windows: does it run at all?
python -m bench --peer merrow                    # without the real Triton
python -m bench --perf-analyzer                  # NVIDIA's load generator as well
"""

import argparse
import datetime
import pathlib
import sys
import tempfile

from bench import machine, report
from bench.load import LoadError
from bench.scenarios import MERROW, SCENARIOS, TRITON, Plan, Row, perf_analyzer
from tests.oracle import real_triton
from tests.oracle.server_process import ServerStartError

RESULTS = pathlib.Path(__file__).parent / "results"


def main() -> int:
    arguments = _parse_arguments()
    peers = tuple(arguments.peer or (MERROW, TRITON))
    if TRITON in peers:
        try:
            real_triton.install()
        except real_triton.RealTritonUnavailableError as error:
            print(f"without the real Triton: {error}", file=sys.stderr)
            peers = tuple(peer for peer in peers if peer != TRITON)
    facts = machine.describe() | {"triton": real_triton.VERSION if TRITON in peers else "not run"}
    speeds = [machine.loop_ms()]
    with tempfile.TemporaryDirectory(prefix="merrow-bench-") as folder:
        plan = Plan(
            folder=pathlib.Path(folder),
            peers=peers,
            seconds=0.3 if arguments.quick else arguments.seconds,
            window_count=2 if arguments.quick else arguments.windows,
            concurrencies=tuple(arguments.concurrency or (1, 16)),
        )
        wanted = {name: SCENARIOS[name] for name in arguments.scenario or SCENARIOS}
        if arguments.perf_analyzer:
            wanted["perf_analyzer"] = perf_analyzer
        rows: list[Row] = []
        failed = []
        for name, measure in wanted.items():
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                rows += measure(plan)
            except (LoadError, ServerStartError) as error:
                print(f"{name} failed: {error}", file=sys.stderr)
                failed.append(name)
            speeds.append(machine.loop_ms())
    if failed:
        facts["failed, and not below"] = ", ".join(failed)
    facts["a loop of 10^6 steps in Python during the run"] = f"{min(speeds):.0f} to {max(speeds):.0f} ms"
    date = datetime.datetime.now(datetime.timezone.utc)
    page = report.render(rows, facts, f"{date:%Y-%m-%d %H:%M} UTC")
    print(page)
    if not arguments.quick:
        path = arguments.output or RESULTS / f"{date:%Y-%m-%d-%H%M}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page)
        print(f"written to {path}", file=sys.stderr)
    return 1 if failed else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS))
    parser.add_argument("--peer", action="append", choices=(MERROW, TRITON))
    parser.add_argument("--concurrency", action="append", type=int, metavar="N", help="connections (1 and 16)")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a window (1.5)")
    parser.add_argument("--windows", type=int, default=4, help="windows of each server and load (4)")
    parser.add_argument("--quick", action="store_true", help="short windows, nothing written")
    parser.add_argument("--perf-analyzer", action="store_true", help="also run NVIDIA's perf_analyzer")
    parser.add_argument("--output", type=pathlib.Path, help="the page to write, instead of one named by the date")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
