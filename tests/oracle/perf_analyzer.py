"""NVIDIA's own load generator, perf_analyzer, out of the PyPI wheel of tritonclient 2.49.0 (Linux x86-64).

    python -m tests.oracle.perf_analyzer -m MODEL -u 127.0.0.1:8000 -i http --concurrency-range 16 -p 2000 -r 6 -s 20

It needs two shared libraries that the wheel of the real server carries. Windows of two seconds and `-s 20` or more suit
a noisy machine; `-v` prints each window.
"""

import fcntl
import os
import pathlib
import subprocess
import sys
import zipfile

from tests.oracle import real_triton

WHEEL = "tritonclient==2.49.0"
# The name that the binary asks for, and how the file of the other wheel is called.
LIBRARIES = (("libb64.so.0d", "libb64-*"), ("libcudart.so.12", "libcudart-*"))


def install() -> tuple[pathlib.Path, pathlib.Path]:
    """Unpack the binary and the libraries that it needs, unless that was done before.

    Returns:
        The binary, and the folder that must be on `LD_LIBRARY_PATH`.

    Raises:
        RealTritonUnavailableError: the machine is another one than the wheels are for, or they cannot be had.
    """
    real_triton.install()
    cache = real_triton.cache_folder()
    folder = cache / "perf_analyzer"
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            try:
                _unpack(cache, folder)
            except (OSError, subprocess.CalledProcessError, zipfile.BadZipFile, StopIteration) as error:
                raise real_triton.RealTritonUnavailableError(f"cannot install {WHEEL}: {error}") from error
            (folder / "ready").touch()
    return _binary(folder), folder / "lib"


def command(*options: str) -> tuple[list[str], dict[str, str]]:
    """The argument vector and the environment that run it with these options."""
    binary, libraries = install()
    return [str(binary), *options], dict(os.environ, LD_LIBRARY_PATH=str(libraries))


def _unpack(cache: pathlib.Path, folder: pathlib.Path) -> None:
    downloads = str(folder / "dl")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", WHEEL, "-d", downloads]
    subprocess.run(pip, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with zipfile.ZipFile(next((folder / "dl").glob("tritonclient*.whl"))) as wheel:
        wheel.extractall(folder)
    _binary(folder).chmod(0o755)
    (folder / "lib").mkdir(exist_ok=True)
    for name, pattern in LIBRARIES:
        link = folder / "lib" / name
        if not link.exists():
            link.symlink_to(next((cache / "wheel" / "nvidia_pytriton.libs").glob(pattern)))


def _binary(folder: pathlib.Path) -> pathlib.Path:
    return folder / "tritonclient-2.49.0.data" / "data" / "bin" / "perf_analyzer"


def main() -> None:
    argv, environment = command(*sys.argv[1:])
    os.execve(argv[0], argv, environment)


if __name__ == "__main__":
    main()
