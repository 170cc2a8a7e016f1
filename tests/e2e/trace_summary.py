"""Reads a trace file as Triton's trace_summary.py does: joins what belongs to one number, and adds up spans.

Spans are those of that tool: from one timestamp to another, both of which must be there, in their order.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

SPANS = {
    "HTTP_INFER": ("HTTP_RECV_START", "HTTP_SEND_END"),
    "HTTP_RECV": ("HTTP_RECV_START", "HTTP_RECV_END"),
    "HTTP_SEND": ("HTTP_SEND_START", "HTTP_SEND_END"),
    "GRPC_INFER": ("GRPC_WAITREAD_END", "GRPC_SEND_END"),
    "GRPC_WAITREAD": ("GRPC_WAITREAD_START", "GRPC_WAITREAD_END"),
    "GRPC_SEND": ("GRPC_SEND_START", "GRPC_SEND_END"),
    "REQUEST": ("REQUEST_START", "REQUEST_END"),
    "QUEUE": ("QUEUE_START", "COMPUTE_START"),
    "COMPUTE": ("COMPUTE_START", "COMPUTE_END"),
    "COMPUTE_INPUT": ("COMPUTE_START", "COMPUTE_INPUT_END"),
    "COMPUTE_INFER": ("COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START"),
    "COMPUTE_OUTPUT": ("COMPUTE_OUTPUT_START", "COMPUTE_END"),
}


@dataclass
class TraceRecord:
    """Everything of one number."""

    id: int
    model: tuple[str, int] | None = None
    parent_id: int | None = None
    request_id: str = ""
    times: dict[str, list[int]] = field(default_factory=dict)
    tensors: list[tuple[str, str, str]] = field(default_factory=list)

    def spans(self) -> dict[str, int]:
        """The time of each span whose timestamps are there."""
        found = {}
        for name, (start, end) in SPANS.items():
            if start in self.times and end in self.times:
                found[name] = self.times[end][-1] - self.times[start][0]
                assert found[name] >= 0, f"{name} of {self}"
        return found


def read_traces(*paths: Path) -> dict[int, TraceRecord]:
    traces: dict[int, TraceRecord] = {}
    for path in paths:
        for entry in json.loads(path.read_text()):
            trace = traces.setdefault(entry["id"], TraceRecord(entry["id"]))
            if "model_name" in entry:
                assert trace.model is None, "one head each"
                trace.model = entry["model_name"], entry["model_version"]
                trace.parent_id = entry.get("parent_id")
                trace.request_id = entry.get("request_id", "")
            for timestamp in entry.get("timestamps", ()):
                trace.times.setdefault(timestamp["name"], []).append(timestamp["ns"])
            if "activity" in entry:
                tensor = entry["tensor"]
                assert set(tensor) == {"name", "data", "shape", "dtype"}
                trace.tensors.append((entry["activity"], tensor["name"], tensor["data"]))
    return traces


def summarize(traces: Iterable[TraceRecord]) -> dict[tuple[str, int], dict[str, int]]:
    """How many spans of each name there are, by model."""
    summary: dict[tuple[str, int], dict[str, int]] = {}
    for trace in traces:
        if trace.model is not None:
            counts = summary.setdefault(trace.model, {})
            for name in trace.spans():
                counts[name] = counts.get(name, 0) + 1
    return summary
