"""ServerReflectionInfo: answers a client's questions about the API, one after another, on one stream."""

import logging

from merrow.core.errors import ServerError
from merrow.core.tensor import Buffer
from merrow.frontends.grpc.status import finish_unexpected, finish_with_error
from merrow.net.exchange import GrpcCall
from merrow.wire.reflection_proto import answer_reflection_request

_LOG = logging.getLogger("merrow.frontends.grpc")


class ReflectionStream:
    """One call; a `GrpcStream`. A client that does not read its answers is not read either."""

    def __init__(self, call: GrpcCall) -> None:
        self._call = call
        self._is_paused = False
        call.on_writable = self._on_writable

    def on_message(self, message: Buffer) -> None:
        """Answer one question."""
        try:
            self._call.send((answer_reflection_request(message),))
            if not self._call.is_writable:
                self._is_paused = True
                self._call.pause_reading()
        except ServerError as error:
            finish_with_error(self._call, error)
        except Exception:
            # The front door: whatever the defect is, it ends this call and nothing else.
            _LOG.exception("unexpected error in reflection")
            finish_unexpected(self._call)

    def on_half_close(self) -> None:
        """All questions have been answered."""
        self._call.finish()

    def _on_writable(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._call.resume_reading()
