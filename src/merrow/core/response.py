"""One inference response, as the core knows it."""

from collections.abc import Sequence
from dataclasses import dataclass

from merrow.core.errors import ServerError
from merrow.core.tensor import Tensor


class Response:
    """Outputs in the order the backend produced them, or an error.

    `parameters` are the model's response parameters. `is_final` marks a request's last response. A response with
    neither outputs nor error and with `is_empty` set only says that the request is over (decoupled models).
    """

    __slots__ = ("error", "id", "is_empty", "is_final", "model_name", "model_version", "outputs", "parameters")

    def __init__(
        self,
        model_name: str,
        model_version: int,
        id: str = "",
        outputs: Sequence[Tensor] = (),
        parameters: "dict[str, bool | int | float | str] | None" = None,
        error: ServerError | None = None,
        is_final: bool = True,
        is_empty: bool = False,
    ) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.id = id
        self.outputs = outputs
        self.parameters = parameters
        self.error = error
        self.is_final = is_final
        self.is_empty = is_empty

    @property
    def weight(self) -> int:
        """How much of a window of bytes in flight it takes: its tensors, and something for itself."""
        weight = 64
        for tensor in self.outputs:
            weight += len(tensor.data)
        return weight

    def __repr__(self) -> str:
        content = repr(self.error) if self.error else repr(list(self.outputs))
        return f"Response({self.model_name!r}, {self.model_version}, {self.id!r}, {content})"


@dataclass(frozen=True, slots=True)
class ResponseTimes:
    """How long one response of a decoupled request took (monotonic nanoseconds); `index` counts from 0."""

    index: int
    start_ns: int
    output_start_ns: int
    end_ns: int


class TimedResponse(Response):
    """A response whose model measures each one. One that is empty and not final is only counted, never sent.

    Source: Triton, TRITONBACKEND_ModelInstanceReportResponseStatistics.
    """

    __slots__ = ("times",)

    times: ResponseTimes
