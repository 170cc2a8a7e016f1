"""What is served where: addresses, TLS, restrictions, keepalive, and the platforms' ports."""

import pytest

from merrow.cli.flags import FlagError, parse_flags
from merrow.cli.serve_flags import SERVE_FLAGS
from merrow.cli.serve_settings import build_serve_command
from merrow.core.restrictions import ApiCategory, Restriction
from merrow.settings import KeepaliveSettings, SageMakerSettings, TlsSettings, VertexAiSettings

CERTIFICATES = ("--server-cert=c", "--server-key=k", "--root-cert=r")


def build(*arguments, environment=None):
    return build_serve_command(parse_flags(arguments, SERVE_FLAGS), environment=environment)


def network(*arguments, environment=None):
    command = build(*arguments, environment=environment)
    assert command.warnings == ()
    return command.settings.network


def error_of(*arguments, environment=None):
    with pytest.raises(FlagError) as raised:
        build(*arguments, environment=environment)
    return str(raised.value)


class TestTls:
    def test_none_without_flags(self):
        settings = network()
        assert (settings.tls, settings.http_tls, settings.grpc_tls, settings.metrics_tls) == (None,) * 4

    def test_of_one_port(self):
        settings = network("--grpc-use-ssl=true", "--grpc-server-cert=c", "--grpc-server-key=k")
        assert settings.grpc_tls == TlsSettings("c", "k")
        assert (settings.tls, settings.http_tls, settings.metrics_tls) == (None,) * 3

    def test_clients_certificates_imply_tls(self):
        settings = network(
            "--grpc-use-ssl-mutual=true", "--grpc-server-cert=c", "--grpc-server-key=k", "--grpc-root-cert=r"
        )
        assert settings.grpc_tls == TlsSettings("c", "k", "r", is_mutual=True)

    def test_of_all_ports_but_those_that_say_otherwise(self):
        settings = network(
            "--use-ssl-mutual=true",
            *CERTIFICATES,
            "--grpc-server-cert=gc",
            "--http-use-ssl-mutual=false",
            "--metrics-use-ssl=false",
            "--metrics-use-ssl-mutual=false",
        )
        assert settings.tls == TlsSettings("c", "k", "r", is_mutual=True)
        assert settings.grpc_tls == TlsSettings("gc", "k", "r", is_mutual=True)
        assert settings.http_tls == TlsSettings("c", "k", "r")
        assert settings.metrics_tls is None

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (("--grpc-use-ssl=true",), "--grpc-use-ssl needs --grpc-server-cert"),
            (("--use-ssl=true", "--server-cert=c"), "--use-ssl needs --server-key"),
            (("--use-ssl-mutual=true", *CERTIFICATES[:2]), "--use-ssl-mutual needs --root-cert"),
        ],
    )
    def test_what_it_needs(self, arguments, text):
        assert error_of(*arguments) == text

    def test_certificates_without_it_are_mentioned(self):
        assert build("--grpc-server-cert=c").warnings == (
            "--grpc-server-cert has no effect without --grpc-use-ssl=true",
        )


class TestRestrictions:
    def test_groups_of_categories(self):
        settings = network(
            "--http-restricted-api=model-repository,logging:admin-key=a=b",
            "--http-restricted-api=health:k=v",
            "--grpc-restricted-protocol=inference:x=y",
        )
        assert settings.http_restrictions == {
            ApiCategory.MODEL_REPOSITORY: Restriction("admin-key", "a=b"),
            ApiCategory.LOGGING: Restriction("admin-key", "a=b"),
            ApiCategory.HEALTH: Restriction("k", "v"),
        }
        assert settings.grpc_restrictions == {ApiCategory.INFERENCE: Restriction("x", "y")}

    @pytest.mark.parametrize("value", ["health", "health:k", ":k=v", "health:=v", "health:k=", "k=v", ""])
    def test_the_format(self, value):
        assert error_of(f"--http-restricted-api={value}") == (
            'Bad option: "--http-restricted-api".\n'
            f"--http-restricted-api option format is '<config name>:<setting>=<value>'. Got {value}\n"
        )

    def test_unknown_categories(self):
        assert "unknown restricted api 'zz' \n" in error_of("--http-restricted-api=health,zz:k=v")
        assert "unknown restricted protocol '' \n" in error_of("--grpc-restricted-protocol=health,:k=v")

    def test_one_category_twice(self):
        arguments = ("--http-restricted-api=health,trace:k=v", "--http-restricted-api=health:k=v")
        assert error_of(*arguments) == "restricted api 'health' can not be specified in multiple config groups"


def test_header_patterns_are_checked():
    assert network("--http-header-forward-pattern=(PREFIX_.*)").http_header_forward_pattern == "(PREFIX_.*)"
    assert error_of("--grpc-header-forward-pattern=(a") == (
        'Bad option: "--grpc-header-forward-pattern".\nmissing ): (a'
    )


def test_every_keepalive_flag_has_its_setting():
    assert network(
        "--grpc-keepalive-time=1",
        "--grpc-keepalive-timeout=2",
        "--grpc-keepalive-permit-without-calls=true",
        "--grpc-http2-max-pings-without-data=0",
        "--grpc-http2-min-recv-ping-interval-without-data=4",
        "--grpc-http2-max-ping-strikes=5",
        "--grpc-max-connection-age=6",
        "--grpc-max-connection-age-grace=7",
    ).keepalive == KeepaliveSettings(1, 2, True, 0, 4, 5, 6, 7)
    assert network("--grpc-max-connection-age=0").keepalive == KeepaliveSettings()


def test_ports_are_shared_one_by_one_or_all():
    settings = network("--reuse-port=true", "--reuse-grpc-port=false")
    assert (settings.reuse_port, settings.reuse_http_port, settings.reuse_grpc_port) == (True, True, False)
    assert settings.reuse_metrics_port


class TestSageMaker:
    def test_with_the_platforms_variables(self):
        environment = {
            "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": "m",
            "SAGEMAKER_TRITON_PING_MODE": "live",
            "SAGEMAKER_TRITON_INFERENCE_TYPE": "generate",
        }
        assert network("--allow-sagemaker=true", "--sagemaker-port=9", environment=environment).sagemaker == (
            SageMakerSettings("0.0.0.0", 9, "m", "live", "generate")
        )
        assert network("--allow-sagemaker=true", "--address=127.0.0.1").sagemaker == SageMakerSettings()
        assert network(environment=environment).sagemaker is None

    def test_variables_that_make_no_sense(self):
        assert "SAGEMAKER_TRITON_PING_MODE must be ready or live, got x" in error_of(
            "--allow-sagemaker=true", environment={"SAGEMAKER_TRITON_PING_MODE": "x"}
        )
        assert "SAGEMAKER_TRITON_INFERENCE_TYPE must be" in error_of(
            "--allow-sagemaker=true", environment={"SAGEMAKER_TRITON_INFERENCE_TYPE": "x"}
        )

    def test_the_range_of_the_other_ports(self):
        arguments = ("--allow-sagemaker=true", "--sagemaker-safe-port-range=8000-8001")
        assert error_of(*arguments) == (
            "The server cannot listen to metrics requests at port 8002, allowed port range is [8000, 8001]"
        )
        assert network(*arguments, "--metrics-address=unix:/m").sagemaker is not None
        assert "option format is '<integer>-<integer>'. Got 8000" in error_of("--sagemaker-safe-port-range=8000")


ROUTES = {"AIP_PREDICT_ROUTE": "/p", "AIP_HEALTH_ROUTE": "/h"}


class TestVertexAi:
    def test_the_platform_switches_it_on_and_the_others_off(self):
        settings = network(environment={**ROUTES, "AIP_MODE": "PREDICTION", "AIP_HTTP_PORT": "7"})
        assert settings.vertex_ai == VertexAiSettings("/p", "/h", "0.0.0.0", 7)
        assert (settings.allow_http, settings.allow_grpc, settings.allow_metrics) == (False, False, True)

    def test_by_hand(self):
        arguments = ("--allow-vertex-ai=true", "--vertex-ai-port=9", "--vertex-ai-default-model=m", "--address=::1")
        settings = network(*arguments, environment=ROUTES)
        assert settings.vertex_ai == VertexAiSettings("/p", "/h", "::1", 9, "m")
        assert settings.allow_http
        assert network("--allow-vertex-ai=false", environment={"AIP_MODE": "PREDICTION"}).vertex_ai is None

    def test_routes_must_be_there(self):
        assert error_of("--allow-vertex-ai=true") == "API_PREDICT_ROUTE is not defined for Vertex AI endpoint"
        assert error_of("--allow-vertex-ai=true", environment={"AIP_PREDICT_ROUTE": "/p"}) == (
            "AIP_HEALTH_ROUTE is not defined for Vertex AI endpoint"
        )


def test_unix_sockets_collide_by_path():
    assert network("--http-address=unix:/a", "--grpc-address=unix:/b").http_address == "unix:/a"
    assert error_of("--http-address=unix:/a", "--grpc-address=unix:/a", "--metrics-address=unix:/b") == (
        "The server cannot listen to HTTP requests and GRPC requests at the same address unix:/a"
    )


def test_ports_collide_by_number():
    assert "The server cannot listen to HTTP requests and GRPC requests at the same address and port" in error_of(
        "--http-port=8001"
    )
    assert "HTTP requests and SageMaker requests" in error_of(
        "--allow-sagemaker=true", "--sagemaker-port=8000", "--address=127.0.0.1"
    )
