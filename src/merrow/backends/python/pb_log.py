"""`pb_utils.Logger`: what models log goes to the server's log, as of the file and line that logged it."""

import logging
import sys
from typing import Any

from merrow.backends.python.pb_errors import C_MODULE, PybindEnum, bind_arguments, incompatible_arguments
from merrow.backends.python.runtime import ModelRuntime

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
    """Only functions of the class; there are no objects of it. The class that a model imports is bound to it."""

    __module__ = C_MODULE

    LogLevel = LogLevel
    INFO = LogLevel.INFO
    WARNING = LogLevel.WARNING
    ERROR = LogLevel.ERROR
    VERBOSE = LogLevel.VERBOSE

    _runtime: ModelRuntime | None = None

    def __init__(self) -> None:
        raise TypeError(f"{C_MODULE}.Logger: No constructor defined!")

    @classmethod
    def log(cls, *args: Any, **kwargs: Any) -> None:
        message, level = bind_arguments(("message", "level"), (None, LogLevel.INFO), args, kwargs, _LOG_SIGNATURE)
        if not isinstance(message, str) or not isinstance(level, LogLevel):
            raise incompatible_arguments(_LOG_SIGNATURE, args, kwargs, "log")
        _write(cls._runtime, message, _SEVERITIES[int(level)])

    @classmethod
    def log_info(cls, *args: Any, **kwargs: Any) -> None:
        _write(cls._runtime, _message("log_info", args, kwargs), logging.INFO)

    @classmethod
    def log_warn(cls, *args: Any, **kwargs: Any) -> None:
        _write(cls._runtime, _message("log_warn", args, kwargs), logging.WARNING)

    @classmethod
    def log_error(cls, *args: Any, **kwargs: Any) -> None:
        _write(cls._runtime, _message("log_error", args, kwargs), logging.ERROR)

    @classmethod
    def log_verbose(cls, *args: Any, **kwargs: Any) -> None:
        _write(cls._runtime, _message("log_verbose", args, kwargs), logging.DEBUG)


def _message(function: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    (message,) = bind_arguments(("message",), (None,), args, kwargs, _LINE_SIGNATURE)
    if not isinstance(message, str):
        raise incompatible_arguments(_LINE_SIGNATURE, args, kwargs, function)
    return message


def _write(runtime: ModelRuntime | None, message: str, severity: int) -> None:
    if not _LOG.isEnabledFor(severity):
        return
    # Past this function and the one that the model called.
    caller = sys._getframe(2)
    if runtime is not None:
        message = f"[{runtime.instance_name}] {message}"
    record = _LOG.makeRecord(
        _LOG.name, severity, caller.f_code.co_filename, caller.f_lineno, message, (), None, caller.f_code.co_name
    )
    _LOG.handle(record)
