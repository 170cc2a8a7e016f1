"""Every option of the server, as values: what `merrow serve` was told, validated on construction.

The command line (`cli`) is the only reader of argv and the environment; everything else receives the part of
`Settings` it needs. A field has Triton's flag name where Triton has the flag. Sizes are bytes, times say their unit.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from merrow.core.restrictions import Restrictions


class SettingsError(ValueError):
    """An option has an impossible value; the text says which, and what was expected."""


class ModelControlMode(enum.Enum):
    """`--model-control-mode`."""

    NONE = "none"
    POLL = "poll"
    EXPLICIT = "explicit"


@dataclass(frozen=True, slots=True)
class SchedulerHold:
    """For tests of batching: each scheduler waits for so many requests before its first batch; 0 is off.

    The environment variables TRITONSERVER_DELAY_SCHEDULER and TRITONSERVER_BACKLOG_DELAY_SCHEDULER.
    """

    request_count: int = 0
    backlog_count: int = 0


@dataclass(frozen=True, slots=True)
class CloudSettings:
    """Repositories that are not on this machine (s3://, gs:// and the like)."""

    # Where copies of models are kept; "" is below the user's cache directory.
    cache_directory: str = ""
    # Of copies that no model uses any more, how many bytes are kept for the next load.
    cache_byte_size: int = 32 * 1024**3
    # Where the directory that a model is loaded from is made, by scheme (TRITON_AWS_MOUNT_DIRECTORY, ...).
    mount_directories: Mapping[str, str] = field(default_factory=dict)
    # TRITON_CLOUD_CREDENTIAL_PATH: a file with credentials by repository; "" leaves it to the usual places.
    credential_path: str = ""
    # AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY.
    azure_account: str = ""
    azure_key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.cache_byte_size < 0:
            raise SettingsError(f"--remote-cache-byte-size must not be negative, got {self.cache_byte_size}")


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """`--host-policy`: where instances of one policy run. Given both, the cores count."""

    numa_node: int | None = None
    cpu_cores: tuple[int, ...] = ()


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
    # How often a load that failed is tried again.
    model_load_retry_count: int = 0
    # By name: a group's `host_policy`, or else `cpu`, `gpu_<number>` or `model`.
    host_policies: Mapping[str, HostPolicy] = field(default_factory=dict)
    # GPUs of less are not used.
    min_compute_capability: float = 6.0
    # `--model-load-gpu-limit`: device -> the fraction of its memory in use from which on nothing is loaded onto it.
    model_load_gpu_limits: Mapping[int, float] = field(default_factory=dict)
    repository_poll_seconds: int = 15
    # `--model-config-name`: `configs/<name>.pbtxt` of each model that has it, instead of config.pbtxt.
    model_config_name: str = ""
    model_namespacing: bool = False
    cloud: CloudSettings = CloudSettings()
    # `--backend-config`: backend name ("" for all) -> setting -> value.
    backend_config: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # A model that runs in the server's process, one instance on a thread, so that a debugger reaches it; "" is none.
    debug_model: str = ""
    # Overrides every model's own choice: "inline", "thread", "process" or None.
    execution_place: str | None = None
    scheduler_hold: SchedulerHold = SchedulerHold()

    def __post_init__(self) -> None:
        if self.model_load_thread_count < 1:
            raise SettingsError(
                f"--model-load-thread-count must be a positive number of threads, got {self.model_load_thread_count}"
            )
        if self.model_load_retry_count < 0:
            raise SettingsError(f"--model-load-retry-count must not be negative, got {self.model_load_retry_count}")
        if self.repository_poll_seconds < 1 and self.model_control_mode is ModelControlMode.POLL:
            raise SettingsError(
                f"--repository-poll-secs must be at least 1 with --model-control-mode=poll, got "
                f"{self.repository_poll_seconds}"
            )
        for device, fraction in self.model_load_gpu_limits.items():
            if device < 0 or not 0.0 <= fraction <= 1.0:
                raise SettingsError(
                    f"--model-load-gpu-limit expects device id >= 0 and limit fraction in range [0.0, 1.0], got "
                    f"{device}:{fraction:f}"
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
    # ModelStreamInfer: requests of one stream that are not answered yet, and bytes of responses that wait for a client
    # that does not read, or for their turn.
    max_stream_requests: int = 1024
    max_stream_buffer_byte_size: int = 64 * 1024 * 1024
    # Memory for the bodies that are being received, over all connections and ports; more are refused until some of
    # it is free again.
    max_receiving_byte_size: int = 8 * 1024**3


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS of one port, as PEM files. `is_mutual`: clients must have a certificate that the root certificate signed."""

    certificate_file: str
    key_file: str
    root_certificate_file: str = ""
    is_mutual: bool = False


@dataclass(frozen=True, slots=True)
class KeepaliveSettings:
    """Pings both ways, and the age of HTTP/2 connections (`--grpc-keepalive-...` and so on)."""

    time_ms: int = 7_200_000
    timeout_ms: int = 20_000
    permit_without_calls: bool = False
    # Pings that are sent without a frame of data in between; 0 is any number.
    max_pings_without_data: int = 2
    # A client that pings more often gets a strike; beyond so many strikes it is shown out. 0 is any number.
    min_recv_ping_interval_without_data_ms: int = 300_000
    max_ping_strikes: int = 2
    # None is no limit.
    max_connection_age_ms: int | None = None
    max_connection_age_grace_ms: int | None = None


@dataclass(frozen=True, slots=True)
class SageMakerSettings:
    """The port for Amazon SageMaker. What has no flag comes from environment variables of the platform's containers."""

    address: str = "127.0.0.1"
    port: int = 8080
    default_model: str = "unspecified_SAGEMAKER_TRITON_DEFAULT_MODEL_NAME"
    ping_mode: str = "ready"
    inference_type: str = "infer"
    # Where the platform puts models that it wants loaded; always the same there.
    models_directory: str = "/opt/ml/models"


@dataclass(frozen=True, slots=True)
class VertexAiSettings:
    """The port for Google Vertex AI. Without a default model, the repository must hold exactly one."""

    predict_route: str
    health_route: str
    address: str = "127.0.0.1"
    port: int = 8080
    default_model: str = ""


@dataclass(frozen=True, slots=True)
class GrpcDelays:
    """For tests of clients and of cancellation: where gRPC calls are held back, and for how long.

    The environment variables TRITONSERVER_DELAY_... and TRITONSERVER_SERVER_DELAY_GRPC_RESPONSE_SEC; what each holds
    back stands in `frontends.grpc.delays`.
    """

    process_entry_ms: int = 0
    notification_ms: int = 0
    process_ms: int = 0
    response_complete_exec_ms: int = 0
    response_completion_ms: int = 0
    complete_ms: int = 0
    response_ms: int = 0
    server_response_seconds: int = 0


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """Which ports are opened, and what they serve. An address `unix:PATH` is a Unix socket, without a port."""

    # `--port`: everything on one port; the three ports below are then closed unless set by hand.
    port: int | None = None
    address: str = "127.0.0.1"
    reuse_port: bool = False
    tls: TlsSettings | None = None
    allow_http: bool = True
    http_address: str = "127.0.0.1"
    http_port: int = 8000
    reuse_http_port: bool = False
    http_tls: TlsSettings | None = None
    http_max_input_byte_size: int = 64 * 1024 * 1024
    http_header_forward_pattern: str = ""
    http_restrictions: Restrictions = field(default_factory=dict)
    allow_grpc: bool = True
    grpc_address: str = "127.0.0.1"
    grpc_port: int = 8001
    reuse_grpc_port: bool = False
    grpc_tls: TlsSettings | None = None
    grpc_header_forward_pattern: str = ""
    grpc_restrictions: Restrictions = field(default_factory=dict)
    # none, low, medium or high.
    grpc_infer_response_compression_level: str = "none"
    allow_grpc_reflection: bool = True
    grpc_delays: GrpcDelays | None = None
    keepalive: KeepaliveSettings = KeepaliveSettings()
    allow_metrics: bool = True
    metrics_address: str = "127.0.0.1"
    metrics_port: int = 8002
    reuse_metrics_port: bool = False
    metrics_tls: TlsSettings | None = None
    sagemaker: SageMakerSettings | None = None
    vertex_ai: VertexAiSettings | None = None
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


class TraceMode(enum.Enum):
    """Where traces go: to files as Triton writes them, or to an OpenTelemetry collector."""

    TRITON = "triton"
    OPENTELEMETRY = "opentelemetry"


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """`--trace-config`: which requests are traced, and where to."""

    mode: TraceMode = TraceMode.TRITON
    timestamps: bool = False
    tensors: bool = False
    # One trace in so many requests, and how many traces in all; -1 without end.
    rate: int = 1000
    count: int = -1
    # Mode `triton`.
    file: str = ""
    log_frequency: int = 0
    # Mode `opentelemetry`: its settings as they were given, in their order; `resource` may come several times.
    opentelemetry: tuple[tuple[str, str], ...] = ()
    # Bytes of finished traces that may wait to be written; beyond, traces are dropped.
    max_waiting_byte_size: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """What `/metrics` has, and what is recorded for it."""

    counter_latencies: bool = True
    summary_latencies: bool = False
    # Quantiles of the summaries, each with the error that it may have.
    summary_quantiles: tuple[tuple[float, float], ...] = (
        (0.5, 0.05),
        (0.9, 0.01),
        (0.95, 0.001),
        (0.99, 0.001),
        (0.999, 0.001),
    )
    histogram_latencies: bool = False
    # merrow's own histograms.
    merrow_histograms: bool = True
    allow_gpu_metrics: bool = True
    allow_cpu_metrics: bool = True
    # How old the figures of the machine and its GPUs may be.
    interval_ms: int = 2000


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
    # An instance whose child dies so often within so long is in a crash loop: it is started again this seldom.
    crash_loop_death_count: int = 5
    crash_loop_window_seconds: int = 60
    crash_loop_retry_seconds: int = 60
    # How long one `execute` may take, or a deferred request may be without a response, before the child is killed (a
    # model's parameter EXECUTION_TIMEOUT_SECONDS); 0 is for ever.
    execution_timeout_seconds: float = 0.0
    # Memory of its own that a child may take (a model's parameter MEMORY_LIMIT_MB); 0 is without limit.
    memory_limit_mb: int = 0
    # What children print: longer lines are cut, more per second is dropped, and the log says so.
    output_line_byte_size: int = 8192
    output_lines_per_second: int = 1000
    output_bytes_per_second: int = 1024 * 1024
    # Where extracted archives and environments made of a requirements.txt are kept; empty is the user's cache folder.
    environment_cache_directory: str = ""
    # What one archive may extract to.
    environment_max_byte_size: int = 32 * 1024**3
    # Whether a model's requirements.txt is installed, and how long that may take.
    installs_requirements: bool = False
    requirements_timeout_seconds: int = 900
    # Bytes of one request's responses that may be on their way to a slow client before its model waits.
    stream_window_byte_size: int = 1024 * 1024
    # How many models may call one another in a row (business logic scripting).
    max_call_depth: int = 16


@dataclass(frozen=True, slots=True)
class SharedMemorySettings:
    """Memory of clients that requests may name instead of carrying data."""

    # Off by default: a client could name any shared memory that this process may open.
    allow_client_shm: bool = False
    max_regions: int = 1024
    # Of one input or output; sparse files cost a client nothing, and copies of them do cost the server.
    max_tensor_byte_size: int = 4 * 1024**3


@dataclass(frozen=True, slots=True)
class LocalCacheSettings:
    """`--cache-config=local,...`: answers in memory, up to so many bytes."""

    byte_size: int

    def __post_init__(self) -> None:
        if self.byte_size < 1024:
            raise SettingsError(f"--cache-config=local,size expects at least 1024 bytes, got {self.byte_size}")


@dataclass(frozen=True, slots=True)
class RedisCacheSettings:
    """`--cache-config=redis,...`: answers in a Redis server. A timeout of 0 is none."""

    host: str
    port: int = 6379
    user: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    connect_timeout_ms: int = 0
    socket_timeout_ms: int = 0
    # Connections, and so look-ups under way at once; more wait, up to `max_pending`, and are not looked up beyond.
    pool_size: int = 4
    max_pending: int = 1024
    tls_enabled: bool = False
    certificate_file: str = ""
    key_file: str = ""
    root_certificate_file: str = ""
    root_certificate_directory: str = ""


@dataclass(frozen=True, slots=True)
class RateLimitSettings:
    """`--rate-limit=execution_count`: instances execute only while they hold their resources.

    `resources` are amounts by name and device; device None is every device, and the pool of global resources.
    """

    resources: Mapping[tuple[str, int | None], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    """All options of one server."""

    server_id: str = "triton"
    exit_timeout_seconds: int = 30
    repository: RepositorySettings = RepositorySettings()
    network: NetworkSettings = NetworkSettings()
    log: LogSettings = LogSettings()
    trace: TraceSettings = TraceSettings()
    metrics: MetricsSettings = MetricsSettings()
    # A lag of the event loop above is a stall, after which the server is not live for a while; 0: nobody looks.
    loop_stall_limit_ms: int = 5000
    # A line of the log for each answer.
    access_log: bool = False
    process: ProcessSettings = ProcessSettings()
    shared_memory: SharedMemorySettings = SharedMemorySettings()
    # None without a response cache, and without limits.
    cache: LocalCacheSettings | RedisCacheSettings | None = None
    rate_limit: RateLimitSettings | None = None
