"""The real Triton Inference Server (C++, 2.51.0) as the reference to compare with.

The PyPI wheel `nvidia-pytriton` carries the server's binary, its Python backend and its local response cache. This
module unpacks that wheel into a cache folder, once for the machine, with a virtual environment for its Python models.

    python -m tests.oracle.real_triton --model-repository=DIR --http-port=8000 ...   # in the foreground

`REAL_TRITON_CACHE` names another cache folder. Linux x86-64 and CPython 3.8 to 3.13 only: the wheel has a Python stub
for no other.
"""

import fcntl
import functools
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import zipfile

WHEEL = "nvidia-pytriton==0.7.0"
VERSION = "2.51.0"
# numpy stays below 2: with numpy 2 the wheel's stub answers with empty tensors and no error.
MODEL_PACKAGES = ("numpy==1.26.4",)
NEWEST_PYTHON = (3, 13)


class RealTritonUnavailableError(Exception):
    """The real server cannot run here; the text says why."""


def cache_folder() -> pathlib.Path:
    default = pathlib.Path(tempfile.gettempdir()) / "real-triton"
    return pathlib.Path(os.environ.get("REAL_TRITON_CACHE", default))


def unsupported_reason() -> str | None:
    """Why this machine cannot run the real server; None where it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the real Triton runs on Linux x86-64 only, this is {sys.platform} {platform.machine()}"
    if sys.version_info[:2] > NEWEST_PYTHON and not (cache_folder() / "ready").exists():
        return f"the wheel {WHEEL} has no Python stub for CPython {sys.version_info.major}.{sys.version_info.minor}"
    return None


@functools.cache
def install() -> pathlib.Path:
    """Unpack the wheel and make the virtual environment of its models, unless that was done before.

    Returns:
        The server's folder, with `bin/tritonserver`, `backends` and `caches` in it.

    Raises:
        RealTritonUnavailableError: the machine is another one than the wheel is for, or the wheel cannot be had.
    """
    if reason := unsupported_reason():
        raise RealTritonUnavailableError(reason)
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "ready").exists():
            try:
                _unpack(cache)
            except (OSError, subprocess.CalledProcessError, zipfile.BadZipFile, StopIteration) as error:
                output = getattr(error, "stderr", "") or ""
                raise RealTritonUnavailableError(f"cannot install {WHEEL} into {cache}: {error}\n{output}") from error
            (cache / "ready").touch()
    return cache / "wheel" / "pytriton" / "tritonserver"


def command(*options: str) -> tuple[list[str], dict[str, str]]:
    """The argument vector and the environment that start the server with these options."""
    folder = install()
    venv = cache_folder() / "venv"
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    environment["PATH"] = f"{venv / 'bin'}:{environment['PATH']}"
    environment["LD_LIBRARY_PATH"] = _library_folder(venv)
    argv = [
        str(folder / "bin" / "tritonserver"),
        f"--backend-directory={folder / 'backends'}",
        f"--cache-directory={folder / 'caches'}",
        *options,
    ]
    return argv, environment


def install_for_models(*packages: str) -> None:
    """Let the server's Python models import further packages.

    Raises:
        RealTritonUnavailableError: they cannot be had.
    """
    install()
    try:
        _run(str(cache_folder() / "venv" / "bin" / "pip"), "install", *MODEL_PACKAGES, *packages)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RealTritonUnavailableError(
            f"cannot install {packages}: {getattr(error, 'stderr', '') or error}"
        ) from error


def _unpack(cache: pathlib.Path) -> None:
    _run(sys.executable, "-m", "pip", "download", "--no-deps", WHEEL, "-d", str(cache / "dl"))
    with zipfile.ZipFile(next((cache / "dl").glob("nvidia_pytriton*.whl"))) as wheel:
        wheel.extractall(cache / "wheel")
    _run(sys.executable, "-m", "venv", str(cache / "venv"))
    _run(str(cache / "venv" / "bin" / "pip"), "install", *MODEL_PACKAGES)
    folder = cache / "wheel" / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = folder / "python_backend_stubs" / version / "triton_python_backend_stub"
    target = folder / "backends" / "python" / "triton_python_backend_stub"
    target.write_bytes(stub.read_bytes())
    target.chmod(0o755)
    (folder / "bin" / "tritonserver").chmod(0o755)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@functools.cache
def _library_folder(venv: pathlib.Path) -> str:
    """Where libpython of the interpreter behind the virtual environment lies; the stub is linked to it."""
    code = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    argv = [str(venv / "bin" / "python"), "-c", code]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    argv, environment = command(*sys.argv[1:])
    os.execve(argv[0], argv, environment)


if __name__ == "__main__":
    main()
