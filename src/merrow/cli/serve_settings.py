"""From the given flags of `merrow serve` to `Settings`, and what must be said about them before serving.

Source: Triton, command_line_parser.cc.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merrow.cli.flags import FlagValues, GivenFlag
from merrow.cli.network_settings import build_network_settings
from merrow.cli.observe_settings import build_metrics_settings, build_trace_settings
from merrow.cli.process_settings import build_process_settings
from merrow.cli.repository_settings import build_repository_settings
from merrow.cli.scheduling_settings import build_cache_settings, build_rate_limit_settings
from merrow.cli.serve_flags import NO_EFFECT
from merrow.settings import (
    LogSettings,
    Settings,
    SharedMemorySettings,
)


@dataclass(frozen=True, slots=True)
class ServeCommand:
    """What a command line asks for, and what must be said about it before serving."""

    settings: Settings
    warnings: tuple[str, ...] = ()


def build_serve_command(
    given: Sequence[GivenFlag], escapes_log_messages: bool = True, environment: Mapping[str, str] | None = None
) -> ServeCommand:
    """Turn given flags into settings.

    Args:
        environment: where the platforms' containers say what they want (`AIP_...`, `SAGEMAKER_...`).

    Raises:
        FlagError: two flags contradict each other, or one needs another.
        SettingsError: a setting has an impossible value.
    """
    values = FlagValues(given)
    warnings = _explain_flags_without_effect(given)
    auto_complete = not values.last("disable-auto-complete-config", False)
    if values.has("strict-model-config"):
        warnings.append(
            "'--strict-model-config' has been deprecated! Please use '--disable-auto-complete-config' instead."
        )
        auto_complete = auto_complete and not values.last("strict-model-config", False)
    backend_config = _collect_backend_config(values.all("backend-config"))
    settings = Settings(
        server_id=values.last("id", "triton"),
        exit_timeout_seconds=values.last("exit-timeout-secs", 30),
        repository=build_repository_settings(values, environment or {}, auto_complete, backend_config),
        network=build_network_settings(values, environment or {}, warnings),
        log=LogSettings(
            verbose=values.last("log-verbose", 0),
            info=values.last("log-info", True),
            warning=values.last("log-warning", True),
            error=values.last("log-error", True),
            format=values.last("log-format", "default"),
            file=values.last("log-file", ""),
            escape_messages=escapes_log_messages,
        ),
        trace=build_trace_settings(values, environment or {}, warnings),
        metrics=build_metrics_settings(values, warnings),
        loop_stall_limit_ms=values.last("loop-stall-limit-ms", 5000),
        access_log=values.last("access-log", False),
        shared_memory=_build_shared_memory_settings(values),
        process=build_process_settings(backend_config),
        cache=build_cache_settings(values, environment or {}, warnings),
        rate_limit=build_rate_limit_settings(values, warnings),
    )
    return ServeCommand(settings, tuple(warnings))


def _explain_flags_without_effect(given: Sequence[GivenFlag]) -> list[str]:
    names = dict.fromkeys(each.flag.name for each in given if each.flag.name in NO_EFFECT)
    return [f"--{name} has no effect: {NO_EFFECT[name]}" for name in names]


def _collect_backend_config(given: Sequence[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    collected: dict[str, dict[str, str]] = {}
    for backend, setting, value in given:
        collected.setdefault(backend, {})[setting] = value
    return collected


def _build_shared_memory_settings(values: FlagValues) -> SharedMemorySettings:
    defaults = SharedMemorySettings()
    return SharedMemorySettings(
        allow_client_shm=values.last("allow-client-shm", defaults.allow_client_shm),
        max_regions=values.last("max-shared-memory-regions", defaults.max_regions),
        max_tensor_byte_size=values.last("max-shared-memory-tensor-byte-size", defaults.max_tensor_byte_size),
    )
