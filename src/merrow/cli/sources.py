"""Where the values of flags come from besides the command line: a configuration file, and the environment.

    --config=merrow.toml    http-port = 8000          the flag's name, with dashes or underscores
                            [grpc]                    a table's name is the beginning of its keys' names:
                            port = 8001               --grpc-port
                            [backend-config.python]   settings of flags that have settings:
                            grpc-timeout-ms = 5       --backend-config=python,grpc-timeout-ms=5
    environment             MERROW_HTTP_PORT=8000     the flag's name in capitals, with underscores

A flag that may be given several times takes a list: of TOML, or of JSON in a variable. The command line counts for
more than the environment, and that for more than the file; values of one flag are not gathered from several of them.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from merrow.cli.flags import Flag, FlagError, FlagGroup, GivenFlag, read_bool
from merrow.cli.toml_file import TomlError, line_of_key, parse_toml

CONFIG_FLAG = "config"
VARIABLE_PREFIX = "MERROW_"

# Not to be said in a file or a variable.
_COMMAND_LINE_ONLY = frozenset({"help", CONFIG_FLAG})
# Two names of one setting.
_SAME = {"model-store": "model-repository"}


def gather_flags(
    given: Sequence[GivenFlag], groups: Sequence[FlagGroup], environment: Mapping[str, str]
) -> tuple[list[GivenFlag], list[str]]:
    """The flags of all sources, by what each counts, and warnings about the environment.

    Args:
        given: those of the command line; `--config` among them names the file, or else the variable MERROW_CONFIG.

    Raises:
        FlagError: the file cannot be read or holds something wrong, or a variable does; says where.
    """
    flags = {flag.name: flag for group in groups for flag in group.flags if flag.name not in _COMMAND_LINE_ONLY}
    of_environment, warnings = read_environment(environment, flags)
    paths = [each.value for each in given if each.flag.name == CONFIG_FLAG]
    path = paths[-1] if paths else environment.get(VARIABLE_PREFIX + CONFIG_FLAG.upper(), "")
    of_file = read_config_file(path, flags) if path else []
    gathered: list[GivenFlag] = []
    for source, stronger in (
        (of_file, [*of_environment, *given]),
        (of_environment, given),
        (given, ()),
    ):
        overridden = {_setting_of(each) for each in stronger}
        gathered += [each for each in source if _setting_of(each) not in overridden]
    return gathered, warnings


def read_environment(environment: Mapping[str, str], flags: Mapping[str, Flag]) -> tuple[list[GivenFlag], list[str]]:
    """The flags that variables set, and warnings about variables that look as if they did.

    Raises:
        FlagError: a value is wrong.
    """
    by_variable = {name.upper().replace("-", "_"): flag for name, flag in flags.items()}
    found: list[GivenFlag] = []
    warnings: list[str] = []
    for variable in sorted(environment):
        if not variable.startswith(VARIABLE_PREFIX) or variable == VARIABLE_PREFIX + CONFIG_FLAG.upper():
            continue
        flag = by_variable.get(variable.removeprefix(VARIABLE_PREFIX))
        if flag is None:
            warnings.append(
                f"environment variable {variable} sets nothing: no flag has this name"
                + _suggest(variable.removeprefix(VARIABLE_PREFIX), by_variable, VARIABLE_PREFIX)
            )
            continue
        for text in _texts_of_variable(variable, environment[variable], flag):
            found.append(_give(flag, text, variable))
    return found, warnings


def read_config_file(path: str, flags: Mapping[str, Flag]) -> list[GivenFlag]:
    """The flags that a file sets.

    Raises:
        FlagError: the file cannot be read, is no TOML, has an unknown key or a wrong value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise FlagError(f"cannot read the configuration file {path}: {reason}") from None
    try:
        document = parse_toml(text)
    except TomlError as error:
        raise FlagError(f"{path}: {error}") from None
    found: list[GivenFlag] = []
    for keys, value in _leaves(document, flags):
        where = f"{path}:{line_of_key(text, keys)}: {'.'.join(keys)}"
        name, settings = _split(keys, flags)
        flag = flags.get(name)
        if flag is None:
            known = [*flags, *(each.replace("-", ".", 1) for each in flags)]
            raise FlagError(f"{where}: unknown key{_suggest('.'.join(keys).replace('_', '-'), known)}")
        is_list = isinstance(value, list)
        if is_list and not flag.may_repeat:
            raise FlagError(f"{where}: takes one value, not a list")
        prefix = ",".join(settings) + "=" if settings else ""
        for item in value if is_list else [value]:
            found.append(_give(flag, prefix + _text_of(item, where), where))
    return found


def _setting_of(given: GivenFlag) -> str:
    return _SAME.get(given.flag.name, given.flag.name)


def _leaves(table: Mapping[str, Any], flags: Mapping[str, Flag]) -> Iterator[tuple[list[str], Any]]:
    """Every key that is no table, with the names of the tables around it."""
    for key, value in table.items():
        if isinstance(value, dict):
            for keys, leaf in _leaves(value, flags):
                yield [key, *keys], leaf
        else:
            yield [key], value


def _split(keys: Sequence[str], flags: Mapping[str, Flag]) -> tuple[str, list[str]]:
    """The flag's name that keys make up, and what is left of them: a setting of the flag."""
    for count in range(1, len(keys)):
        name = _joined(keys[:count])
        if name in flags and flags[name].has_settings:
            return name, list(keys[count:])
    return _joined(keys), []


def _joined(keys: Sequence[str]) -> str:
    return "-".join(keys).replace("_", "-")


def _text_of(value: Any, where: str) -> str:
    """A value as the command line would have it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise FlagError(f"{where}: takes a string, a number or a boolean, got {type(value).__name__}")


def _texts_of_variable(variable: str, text: str, flag: Flag) -> list[str]:
    if not flag.may_repeat or not text.startswith("["):
        return [text]
    try:
        items = json.loads(text)
    except ValueError as error:
        raise FlagError(f"{variable}: is no JSON list: {error}") from None
    if not all(isinstance(item, str) for item in items):
        raise FlagError(f"{variable}: is a list of something else than strings")
    return list(items)


def _give(flag: Flag, text: str, where: str) -> GivenFlag:
    """A flag with a value; a switch takes a boolean here."""
    try:
        value = read_bool(text) if flag.is_switch else flag.read(text)
    except FlagError as error:
        raise FlagError(f"{where}: {error}") from None
    return GivenFlag(flag, value, text)


def _suggest(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{prefix}{close[0]}'?" if close else ""
