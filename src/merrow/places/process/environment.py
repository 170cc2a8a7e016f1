"""Execution environments: with which interpreter, packages and variables a model's processes run.

`EXECUTION_ENV_PATH` names an interpreter, the folder of a virtual or conda environment, or an archive of one; the
prefix `$$TRITON_MODEL_DIRECTORY` is the model's folder. Whatever it is, it comes down to an interpreter and its
variables, which one short run of it tells: as its `activate` script leaves them, where it has one.

Source: Triton, python_backend/README.md, "Creating Custom Execution Environments"; python_backend/src/pb_env.cc.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from merrow.core.errors import InternalError
from merrow.core.model_config import MODEL_DIRECTORY_VARIABLE

OLDEST_PYTHON = (3, 10)
"""The interpreter of an environment runs merrow's part in a model's process."""

_PROBE_TIMEOUT_SECONDS = 120

# Must be understood by the oldest interpreters, to say that they are too old. What `activate` prints goes elsewhere.
_PROBE = """\
import json, os, platform, sys
found = {
    "interpreter": sys.executable,
    "version": platform.python_version(),
    "implementation": platform.python_implementation(),
    "variables": dict(os.environ),
    "packages": [path for path in sys.path if path.endswith("-packages")],
}
try:
    import numpy
    found["numpy"] = numpy.__version__
except BaseException as error:
    found["numpy_error"] = "%s: %s" % (type(error).__name__, error)
sys.stdout.write("\\n" + json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class ExecutionEnvironment:
    """An interpreter that can run models.

    `variables` are all that its processes get. `package_directories` is where its packages lie.
    """

    interpreter: str
    python_version: str
    numpy_version: str
    variables: Mapping[str, str] = field(repr=False)
    package_directories: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"Python {self.python_version} ({self.interpreter}), numpy {self.numpy_version}"


def expand_path(path: str, model_directory: str) -> str:
    """The real path that the parameter names.

    Raises:
        InternalError: there is nothing (Triton's text).
    """
    expanded = path
    if path.startswith(MODEL_DIRECTORY_VARIABLE):
        expanded = model_directory + path[len(MODEL_DIRECTORY_VARIABLE) :]
    try:
        return os.path.realpath(expanded, strict=True) if os.path.isdir(expanded) else _real_file(expanded)
    except OSError:
        raise InternalError(f"Failed to get the canonical path for {expanded}.") from None


def probe_folder(folder: str, origin: str) -> ExecutionEnvironment:
    """The environment in a folder.

    Args:
        origin: what to call it in errors: the path that the model gives.

    Raises:
        InternalError: there is none, or it cannot run models.
    """
    activate = os.path.join(folder, "bin", "activate")
    interpreters = [os.path.join(folder, "bin", name) for name in ("python3", "python")]
    interpreter = next((path for path in interpreters if os.access(path, os.X_OK)), None)
    if interpreter is None:
        if not os.path.exists(activate):
            raise InternalError(
                f"Path {activate} does not exist. The Python environment should contain an 'activate' script."
            )
        raise InternalError(f"execution environment '{origin}' has no interpreter bin/python3 or bin/python")
    variables = _inherited_variables()
    is_conda = os.path.isdir(os.path.join(folder, "conda-meta"))
    added: dict[str, str] = {}
    if is_conda:
        # For the model's processes only: a shell may not get along with these libraries.
        added["LD_LIBRARY_PATH"] = _prepend(os.path.join(folder, "lib"), variables.get("LD_LIBRARY_PATH"))
    shell = shutil.which("bash")
    if os.path.exists(activate) and shell is not None:
        script = 'source "$0" >&2; exec "$1" -c "$2"'
        return _probe([shell, "-c", script, activate, interpreter, _PROBE], variables, added, origin)
    name = "CONDA_PREFIX" if is_conda else "VIRTUAL_ENV"
    variables |= {name: folder, "PATH": _prepend(os.path.join(folder, "bin"), variables.get("PATH"))}
    return _probe([interpreter, "-c", _PROBE], variables, added, origin)


def probe_interpreter(interpreter: str, origin: str) -> ExecutionEnvironment:
    """The environment that an interpreter brings by itself.

    Raises:
        InternalError: it cannot run models.
    """
    return _probe([interpreter, "-c", _PROBE], _inherited_variables(), {}, origin)


def _real_file(path: str) -> str:
    """Links in the folders are followed; the file itself may be one (the interpreter of a virtual environment is)."""
    os.stat(path)
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder, strict=True), name)


def _inherited_variables() -> dict[str, str]:
    # Of the server's own interpreter, and wrong for any other.
    own = ("PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "__PYVENV_LAUNCHER__")
    return {name: value for name, value in os.environ.items() if name not in own}


def _prepend(path: str, paths: str | None) -> str:
    return path if not paths else f"{path}{os.pathsep}{paths}"


def _probe(command: list[str], variables: dict[str, str], added: dict[str, str], origin: str) -> ExecutionEnvironment:
    try:
        done = subprocess.run(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_TIMEOUT_SECONDS,
            check=False,
        )
        found = json.loads(done.stdout.rstrip().rpartition(b"\n")[2] or b"null") if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise InternalError(f"execution environment '{origin}' cannot be used: {error}") from None
    if not isinstance(found, dict):
        said = done.stderr.decode(errors="replace").strip()[-2000:]
        raise InternalError(f"execution environment '{origin}' cannot be used: its interpreter does not run: {said}")
    version = found["version"]
    if found["implementation"] != "CPython" or _numbers(version) < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise InternalError(
            f"execution environment '{origin}' has {found['implementation']} {version}, but models need CPython "
            f"{oldest} or newer"
        )
    if "numpy" not in found:
        raise InternalError(
            f"execution environment '{origin}' (Python {version}) has no numpy, which models need: "
            f"{found['numpy_error']}"
        )
    return ExecutionEnvironment(
        found["interpreter"],
        version,
        found["numpy"],
        {**found["variables"], **added},
        tuple(found["packages"]),
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
