"""From the flags of `merrow serve` to settings."""

import re
from pathlib import Path

import pytest

from merrow import cli
from merrow.cli.flags import FlagError, parse_flags
from merrow.cli.serve_flags import NO_EFFECT, SERVE_FLAGS
from merrow.cli.serve_settings import build_serve_command
from merrow.settings import (
    ConnectionLimits,
    LogSettings,
    ModelControlMode,
    NetworkSettings,
    ProcessSettings,
    RepositorySettings,
    Settings,
    SettingsError,
    SharedMemorySettings,
)

# Every option that the real server's --help lists.
TRITON_FLAGS = set(
    re.findall(
        r"\S+",
        """
        help id exit-timeout-secs log-verbose log-info log-warning log-error log-format log-file model-store
        model-repository exit-on-error disable-auto-complete-config strict-readiness model-control-mode
        repository-poll-secs load-model model-config-name model-load-thread-count model-load-retry-count
        model-namespacing enable-peer-access allow-http http-address http-port reuse-http-port
        http-header-forward-pattern http-thread-count http-max-input-size http-restricted-api allow-grpc
        grpc-address grpc-port reuse-grpc-port grpc-header-forward-pattern grpc-infer-thread-count
        grpc-infer-allocation-pool-size grpc-max-response-pool-size grpc-use-ssl grpc-use-ssl-mutual
        grpc-server-cert grpc-server-key grpc-root-cert grpc-infer-response-compression-level grpc-keepalive-time
        grpc-keepalive-timeout grpc-keepalive-permit-without-calls grpc-http2-max-pings-without-data
        grpc-http2-min-recv-ping-interval-without-data grpc-http2-max-ping-strikes grpc-max-connection-age
        grpc-max-connection-age-grace grpc-restricted-protocol allow-sagemaker sagemaker-port
        sagemaker-safe-port-range sagemaker-thread-count allow-vertex-ai vertex-ai-port vertex-ai-thread-count
        vertex-ai-default-model allow-metrics allow-gpu-metrics allow-cpu-metrics metrics-address metrics-port
        metrics-interval-ms metrics-config trace-config backend-directory backend-config repoagent-directory
        cache-config cache-directory rate-limit rate-limit-resource pinned-memory-pool-byte-size
        cuda-memory-pool-byte-size cuda-virtual-address-size min-supported-compute-capability
        buffer-manager-thread-count host-policy model-load-gpu-limit allow-client-shm strict-model-config
        response-cache-byte-size trace-file trace-level trace-rate trace-count trace-log-frequency
        """,
    )
)


def build(*arguments):
    return build_serve_command(parse_flags(arguments, SERVE_FLAGS))


def settings(*arguments):
    command = build(*arguments)
    assert command.warnings == ()
    return command.settings


def test_without_flags_the_settings_are_the_defaults():
    assert settings() == Settings()


def test_every_flag_of_triton_is_known():
    known = {flag.name for group in SERVE_FLAGS for flag in group.flags}
    assert known >= TRITON_FLAGS
    # What merrow has of its own does something.
    assert set(NO_EFFECT) <= TRITON_FLAGS


def test_every_flag_that_is_obeyed_is_asked_for():
    """Its name stands in one of the modules that make settings of flags."""
    modules = [path for path in Path(cli.__path__[0]).glob("*.py") if not path.name.endswith("_flags.py")]
    text = "".join(path.read_text() for path in modules)
    for flag in (flag for group in SERVE_FLAGS for flag in group.flags):
        name = re.sub("^(http|grpc|metrics)-(?=use-ssl|server-|root-)", "", flag.name)
        assert flag.name in NO_EFFECT or f'{name}"' in text, flag.name


def test_the_server_s_own_flags():
    assert settings("--id=x", "--exit-timeout-secs=5") == Settings(server_id="x", exit_timeout_seconds=5)


def test_the_repository_s_flags():
    assert settings(
        "--model-repository=/a",
        "--model-store",
        "/b",
        "--model-control-mode=explicit",
        "--load-model=m",
        "--load-model=n",
        "--disable-auto-complete-config",
        "--exit-on-error=false",
        "--strict-readiness=off",
        "--model-load-thread-count=2",
        "--backend-config=python,a=1",
        "--backend-config=b=2",
        "--execution-place=thread",
    ).repository == RepositorySettings(
        model_repositories=("/a", "/b"),
        model_control_mode=ModelControlMode.EXPLICIT,
        load_models=("m", "n"),
        auto_complete_config=False,
        exit_on_error=False,
        strict_readiness=False,
        model_load_thread_count=2,
        backend_config={"python": {"a": "1"}, "": {"b": "2"}},
        execution_place="thread",
    )


def test_the_network_s_flags():
    assert settings(
        "--http-address=0.0.0.0",
        "--http-port=1",
        "--reuse-http-port=true",
        "--http-max-input-size=99",
        "--grpc-address=::1",
        "--grpc-port=2",
        "--reuse-grpc-port=true",
        "--metrics-port=3",
    ).network == NetworkSettings(
        http_address="0.0.0.0",
        http_port=1,
        reuse_http_port=True,
        http_max_input_byte_size=99,
        grpc_address="::1",
        grpc_port=2,
        reuse_grpc_port=True,
        metrics_address="0.0.0.0",
        metrics_port=3,
    )


def test_one_address_is_the_default_of_all():
    network = settings("--address=0.0.0.0", "--grpc-address=127.0.0.1").network
    assert (network.address, network.http_address, network.grpc_address, network.metrics_address) == (
        "0.0.0.0",
        "0.0.0.0",
        "127.0.0.1",
        "0.0.0.0",
    )


def test_one_port_closes_the_others_unless_they_are_set_too():
    network = settings("--port=9000").network
    assert network.port == 9000
    assert (network.allow_http, network.allow_grpc, network.allow_metrics) == (False, False, False)

    network = settings("--port=9000", "--metrics-port=9002", "--allow-grpc=true").network
    assert (network.allow_http, network.allow_grpc, network.allow_metrics) == (False, True, True)


def test_every_connection_limit_has_a_flag():
    assert settings(
        "--max-header-byte-size=1",
        "--max-header-count=2",
        "--max-body-byte-size=3",
        "--max-connections=4",
        "--max-concurrent-streams=5",
        "--max-resets-per-second=6",
        "--max-control-frames-per-second=7",
        "--max-pipelined-requests=8",
        "--idle-timeout-secs=9",
        "--receive-timeout-secs=10",
        "--max-write-buffer-byte-size=11",
        "--stream-window-byte-size=70000",
        "--max-frame-byte-size=20000",
    ).network.limits == ConnectionLimits(
        max_header_byte_size=1,
        max_header_count=2,
        max_body_byte_size=3,
        max_connections=4,
        max_concurrent_streams=5,
        max_resets_per_second=6,
        max_control_frames_per_second=7,
        max_pipelined_requests=8,
        idle_timeout_ns=9 * 10**9,
        receive_timeout_ns=10 * 10**9,
        max_write_buffer_byte_size=11,
        stream_window_byte_size=70000,
        max_frame_byte_size=20000,
    )


def test_the_log_s_flags():
    assert settings(
        "--log-verbose=true", "--log-info=0", "--log-warning=0", "--log-error=0", "--log-format=ISO8601", "--log-file=f"
    ).log == LogSettings(verbose=1, info=False, warning=False, error=False, format="ISO8601", file="f")


def test_settings_of_the_python_backend_that_concern_processes():
    assert settings(
        "--backend-config=python,stub-timeout-seconds=7", "--backend-config=python,shm-default-byte-size=65536"
    ).process == ProcessSettings(start_timeout_seconds=7, arena_initial_byte_size=65536)
    with pytest.raises(FlagError) as raised:
        build("--backend-config=python,stub-timeout-seconds=soon")
    assert str(raised.value) == (
        'Bad option: "--backend-config".\nstub-timeout-seconds: Invalid option value. Got soon\n'
    )


def test_the_last_of_a_flag_counts():
    assert settings("--http-port=1", "--http-port=2").network.http_port == 2


def test_strict_model_config_is_deprecated_and_obeyed():
    command = build("--strict-model-config=true")
    assert command.settings.repository.auto_complete_config is False
    assert command.warnings == (
        "'--strict-model-config' has been deprecated! Please use '--disable-auto-complete-config' instead.",
    )


def test_a_flag_that_means_nothing_here_is_accepted_with_the_reason():
    assert build("--http-thread-count=8").warnings == (
        "--http-thread-count has no effect: one thread serves all connections, without locks",
    )


def test_the_largest_json_must_be_something():
    with pytest.raises(FlagError) as raised:
        build("--http-max-input-size=0")
    assert str(raised.value) == "Error: --http-max-input-size must be greater than 0."


def test_a_flag_without_effect_is_explained_once():
    assert build("--cuda-memory-pool-byte-size=0:1", "--cuda-memory-pool-byte-size=1:1").warnings == (
        f"--cuda-memory-pool-byte-size has no effect: {NO_EFFECT['cuda-memory-pool-byte-size']}",
    )


def test_values_that_ask_for_nothing():
    assert settings("--grpc-use-ssl=false", "--rate-limit=off", "--allow-client-shm=false") == Settings()


@pytest.mark.parametrize("name", sorted(NO_EFFECT))
def test_every_reason_is_one_sentence(name):
    assert NO_EFFECT[name]
    assert not NO_EFFECT[name].endswith(".")


def test_shared_memory():
    assert settings(
        "--allow-client-shm=true", "--max-shared-memory-regions=3", "--max-shared-memory-tensor-byte-size=4"
    ).shared_memory == SharedMemorySettings(allow_client_shm=True, max_regions=3, max_tensor_byte_size=4)


def test_two_services_on_one_port_are_refused_in_triton_s_words():
    with pytest.raises(FlagError) as raised:
        build("--http-port=9000", "--grpc-port=9000")
    assert str(raised.value) == (
        "The server cannot listen to HTTP requests and GRPC requests at the same address and port 127.0.0.1:9000\n"
        "To serve everything on one port, use --port=9000 alone."
    )
    build("--http-port=0", "--grpc-port=0", "--metrics-port=0")
    build("--http-port=9000", "--grpc-port=9000", "--grpc-address=127.0.0.2")
    build("--http-port=9000", "--grpc-port=9000", "--allow-grpc=false")


def test_start_up_models_need_explicit_mode():
    with pytest.raises(SettingsError) as raised:
        build("--load-model=m")
    assert str(raised.value) == (
        "Error: Use of '--load-model' requires setting '--model-control-mode=explicit' as well."
    )
