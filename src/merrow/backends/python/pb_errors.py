"""What models raise and report: `TritonError`, `TritonModelException`, and the texts of exceptions.

The texts are those of pybind11, in which Triton's own stub is written, because clients see them.
"""

import enum
import sys
from types import FrameType
from typing import Any

C_MODULE = "c_python_backend_utils"
"""The module that Triton's classes say they are from; it shows in error texts."""

_OWN_PACKAGE = "merrow."

# The name of the function that awaits what an `async def execute` returns: below it, nothing is the model's.
COROUTINE_ROOT = "await_model"


class TritonModelException(Exception):
    """Raised by everything in `triton_python_backend_utils`."""

    __module__ = C_MODULE


class PybindEnum(enum.IntEnum):
    """An enum that prints as pybind11's do."""

    __str__ = enum.Enum.__str__


class TritonErrorCode(PybindEnum):
    """The codes of `TritonError`."""

    __module__ = C_MODULE
    __qualname__ = "TritonError.__ErrorCode"

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


# The name that shows in texts; as a name in a class body, Python would mangle it.
TritonErrorCode.__name__ = "__ErrorCode"


class TritonError:
    """An error that a model puts into a response. The codes are enum members; plain integers are refused."""

    __module__ = C_MODULE
    __slots__ = ("_code", "_message")

    UNKNOWN = TritonErrorCode.UNKNOWN
    INTERNAL = TritonErrorCode.INTERNAL
    NOT_FOUND = TritonErrorCode.NOT_FOUND
    INVALID_ARG = TritonErrorCode.INVALID_ARG
    UNAVAILABLE = TritonErrorCode.UNAVAILABLE
    UNSUPPORTED = TritonErrorCode.UNSUPPORTED
    ALREADY_EXISTS = TritonErrorCode.ALREADY_EXISTS
    CANCELLED = TritonErrorCode.CANCELLED

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        message, code = bind_arguments(
            ("message", "code"), (None, TritonErrorCode.INTERNAL), args, kwargs, _TRITON_ERROR_SIGNATURE
        )
        if not isinstance(message, str) or not isinstance(code, TritonErrorCode):
            raise incompatible_arguments(_TRITON_ERROR_SIGNATURE, args, kwargs)
        self._message: str = message
        self._code: TritonErrorCode = code

    def code(self) -> TritonErrorCode:
        return self._code

    def message(self) -> str:
        return self._message


_TRITON_ERROR_SIGNATURE = (
    f"{C_MODULE}.TritonError(message: str, code: {C_MODULE}.TritonError.__ErrorCode = <__ErrorCode.INTERNAL: 1>)"
)


def bind_arguments(
    names: tuple[str, ...], defaults: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any], signature: str
) -> list[Any]:
    """The values of a constructor's parameters, however they were given.

    Raises:
        TypeError: too many, unknown or doubled arguments, in pybind11's words.
    """
    if len(args) > len(names):
        raise incompatible_arguments(signature, args, kwargs)
    values = [*args, *defaults[len(args) :]]
    for name, value in kwargs.items():
        if name not in names or names.index(name) < len(args):
            raise incompatible_arguments(signature, args, kwargs)
        values[names.index(name)] = value
    return values


def incompatible_arguments(
    signature: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, function: str = "__init__"
) -> TypeError:
    """The error of a call with the wrong arguments. `args` of a method begin with the object."""
    kind = "constructor" if function == "__init__" else "function"
    invoked = ", ".join(map(repr, args))
    if kwargs:
        named = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
        invoked += f"{'; ' if args else ''}kwargs: {named}"
    return TypeError(
        f"{function}(): incompatible {kind} arguments. The following argument types are supported:\n"
        f"    1. {signature}\n\nInvoked with: {invoked}"
    )


def describe_exception(error: BaseException) -> str:
    """The text of an exception that the calling function caught from a model.

    `Type: message`, then the frames, innermost first, each with the line it stopped at; the caller's own frame and
    what lies below it are left out, as are those of the server.

    Source: pybind11, detail::error_fetch_and_normalize::complete_lazy_error_string; recorded from Triton 2.51.
    """
    try:
        message = str(error) or "<EMPTY MESSAGE>"
    except Exception:
        # Its `__str__` is the model's own: a call into a model, of which Triton tells no more.
        message = "<MESSAGE UNAVAILABLE DUE TO EXCEPTION>"
    text = f"{type(error).__name__}: {message}"
    here: FrameType = sys._getframe(1)
    traceback = error.__traceback__
    if traceback is None:
        return text
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    lines: list[str] = []
    frame: FrameType | None = traceback.tb_frame
    # A frame's line is where it stopped for good, which a `finally` may have moved past the line that raised.
    while frame is not None and frame is not here:
        is_own = str(frame.f_globals.get("__name__", "")).startswith(_OWN_PACKAGE)
        if is_own and frame.f_code.co_name == COROUTINE_ROOT:
            # Python 3.13 knows what resumed a coroutine even after it ended: an event loop, which is ours.
            break
        if not is_own:
            lines.append(f"  {frame.f_code.co_filename}({frame.f_lineno}): {frame.f_code.co_name}\n")
        frame = frame.f_back
    return f"{text}\n\nAt:\n{''.join(lines)}" if lines else text
