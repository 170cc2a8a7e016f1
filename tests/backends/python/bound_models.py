"""What a running model has bound to itself, without a model."""

from typing import Any

from merrow.backends.python.pb_exchange import InferenceRequest
from merrow.backends.python.runtime import ModelRuntime
from merrow.testing.recording_host import RecordingHost


def make_runtime(is_decoupled: bool = False, output_names: tuple[str, ...] = ("OUT",), **host: Any) -> ModelRuntime:
    """Of an instance `m_0_0`, whose host records; `host` is set on that."""
    recording = RecordingHost()
    for name, value in host.items():
        setattr(recording, name, value)
    runtime = ModelRuntime(recording, "m_0_0", "/models/m/1", is_decoupled, output_names)
    runtime.accepts_calls = True
    return runtime


def bound_request_class(runtime: ModelRuntime) -> type[InferenceRequest]:
    return type("InferenceRequest", (InferenceRequest,), {"__slots__": (), "_runtime": runtime})
