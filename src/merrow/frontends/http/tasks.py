"""Answers that wait: loads, unloads, and bodies large enough to be inflated or deflated on a thread."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from merrow.core.errors import ServerError
from merrow.frontends.http.status import respond_error, respond_unexpected
from merrow.net.exchange import Exchange, Header

_LOG = logging.getLogger("merrow.frontends.http")


class AnswerTasks:
    """Owns one task for each answer under way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, exchange: Exchange, answer: Coroutine[Any, Any, None], error_headers: Sequence[Header]) -> None:
        """Run a coroutine that answers an exchange; what it raises is answered too."""
        task = asyncio.ensure_future(_run(exchange, answer, error_headers))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait until all answers are given; new ones may start meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)


async def _run(exchange: Exchange, answer: Coroutine[Any, Any, None], error_headers: Sequence[Header]) -> None:
    try:
        try:
            await answer
        except ServerError as error:
            respond_error(exchange, error, error_headers)
    except Exception:
        # The front door: whatever the defect is, the request is answered.
        _LOG.exception("unexpected error in the answer to %r", exchange.target)
        respond_unexpected(exchange)
