"""The results as a Markdown page: tables, and the machine that they were measured on."""

from collections.abc import Sequence

from bench.process_tree import MIB
from bench.scenarios import MERROW, TRITON, LargeRow, LoadRow, PerfAnalyzerRow, Row, StateRow


def render(rows: Sequence[Row], machine: dict[str, str], date: str) -> str:
    sections = [f"# Benchmark of {date}", _machine_section(machine)]
    if load := [row for row in rows if isinstance(row, LoadRow)]:
        sections += ["## Load\n\n" + _load_table(load), _comparison(load)]
    if large := [row for row in rows if isinstance(row, LargeRow)]:
        sections.append("## A large tensor in and out, one connection\n\n" + _large_table(large))
    if states := [row for row in rows if isinstance(row, StateRow)]:
        sections.append("## Start-up and memory\n\n" + _state_table(states))
    if analyzed := [row for row in rows if isinstance(row, PerfAnalyzerRow)]:
        sections.append("## perf_analyzer, python identity\n\n" + _perf_analyzer_table(analyzed))
    return "\n\n".join(section for section in sections if section) + "\n"


def _machine_section(machine: dict[str, str]) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in machine.items())


def _load_table(rows: Sequence[LoadRow]) -> str:
    return _table(
        ("scenario", "protocol", "c", "server", "req/s", "mean us", "p50 us", "p99 us", "CPU us", "generator CPU us"),
        [
            (
                row.scenario,
                row.protocol,
                str(row.concurrency),
                row.server,
                f"{row.requests_per_second:,.0f}",
                f"{row.mean_us:,.0f}",
                f"{row.p50_us:,.0f}",
                f"{row.p99_us:,.0f}",
                f"{row.cpu_us:,.0f}",
                f"{row.generator_us:,.0f}",
            )
            for row in rows
        ],
    )


def _comparison(rows: Sequence[LoadRow]) -> str:
    """merrow beside Triton, where both ran."""
    found = {(row.scenario, row.protocol, row.concurrency, row.server): row for row in rows}
    lines = []
    for (scenario, protocol, concurrency, server), ours in found.items():
        theirs = found.get((scenario, protocol, concurrency, TRITON))
        if server == MERROW and theirs:
            lines.append(
                (
                    scenario,
                    protocol,
                    str(concurrency),
                    f"{ours.requests_per_second / theirs.requests_per_second:.2f}x",
                    f"{ours.mean_us / theirs.mean_us:.2f}x",
                    f"{ours.cpu_us / theirs.cpu_us * 100:.0f} %",
                )
            )
    if not lines:
        return ""
    header = ("scenario", "protocol", "c", "throughput", "mean latency", "CPU per request")
    return "merrow beside Triton:\n\n" + _table(header, lines)


def _large_table(rows: Sequence[LargeRow]) -> str:
    header = (
        "tensor",
        "protocol",
        "server",
        "req/s",
        "MiB/s each way",
        "CPU ms",
        "idle PSS",
        "peak PSS",
        "peak above idle",
        "sum of peak RSS",
    )
    return _table(
        header,
        [
            (
                _mib(row.tensor_bytes),
                row.protocol,
                row.server,
                f"{row.requests_per_second:.1f}",
                f"{row.requests_per_second * row.tensor_bytes / MIB:,.0f}",
                f"{row.cpu_ms:.0f}",
                _mib(row.idle_pss),
                _mib(row.peak_pss),
                f"{(row.peak_pss - row.idle_pss) / row.tensor_bytes:.1f} tensors",
                _mib(row.peak_rss),
            )
            for row in rows
        ],
    )


def _state_table(rows: Sequence[StateRow]) -> str:
    return _table(
        ("scenario", "server", "start to ready", "processes", "PSS", "RSS"),
        [
            (
                row.scenario,
                row.server,
                f"{row.start_seconds:.2f} s",
                str(row.process_count),
                _mib(row.pss),
                _mib(row.rss),
            )
            for row in rows
        ],
    )


def _perf_analyzer_table(rows: Sequence[PerfAnalyzerRow]) -> str:
    return _table(
        ("protocol", "c", "server", "infer/s", "mean us"),
        [
            (row.protocol, str(row.concurrency), row.server, f"{row.requests_per_second:,.0f}", f"{row.mean_us:,.0f}")
            for row in rows
        ],
    )


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f} MiB"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
