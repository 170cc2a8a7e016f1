"""What the network's flags promise, asked of a real process through real clients."""

import json
import os
import socket
import ssl
import subprocess
import threading
import time

import grpc
import h2.config
import h2.connection
import h2.events
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from merrow.testing.repository_builder import RepositoryBuilder, python_config
from merrow.testing.running_server import RunningServer, ServerStartError
from merrow.wire._generated.grpc_service_pb2 import ModelInferRequest
from tests.certificates import Authority
from tests.e2e.endpoints import ask

pytestmark = pytest.mark.slow

SHOW_PARAMETERS = """\
import numpy as np

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", np.array([request.parameters()], dtype=object))])
            for request in requests
        ]
"""


def identity(directory):
    repository = RepositoryBuilder(directory)
    repository.add_identity("m", dims=(-1,), max_batch_size=8)
    return repository.path


def tensor(client, values, name="INPUT0", datatype="FP32"):
    array = np.array(values, np.float32 if datatype == "FP32" else np.int32)
    made = client.InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array)
    return made


def infer(library, client, **options):
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    return client.infer("m", [tensor(library, values)], **options).as_numpy("OUTPUT0").tolist() == values.tolist()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


def port_of(url):
    return url.rpartition(":")[2]


@pytest.fixture(scope="module")
def tls_server(authority, tmp_path_factory):
    certificate, key = authority.sign("server")
    flags = (f"--server-cert={certificate}", f"--server-key={key}", f"--root-cert={authority.certificate_file}")
    models = identity(tmp_path_factory.mktemp("tls"))
    with RunningServer(models, "--use-ssl=true", "--grpc-use-ssl-mutual=true", *flags) as running:
        yield running


class TestTls:
    def test_tritonclient_http(self, tls_server, authority):
        with tritonclient.http.InferenceServerClient(
            f"localhost:{port_of(tls_server.http_url)}",
            ssl=True,
            ssl_options={"ca_certs": str(authority.certificate_file)},
        ) as client:
            assert client.is_server_ready()
            assert infer(tritonclient.http, client)
            assert infer(
                tritonclient.http,
                client,
                request_compression_algorithm="gzip",
                response_compression_algorithm="deflate",
            )

    def test_tritonclient_grpc(self, tls_server, authority):
        certificate, key = authority.sign("client")
        with tritonclient.grpc.InferenceServerClient(
            f"localhost:{port_of(tls_server.grpc_url)}",
            ssl=True,
            root_certificates=str(authority.certificate_file),
            private_key=str(key),
            certificate_chain=str(certificate),
        ) as client:
            assert client.is_server_ready()
            assert infer(tritonclient.grpc, client)
            values = np.random.default_rng(1).random((1, 4_000_000), np.float32)
            large = client.infer("m", [tensor(tritonclient.grpc, values)]).as_numpy("OUTPUT0")
            assert np.array_equal(large, values)

    def test_grpc_without_a_certificate_is_refused(self, tls_server, authority):
        with tritonclient.grpc.InferenceServerClient(
            f"localhost:{port_of(tls_server.grpc_url)}", ssl=True, root_certificates=str(authority.certificate_file)
        ) as client:
            with pytest.raises(tritonclient.utils.InferenceServerException) as raised:
                client.get_server_metadata(client_timeout=5)
            assert raised.value.status() in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")

    @pytest.mark.parametrize("version", ["--http1.1", "--http2"])
    @pytest.mark.parametrize("service", ["http", "metrics"])
    def test_curl(self, tls_server, authority, version, service):
        url = tls_server.http_url if service == "http" else tls_server.metrics_url
        path = "v2/health/ready" if service == "http" else "metrics"
        command = ["curl", "-sS", version, "--cacert", authority.certificate_file, "-o", os.devnull, "-w",
                   "%{http_code} %{http_version}", f"https://localhost:{port_of(url)}/{path}"]  # fmt: skip
        seen = subprocess.run(command, capture_output=True, check=True, timeout=20, text=True).stdout
        assert seen == ("200 2" if version == "--http2" else "200 1.1")

    def test_plain_text_is_not_served(self, tls_server):
        with pytest.raises(OSError):  # noqa: PT011
            ask(tls_server.http_url, "GET", "/v2")

    def test_certificates_are_replaced_while_it_runs(self, tls_server, authority, tmp_path):
        def serial_number():
            context = ssl.create_default_context(cafile=authority.certificate_file)
            plain = socket.create_connection(("127.0.0.1", int(port_of(tls_server.http_url))), 10)
            with context.wrap_socket(plain, server_hostname="localhost") as client:
                return client.getpeercert()["serialNumber"]

        first = serial_number()
        authority.sign("server")
        deadline = time.monotonic() + 20
        while serial_number() == first:
            assert time.monotonic() < deadline
        tls_server.wait_for_log("has changed, and is used for new connections")


@pytest.mark.parametrize("service", ["use-ssl", "grpc-use-ssl"])
def test_bad_certificates_end_the_start(tmp_path, service):
    prefix = service.removesuffix("use-ssl")
    flags = (f"--{service}=true", f"--{prefix}server-cert={tmp_path}/none", f"--{prefix}server-key={tmp_path}/none")
    with pytest.raises(ServerStartError, match=f"cannot read the certificate in '{tmp_path}/none': No such file"):
        RunningServer(identity(tmp_path / "models"), *flags).__enter__()


class TestAddresses:
    def test_unix_sockets(self, tmp_path):
        http_socket, grpc_socket = tmp_path / "http.sock", tmp_path / "grpc.sock"
        flags = (f"--http-address=unix:{http_socket}", f"--grpc-address=unix:{grpc_socket}", "--allow-metrics=false")
        with RunningServer(identity(tmp_path / "models"), *flags) as server:
            assert f"Started HTTPService at unix:{http_socket}" in server.log
            seen = subprocess.run(
                ["curl", "-sS", "--unix-socket", http_socket, "http://h/v2/models/m/ready", "-w", "%{http_code}"],
                capture_output=True, check=True, timeout=20, text=True,
            )  # fmt: skip
            assert seen.stdout == "200"
            with tritonclient.grpc.InferenceServerClient(f"unix:{grpc_socket}") as client:
                assert infer(tritonclient.grpc, client)
        assert not http_socket.exists()
        assert not grpc_socket.exists()

    @pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
    @pytest.mark.parametrize(("address", "reached"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"])])
    def test_ipv6(self, tmp_path, address, reached):
        with RunningServer(identity(tmp_path), f"--address={address}", "--port=0") as server:
            assert server.http_url.startswith(f"[{address}]:")
            for host in reached:
                url = f"[{host}]:{port_of(server.http_url)}" if ":" in host else f"{host}:{port_of(server.http_url)}"
                assert ask(url, "GET", "/v2/health/live")[0] == 200
                with tritonclient.grpc.InferenceServerClient(url) as client:
                    assert client.is_server_live()

    def test_a_name_of_several_addresses_has_one_port(self, tmp_path):
        with RunningServer(identity(tmp_path), "--http-address=localhost") as server:
            assert ask(server.http_url, "GET", "/v2/health/live")[0] == 200

    @pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="ports cannot be shared")
    def test_two_servers_share_a_port(self, tmp_path):
        models = identity(tmp_path)
        with RunningServer(models, "--reuse-http-port=true") as first:
            port = port_of(first.http_url)
            with RunningServer(models, "--reuse-http-port=true", f"--http-port={port}") as second:
                assert second.http_url == first.http_url
                assert ask(first.http_url, "GET", "/v2/health/live")[0] == 200
            with pytest.raises(ServerStartError, match=f"Socket '127.0.0.1:{port}' already in use"):
                RunningServer(models, f"--http-port={port}").__enter__()


@pytest.fixture(scope="module")
def forwarding_server(tmp_path_factory):
    repository = RepositoryBuilder(tmp_path_factory.mktemp("forwarding"))
    config = python_config("m", [("INPUT0", "INT32", (1,))], [("OUTPUT0", "BYTES", (1,))])
    repository.add("m", config, {"1/model.py": SHOW_PARAMETERS})
    flags = (f"--{protocol}-header-forward-pattern=x-fwd.*|^timeout$|triton_" for protocol in ("http", "grpc"))
    with RunningServer(repository.path, *flags) as running:
        yield running


class TestHeaderForwarding:
    def parameters(self, library, client, **options):
        result = client.infer("m", [tensor(library, [1], datatype="INT32")], **options)
        return json.loads(result.as_numpy("OUTPUT0")[0])

    def test_http(self, forwarding_server):
        with tritonclient.http.InferenceServerClient(forwarding_server.http_url) as client:
            headers = {"X-Fwd-A": "hdr", "my-X-FWD": "b", "Other": "c"}
            seen = self.parameters(tritonclient.http, client, headers=headers, parameters={"X-Fwd-A": "body", "n": 1})
            assert seen == {"X-Fwd-A": "hdr", "my-X-FWD": "b", "n": 1}
            assert self.parameters(tritonclient.http, client, headers={"Other": "c"}) == {}

    @pytest.mark.parametrize("name", ["timeout", "triton_x"])
    def test_reserved_names(self, forwarding_server, name):
        text = f"Header '{name}' is reserved for Triton usage and cannot be forwarded."
        body = b'{"inputs":[{"name":"INPUT0","datatype":"INT32","shape":[1],"data":[1]}]}'
        assert ask(forwarding_server.http_url, "POST", "/v2/models/m/infer", body, {name: "1"}) == (
            400,
            "application/json",
            json.dumps({"error": text}, separators=(",", ":")).encode(),
        )
        with tritonclient.grpc.InferenceServerClient(forwarding_server.grpc_url) as client:
            with pytest.raises(tritonclient.utils.InferenceServerException) as raised:
                self.parameters(tritonclient.grpc, client, headers={name: "1"})
            assert (raised.value.status(), raised.value.message()) == ("StatusCode.INVALID_ARGUMENT", text)

    def test_large_json_read_on_a_thread(self, forwarding_server):
        body = b'{"parameters":{"pad":"%b"},"inputs":[{"name":"INPUT0","datatype":"INT32","shape":[1],"data":[1]}]}'
        _, _, answer = ask(
            forwarding_server.http_url, "POST", "/v2/models/m/infer", body % (b"x" * 400_000), {"x-fwd-a": "1"}
        )
        assert json.loads(json.loads(answer)["outputs"][0]["data"][0])["x-fwd-a"] == "1"

    def test_grpc_and_streams(self, forwarding_server):
        with tritonclient.grpc.InferenceServerClient(forwarding_server.grpc_url) as client:
            seen = self.parameters(
                tritonclient.grpc, client, headers={"x-fwd-a": "1", "x-fwd-b-bin": b"\x02"}, parameters={"k": 3}
            )
            assert seen == {"k": 3, "x-fwd-a": "1", "x-fwd-b-bin": "\x02"}
            answers = []
            arrived = threading.Semaphore(0)

            def on_answer(result, error):
                answers.append((result, error))
                arrived.release()

            client.start_stream(on_answer, headers={"x-fwd-c": "2"})
            client.async_stream_infer("m", [tensor(tritonclient.grpc, [1], datatype="INT32")])
            assert arrived.acquire(timeout=20)
            client.stop_stream()
            [(result, error)] = answers
            assert error is None
            assert json.loads(result.as_numpy("OUTPUT0")[0]) == {"x-fwd-c": "2"}


@pytest.fixture(scope="module")
def explicit_server(tmp_path_factory):
    models = identity(tmp_path_factory.mktemp("reflection"))
    RepositoryBuilder(models).add("broken", 'backend: "nothing"')
    with RunningServer(models, "--model-control-mode=explicit", "--load-model=m") as running:
        yield running


class TestReflectionAndHealth:
    def test_reflection_tells_services_and_messages(self, explicit_server):
        with grpc.insecure_channel(explicit_server.grpc_url) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert set(database.get_services()) == {
                "inference.GRPCInferenceService",
                "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection",
                "grpc.reflection.v1alpha.ServerReflection",
            }
            pool = DescriptorPool(database)
            service = pool.FindServiceByName("inference.GRPCInferenceService")
            assert {method.name for method in service.methods} >= {"ModelInfer", "ModelStreamInfer", "LogSettings"}
            # A call made of nothing but what reflection says.
            method = service.methods_by_name["ModelReady"]
            request = GetMessageClass(method.input_type)(name="m")
            call = channel.unary_unary(
                f"/{service.full_name}/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            assert call(request).ready
            with pytest.raises(KeyError):
                pool.FindMessageTypeByName("inference.Nothing")

    def test_it_can_be_switched_off(self, tmp_path):
        server = RunningServer(identity(tmp_path), "--grpc-reflection=false")
        with server, grpc.insecure_channel(server.grpc_url) as channel:
            with pytest.raises(grpc.RpcError) as raised:
                list(ProtoReflectionDescriptorDatabase(channel).get_services())
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED

    def test_health_is_checked_and_watched(self, explicit_server):
        with (
            grpc.insecure_channel(explicit_server.grpc_url) as channel,
            tritonclient.grpc.InferenceServerClient(explicit_server.grpc_url) as client,
        ):
            stub = health_pb2_grpc.HealthStub(channel)
            assert stub.Check(health_pb2.HealthCheckRequest(service="anything")).status == 1
            watch = stub.Watch(health_pb2.HealthCheckRequest(service="anything"), timeout=60)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            # A server with a model that failed to load is not ready.
            with pytest.raises(tritonclient.utils.InferenceServerException):
                client.load_model("broken")
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watch.cancel()

    def test_watchers_hear_of_the_end(self, tmp_path):
        server = RunningServer(identity(tmp_path))
        with server, grpc.insecure_channel(server.grpc_url) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            start = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - start < 10
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(grpc.RpcError) as raised:
                next(watch)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


class TestCompressionAndKeepalive:
    @pytest.mark.parametrize("level", ["none", "high"])
    def test_responses_of_inference_are_compressed(self, tmp_path, level):
        with RunningServer(identity(tmp_path), f"--grpc-infer-response-compression-level={level}") as server:
            sizes = {}
            for name, method in (("infer", "ModelInfer"), ("metadata", "ServerMetadata")):
                sizes[name] = received_byte_size(server.grpc_url, method)
            with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
                for algorithm in (None, "gzip", "deflate"):
                    assert infer(tritonclient.grpc, client, compression_algorithm=algorithm)
                zeros = np.zeros((1, 300_000), np.float32)
                large = client.infer("m", [tensor(tritonclient.grpc, zeros)]).as_numpy("OUTPUT0")
                assert np.array_equal(large, zeros)
        assert sizes["infer"] > 40_000 if level == "none" else sizes["infer"] < 2_000
        assert sizes["metadata"] > 100

    def test_old_connections_are_replaced(self, tmp_path):
        flags = ("--grpc-max-connection-age=300", "--grpc-max-connection-age-grace=1000", "--grpc-keepalive-time=100")
        server = RunningServer(identity(tmp_path), *flags)
        with server, tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                assert infer(tritonclient.grpc, client)


def received_byte_size(url, method):
    """Bytes that a server sends as the answer to one call, counted on the wire."""
    message = b""
    if method == "ModelInfer":
        request = ModelInferRequest(model_name="m", raw_input_contents=[bytes(40_000)])
        request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 10_000])
        message = request.SerializeToString()
    host, _, port = url.rpartition(":")
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    connection.initiate_connection()
    connection.send_headers(
        1,
        [(":method", "POST"), (":scheme", "http"), (":path", f"/inference.GRPCInferenceService/{method}"),
         (":authority", "h"), ("te", "trailers"), ("content-type", "application/grpc"),
         ("grpc-accept-encoding", "identity, deflate, gzip")],
    )  # fmt: skip
    body = b"\0" + len(message).to_bytes(4, "big") + message
    for start in range(0, len(body), 16384):
        connection.send_data(1, body[start : start + 16384], end_stream=start + 16384 >= len(body))
    with socket.create_connection((host, int(port)), 20) as client:
        client.sendall(connection.data_to_send())
        byte_size = 0
        while True:
            for event in connection.receive_data(client.recv(65536)):
                if isinstance(event, h2.events.DataReceived):
                    byte_size += len(event.data)
                    connection.acknowledge_received_data(len(event.data), 1)
                elif isinstance(event, h2.events.StreamEnded):
                    return byte_size
            client.sendall(connection.data_to_send())
