"""One gRPC call with serialized messages in and out, and how it ended."""

from dataclasses import dataclass

import grpc

from tests.oracle.cases import GrpcCase

TIMEOUT_SECONDS = 10.0
MAX_MESSAGE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@dataclass(frozen=True, slots=True)
class GrpcReply:
    """What a server answered: every message, the status that ended the call, and the server's metadata."""

    messages: tuple[bytes, ...]
    code: str
    details: str
    metadata: tuple[tuple[str, str | bytes], ...] = ()


class GrpcConnection:
    def __init__(self, address: str, port: int) -> None:
        self._channel = grpc.insecure_channel(f"{address}:{port}", options=MAX_MESSAGE)

    def exchange(self, case: GrpcCase) -> GrpcReply:
        """Make one call.

        Raises:
            TimeoutError: the server did not end it in time.
        """
        call = self._channel.stream_stream(case.method)(
            iter(case.messages), timeout=TIMEOUT_SECONDS, metadata=case.metadata
        )
        messages = []
        try:
            for message in call:
                messages.append(message)
        except grpc.RpcError:
            pass
        code = call.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise TimeoutError(f"{case.name}: no answer in {TIMEOUT_SECONDS} s")
        metadata = (*call.initial_metadata(), *(call.trailing_metadata() or ()))
        return GrpcReply(tuple(messages), code.name, call.details() or "", tuple(map(tuple, metadata)))

    def close(self) -> None:
        self._channel.close()
