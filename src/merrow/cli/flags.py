"""The command line of `merrow serve`, read as Triton reads its own.

Conventions: `--name value` or `--name=value`; a name may be cut short while it stays unambiguous; booleans are
`true`, `on`, `1` or `false`, `off`, `0` in any case; what may be repeated says so. This module knows how flags are
spelled and read, and nothing of what they mean: `cli.serve_flags` has the table.

Source: Triton, command_line_parser.cc.
"""

import difflib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merrow.core.restrictions import ApiCategory

# Where the help's second column begins.
_HELP_COLUMN = 34

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


class FlagError(Exception):
    """The command line is wrong; the text says how, in Triton's words where Triton has them."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: its name without dashes, how its value is read, and its help.

    `read` turns the text of a value into the value and raises `FlagError`. A switch takes no value and is True when
    given. `value_name` is what the help calls the value. `may_repeat`: all values given count, not only the last.
    `has_settings`: a value is `[<owner>,]<setting>=<value>`, which a configuration file may have as tables.
    """

    name: str
    read: Callable[[str], Any]
    help: str
    value_name: str = "string"
    is_switch: bool = False
    may_repeat: bool = False
    has_settings: bool = False


@dataclass(frozen=True, slots=True)
class FlagGroup:
    """Flags under one heading of the help."""

    heading: str
    flags: tuple[Flag, ...]


@dataclass(frozen=True, slots=True)
class GivenFlag:
    """A flag as it was given: once in this place of the command line."""

    flag: Flag
    value: Any
    text: str


@dataclass(slots=True)
class FlagValues:
    """The given flags by name; the last of several counts, unless all are asked for."""

    given: Sequence[GivenFlag]
    by_name: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for flag in self.given:
            self.by_name.setdefault(flag.flag.name, []).append(flag.value)

    def all(self, *names: str) -> tuple[Any, ...]:
        return tuple(flag.value for flag in self.given if flag.flag.name in names)

    def last(self, name: str, default: Any) -> Any:
        return self.by_name[name][-1] if name in self.by_name else default

    def has(self, name: str) -> bool:
        return name in self.by_name


def parse_flags(arguments: Sequence[str], groups: Sequence[FlagGroup]) -> list[GivenFlag]:
    """Read a command line, in its order.

    Raises:
        FlagError: an unknown or ambiguous name, a missing or impossible value, or an argument that is no flag.
    """
    known = {flag.name: flag for group in groups for flag in group.flags}
    given: list[GivenFlag] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if not argument.startswith("--") or argument == "--":
            raise FlagError(f"Unexpected argument: {argument}")
        name, separator, text = argument[2:].partition("=")
        flag = _find_flag(name, known)
        if flag.is_switch:
            if separator:
                raise FlagError(f"option '--{flag.name}' doesn't allow an argument")
            given.append(GivenFlag(flag, True, ""))
            continue
        if not separator:
            if position == len(arguments):
                raise FlagError(f"option '--{flag.name}' requires an argument")
            text = arguments[position]
            position += 1
        try:
            value = flag.read(text)
        except FlagError as error:
            raise FlagError(f'Bad option: "--{flag.name}".\n{error}') from None
        given.append(GivenFlag(flag, value, text))
    return given


def format_help(
    introduction: str, groups: Sequence[FlagGroup], notes: Mapping[str, str] | None = None, width: int = 100
) -> str:
    """The text of `--help`: the introduction, then a column of flags and one of what they do.

    Args:
        notes: what is to be said of a flag besides its help, by its name.
        width: columns of the terminal.
    """
    lines = [introduction.rstrip()]
    indent = " " * _HELP_COLUMN
    for group in groups:
        lines += ["", f"{group.heading}:"]
        for flag in group.flags:
            name = f"  --{flag.name}" if flag.is_switch else f"  --{flag.name} {_value_text(flag)}"
            text = flag.help
            if flag.may_repeat and "several times" not in text:
                text += " May be given several times."
            if notes and flag.name in notes:
                text += f" [{notes[flag.name]}]"
            help_lines = textwrap.wrap(
                text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
            )
            if len(name) < _HELP_COLUMN - 1 and help_lines:
                lines.append(name.ljust(_HELP_COLUMN) + help_lines.pop(0).lstrip())
            else:
                lines.append(name)
            lines += help_lines
    return "\n".join(lines) + "\n"


def _value_text(flag: Flag) -> str:
    return flag.value_name if flag.value_name.startswith("<") else f"<{flag.value_name}>"


def read_string(text: str) -> str:
    return text


def read_bool(text: str) -> bool:
    """`true`, `on`, `1`, `false`, `off` or `0`, in any case."""
    lowered = text.lower()
    if lowered in ("true", "on", "1"):
        return True
    if lowered in ("false", "off", "0"):
        return False
    raise FlagError(f"invalid value for bool option: {text}")


def read_int(text: str) -> int:
    """A C int. Unlike Triton, `80x` is refused instead of read as 80."""
    return _read_integer(text, INT32_MIN, INT32_MAX)


def read_int64(text: str) -> int:
    """A C int64_t."""
    return _read_integer(text, INT64_MIN, INT64_MAX)


def read_float(text: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise FlagError(f"Invalid option value. Got {text}")
    return float(match[0])


def integer_from(minimum: int, maximum: int = INT64_MAX) -> Callable[[str], int]:
    """A reader of integers within bounds."""

    def read(text: str) -> int:
        return _read_integer(text, minimum, maximum)

    return read


read_port = integer_from(0, 65535)
read_positive = integer_from(1, INT32_MAX)
read_not_negative = integer_from(0, INT32_MAX)


def read_verbose_level(text: str) -> int:
    """`--log-verbose`: a level, or a boolean that means level 1 or 0."""
    try:
        return int(read_bool(text))
    except FlagError:
        return max(0, read_int(text))


def one_of(name: str, *choices: str) -> Callable[[str], str]:
    """A reader of one of these words, for the flag of this name."""

    def read(text: str) -> str:
        if text not in choices:
            raise FlagError(f"invalid argument for --{name}\nExpected one of {', '.join(choices)}; got {text}")
        return text

    return read


def read_backend_setting(text: str) -> tuple[str, str, str]:
    """`<backend name>,<setting>=<value>`, or `<setting>=<value>` for all backends (name empty)."""
    name, separator, value = text.partition("=")
    backend, comma, setting = name.partition(",")
    if not separator or not (setting if comma else backend):
        raise FlagError(f"--backend-config option format is '<backend name>,<setting>=<value>'. Got {text}\n")
    if not comma:
        return "", backend, value
    if not backend:
        raise FlagError(
            "No backend specified. --backend-config option format is <backend name>,<setting>=<value> or "
            f"<setting>=<value>. Got {text}\n"
        )
    return backend, setting, value


def read_restriction(flag_name: str, feature_type: str) -> Callable[[str], tuple[tuple[ApiCategory, ...], str, str]]:
    """A reader of `<category>,<category>...:<key>=<value>`; `feature_type` is what Triton calls the categories."""

    def read(text: str) -> tuple[tuple[ApiCategory, ...], str, str]:
        names, colon, rest = text.partition(":")
        key, equals, value = rest.partition("=")
        if not (colon and equals and names and key and value):
            raise FlagError(f"--{flag_name} option format is '<config name>:<setting>=<value>'. Got {text}\n")
        categories = []
        for name in names.split(","):
            try:
                categories.append(ApiCategory(name))
            except ValueError:
                known = ", ".join(category.value for category in ApiCategory)
                raise FlagError(f"unknown restricted {feature_type} '{name}' \nKnown are: {known}") from None
        return tuple(categories), key, value

    return read


def read_port_range(text: str) -> tuple[int, int]:
    """`<integer>-<integer>`: the first and the last port."""
    first, separator, last = text.partition("-")
    if not separator:
        raise FlagError(f"--sagemaker-safe-port-range option format is '<integer>-<integer>'. Got {text}\n")
    return _read_integer(first, 0, 65535), _read_integer(last, 0, 65535)


def _find_flag(name: str, known: dict[str, Flag]) -> Flag:
    flag = known.get(name)
    if flag is not None:
        return flag
    candidates = [flag for known_name, flag in known.items() if name and known_name.startswith(name)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = " ".join(f"'--{flag.name}'" for flag in candidates)
        raise FlagError(f"option '--{name}' is ambiguous; possibilities: {names}")
    raise FlagError(f"unrecognized option '--{name}'{_suggestion(name, known)}")


def _suggestion(name: str, known: dict[str, Flag]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '--{close[0]}'?" if close else ""


def _read_integer(text: str, minimum: int, maximum: int) -> int:
    match = _INTEGER.fullmatch(text.strip())
    if match is None:
        raise FlagError(f"Invalid option value. Got {text}\n")
    value = int(match[0])
    if not minimum <= value <= maximum:
        raise FlagError(f"Provided option value is out of bound. Got {text}\nExpected {minimum} to {maximum}.")
    return value
