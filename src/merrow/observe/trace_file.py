"""Traces as Triton writes them to files (mode `triton`).

A file is one JSON array; several of its objects belong to one trace, by `id`:

    {"id":1,"timestamps":[{"name":"HTTP_RECV_START","ns":123}]}
    {"id":1,"model_name":"m","model_version":1,"request_id":"x","parent_id":2}
    {"id":1,"activity":"TENSOR_QUEUE_INPUT","tensor":{"name":"I","data":"1,2","shape":"1,2","dtype":"FP32"}}

Traces collect in memory. With a log frequency, every so many are written to `<file>.<index>`; the trace that uses up
the count takes what there is to such a file, too; otherwise they go to `<file>` when the setting ends, or when much has
come together. The file is complete after each write: its last bracket is written over by the next.

Source: Triton, tracer.cc, TraceFile, StreamTraceActivity; core.md 7.3.
"""

import json
from collections.abc import Sequence
from typing import IO

import numpy as np

from merrow.core.datatypes import BYTES, NUMPY_DTYPES
from merrow.core.tensor import Tensor, split_bytes_elements
from merrow.observe.trace import REQUEST_START, FinishedTrace, SpanContext
from merrow.observe.trace_settings import TraceLevel, TraceSetting

# What may come together in memory before it goes to the file although nothing else asks for it.
_MAX_COLLECTED_BYTE_SIZE = 1024 * 1024


class TraceFile:
    """A `TraceOutput` that writes to the file of this name, and to those numbered after it. Files are opened late."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._file: IO[bytes] | None = None
        self._index = 0
        self._collected: dict[TraceSetting, _Collected] = {}

    def new_context(self, parent: SpanContext | None) -> SpanContext | None:
        return None

    def write(self, setting: TraceSetting, traces: Sequence[FinishedTrace], is_last: bool) -> None:
        collected = self._collected.get(setting)
        if collected is None:
            collected = self._collected[setting] = _Collected()
        # Children first: they end before what caused them.
        collected.add([format_trace(trace, setting.values.level) for trace in reversed(traces)])
        frequency = setting.values.log_frequency
        if is_last or (frequency and collected.trace_count >= frequency):
            self._write_numbered(collected.take())
        elif not frequency and collected.byte_size > _MAX_COLLECTED_BYTE_SIZE:
            self._append(collected.take())

    def end_setting(self, setting: TraceSetting) -> None:
        collected = self._collected.pop(setting, None)
        if collected is None or not collected.trace_count:
            return
        if setting.values.log_frequency:
            self._write_numbered(collected.take())
        else:
            self._append(collected.take())

    def close(self) -> None:
        # Settings that were replaced while a request ran that has not finished to this day.
        for setting in list(self._collected):
            self.end_setting(setting)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write_numbered(self, content: bytes) -> None:
        name = f"{self._name}.{self._index}"
        self._index += 1
        with open(name, "wb") as file:
            file.write(b"[" + content + b"]")

    def _append(self, content: bytes) -> None:
        if self._file is None:
            self._file = open(self._name, "wb")  # noqa: SIM115  # closed by `close`
            self._file.write(b"[" + content + b"]")
        else:
            self._file.seek(-1, 2)
            self._file.write(b"," + content + b"]")
        self._file.flush()


class _Collected:
    """Formatted traces that are not written yet."""

    __slots__ = ("_pieces", "byte_size", "trace_count")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.byte_size = 0
        # Of clients' requests; their children do not count.
        self.trace_count = 0

    def add(self, pieces: Sequence[bytes]) -> None:
        self.trace_count += 1
        self._pieces += filter(None, pieces)
        self.byte_size += sum(map(len, pieces))

    def take(self) -> bytes:
        content = b",".join(self._pieces)
        self._pieces = []
        self.byte_size = self.trace_count = 0
        return content


def format_trace(trace: FinishedTrace, level: TraceLevel) -> bytes:
    """The objects of one trace, joined by commas."""
    objects: list[object] = []
    for name, content in trace.records:
        if name == REQUEST_START:
            objects.append(_describe_request(trace))
        if isinstance(content, Tensor):
            objects.append({"id": trace.id, "activity": name, "tensor": _describe_tensor(content)})
        elif level & TraceLevel.TIMESTAMPS:
            objects.append({"id": trace.id, "timestamps": [{"name": name, "ns": content}]})
    texts = [json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in objects]
    return ",".join(texts).encode("utf-8", "surrogateescape")


def _describe_request(trace: FinishedTrace) -> dict[str, object]:
    described: dict[str, object] = {
        "id": trace.id,
        "model_name": trace.model_name,
        "model_version": trace.model_version,
    }
    if trace.request_id:
        described["request_id"] = trace.request_id
    if trace.parent_id:
        described["parent_id"] = trace.parent_id
    return described


def _describe_tensor(tensor: Tensor) -> dict[str, str]:
    return {
        "name": tensor.name,
        "data": _describe_data(tensor),
        "shape": ",".join(map(str, tensor.shape)),
        "dtype": tensor.datatype,
    }


def _describe_data(tensor: Tensor) -> str:
    """The elements as text; nothing for the datatypes that Triton leaves out."""
    datatype = tensor.datatype
    if datatype == BYTES:
        try:
            elements = split_bytes_elements(tensor.data)
        except ValueError:
            return ""
        return ",".join(f'"{element.decode("utf-8", "surrogateescape")}"' for element in elements)
    if datatype in ("FP16", "BF16") or datatype not in NUMPY_DTYPES:
        return ""
    dtype = NUMPY_DTYPES[datatype]
    if len(tensor.data) % dtype.itemsize:
        return ""
    values = np.frombuffer(tensor.data, np.uint8 if datatype == "BOOL" else dtype)
    if dtype.kind == "f":
        return ",".join(text.removesuffix(".0") for text in values.astype(str).tolist())
    return ",".join(map(str, values.tolist()))
