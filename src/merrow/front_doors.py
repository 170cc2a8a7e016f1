"""The front doors of a server, and which port serves which of them.

REST is there twice: `--port` serves it together with the metrics, which otherwise have a port of their own. The ports
for SageMaker and Vertex AI serve the same endpoints, with the form of binary tensors that a platform's containers have.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from merrow.engine.engine import Engine
from merrow.frontends.grpc.admin import GrpcAdmin
from merrow.frontends.grpc.delays import DelayedGrpc
from merrow.frontends.grpc.infer import GrpcInference
from merrow.frontends.grpc.methods import GrpcFrontend
from merrow.frontends.grpc.settings import GrpcSettings
from merrow.frontends.http.admin import HttpAdmin
from merrow.frontends.http.door import HttpFrontend
from merrow.frontends.http.generate import HttpGenerate
from merrow.frontends.http.infer import HttpInference
from merrow.frontends.http.routes import Endpoint, Handlers
from merrow.frontends.http.sagemaker import SageMakerFrontend
from merrow.frontends.http.settings import HttpSettings
from merrow.frontends.http.shared_memory import HttpSharedMemory
from merrow.frontends.http.tasks import AnswerTasks
from merrow.frontends.http.vertex_ai import VertexAiFrontend
from merrow.frontends.metrics import MetricsFrontend
from merrow.net.exchange import GrpcApplication, HttpApplication
from merrow.net.grpc_compression import CompressionLevel
from merrow.observe.load_report import report_load
from merrow.observe.logs import ServerLog
from merrow.observe.metrics_page import MetricsPage
from merrow.observe.trace import Tracer
from merrow.settings import NetworkSettings, Settings, TlsSettings
from merrow.wire import admin_json, admin_proto
from merrow.wire.binary_framing import SAGEMAKER_CONTENT_TYPE, VERTEX_AI_CONTENT_TYPE, BinaryFraming
from merrow.wire.header_forwarding import HeaderForwarding

PROTOCOL_VERSION = "2.73.0"
"""The release of Triton whose protocol is spoken."""

EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
"""The protocol's extensions, as Triton lists them; `generate` works too, and is in nobody's list."""

_COMPRESSION_LEVELS = {
    "none": None,
    "low": CompressionLevel.LOW,
    "medium": CompressionLevel.MEDIUM,
    "high": CompressionLevel.HIGH,
}


class FrontDoorError(Exception):
    """A front door cannot be opened; the text says which, and why, as Triton words it."""


@dataclass(frozen=True, slots=True)
class Service:
    """What one port serves. `name` is the field of `server.Ports`, `title` what the log calls it."""

    name: str
    title: str
    address: str
    port: int
    reuses_port: bool
    tls: TlsSettings | None
    http: HttpApplication | None = None
    grpc: GrpcApplication | None = None


class FrontDoors:
    """The front doors of one server."""

    def __init__(
        self, engine: Engine, settings: Settings, metrics: MetricsPage, tracer: Tracer, log: ServerLog | None
    ) -> None:
        network = settings.network
        description = (settings.server_id, PROTOCOL_VERSION, EXTENSIONS)
        max_input_byte_size = network.http_max_input_byte_size
        self._answer_tasks = AnswerTasks()
        self._grpc_admin = GrpcAdmin(engine, admin_proto.encode_server_metadata(*description))
        self.metrics = MetricsFrontend(engine, metrics)
        self._grpc_settings = GrpcSettings(engine, tracer, log)
        self.grpc = GrpcFrontend(
            engine,
            self._grpc_admin,
            GrpcInference(engine, tracer, forwarding=_forwarding(network.grpc_header_forward_pattern)),
            restrictions=network.grpc_restrictions,
            has_reflection=network.allow_grpc_reflection,
            compression=_COMPRESSION_LEVELS[network.grpc_infer_response_compression_level],
            limits=network.limits,
            settings=self._grpc_settings,
        )
        self.grpc_calls: GrpcApplication = self.grpc
        if network.grpc_delays is not None:
            self.grpc_calls = DelayedGrpc(self.grpc, engine, network.grpc_delays, asyncio.get_running_loop())
        server_metadata = admin_json.encode_server_metadata(*description)
        handlers: Handlers = {
            **HttpAdmin(engine, self._answer_tasks, server_metadata, max_input_byte_size).handlers(),
            **HttpInference(
                engine,
                self._answer_tasks,
                max_input_byte_size,
                tracer,
                forwarding=_forwarding(network.http_header_forward_pattern),
            ).handlers(),
            **HttpGenerate(
                engine,
                self._answer_tasks,
                max_input_byte_size,
                partial(report_load, metrics.custom),
                tracer,
                network.limits,
            ).handlers(),
            **HttpSettings(engine, self._answer_tasks, tracer, log, max_input_byte_size).handlers(),
            **HttpSharedMemory(engine, self._answer_tasks, max_input_byte_size).handlers(),
        }
        self.http = HttpFrontend(handlers, network.http_restrictions)
        # REST and metrics on one port.
        handlers = {**handlers, Endpoint.METRICS: lambda exchange, _: self.metrics.on_exchange(exchange)}
        self.all_http = HttpFrontend(handlers, network.http_restrictions)

        def platform_frontend(framing: BinaryFraming) -> HttpFrontend:
            """The same endpoints, with the form of binary tensors that a platform's containers have."""
            inference = HttpInference(engine, self._answer_tasks, max_input_byte_size, tracer, framing=framing)
            return HttpFrontend({**handlers, **inference.handlers()}, network.http_restrictions)

        self.sagemaker: HttpApplication | None = None
        if network.sagemaker is not None:
            self.sagemaker = SageMakerFrontend(
                platform_frontend(SAGEMAKER_CONTENT_TYPE),
                engine,
                self._answer_tasks,
                network.sagemaker,
                network.http_restrictions,
                max_input_byte_size,
            )
        self.vertex_ai: HttpApplication | None = None
        if network.vertex_ai is not None:
            self.vertex_ai = VertexAiFrontend(
                platform_frontend(VERTEX_AI_CONTENT_TYPE),
                network.vertex_ai.predict_route,
                network.vertex_ai.health_route,
                network.vertex_ai.default_model or _only_model(engine),
            )

    async def close(self) -> None:
        """Wait until what runs in tasks is answered."""
        await self._answer_tasks.close()
        await self._grpc_admin.close()
        await self._grpc_settings.close()
        await self.metrics.close()


def _only_model(engine: Engine) -> str:
    """The name of the one model there is.

    Raises:
        FrontDoorError: there is none, or there are several.
    """
    names = {model.name for model in engine.models()}
    if len(names) != 1:
        raise FrontDoorError(
            "failed to start Vertex AI service: Invalid argument - Expect the model repository contains only a single "
            "model if default model is not specified"
        )
    return names.pop()


def _forwarding(pattern: str) -> HeaderForwarding | None:
    return HeaderForwarding(pattern) if pattern else None


def services(network: NetworkSettings, doors: FrontDoors) -> Iterator[Service]:
    """The services to start, in Triton's order."""
    if network.port is not None:
        yield Service(
            "all",
            "all services",
            network.address,
            network.port,
            network.reuse_port,
            network.tls,
            http=doors.all_http,
            grpc=doors.grpc_calls,
        )
    if network.allow_grpc:
        yield Service(
            "grpc",
            "GRPCInferenceService",
            network.grpc_address,
            network.grpc_port,
            network.reuse_grpc_port,
            network.grpc_tls,
            grpc=doors.grpc_calls,
        )
    if network.allow_http:
        yield Service(
            "http",
            "HTTPService",
            network.http_address,
            network.http_port,
            network.reuse_http_port,
            network.http_tls,
            http=doors.http,
        )
    if network.sagemaker is not None:
        yield Service(
            "sagemaker",
            "Sagemaker HTTPService",
            network.sagemaker.address,
            network.sagemaker.port,
            False,
            network.tls,
            http=doors.sagemaker,
        )
    if network.vertex_ai is not None:
        yield Service(
            "vertex_ai",
            "Vertex AI HTTPService",
            network.vertex_ai.address,
            network.vertex_ai.port,
            False,
            network.tls,
            http=doors.vertex_ai,
        )
    if network.allow_metrics:
        yield Service(
            "metrics",
            "Metrics Service",
            network.metrics_address,
            network.metrics_port,
            network.reuse_metrics_port,
            network.metrics_tls,
            http=doors.metrics,
        )


def path_of_socket(address: str) -> str | None:
    """The path of a Unix socket, `unix:PATH` or `unix://PATH`; None for other addresses."""
    scheme, separator, path = address.partition(":")
    return path.removeprefix("//") if separator and scheme == "unix" else None
