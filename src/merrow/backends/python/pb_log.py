"""`pb_utils.Logger`: what models log goes to the server's log, as of the file and line that logged it."""

import logging
import sys
from typing import Any

from merrow.backends.python.pb_errors import C_MODULE, PybindEnum, bind_arguments, incompatible_arguments

_LOG = logging.getLogger("merrow.python")


class LogLevel(PybindEnum):
    """How severe a line is."""

    __module__ = C_MODULE
    __qualname__ = "Logger.LogLevel"

    INFO = 0
    WARNING = 1
    ERROR = 2
    VERBOSE = 3


_SEVERITIES = (logging.INFO, logging.WARNING, logging.ERROR, logging.DEBUG)

_LOG_SIGNATURE = f"(message: str, level: {C_MODULE}.Logger.LogLevel = <LogLevel.INFO: 0>) -> None"
_LINE_SIGNATURE = "(message: str) -> None"


class Logger:
    """Only static functions; there are no objects of it."""

    __module__ = C_MODULE

    LogLevel = LogLevel
    INFO = LogLevel.INFO
    WARNING = LogLevel.WARNING
    ERROR = LogLevel.ERROR
    VERBOSE = LogLevel.VERBOSE

    def __init__(self) -> None:
        raise TypeError(f"{C_MODULE}.Logger: No constructor defined!")

    @staticmethod
    def log(*args: Any, **kwargs: Any) -> None:
        message, level = bind_arguments(("message", "level"), (None, LogLevel.INFO), args, kwargs, _LOG_SIGNATURE)
        if not isinstance(message, str) or not isinstance(level, LogLevel):
            raise incompatible_arguments(_LOG_SIGNATURE, args, kwargs, "log")
        _write(message, _SEVERITIES[int(level)])

    @staticmethod
    def log_info(*args: Any, **kwargs: Any) -> None:
        _write(_message("log_info", args, kwargs), logging.INFO)

    @staticmethod
    def log_warn(*args: Any, **kwargs: Any) -> None:
        _write(_message("log_warn", args, kwargs), logging.WARNING)

    @staticmethod
    def log_error(*args: Any, **kwargs: Any) -> None:
        _write(_message("log_error", args, kwargs), logging.ERROR)

    @staticmethod
    def log_verbose(*args: Any, **kwargs: Any) -> None:
        _write(_message("log_verbose", args, kwargs), logging.DEBUG)


def _message(function: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    (message,) = bind_arguments(("message",), (None,), args, kwargs, _LINE_SIGNATURE)
    if not isinstance(message, str):
        raise incompatible_arguments(_LINE_SIGNATURE, args, kwargs, function)
    return message


def _write(message: str, severity: int) -> None:
    if not _LOG.isEnabledFor(severity):
        return
    # Past this function and the one that the model called.
    caller = sys._getframe(2)
    record = _LOG.makeRecord(
        _LOG.name, severity, caller.f_code.co_filename, caller.f_lineno, message, (), None, caller.f_code.co_name
    )
    _LOG.handle(record)
