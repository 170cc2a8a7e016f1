"""Errors as Triton's server API knows them: one exception per code, under one base.

A front door maps codes to its own statuses in one table; nothing here knows an HTTP or gRPC number. The message is
what the client reads, so it is interface.

Source: Triton, tritonserver.h, TRITONSERVER_Error_Code.
"""

import enum


class ErrorCode(enum.IntEnum):
    """Numbers of TRITONSERVER_Error_Code."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


# How Status::AsString names a code: in the index's reasons and in load errors.
CODE_NAMES: dict[ErrorCode, str] = {
    ErrorCode.UNKNOWN: "Unknown",
    ErrorCode.INTERNAL: "Internal",
    ErrorCode.NOT_FOUND: "Not found",
    ErrorCode.INVALID_ARG: "Invalid argument",
    ErrorCode.UNAVAILABLE: "Unavailable",
    ErrorCode.UNSUPPORTED: "Unsupported",
    ErrorCode.ALREADY_EXISTS: "Already exists",
    ErrorCode.CANCELLED: "Cancelled",
}


class ServerError(Exception):
    """Base of every error that a client may see; `code` says which kind."""

    code = ErrorCode.UNKNOWN

    @property
    def message(self) -> str:
        """The text for the client, without the code."""
        return str(self.args[0]) if self.args else ""

    def describe(self) -> str:
        """Code and message, as Triton writes them in load errors: `Invalid argument: <message>`."""
        name = CODE_NAMES[self.code]
        return f"{name}: {self.message}" if self.message else name


class UnknownError(ServerError):
    code = ErrorCode.UNKNOWN


class InternalError(ServerError):
    code = ErrorCode.INTERNAL


class NotFoundError(ServerError):
    code = ErrorCode.NOT_FOUND


class InvalidArgumentError(ServerError):
    code = ErrorCode.INVALID_ARG


class UnavailableError(ServerError):
    code = ErrorCode.UNAVAILABLE


class UnsupportedError(ServerError):
    code = ErrorCode.UNSUPPORTED


class AlreadyExistsError(ServerError):
    code = ErrorCode.ALREADY_EXISTS


class CancelledError(ServerError):
    code = ErrorCode.CANCELLED


ERROR_CLASSES: dict[ErrorCode, type[ServerError]] = {
    error_class.code: error_class
    for error_class in (
        UnknownError,
        InternalError,
        NotFoundError,
        InvalidArgumentError,
        UnavailableError,
        UnsupportedError,
        AlreadyExistsError,
        CancelledError,
    )
}


def error_of_code(code: int, message: str) -> ServerError:
    """The error with this code; an unknown number gives UnknownError."""
    try:
        return ERROR_CLASSES[ErrorCode(code)](message)
    except ValueError:
        return UnknownError(message)
