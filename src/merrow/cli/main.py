"""`merrow`: the command line, and the only reader of argv and the environment.

    merrow serve --model-repository=DIR [flags]     serve models; flags as `tritonserver` has them
    merrow --version

Exit codes are Triton's: 0 after a clean end, 1 when the command line is wrong or the server cannot start or stop.
"""

import os
import sys
from collections.abc import Mapping, Sequence

import merrow
from merrow.cli.flags import FlagError, format_help, parse_flags
from merrow.cli.serve_flags import SERVE_FLAGS
from merrow.cli.serve_settings import ServeCommand, build_serve_command
from merrow.server import run
from merrow.settings import SettingsError

USAGE = """\
Usage: merrow serve --model-repository=DIR [options]
       merrow serve --help
       merrow --version
"""
_SERVE_USAGE = "Usage: merrow serve --model-repository=DIR [options]"


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> int:
    """Run the command that the arguments name; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    variables = os.environ if environment is None else environment
    if words and words[0] == "serve":
        return _serve(words[1:], variables)
    if words in (["--version"], ["version"]):
        print(f"merrow {merrow.__version__}")
        return 0
    if words in (["--help"], ["-h"], ["help"]):
        print(USAGE, end="")
        return 0
    print(USAGE, end="", file=sys.stderr)
    if words:
        print(f"\nunknown command: {words[0]}", file=sys.stderr)
    return 1


def _serve(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    try:
        given = parse_flags(arguments, SERVE_FLAGS)
        if any(flag.flag.name == "help" for flag in given):
            print(format_help(_SERVE_USAGE, SERVE_FLAGS), end="")
            return 0
        command = build_serve_command(
            given, escapes_log_messages=environment.get("TRITON_SERVER_ESCAPE_LOG_MESSAGES") != "0"
        )
    except (FlagError, SettingsError) as error:
        print(f"{_SERVE_USAGE}\n       merrow serve --help tells the options\n\n{error}", file=sys.stderr)
        return 1
    return _run(command)


def _run(command: ServeCommand) -> int:
    if not command.settings.repository.model_repositories:
        print("error: creating server: Invalid argument - --model-repository must be specified", file=sys.stderr)
        return 1
    return run(command.settings, command.warnings)
