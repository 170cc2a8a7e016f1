"""Errors as gRPC statuses: one number for every code of the server API.

Source: Triton, grpc_utils.cc, GrpcStatusUtil::CodeToStatus.
"""

from merrow.core.errors import ErrorCode, ServerError
from merrow.net.exchange import GrpcCall

OK = 0
CANCELLED = 1
INTERNAL = 13

STATUSES: dict[ErrorCode, int] = {
    ErrorCode.UNKNOWN: 2,
    ErrorCode.INTERNAL: INTERNAL,
    ErrorCode.NOT_FOUND: 5,
    ErrorCode.INVALID_ARG: 3,
    ErrorCode.UNAVAILABLE: 14,
    ErrorCode.UNSUPPORTED: 12,
    ErrorCode.ALREADY_EXISTS: 6,
    ErrorCode.CANCELLED: CANCELLED,
}

UNEXPECTED_TEXT = "unexpected error in the server; its log tells more"


def finish_with_error(call: GrpcCall, error: ServerError) -> None:
    """End a call with an error's status and text."""
    call.finish(STATUSES[error.code], error.message)


def finish_unexpected(call: GrpcCall) -> None:
    """End a call for a defect of the server, whose details are for the log only."""
    call.finish(INTERNAL, UNEXPECTED_TEXT)
