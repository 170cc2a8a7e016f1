"""The settings of `--backend-config=python,...` that concern the processes of models.

Triton's keep Triton's names; the others are merrow's own. docs/python-models.md lists them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from merrow.cli.flags import INT32_MAX, FlagError, integer_from, read_bool, read_float, read_string
from merrow.settings import ProcessSettings

_POSITIVE = integer_from(1, INT32_MAX)
_NOT_NEGATIVE = integer_from(0, INT32_MAX)


def _read_seconds(text: str) -> float:
    value: float = read_float(text)
    if not 0 <= value < INT32_MAX:
        raise FlagError(f"expected a number of seconds, got {text}")
    return value


def _read_size(text: str) -> int:
    value: int = integer_from(1, 2**63 - 1)(text)
    return value


# Setting -> the field of ProcessSettings, and how to read it.
PROCESS_SETTINGS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "stub-timeout-seconds": ("start_timeout_seconds", _POSITIVE),
    "shm-default-byte-size": ("arena_initial_byte_size", _POSITIVE),
    "stream-window-byte-size": ("stream_window_byte_size", _POSITIVE),
    "max-call-depth": ("max_call_depth", _POSITIVE),
    "restart-delay-min-ms": ("restart_delay_min_ms", _POSITIVE),
    "restart-delay-max-ms": ("restart_delay_max_ms", _POSITIVE),
    "close-timeout-seconds": ("close_timeout_seconds", _NOT_NEGATIVE),
    "crash-loop-deaths": ("crash_loop_death_count", integer_from(2, INT32_MAX)),
    "crash-loop-window-seconds": ("crash_loop_window_seconds", _POSITIVE),
    "crash-loop-retry-seconds": ("crash_loop_retry_seconds", _POSITIVE),
    "execution-timeout-seconds": ("execution_timeout_seconds", _read_seconds),
    "memory-limit-mb": ("memory_limit_mb", _NOT_NEGATIVE),
    "output-line-byte-size": ("output_line_byte_size", _POSITIVE),
    "output-lines-per-second": ("output_lines_per_second", _NOT_NEGATIVE),
    "output-bytes-per-second": ("output_bytes_per_second", _NOT_NEGATIVE),
    "environment-cache-directory": ("environment_cache_directory", read_string),
    "environment-max-byte-size": ("environment_max_byte_size", _read_size),
    "install-requirements": ("installs_requirements", read_bool),
    "requirements-timeout-seconds": ("requirements_timeout_seconds", _POSITIVE),
}


def build_process_settings(backend_config: Mapping[str, Mapping[str, str]]) -> ProcessSettings:
    """What the Python backend's settings say; others of its settings are the backend's own affair.

    Raises:
        FlagError: a value is of the wrong kind.
    """
    given = {**backend_config.get("", {}), **backend_config.get("python", {})}
    fields: dict[str, Any] = {}
    for setting, (field, read) in PROCESS_SETTINGS.items():
        if setting in given:
            try:
                fields[field] = read(given[setting])
            except FlagError as error:
                raise FlagError(f'Bad option: "--backend-config".\n{setting}: {error}') from None
    return replace(ProcessSettings(), **fields)
