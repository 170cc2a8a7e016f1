"""The shared memory endpoints over REST: register, unregister and status, of system and of CUDA memory.

Source: Triton, http_server.cc, HandleSystemSharedMemory and HandleCudaSharedMemory.
"""

from merrow.core.errors import InvalidArgumentError
from merrow.engine.engine import Engine
from merrow.frontends.http.routes import Endpoint, Handlers, Route
from merrow.frontends.http.status import JSON_HEADERS
from merrow.frontends.http.tasks import AnswerTasks
from merrow.net.exchange import Exchange
from merrow.wire import shared_memory_json


class HttpSharedMemory:
    """The handlers of the six endpoints.

    Args:
        tasks: owns registrations of CUDA memory, which wait for the device.
        max_input_byte_size: bytes that a JSON body may have (`--http-max-input-size`).
    """

    def __init__(self, engine: Engine, tasks: AnswerTasks, max_input_byte_size: int) -> None:
        self._registry = engine.shared_memory
        self._tasks = tasks
        self._max_input_byte_size = max_input_byte_size

    def handlers(self) -> Handlers:
        """The handler of each endpoint that this object answers."""
        return {
            Endpoint.SYSTEM_SHARED_MEMORY_STATUS: self.on_system_status,
            Endpoint.SYSTEM_SHARED_MEMORY_REGISTER: self.on_system_register,
            Endpoint.SYSTEM_SHARED_MEMORY_UNREGISTER: self.on_system_unregister,
            Endpoint.CUDA_SHARED_MEMORY_STATUS: self.on_cuda_status,
            Endpoint.CUDA_SHARED_MEMORY_REGISTER: self.on_cuda_register,
            Endpoint.CUDA_SHARED_MEMORY_UNREGISTER: self.on_cuda_unregister,
        }

    def on_system_status(self, exchange: Exchange, route: Route) -> None:
        regions = self._registry.system_regions(route.region)
        exchange.respond(200, JSON_HEADERS, (shared_memory_json.encode_system_regions(regions),))

    def on_system_register(self, exchange: Exchange, route: Route) -> None:
        self._registry.check_enabled()
        _check_has_region(route, "system")
        wanted = shared_memory_json.decode_system_registration(exchange.body, self._max_input_byte_size)
        self._registry.register_system(route.region, wanted.key, wanted.offset, wanted.byte_size)
        exchange.respond(200, JSON_HEADERS, ())

    def on_system_unregister(self, exchange: Exchange, route: Route) -> None:
        self._registry.check_enabled()
        self._registry.unregister_system(route.region)
        exchange.respond(200, JSON_HEADERS, ())

    def on_cuda_status(self, exchange: Exchange, route: Route) -> None:
        regions = self._registry.cuda_regions(route.region)
        exchange.respond(200, JSON_HEADERS, (shared_memory_json.encode_cuda_regions(regions),))

    def on_cuda_register(self, exchange: Exchange, route: Route) -> None:
        self._registry.check_enabled()
        _check_has_region(route, "cuda")
        wanted = shared_memory_json.decode_cuda_registration(exchange.body, self._max_input_byte_size)
        self._tasks.start(exchange, self._register_cuda(exchange, route.region, wanted), JSON_HEADERS)

    def on_cuda_unregister(self, exchange: Exchange, route: Route) -> None:
        self._registry.check_enabled()
        self._registry.unregister_cuda(route.region)
        exchange.respond(200, JSON_HEADERS, ())

    async def _register_cuda(self, exchange: Exchange, name: str, wanted: shared_memory_json.CudaRegistration) -> None:
        await self._registry.register_cuda(name, wanted.raw_handle, wanted.device_id, wanted.byte_size)
        exchange.respond(200, JSON_HEADERS, ())


def _check_has_region(route: Route, kind: str) -> None:
    if not route.region:
        raise InvalidArgumentError(f"'region name' is necessary to register {kind} shared memory region")
