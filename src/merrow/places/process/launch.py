"""From a fork to a child that is ready: blocking, straight-line, on the thread that asked.

SETUP ->   STARTED within the start time-out, then, after as long as the model takes to load,
           READY (an instance that takes batches), COMPLETED (a completed configuration) or FAILED (why not)
"""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError

from merrow.backends.base import InstanceDescription, ModelContext
from merrow.core.errors import InternalError
from merrow.core.model_config import ModelConfig
from merrow.core.plain_values import decode_plain, encode_plain
from merrow.places.base import Caller, ServerServices
from merrow.places.process.channel import (
    CANCELLATION_SLOTS,
    COMPLETED,
    FAILED,
    HAS_READINESS_CHECK,
    LOG,
    MALFORMED,
    READY,
    SEGMENT,
    SERVICES,
    SETUP,
    STARTED,
    ProtocolError,
    decode_failure,
)
from merrow.places.process.control import ControlMessage, ControlSocket
from merrow.places.process.environments import Environments
from merrow.places.process.fork_client import ChildProcess, describe_exit
from merrow.places.process.limits import ChildLimits
from merrow.places.process.service_session import ServiceSession
from merrow.places.process.session import LaunchedChild, relay_log
from merrow.places.process.system import create_shared_memory
from merrow.settings import ProcessSettings

_LOG = logging.getLogger("merrow.places")

OnForked = Callable[[ChildProcess], None]


class Launcher:
    """Launches children. Every method blocks, and may be called on any thread but the loop's."""

    def __init__(self, environments: Environments, settings: ProcessSettings, services: ServerServices) -> None:
        self._environments = environments
        self._settings = settings
        self._services = services

    def launch(
        self,
        context: ModelContext,
        backend_name: str,
        description: InstanceDescription,
        limits: ChildLimits,
        loop: asyncio.AbstractEventLoop,
        on_forked: OnForked | None = None,
    ) -> LaunchedChild:
        """A child with the instance loaded.

        Args:
            loop: where the instance's questions are answered, from now on.
            on_forked: called early with the process, so that someone else can kill it.

        Raises:
            ServerError: the instance cannot be loaded, or its process died or did not start.
        """
        child, interpreter = self._fork(context, backend_name, description, limits, on_forked)
        try:
            child.services = self._connect(child, context, description, loop)
            loop.call_soon_threadsafe(child.services.start)
            child.has_readiness_check = bool(self._wait(child, READY, description.name).count & HAS_READINESS_CHECK)
        except BaseException:
            _discard(child)
            if child.services is not None:
                loop.call_soon_threadsafe(child.services.close)
            raise
        _LOG.info(
            "instance '%s' of model '%s' runs in process %s with %s%s",
            description.name,
            context.name,
            child.process.process_id,
            interpreter,
            limits,
        )
        return child

    def auto_complete(self, context: ModelContext, backend_name: str, limits: ChildLimits) -> ModelConfig:
        """`Backend.auto_complete` in a child of its own.

        Raises:
            ServerError: as `Backend.auto_complete`; also when the process died or did not start.
        """
        child, _ = self._fork(context, backend_name, None, limits, None)
        try:
            completed = self._wait(child, COMPLETED, context.name).body
            return decode_plain(ModelConfig, json.loads(completed.rstrip(b"\0")))
        except ValueError as error:
            raise InternalError(f"model '{context.name}' completed its configuration wrongly: {error}") from None
        finally:
            _discard(child)

    def _fork(
        self,
        context: ModelContext,
        backend_name: str,
        description: InstanceDescription | None,
        limits: ChildLimits,
        on_forked: OnForked | None,
    ) -> tuple[LaunchedChild, str]:
        """A child that has been told what to be, and what it runs with, in words."""
        try:
            client, interpreter = self._environments.client_of(context)
        except OSError as error:
            raise InternalError(f"cannot start a process for model '{context.name}': {error}") from None
        setup = {
            "context": encode_plain(context),
            "backend": backend_name,
            "instance": None if description is None else encode_plain(description),
            "arena_initial_byte_size": self._settings.arena_initial_byte_size,
            "stream_window_byte_size": self._settings.stream_window_byte_size,
            "memory_limit_byte_size": limits.memory_limit_byte_size,
            "log_level": logging.getLogger("merrow").getEffectiveLevel(),
        }
        try:
            descriptor, page = create_shared_memory(CANCELLATION_SLOTS * 8)
        except OSError as error:
            raise InternalError(f"cannot start a process for model '{context.name}': {error}") from None
        try:
            process, data, control = client.fork(_origin_of(context, description))
            child = LaunchedChild(
                process, data, ControlSocket(control, frozenset((SEGMENT,))), memoryview(page).cast("Q")
            )
            if on_forked is not None:
                on_forked(process)
            try:
                child.control.send(SETUP, body=json.dumps(setup).encode(), descriptor=descriptor)
            except OSError:
                # It died at once, which `_wait` finds out.
                pass
        except OSError as error:
            raise InternalError(f"cannot start a process for model '{context.name}': {error}") from None
        finally:
            os.close(descriptor)
        return child, interpreter

    def _connect(
        self,
        child: LaunchedChild,
        context: ModelContext,
        description: InstanceDescription,
        loop: asyncio.AbstractEventLoop,
    ) -> ServiceSession:
        """What the instance may say and ask, from its `initialize` on."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise InternalError(f"cannot start a process for model '{context.name}': {error}") from None
        try:
            child.control.send(SERVICES, descriptor=theirs.fileno())
        except OSError:
            # It died at once, which `_wait` finds out.
            pass
        finally:
            theirs.close()
        caller = Caller(context.name, context.version, description.name)
        settings = self._settings
        return ServiceSession(
            ours,
            caller,
            self._services,
            loop,
            settings.arena_initial_byte_size,
            settings.stream_window_byte_size,
            child.process.kill,
        )

    def _wait(self, child: LaunchedChild, awaited: int, name: str) -> ControlMessage:
        """The awaited message."""
        connection = child.control.connection
        connection.settimeout(self._settings.start_timeout_seconds)
        result: ControlMessage | None = None
        try:
            while result is None:
                for message in _receive(child, name):
                    if message.kind == STARTED:
                        child.process.process_id = message.number
                        # From here on it is the model that takes its time.
                        connection.settimeout(None)
                    elif message.kind == LOG:
                        relay_log(message.body, child.process.output.origin)
                    elif message.kind == FAILED:
                        raise decode_failure(message.body, 0, len(message.body))
                    elif message.kind == awaited:
                        result = message
                    else:
                        raise ProtocolError(f"a control message of kind {message.kind}")
        except (TimeoutError, BlockingIOError):
            raise InternalError(
                f"Stub process '{name}' is not healthy: it did not start within "
                f"{self._settings.start_timeout_seconds} s (--backend-config=python,stub-timeout-seconds)"
            ) from None
        except MALFORMED as error:
            raise InternalError(f"Stub process '{name}' is not healthy: {error}") from None
        return result


def _origin_of(context: ModelContext, description: InstanceDescription | None) -> str:
    """The model and its instance, as the log names them."""
    if description is None or description.name.startswith(context.name):
        return context.name if description is None else description.name
    return f"{context.name} {description.name}"


def _receive(child: LaunchedChild, name: str) -> list[ControlMessage]:
    messages = child.control.receive()
    if messages is not None:
        return messages
    try:
        reason = describe_exit(child.process.exited.result(timeout=1))
    except FutureTimeoutError:
        reason = "but still exists"
    _LOG.error("the process of '%s' ended while the model was loading, %s", name, reason)
    raise InternalError(f"Stub process '{name}' is not healthy.")


def _discard(child: LaunchedChild) -> None:
    """End a child that is not wanted, whatever it does."""
    child.process.kill()
    child.data.close()
    child.control.close()
