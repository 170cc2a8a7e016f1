"""Every option of the server, as values: what `merrow serve` was told, validated on construction.

The command line (`cli`) is the only reader of argv and the environment; everything else receives the part of
`Settings` it needs. A field has Triton's flag name where Triton has the flag. Sizes are bytes, times say their unit.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class SettingsError(ValueError):
    """An option has an impossible value; the text says which, and what was expected."""


class ModelControlMode(enum.Enum):
    """`--model-control-mode`."""

    NONE = "none"
    POLL = "poll"
    EXPLICIT = "explicit"


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """Which models there are, and how they are loaded."""

    model_repositories: tuple[str, ...] = ()
    model_control_mode: ModelControlMode = ModelControlMode.NONE
    load_models: tuple[str, ...] = ()
    auto_complete_config: bool = True
    exit_on_error: bool = True
    strict_readiness: bool = True
    model_load_thread_count: int = 4
    # `--backend-config`: backend name ("" for all) -> setting -> value.
    backend_config: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # Overrides every model's own choice: "inline", "thread", "process" or None.
    execution_place: str | None = None

    def __post_init__(self) -> None:
        if self.model_load_thread_count < 1:
            raise SettingsError(
                f"--model-load-thread-count must be a positive number of threads, got {self.model_load_thread_count}"
            )
        if self.load_models and self.model_control_mode is not ModelControlMode.EXPLICIT:
            raise SettingsError(
                "Error: Use of '--load-model' requires setting '--model-control-mode=explicit' as well."
            )
        if "*" in self.load_models and len(self.load_models) > 1:
            raise SettingsError("Wildcard model name '*' must be the ONLY startup model if specified at all.")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds on what one client may make the server hold or do; each is a flag of merrow's own."""

    # Request line and headers together, HTTP/1.1 and HTTP/2.
    max_header_byte_size: int = 64 * 1024
    max_header_count: int = 256
    # One request body or gRPC message; Triton's is INT32_MAX.
    max_body_byte_size: int = 2**31 - 1
    max_connections: int = 10_000
    max_concurrent_streams: int = 1024
    # Stream resets by the client, and control frames (PING, SETTINGS, empty DATA, ...), per second and connection.
    max_resets_per_second: int = 200
    max_control_frames_per_second: int = 2000
    # Pipelined HTTP/1.1 requests waiting behind one that is being answered.
    max_pipelined_requests: int = 64
    # A connection with no request in flight, and a request whose bytes stopped coming.
    idle_timeout_ns: int = 3600 * 10**9
    receive_timeout_ns: int = 60 * 10**9
    # Bytes of answers that may wait for a slow reader before a stream stops being filled.
    max_write_buffer_byte_size: int = 1024 * 1024
    # HTTP/2 receive window of a stream; a connection's is four times that.
    stream_window_byte_size: int = 4 * 1024 * 1024
    max_frame_byte_size: int = 256 * 1024


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """Which ports are opened, and what they serve."""

    # `--port`: everything on one port; the three ports below are then closed unless set by hand.
    port: int | None = None
    address: str = "127.0.0.1"
    allow_http: bool = True
    http_address: str = "127.0.0.1"
    http_port: int = 8000
    reuse_http_port: bool = False
    http_max_input_byte_size: int = 64 * 1024 * 1024
    allow_grpc: bool = True
    grpc_address: str = "127.0.0.1"
    grpc_port: int = 8001
    reuse_grpc_port: bool = False
    allow_metrics: bool = True
    metrics_address: str = "127.0.0.1"
    metrics_port: int = 8002
    limits: ConnectionLimits = ConnectionLimits()


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, and how."""

    verbose: int = 0
    info: bool = True
    warning: bool = True
    error: bool = True
    format: str = "default"
    file: str = ""
    # Messages as JSON strings, one line each (environment: TRITON_SERVER_ESCAPE_LOG_MESSAGES).
    escape_messages: bool = True


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """How model processes are run."""

    # `--backend-config=python,stub-timeout-seconds`: how long a child may take to start.
    start_timeout_seconds: int = 30
    # How long a model's `finalize` may take before its process is killed.
    close_timeout_seconds: int = 30
    arena_initial_byte_size: int = 1024 * 1024
    # Restart back-off of a child that dies: doubles from the first to the last.
    restart_delay_min_ms: int = 100
    restart_delay_max_ms: int = 10_000


@dataclass(frozen=True, slots=True)
class Settings:
    """All options of one server."""

    server_id: str = "triton"
    exit_timeout_seconds: int = 30
    repository: RepositorySettings = RepositorySettings()
    network: NetworkSettings = NetworkSettings()
    log: LogSettings = LogSettings()
    process: ProcessSettings = ProcessSettings()
