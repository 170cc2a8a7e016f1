"""`pb_utils.MetricFamily` and `Metric`: metrics of a model's own, which the server shows with its others.

The server holds the values; a model holds on to what it made, and lets go of it by dropping the object.

Source: Triton, python_backend/src/metric.cc, metric_family.cc.
"""

from typing import Any

from merrow.backends.base import (
    ChangeMetric,
    DropMetric,
    DropMetricFamily,
    NewMetric,
    NewMetricFamily,
    ReadMetric,
)
from merrow.backends.python.pb_errors import (
    C_MODULE,
    PybindEnum,
    TritonModelException,
    bind_arguments,
    incompatible_arguments,
)
from merrow.backends.python.runtime import ModelRuntime
from merrow.core.errors import ServerError

_FAMILY_SIGNATURE = f"{C_MODULE}.MetricFamily(name: str, description: str, kind: {C_MODULE}.MetricKind)"
_METRIC_SIGNATURE = (
    f"(self: {C_MODULE}.MetricFamily, labels: object = None, buckets: object = None) -> {C_MODULE}.Metric"
)
_NOT_A_STRING = "attempt to access JSON non-string as string"


class MetricKind(PybindEnum):
    """What a metric's values mean."""

    __module__ = C_MODULE

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


class Metric:
    """One series of a family; made by `MetricFamily.Metric`."""

    __module__ = C_MODULE
    __slots__ = ("_number", "_runtime")
    _number: int
    _runtime: ModelRuntime

    def __init__(self) -> None:
        raise TypeError(f"{C_MODULE}.Metric: No constructor defined!")

    def increment(self, value: float) -> None:
        self._change("increment", value)

    def set(self, value: float) -> None:
        self._change("set", value)

    def observe(self, value: float) -> None:
        self._change("observe", value)

    def value(self) -> float:
        try:
            value = self._runtime.host.ask(ReadMetric(self._number))
        except ServerError as error:
            raise _failure(self._runtime, "Failed to get metric value", error) from None
        assert isinstance(value, (int, float))
        return float(value)

    def _change(self, operation: str, value: float) -> None:
        if not isinstance(value, (int, float)):
            signature = f"(self: {C_MODULE}.Metric, arg0: float) -> None"
            raise incompatible_arguments(signature, (self, value), None, operation)
        try:
            self._runtime.host.ask(ChangeMetric(self._number, operation, float(value)))
        except ServerError as error:
            text = "Failed to observe metric value" if operation == "observe" else f"Failed to {operation} metric value"
            raise _failure(self._runtime, text, error) from None

    def __del__(self) -> None:
        # An object that was not made by a family has no number.
        number = getattr(self, "_number", None)
        if number is not None:
            self._runtime.host.drop(DropMetric(number))


class MetricFamily:
    """Metrics of one name; each with other labels. The class that a model imports is bound to it."""

    __module__ = C_MODULE
    __slots__ = ("_kind", "_number")
    _runtime: ModelRuntime | None = None

    COUNTER = MetricKind.COUNTER
    GAUGE = MetricKind.GAUGE
    HISTOGRAM = MetricKind.HISTOGRAM

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name, description, kind = bind_arguments(
            ("name", "description", "kind"), (None, None, None), args, kwargs, _FAMILY_SIGNATURE
        )
        if not isinstance(name, str) or not isinstance(description, str) or not isinstance(kind, MetricKind):
            raise incompatible_arguments(_FAMILY_SIGNATURE, args, kwargs)
        runtime = self._runtime
        if runtime is None:
            raise TritonModelException("Custom metrics (MetricFamily) are only available in a model's instance.")
        self._kind = kind
        try:
            number = runtime.host.ask(NewMetricFamily(name, description, int(kind)))
        except ServerError as error:
            raise _failure(runtime, "Error when creating MetricFamily", error) from None
        assert isinstance(number, int)
        self._number = number

    def Metric(self, *args: Any, **kwargs: Any) -> Metric:  # the name that models use
        """The series with these labels; a histogram has the upper bounds of its buckets."""
        labels, buckets = bind_arguments(("labels", "buckets"), (None, None), args, kwargs, _METRIC_SIGNATURE)
        runtime = self._runtime
        assert runtime is not None
        if labels is not None and not isinstance(labels, dict):
            raise TritonModelException("Failed to create metric. Labels must be a dictionary.")
        if buckets is not None and not isinstance(buckets, list):
            raise TritonModelException("Failed to create metric. Buckets must be a list.")
        if buckets is not None and self._kind is not MetricKind.HISTOGRAM:
            raise TritonModelException("Failed to create metric. Unexpected buckets found.")
        if buckets is None and self._kind is MetricKind.HISTOGRAM:
            raise TritonModelException("Failed to create metric. Missing required buckets.")
        labels = labels or {}
        if not all(isinstance(value, str) for value in labels.values()):
            raise TritonModelException(f"Error when creating Metric: {_prefix(runtime)}{_NOT_A_STRING}")
        bounds = None if buckets is None else tuple(float(bound) for bound in buckets)
        try:
            number = runtime.host.ask(
                NewMetric(self._number, {str(name): value for name, value in labels.items()}, bounds)
            )
        except ServerError as error:
            raise _failure(runtime, "Error when creating Metric", error) from None
        assert isinstance(number, int)
        metric: Metric = object.__new__(Metric)
        metric._runtime = runtime
        metric._number = number
        return metric

    def __del__(self) -> None:
        # A family that could not be made has no number.
        number = getattr(self, "_number", None)
        if number is not None and self._runtime is not None:
            self._runtime.host.drop(DropMetricFamily(number))


def _prefix(runtime: ModelRuntime) -> str:
    return f"Failed to process the request for model '{runtime.instance_name}', message: "


def _failure(runtime: ModelRuntime, what: str, error: ServerError) -> TritonModelException:
    return TritonModelException(f"{what}: {_prefix(runtime)}{error.message}")
