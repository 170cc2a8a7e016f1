"""`merrow`: the command line, and the only reader of argv and the environment.

    merrow serve --model-repository=DIR [flags]     serve models; flags as `tritonserver` has them, which may also
                                                    come from a file or from variables (`sources`)
    merrow --version

Exit codes are Triton's: 0 after a clean end, 1 when the command line is wrong or the server cannot start or stop.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence

import merrow
from merrow.cli.flags import FlagError, format_help, parse_flags
from merrow.cli.serve_flags import NO_EFFECT, SERVE_FLAGS
from merrow.cli.serve_settings import ServeCommand, build_serve_command
from merrow.cli.server_process import run
from merrow.cli.sources import gather_flags
from merrow.settings import SettingsError

USAGE = """\
Usage: merrow serve --model-repository=DIR [options]
       merrow serve --help
       merrow --version
"""
_SERVE_USAGE = "Usage: merrow serve --model-repository=DIR [options]"
_SERVE_HELP = f"""\
{_SERVE_USAGE}

Serves the models of a repository over HTTP, gRPC and a port for metrics. Options are Triton's, by Triton's names, and
some of merrow's own: --name value or --name=value; a name may be cut short while it is unambiguous; booleans are true,
on, 1 or false, off, 0.

Every option can also be set in a file (--config=merrow.toml, http-port = 8000) and by a variable of the environment
(MERROW_HTTP_PORT=8000). The command line counts for more than the environment, and that for more than the file.
"""


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
            print(_serve_help(), end="")
            return 0
        given, warnings = gather_flags(given, SERVE_FLAGS, environment)
        command = build_serve_command(
            given,
            escapes_log_messages=environment.get("TRITON_SERVER_ESCAPE_LOG_MESSAGES") != "0",
            environment=environment,
        )
    except (FlagError, SettingsError) as error:
        print(f"{_SERVE_USAGE}\n       merrow serve --help tells the options\n\n{error}", file=sys.stderr)
        return 1
    return _run(command, warnings)


def _serve_help() -> str:
    notes = {name: f"no effect: {reason}" for name, reason in NO_EFFECT.items()}
    width = max(80, min(shutil.get_terminal_size((100, 24)).columns, 120))
    return format_help(_SERVE_HELP, SERVE_FLAGS, notes, width)


def _run(command: ServeCommand, warnings: Sequence[str]) -> int:
    if not command.settings.repository.model_repositories:
        print("error: creating server: Invalid argument - --model-repository must be specified", file=sys.stderr)
        return 1
    return run(command.settings, (*warnings, *command.warnings))
