"""From the given flags of `merrow serve` to `Settings`, and what must be said about them before serving.

Source: Triton, command_line_parser.cc.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from merrow.cli.flags import INT32_MAX, FlagError, GivenFlag, integer_from
from merrow.cli.serve_flags import RESERVATIONS, Standing
from merrow.settings import (
    ConnectionLimits,
    LogSettings,
    ModelControlMode,
    NetworkSettings,
    ProcessSettings,
    RepositorySettings,
    Settings,
)


@dataclass(frozen=True, slots=True)
class ServeCommand:
    """What a command line asks for, and what must be said about it before serving."""

    settings: Settings
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Values:
    """The given flags by name; the last of several counts, unless all are asked for."""

    given: Sequence[GivenFlag]
    by_name: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for flag in self.given:
            self.by_name.setdefault(flag.flag.name, []).append(flag.value)

    def all(self, *names: str) -> tuple[Any, ...]:
        return tuple(flag.value for flag in self.given if flag.flag.name in names)

    def last(self, name: str, default: Any) -> Any:
        return self.by_name[name][-1] if name in self.by_name else default

    def has(self, name: str) -> bool:
        return name in self.by_name


def build_serve_command(given: Sequence[GivenFlag], escapes_log_messages: bool = True) -> ServeCommand:
    """Turn given flags into settings.

    Raises:
        FlagError: a flag is not supported yet, or two contradict each other.
        SettingsError: a setting has an impossible value.
    """
    values = _Values(given)
    warnings = _check_reservations(given)
    auto_complete = not values.has("disable-auto-complete-config")
    if values.has("strict-model-config"):
        warnings.append(
            "'--strict-model-config' has been deprecated! Please use '--disable-auto-complete-config' instead."
        )
        auto_complete = auto_complete and not values.last("strict-model-config", False)
    control_mode = ModelControlMode(values.last("model-control-mode", "none"))
    if control_mode is ModelControlMode.POLL:
        raise FlagError("--model-control-mode=poll is not supported by merrow yet: repositories are not polled")
    backend_config = _collect_backend_config(values.all("backend-config"))
    settings = Settings(
        server_id=values.last("id", "triton"),
        exit_timeout_seconds=values.last("exit-timeout-secs", 30),
        repository=RepositorySettings(
            model_repositories=values.all("model-repository", "model-store"),
            model_control_mode=control_mode,
            load_models=values.all("load-model"),
            auto_complete_config=auto_complete,
            exit_on_error=values.last("exit-on-error", True),
            strict_readiness=values.last("strict-readiness", True),
            model_load_thread_count=values.last("model-load-thread-count", 4),
            backend_config=backend_config,
            execution_place=values.last("execution-place", None),
        ),
        network=_build_network_settings(values),
        log=LogSettings(
            verbose=values.last("log-verbose", 0),
            info=values.last("log-info", True),
            warning=values.last("log-warning", True),
            error=values.last("log-error", True),
            format=values.last("log-format", "default"),
            file=values.last("log-file", ""),
            escape_messages=escapes_log_messages,
        ),
        process=_build_process_settings(backend_config),
    )
    _check_port_collisions(settings.network)
    return ServeCommand(settings, tuple(warnings))


def _check_reservations(given: Sequence[GivenFlag]) -> list[str]:
    warnings: list[str] = []
    for given_flag in given:
        name = given_flag.flag.name
        reservation = RESERVATIONS.get(name)
        if reservation is None or given_flag.value in reservation.harmless:
            continue
        if reservation.standing is Standing.NOT_YET_ERROR:
            raise FlagError(f"--{name}={given_flag.text} is not supported by merrow yet: {reservation.reason}")
        if reservation.standing is Standing.NO_EFFECT:
            warnings.append(f"--{name} has no effect: {reservation.reason}")
        else:
            warnings.append(f"--{name} is not obeyed by merrow yet: {reservation.reason}")
    return warnings


def _collect_backend_config(given: Sequence[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    collected: dict[str, dict[str, str]] = {}
    for backend, setting, value in given:
        collected.setdefault(backend, {})[setting] = value
    return collected


def _build_network_settings(values: _Values) -> NetworkSettings:
    port = values.last("port", None)
    address = values.last("address", "127.0.0.1")
    http_address = values.last("http-address", address)
    max_input_byte_size = values.last("http-max-input-size", 64 * 1024 * 1024)
    if max_input_byte_size <= 0:
        raise FlagError("Error: --http-max-input-size must be greater than 0.")
    return NetworkSettings(
        port=port,
        address=address,
        allow_http=values.last("allow-http", port is None or values.has("http-port")),
        http_address=http_address,
        http_port=values.last("http-port", 8000),
        reuse_http_port=values.last("reuse-http-port", False),
        http_max_input_byte_size=max_input_byte_size,
        allow_grpc=values.last("allow-grpc", port is None or values.has("grpc-port")),
        grpc_address=values.last("grpc-address", address),
        grpc_port=values.last("grpc-port", 8001),
        reuse_grpc_port=values.last("reuse-grpc-port", False),
        allow_metrics=values.last("allow-metrics", port is None or values.has("metrics-port")),
        metrics_address=values.last("metrics-address", http_address),
        metrics_port=values.last("metrics-port", 8002),
        limits=_build_connection_limits(values),
    )


def _build_connection_limits(values: _Values) -> ConnectionLimits:
    defaults = ConnectionLimits()
    idle_seconds = values.last("idle-timeout-secs", None)
    receive_seconds = values.last("receive-timeout-secs", None)
    return ConnectionLimits(
        max_header_byte_size=values.last("max-header-byte-size", defaults.max_header_byte_size),
        max_header_count=values.last("max-header-count", defaults.max_header_count),
        max_body_byte_size=values.last("max-body-byte-size", defaults.max_body_byte_size),
        max_connections=values.last("max-connections", defaults.max_connections),
        max_concurrent_streams=values.last("max-concurrent-streams", defaults.max_concurrent_streams),
        max_resets_per_second=values.last("max-resets-per-second", defaults.max_resets_per_second),
        max_control_frames_per_second=values.last(
            "max-control-frames-per-second", defaults.max_control_frames_per_second
        ),
        max_pipelined_requests=values.last("max-pipelined-requests", defaults.max_pipelined_requests),
        idle_timeout_ns=defaults.idle_timeout_ns if idle_seconds is None else idle_seconds * 10**9,
        receive_timeout_ns=defaults.receive_timeout_ns if receive_seconds is None else receive_seconds * 10**9,
        max_write_buffer_byte_size=values.last("max-write-buffer-byte-size", defaults.max_write_buffer_byte_size),
        stream_window_byte_size=values.last("stream-window-byte-size", defaults.stream_window_byte_size),
        max_frame_byte_size=values.last("max-frame-byte-size", defaults.max_frame_byte_size),
    )


def _build_process_settings(backend_config: dict[str, dict[str, str]]) -> ProcessSettings:
    """The Python backend's settings that concern its processes."""
    defaults = ProcessSettings()
    python = {**backend_config.get("", {}), **backend_config.get("python", {})}
    return ProcessSettings(
        start_timeout_seconds=_read_backend_integer(python, "stub-timeout-seconds", defaults.start_timeout_seconds),
        arena_initial_byte_size=_read_backend_integer(
            python, "shm-default-byte-size", defaults.arena_initial_byte_size
        ),
    )


def _read_backend_integer(config: dict[str, str], setting: str, default: int) -> int:
    if setting not in config:
        return default
    try:
        return integer_from(1, INT32_MAX)(config[setting])
    except FlagError as error:
        raise FlagError(f'Bad option: "--backend-config".\n{setting}: {error}') from None


def _check_port_collisions(network: NetworkSettings) -> None:
    """Refuse two services on one address and port, in Triton's words; port 0 never collides."""
    services = []
    if network.port is not None:
        services.append(("all", network.address, network.port))
    if network.allow_http:
        services.append(("HTTP", network.http_address, network.http_port))
    if network.allow_grpc:
        services.append(("GRPC", network.grpc_address, network.grpc_port))
    if network.allow_metrics:
        services.append(("metrics", network.metrics_address, network.metrics_port))
    for index, (name, address, port) in enumerate(services):
        for other_name, other_address, other_port in services[index + 1 :]:
            if port and port == other_port and address == other_address:
                raise FlagError(
                    f"The server cannot listen to {name} requests and {other_name} requests at the same address and "
                    f"port {address}:{port}\nTo serve everything on one port, use --port={port} alone."
                )
