"""The shared memory RPCs: register, unregister and status, of system and of CUDA memory.

Source: Triton, grpc/grpc_server.cc.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from merrow.core.tensor import Buffer
from merrow.engine.engine import Engine
from merrow.net.exchange import GrpcCall
from merrow.wire import shared_memory_proto
from merrow.wire.admin_proto import EMPTY_MESSAGE

ReplyWhenDone = Callable[[GrpcCall, Coroutine[Any, Any, None]], None]


class GrpcSharedMemory:
    """The handlers of the six methods.

    Args:
        reply_when_done: runs what waits (a device) in a task, and replies with an empty message.
    """

    def __init__(self, engine: Engine, reply_when_done: ReplyWhenDone) -> None:
        self._registry = engine.shared_memory
        self._reply_when_done = reply_when_done

    def on_system_status(self, call: GrpcCall, message: Buffer) -> None:
        name = shared_memory_proto.decode_region_name(message)
        call.reply((shared_memory_proto.encode_system_regions(self._registry.system_regions(name)),))

    def on_system_register(self, call: GrpcCall, message: Buffer) -> None:
        name, wanted = shared_memory_proto.decode_system_registration(message)
        self._registry.register_system(name, wanted.key, wanted.offset, wanted.byte_size)
        call.reply((EMPTY_MESSAGE,))

    def on_system_unregister(self, call: GrpcCall, message: Buffer) -> None:
        name = shared_memory_proto.decode_region_name(message)
        self._registry.check_enabled()
        self._registry.unregister_system(name)
        call.reply((EMPTY_MESSAGE,))

    def on_cuda_status(self, call: GrpcCall, message: Buffer) -> None:
        name = shared_memory_proto.decode_region_name(message)
        call.reply((shared_memory_proto.encode_cuda_regions(self._registry.cuda_regions(name)),))

    def on_cuda_register(self, call: GrpcCall, message: Buffer) -> None:
        name, wanted = shared_memory_proto.decode_cuda_registration(message)
        self._registry.check_enabled()
        self._reply_when_done(
            call, self._registry.register_cuda(name, wanted.raw_handle, wanted.device_id, wanted.byte_size)
        )

    def on_cuda_unregister(self, call: GrpcCall, message: Buffer) -> None:
        name = shared_memory_proto.decode_region_name(message)
        self._registry.check_enabled()
        self._registry.unregister_cuda(name)
        call.reply((EMPTY_MESSAGE,))
