"""What a model's processes may take: settings of the server, which a model's own parameters replace."""

from dataclasses import dataclass

from merrow.backends.base import ModelContext
from merrow.core.errors import InvalidArgumentError
from merrow.settings import ProcessSettings

EXECUTION_TIMEOUT_PARAMETER = "EXECUTION_TIMEOUT_SECONDS"
MEMORY_LIMIT_PARAMETER = "MEMORY_LIMIT_MB"


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """0 is without limit."""

    execution_timeout_ns: int = 0
    memory_limit_byte_size: int = 0

    def __str__(self) -> str:
        """As the log tells them at load; empty where there are none."""
        texts = []
        if self.execution_timeout_ns:
            texts.append(f", execution time-out {self.execution_timeout_ns / 1e9:g} s")
        if self.memory_limit_byte_size:
            texts.append(f", memory limit {self.memory_limit_byte_size / 1024 / 1024:g} MB")
        return "".join(texts)


def limits_of(context: ModelContext, settings: ProcessSettings) -> ChildLimits:
    """The limits of a model's processes.

    Raises:
        InvalidArgumentError: a parameter is no number, or negative.
    """
    seconds = _parameter(context, EXECUTION_TIMEOUT_PARAMETER, settings.execution_timeout_seconds)
    megabytes = _parameter(context, MEMORY_LIMIT_PARAMETER, settings.memory_limit_mb)
    return ChildLimits(int(seconds * 1e9), int(megabytes * 1024 * 1024))


def _parameter(context: ModelContext, name: str, default: float) -> float:
    parameter = context.config.parameters.get(name)
    if parameter is None:
        return default
    try:
        value = float(parameter.string_value)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise InvalidArgumentError(
            f"model '{context.name}': parameter {name} must be a number, and not negative, got "
            f"'{parameter.string_value}'"
        )
    return value
