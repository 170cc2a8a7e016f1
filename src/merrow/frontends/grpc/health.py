"""grpc.health.v1.Health/Watch: whether the server is ready, now and whenever that changes.

What makes a server ready is spread over models, their versions and their processes, so readiness is looked at anew,
twice a second and only as long as somebody watches; that takes microseconds, and one timer serves all watchers.

Source: grpc, health/v1/health.proto. As in `Check`, the name of the service does not matter.
"""

import asyncio

from merrow.core.errors import ErrorCode, InternalError, ServerError
from merrow.core.tensor import Buffer
from merrow.engine.engine import Engine
from merrow.frontends.grpc.status import STATUSES, finish_with_error
from merrow.net.exchange import GrpcCall
from merrow.wire import admin_proto

LOOK_SECONDS = 0.5


class HealthWatchers:
    """Those who watch; makes a `HealthWatch` for each call."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._watches: set[HealthWatch] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, call: GrpcCall) -> "HealthWatch":
        """Serve a call; it joins the watchers with its request."""
        return HealthWatch(call, self)

    def is_serving(self) -> bool:
        return not self._engine.is_exiting and self._engine.is_ready()

    def add(self, watch: "HealthWatch") -> None:
        self._watches.add(watch)
        if self._timer is None:
            self._arm()

    def discard(self, watch: "HealthWatch") -> None:
        self._watches.discard(watch)
        if not self._watches and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def shut_down(self) -> None:
        """The server exits: it does not serve any more, and the watchers need not stay."""
        for watch in list(self._watches):
            watch.shut_down()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._arm()
        is_serving = self.is_serving()
        for watch in list(self._watches):
            watch.tell(is_serving)


class HealthWatch:
    """One call of Watch; a `GrpcStream`."""

    def __init__(self, call: GrpcCall, watchers: HealthWatchers) -> None:
        self._call = call
        self._watchers = watchers
        self._has_request = False
        self._was_told: bool | None = None
        call.on_cancel = self._leave

    def on_message(self, message: Buffer) -> None:
        """The request: the answer is the status, and every later one."""
        if self._has_request:
            return
        try:
            admin_proto.decode_health_request(message)
        except ServerError as error:
            finish_with_error(self._call, error)
            return
        self._has_request = True
        self._watchers.add(self)
        self.tell(self._watchers.is_serving())

    def on_half_close(self) -> None:
        """A watcher says no more after its request."""
        if not self._has_request:
            finish_with_error(self._call, InternalError("Unable to parse request"))

    def tell(self, is_serving: bool) -> None:
        """Send the status if it is news. A client that does not read hears what holds when it reads again."""
        if is_serving != self._was_told and self._call.is_writable:
            self._was_told = is_serving
            self._call.send((admin_proto.encode_health(is_serving),))

    def shut_down(self) -> None:
        self.tell(False)
        self._leave()
        self._call.finish(STATUSES[ErrorCode.UNAVAILABLE], "Server exiting")

    def _leave(self) -> None:
        self._watchers.discard(self)
