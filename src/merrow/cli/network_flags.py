"""The flags of `merrow serve` that say what is served where: ports and addresses, TLS, keepalive, limits.

`cli.serve_flags` puts them among all others, and `cli.network_settings` makes settings of them. Each port has the same
five flags for TLS; those whose name begins with no port are for all.

Source: Triton, command_line_parser.cc.
"""

from merrow.cli.flags import (
    INT32_MAX,
    Flag,
    FlagGroup,
    integer_from,
    one_of,
    read_bool,
    read_int,
    read_int64,
    read_not_negative,
    read_port,
    read_port_range,
    read_positive,
    read_restriction,
    read_string,
)


def tls_flags(port_name: str, where: str, remark: str = "") -> tuple[Flag, ...]:
    """The five flags for TLS on one port; those without a name are for all."""
    prefix = f"{port_name}-" if port_name else ""
    return (
        Flag(f"{prefix}use-ssl", read_bool, f"TLS for {where}. Default is false.{remark}", "boolean"),
        Flag(
            f"{prefix}use-ssl-mutual",
            read_bool,
            f"TLS, and clients must have a certificate too. Default is false.{remark}",
            "boolean",
        ),
        Flag(f"{prefix}server-cert", read_string, f"PEM file of the server's certificate and its chain.{remark}"),
        Flag(f"{prefix}server-key", read_string, f"PEM file of the server's key.{remark}"),
        Flag(f"{prefix}root-cert", read_string, f"PEM file of those who sign clients' certificates.{remark}"),
    )


NETWORK_FLAGS: tuple[FlagGroup, ...] = (
    FlagGroup(
        "Network",
        (
            Flag(
                "port",
                read_port,
                "Serve everything (REST, gRPC and metrics) on this one port. The other ports are then closed unless "
                "they are set too. merrow's own.",
                "integer",
            ),
            Flag(
                "address",
                read_string,
                "Address of --port, and of every port whose own address is not set. Default is 127.0.0.1; 0.0.0.0 "
                "lets other machines in; unix:PATH is a Unix socket. merrow's own.",
            ),
            Flag(
                "reuse-port",
                read_bool,
                "Let several servers share --port, and every port whose own flag for that is not set. Default is "
                "false. merrow's own.",
                "boolean",
            ),
            *tls_flags("", "--port, and every port whose own flag is not set", " merrow's own."),
        ),
    ),
    FlagGroup(
        "HTTP",
        (
            Flag("allow-http", read_bool, "Listen for HTTP requests. Default is true.", "boolean"),
            Flag("http-address", read_string, "Address of the HTTP port. Default is --address."),
            Flag("http-port", read_port, "HTTP port; 0 takes a free one. Default is 8000.", "integer"),
            Flag("reuse-http-port", read_bool, "Let several servers share the HTTP port. Default is false.", "boolean"),
            Flag(
                "http-max-input-size",
                read_int64,
                "Bytes that JSON, or a body after decompression, may have. Default is 67108864.",
                "integer",
            ),
            Flag(
                "http-header-forward-pattern",
                read_string,
                "Headers that inference requests get as parameters: a regular expression (of RE2), found anywhere in "
                "their names, in any case.",
            ),
            Flag("http-thread-count", read_int, "Threads for HTTP requests.", "integer"),
            Flag(
                "http-restricted-api",
                read_restriction("http-restricted-api", "api"),
                "<api>,<api>...:<key>=<value>: these APIs (health, metadata, inference, shared-memory, model-config, "
                "model-repository, statistics, trace, logging) need the header <key>: <value>. May be given several "
                "times.",
                "<string>:<string>=<string>",
                may_repeat=True,
            ),
            *tls_flags("http", "the HTTP port", " merrow's own."),
        ),
    ),
    FlagGroup(
        "GRPC",
        (
            Flag("allow-grpc", read_bool, "Listen for gRPC requests. Default is true.", "boolean"),
            Flag("grpc-address", read_string, "Address of the gRPC port. Default is --address."),
            Flag("grpc-port", read_port, "gRPC port; 0 takes a free one. Default is 8001.", "integer"),
            Flag("reuse-grpc-port", read_bool, "Let several servers share the gRPC port. Default is false.", "boolean"),
            Flag(
                "grpc-header-forward-pattern",
                read_string,
                "Metadata that inference requests get as parameters; as --http-header-forward-pattern.",
            ),
            Flag("grpc-infer-thread-count", read_int, "Threads for inference requests.", "integer"),
            Flag("grpc-infer-allocation-pool-size", read_int, "Request objects kept for reuse.", "integer"),
            Flag("grpc-max-response-pool-size", read_int, "Response objects kept for reuse.", "integer"),
            *tls_flags("grpc", "the gRPC port"),
            Flag(
                "grpc-infer-response-compression-level",
                one_of("grpc-infer-response-compression-level", "none", "low", "medium", "high"),
                "Compression of inference responses: none, low, medium or high. Default is none.",
            ),
            Flag(
                "grpc-keepalive-time",
                read_positive,
                "Milliseconds after which the server asks a silent client whether it is there, with a ping. Default is "
                "7200000 (2 hours).",
                "integer",
            ),
            Flag(
                "grpc-keepalive-timeout",
                read_positive,
                "Milliseconds to wait for the answer, before the connection is closed. Default is 20000.",
                "integer",
            ),
            Flag(
                "grpc-keepalive-permit-without-calls",
                read_bool,
                "Pings, the server's and clients', also while there are no calls. Default is false.",
                "boolean",
            ),
            Flag(
                "grpc-http2-max-pings-without-data",
                read_not_negative,
                "Pings that the server sends without any data in between; 0 is any number. Default is 2.",
                "integer",
            ),
            Flag(
                "grpc-http2-min-recv-ping-interval-without-data",
                read_not_negative,
                "Milliseconds that clients must leave between pings without data; sooner is a strike. Default is "
                "300000 (5 minutes).",
                "integer",
            ),
            Flag(
                "grpc-http2-max-ping-strikes",
                read_not_negative,
                "Strikes that a client may have before its connection is closed; 0 is any number. Default is 2.",
                "integer",
            ),
            Flag(
                "grpc-max-connection-age",
                read_not_negative,
                "Milliseconds after which a connection takes no new calls; 0, the default, is no limit.",
                "integer",
            ),
            Flag(
                "grpc-max-connection-age-grace",
                read_not_negative,
                "Milliseconds that the calls of such a connection then have; 0, the default, is no limit.",
                "integer",
            ),
            Flag(
                "grpc-restricted-protocol",
                read_restriction("grpc-restricted-protocol", "protocol"),
                "<protocol>,<protocol>...:<key>=<value>: these protocols (as the APIs of --http-restricted-api) need "
                "the metadata triton-grpc-protocol-<key>: <value>. May be given several times.",
                "<string>:<string>=<string>",
                may_repeat=True,
            ),
            Flag(
                "grpc-reflection",
                read_bool,
                "Tell clients that ask which services there are (grpcurl and the like). Default is true. merrow's own.",
                "boolean",
            ),
        ),
    ),
    FlagGroup(
        "Connection limits (merrow's own; for every port)",
        (
            Flag("max-header-byte-size", read_positive, "Request line and headers of one request.", "integer"),
            Flag("max-header-count", read_positive, "Headers of one request.", "integer"),
            Flag("max-body-byte-size", read_positive, "One request body or gRPC message.", "integer"),
            Flag("max-connections", read_positive, "Open connections of one port.", "integer"),
            Flag("max-concurrent-streams", read_positive, "Open HTTP/2 streams of one connection.", "integer"),
            Flag("max-resets-per-second", read_positive, "Stream resets by the client, on one connection.", "integer"),
            Flag("max-control-frames-per-second", read_positive, "PING, SETTINGS and the like, likewise.", "integer"),
            Flag("max-pipelined-requests", read_positive, "HTTP/1.1 requests waiting behind another.", "integer"),
            Flag("idle-timeout-secs", read_positive, "Life of a connection without requests.", "integer"),
            Flag("receive-timeout-secs", read_positive, "Wait for the rest of a request.", "integer"),
            Flag("max-write-buffer-byte-size", read_positive, "Answer bytes waiting for a slow client.", "integer"),
            Flag("stream-window-byte-size", integer_from(65535, INT32_MAX), "HTTP/2 window of a stream.", "integer"),
            Flag("max-frame-byte-size", integer_from(16384, 2**24 - 1), "One HTTP/2 frame.", "integer"),
            Flag("max-stream-requests", read_positive, "Unanswered requests of one ModelStreamInfer.", "integer"),
            Flag(
                "max-stream-buffer-byte-size",
                read_positive,
                "Responses of one ModelStreamInfer that wait for a client that does not read; beyond, it ends.",
                "integer",
            ),
            Flag(
                "max-receiving-byte-size",
                integer_from(1),
                "All bodies that are being received at the time, over all ports. Default is 8589934592.",
                "integer",
            ),
        ),
    ),
    FlagGroup(
        "Sagemaker",
        (
            Flag("allow-sagemaker", read_bool, "Listen for SageMaker requests. Default is false.", "boolean"),
            Flag("sagemaker-port", read_port, "SageMaker port. Default is 8080.", "integer"),
            Flag(
                "sagemaker-safe-port-range",
                read_port_range,
                "The ports that other endpoints may use beside SageMaker's.",
                "<integer>-<integer>",
            ),
            Flag("sagemaker-thread-count", read_int, "Threads for SageMaker requests.", "integer"),
        ),
    ),
    FlagGroup(
        "Vertex",
        (
            Flag(
                "allow-vertex-ai",
                read_bool,
                "Listen for Vertex AI requests. Default is true where AIP_MODE is PREDICTION, else false.",
                "boolean",
            ),
            Flag("vertex-ai-port", read_port, "Vertex AI port. Default is AIP_HTTP_PORT, or 8080.", "integer"),
            Flag("vertex-ai-thread-count", read_int, "Threads for Vertex AI requests.", "integer"),
            Flag(
                "vertex-ai-default-model",
                read_string,
                "The model that predicts; without it, the repository must hold exactly one.",
            ),
        ),
    ),
)
