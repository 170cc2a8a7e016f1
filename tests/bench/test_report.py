"""The page that a benchmark writes."""

from bench.report import render
from bench.scenarios import LargeRow, LoadRow, StateRow

MIB = 1024 * 1024


def load_row(server: str, requests_per_second: float, cpu_us: float) -> LoadRow:
    return LoadRow("python identity", "http", 16, server, requests_per_second, 1000.0, 900.0, 2000.0, cpu_us, 10.0)


def test_both_servers_stand_in_the_table_and_are_compared():
    page = render([load_row("merrow", 15_000, 50), load_row("triton", 5_000, 200)], {"cores": "2"}, "today")

    assert page == (
        "# Benchmark of today\n\n"
        "- cores: 2\n\n"
        "## Load\n\n"
        "| scenario | protocol | c | server | req/s | mean us | p50 us | p99 us | CPU us | generator CPU us |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| python identity | http | 16 | merrow | 15,000 | 1,000 | 900 | 2,000 | 50 | 10 |\n"
        "| python identity | http | 16 | triton | 5,000 | 1,000 | 900 | 2,000 | 200 | 10 |\n\n"
        "merrow beside Triton:\n\n"
        "| scenario | protocol | c | throughput | mean latency | CPU per request |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| python identity | http | 16 | 3.00x | 1.00x | 25 % |\n"
    )


def test_a_server_without_a_peer_is_not_compared():
    assert "beside" not in render([load_row("merrow", 15_000, 50)], {}, "today")


def test_memory_is_told_in_tensors():
    row = LargeRow(64 * MIB, "grpc", "merrow", 10.0, 20.0, 50 * MIB, 178 * MIB, 300 * MIB)

    assert "| grpc | merrow | 10.0 | 640 | 20 | 50 MiB | 178 MiB | 2.0 tensors | 300 MiB |" in render(
        [row], {}, "today"
    )


def test_start_up():
    row = StateRow("30 Python models", "triton", 45.4, 31, 600 * MIB, 1200 * MIB)

    assert "| 30 Python models | triton | 45.40 s | 31 | 600 MiB | 1,200 MiB |" in render([row], {}, "today")
