"""Asking an instance in the server's own process whether it is ready: on a thread, because its check may take time."""

import asyncio
import threading

from merrow.backends.base import Instance
from merrow.core.errors import ServerError
from merrow.places.guard import ask_guarded
from merrow.places.loop_calls import call_on_loop


class ReadinessCheck:
    """Questions at the same time are one. On the loop's thread, but for the check itself."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._running: asyncio.Future[bool] | None = None

    async def ask(self, timeout_seconds: float) -> bool:
        """What the instance says.

        Raises:
            ServerError: it cannot say.
            asyncio.TimeoutError: it does not say in time.
        """
        if self._running is None:
            loop = asyncio.get_running_loop()
            self._running = loop.create_future()
            # Nobody may be left to hear of a failure.
            self._running.add_done_callback(asyncio.Future.exception)
            threading.Thread(target=self._check, args=(loop,), name="readiness check", daemon=True).start()
        return await asyncio.wait_for(asyncio.shield(self._running), timeout_seconds)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        call_on_loop(loop, self._finish, ask_guarded(self._instance.is_ready))

    def _finish(self, result: bool | ServerError) -> None:
        running, self._running = self._running, None
        assert running is not None
        if isinstance(result, ServerError):
            running.set_exception(result)
        else:
            running.set_result(result)
