"""From a fork to a child that is ready: blocking, straight-line, on the thread that asked.

SETUP ->   STARTED within the start time-out, then, after as long as the model takes to load,
           READY (an instance that takes batches), COMPLETED (a completed configuration) or FAILED (why not)
"""

import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError

from merrow.backends.base import InstanceDescription, ModelContext
from merrow.core.errors import InternalError
from merrow.core.model_config import ModelConfig
from merrow.core.plain_values import decode_plain, encode_plain
from merrow.places.process.channel import (
    CANCELLATION_SLOTS,
    COMPLETED,
    FAILED,
    LOG,
    MALFORMED,
    READY,
    SEGMENT,
    SETUP,
    STARTED,
    ProtocolError,
    decode_failure,
)
from merrow.places.process.control import ControlMessage, ControlSocket
from merrow.places.process.fork_client import ChildProcess, ForkClient, describe_exit
from merrow.places.process.session import LaunchedChild, relay_log
from merrow.places.process.system import create_shared_memory
from merrow.settings import ProcessSettings

_LOG = logging.getLogger("merrow.places")

OnForked = Callable[[ChildProcess], None]


class Launcher:
    """Launches children. Every method blocks, and may be called on any thread but the loop's."""

    def __init__(self, client: ForkClient, settings: ProcessSettings) -> None:
        self._client = client
        self._settings = settings

    def launch(
        self,
        context: ModelContext,
        backend_name: str,
        description: InstanceDescription,
        on_forked: OnForked | None = None,
    ) -> LaunchedChild:
        """A child with the instance loaded.

        Args:
            on_forked: called early with the process, so that someone else can kill it.

        Raises:
            ServerError: the instance cannot be loaded, or its process died or did not start.
        """
        child = self._fork(context, backend_name, description, on_forked)
        try:
            self._wait(child, READY, description.name)
        except BaseException:
            _discard(child)
            raise
        return child

    def auto_complete(self, context: ModelContext, backend_name: str) -> ModelConfig:
        """`Backend.auto_complete` in a child of its own.

        Raises:
            ServerError: as `Backend.auto_complete`; also when the process died or did not start.
        """
        child = self._fork(context, backend_name, None, None)
        try:
            completed = self._wait(child, COMPLETED, context.name)
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
        on_forked: OnForked | None,
    ) -> LaunchedChild:
        """A child that has been told what to be."""
        setup = {
            "context": encode_plain(context),
            "backend": backend_name,
            "instance": None if description is None else encode_plain(description),
            "arena_initial_byte_size": self._settings.arena_initial_byte_size,
            "log_level": logging.getLogger("merrow").getEffectiveLevel(),
        }
        try:
            descriptor, page = create_shared_memory(CANCELLATION_SLOTS * 8)
        except OSError as error:
            raise InternalError(f"cannot start a process for model '{context.name}': {error}") from None
        try:
            process, data, control = self._client.fork()
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
        return child

    def _wait(self, child: LaunchedChild, awaited: int, name: str) -> bytes:
        """The body of the awaited message."""
        connection = child.control.connection
        connection.settimeout(self._settings.start_timeout_seconds)
        result: bytes | None = None
        try:
            while result is None:
                for message in _receive(child, name):
                    if message.kind == STARTED:
                        child.process.process_id = message.number
                        # From here on it is the model that takes its time.
                        connection.settimeout(None)
                    elif message.kind == LOG:
                        relay_log(message.body)
                    elif message.kind == FAILED:
                        raise decode_failure(message.body, 0, len(message.body))
                    elif message.kind == awaited:
                        result = message.body
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
