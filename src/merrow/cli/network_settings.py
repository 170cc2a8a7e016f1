"""From the given flags, and the variables of the platforms' containers, to what is served where.

A port's own flag counts; without it, the one for all ports (`--address`, `--use-ssl`, `--reuse-port`). The ports for
SageMaker and Vertex AI are for the platform they run on, which reaches them from outside: they are open to other
machines unless `--address` says otherwise, and have no flags for TLS of their own.

Source: Triton, command_line_parser.cc, main.cc (CheckPortCollision), sagemaker_server.h, vertex_ai_server.cc.
"""

from collections.abc import Mapping

from merrow.cli.delays import build_grpc_delays
from merrow.cli.flags import FlagError, FlagValues, read_int
from merrow.core.restrictions import ApiCategory, Restriction, Restrictions
from merrow.settings import (
    ConnectionLimits,
    KeepaliveSettings,
    NetworkSettings,
    SageMakerSettings,
    TlsSettings,
    VertexAiSettings,
)
from merrow.wire.header_pattern import HeaderPattern, HeaderPatternError

_LOCAL = "127.0.0.1"
_EVERYWHERE = "0.0.0.0"
_UNIX_PREFIX = "unix:"


def build_network_settings(values: FlagValues, environment: Mapping[str, str], warnings: list[str]) -> NetworkSettings:
    """The network's settings; what must be said about them is appended to `warnings`.

    Raises:
        FlagError: flags contradict each other, or something that they need is missing.
    """
    port = values.last("port", None)
    address = values.last("address", _LOCAL)
    reuse_port = values.last("reuse-port", False)
    http_address = values.last("http-address", address)
    max_input_byte_size = values.last("http-max-input-size", 64 * 1024 * 1024)
    if max_input_byte_size <= 0:
        raise FlagError("Error: --http-max-input-size must be greater than 0.")
    is_predicting = environment.get("AIP_MODE") == "PREDICTION"
    has_three_ports = port is None and not is_predicting
    network = NetworkSettings(
        port=port,
        address=address,
        reuse_port=reuse_port,
        tls=_build_tls(values, "", warnings),
        allow_http=values.last("allow-http", has_three_ports or values.has("http-port")),
        http_address=http_address,
        http_port=values.last("http-port", 8000),
        reuse_http_port=values.last("reuse-http-port", reuse_port),
        http_tls=_build_tls(values, "http", warnings),
        http_max_input_byte_size=max_input_byte_size,
        http_header_forward_pattern=_check_pattern(values, "http-header-forward-pattern"),
        http_restrictions=_build_restrictions(values, "http-restricted-api", "api"),
        allow_grpc=values.last("allow-grpc", has_three_ports or values.has("grpc-port")),
        grpc_address=values.last("grpc-address", address),
        grpc_port=values.last("grpc-port", 8001),
        reuse_grpc_port=values.last("reuse-grpc-port", reuse_port),
        grpc_tls=_build_tls(values, "grpc", warnings),
        grpc_header_forward_pattern=_check_pattern(values, "grpc-header-forward-pattern"),
        grpc_restrictions=_build_restrictions(values, "grpc-restricted-protocol", "protocol"),
        grpc_infer_response_compression_level=values.last("grpc-infer-response-compression-level", "none"),
        allow_grpc_reflection=values.last("grpc-reflection", True),
        keepalive=_build_keepalive(values),
        allow_metrics=values.last("allow-metrics", port is None or values.has("metrics-port")),
        metrics_address=values.last(
            "metrics-address", address if http_address.startswith(_UNIX_PREFIX) else http_address
        ),
        metrics_port=values.last("metrics-port", 8002),
        reuse_metrics_port=values.last("reuse-metrics-port", reuse_port),
        metrics_tls=_build_tls(values, "metrics", warnings),
        grpc_delays=build_grpc_delays(environment, warnings),
        sagemaker=_build_sagemaker(values, environment),
        vertex_ai=_build_vertex_ai(values, environment, is_predicting),
        limits=_build_connection_limits(values),
    )
    _check_ports(network, values.last("sagemaker-safe-port-range", None))
    return network


def _build_tls(values: FlagValues, port_name: str, warnings: list[str]) -> TlsSettings | None:
    """TLS of one port, from its own flags, or else from those for all ports."""
    prefix = f"{port_name}-" if port_name else ""
    default = _build_tls(values, "", []) if port_name else None
    files = {
        name: values.last(f"{prefix}{name}", "") or (values.last(name, "") if port_name else "")
        for name in ("server-cert", "server-key", "root-cert")
    }
    is_mutual = values.last(f"{prefix}use-ssl-mutual", default is not None and default.is_mutual)
    uses_tls = values.last(f"{prefix}use-ssl", default is not None) or is_mutual
    if not uses_tls:
        warnings += (
            f"--{prefix}{name} has no effect without --{prefix}use-ssl=true"
            for name in files
            if values.last(f"{prefix}{name}", "")
        )
        return None
    for name in ("server-cert", "server-key", *(("root-cert",) if is_mutual else ())):
        if not files[name]:
            switch = f"{prefix}use-ssl-mutual" if name == "root-cert" else f"{prefix}use-ssl"
            raise FlagError(f"--{switch} needs --{prefix}{name}")
    return TlsSettings(files["server-cert"], files["server-key"], files["root-cert"], is_mutual)


def _check_pattern(values: FlagValues, name: str) -> str:
    """The pattern of a flag, which can be compiled; "" for none."""
    pattern: str = values.last(name, "")
    try:
        HeaderPattern(pattern)
    except HeaderPatternError as error:
        raise FlagError(f'Bad option: "--{name}".\n{error}') from None
    return pattern


def _build_restrictions(values: FlagValues, flag_name: str, feature_type: str) -> Restrictions:
    restrictions: dict[ApiCategory, Restriction] = {}
    for categories, key, value in values.all(flag_name):
        for category in categories:
            if category in restrictions:
                raise FlagError(
                    f"restricted {feature_type} '{category.value}' can not be specified in multiple config groups"
                )
            restrictions[category] = Restriction(key, value)
    return restrictions


def _build_keepalive(values: FlagValues) -> KeepaliveSettings:
    defaults = KeepaliveSettings()
    return KeepaliveSettings(
        time_ms=values.last("grpc-keepalive-time", defaults.time_ms),
        timeout_ms=values.last("grpc-keepalive-timeout", defaults.timeout_ms),
        permit_without_calls=values.last("grpc-keepalive-permit-without-calls", defaults.permit_without_calls),
        max_pings_without_data=values.last("grpc-http2-max-pings-without-data", defaults.max_pings_without_data),
        min_recv_ping_interval_without_data_ms=values.last(
            "grpc-http2-min-recv-ping-interval-without-data", defaults.min_recv_ping_interval_without_data_ms
        ),
        max_ping_strikes=values.last("grpc-http2-max-ping-strikes", defaults.max_ping_strikes),
        max_connection_age_ms=values.last("grpc-max-connection-age", 0) or None,
        max_connection_age_grace_ms=values.last("grpc-max-connection-age-grace", 0) or None,
    )


def _build_sagemaker(values: FlagValues, environment: Mapping[str, str]) -> SageMakerSettings | None:
    if not values.last("allow-sagemaker", False):
        return None
    defaults = SageMakerSettings()
    inference_type = environment.get("SAGEMAKER_TRITON_INFERENCE_TYPE", defaults.inference_type)
    if inference_type not in ("infer", "generate", "generate_stream"):
        raise FlagError(
            f"SAGEMAKER_TRITON_INFERENCE_TYPE must be infer, generate or generate_stream, got {inference_type}"
        )
    ping_mode = environment.get("SAGEMAKER_TRITON_PING_MODE", defaults.ping_mode)
    if ping_mode not in ("ready", "live"):
        raise FlagError(f"SAGEMAKER_TRITON_PING_MODE must be ready or live, got {ping_mode}")
    return SageMakerSettings(
        address=values.last("address", _EVERYWHERE),
        port=values.last("sagemaker-port", defaults.port),
        default_model=environment.get("SAGEMAKER_TRITON_DEFAULT_MODEL_NAME", defaults.default_model),
        ping_mode=ping_mode,
        inference_type=inference_type,
    )


def _build_vertex_ai(
    values: FlagValues, environment: Mapping[str, str], is_predicting: bool
) -> VertexAiSettings | None:
    if not values.last("allow-vertex-ai", is_predicting):
        return None
    if not environment.get("AIP_PREDICT_ROUTE"):
        raise FlagError("API_PREDICT_ROUTE is not defined for Vertex AI endpoint")
    if not environment.get("AIP_HEALTH_ROUTE"):
        raise FlagError("AIP_HEALTH_ROUTE is not defined for Vertex AI endpoint")
    return VertexAiSettings(
        predict_route=environment["AIP_PREDICT_ROUTE"],
        health_route=environment["AIP_HEALTH_ROUTE"],
        address=values.last("address", _EVERYWHERE),
        port=values.last("vertex-ai-port", read_int(environment.get("AIP_HTTP_PORT", "8080"))),
        default_model=values.last("vertex-ai-default-model", ""),
    )


def _build_connection_limits(values: FlagValues) -> ConnectionLimits:
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
        max_stream_requests=values.last("max-stream-requests", defaults.max_stream_requests),
        max_stream_buffer_byte_size=values.last("max-stream-buffer-byte-size", defaults.max_stream_buffer_byte_size),
        max_receiving_byte_size=values.last("max-receiving-byte-size", defaults.max_receiving_byte_size),
    )


def _check_ports(network: NetworkSettings, safe_range: tuple[int, int] | None) -> None:
    """Refuse two services on one address and port, and ports that SageMaker does not allow, in Triton's words.

    Port 0 never collides, and a Unix socket has none.
    """
    services = []
    if network.port is not None:
        services.append(("all", network.address, network.port))
    if network.allow_http:
        services.append(("HTTP", network.http_address, network.http_port))
    if network.allow_grpc:
        services.append(("GRPC", network.grpc_address, network.grpc_port))
    if network.allow_metrics:
        services.append(("metrics", network.metrics_address, network.metrics_port))
    if network.vertex_ai is not None:
        services.append(("Vertex AI", network.vertex_ai.address, network.vertex_ai.port))
    if network.sagemaker is not None:
        for name, address, port in services:
            is_free = port == 0 or address.startswith(_UNIX_PREFIX)
            if safe_range is not None and not is_free and not safe_range[0] <= port <= safe_range[1]:
                raise FlagError(
                    f"The server cannot listen to {name} requests at port {port}, allowed port range is "
                    f"[{safe_range[0]}, {safe_range[1]}]"
                )
        services.append(("SageMaker", network.sagemaker.address, network.sagemaker.port))
    for index, (name, address, port) in enumerate(services):
        for other_name, other_address, other_port in services[index + 1 :]:
            if address.startswith(_UNIX_PREFIX):
                if address == other_address:
                    raise FlagError(
                        f"The server cannot listen to {name} requests and {other_name} requests at the same address "
                        f"{address}"
                    )
            elif port and port == other_port and address == other_address:
                raise FlagError(
                    f"The server cannot listen to {name} requests and {other_name} requests at the same address and "
                    f"port {address}:{port}\nTo serve everything on one port, use --port={port} alone."
                )
