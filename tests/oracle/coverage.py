"""What the suite's cases ask: how many there are for each endpoint and RPC."""

from collections import Counter

from merrow.frontends.http.routes import resolve_target
from tests.oracle import suite
from tests.oracle.cases import GrpcCase

ELSEWHERE = "(no endpoint)"


def count_cases(seed: int) -> Counter[str]:
    """Cases by endpoint (`HTTP MODEL_INFER`) or RPC (`gRPC ModelInfer`)."""
    counts: Counter[str] = Counter()
    for group in suite.GROUPS.values():
        for case in group(seed):
            if isinstance(case, GrpcCase):
                counts[f"gRPC {case.method.rsplit('/', 1)[1]}"] += 1
                continue
            target = None if case.raw is not None else resolve_target(case.target.encode("latin-1"))
            counts[f"HTTP {ELSEWHERE if target is None else target.endpoint.name}"] += 1
    return counts


def format_counts(counts: Counter[str]) -> str:
    lines = [f"{count:6} {name}" for name, count in sorted(counts.items())]
    return "\n".join([*lines, f"{counts.total():6} in all"])
