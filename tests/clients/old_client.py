"""`tritonclient` 2.41 in a folder of its own, beside whatever is installed; pip brings it once for the machine.

It is of another time: it needs numpy below 2, protobuf below 5 and `pkg_resources`. `MERROW_OLD_CLIENT_CACHE` names
another folder to keep it in.
"""

import contextlib
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

VERSION = "2.41.0"
PACKAGES = (f"tritonclient[http,grpc]=={VERSION}", "numpy<2", "protobuf<5", "setuptools<81")
# The last for which there is a numpy that old.
NEWEST_PYTHON = (3, 12)


class OldClientUnavailableError(Exception):
    """It cannot be installed here; the text says why."""


def folder() -> pathlib.Path:
    default = pathlib.Path(tempfile.gettempdir()) / "tritonclient-2.41"
    root = pathlib.Path(os.environ.get("MERROW_OLD_CLIENT_CACHE", default))
    return root / f"{sys.implementation.cache_tag}"


@functools.cache
def install() -> pathlib.Path:
    """The folder to put on the path, filled.

    Raises:
        OldClientUnavailableError: this Python is too new for it, or the packages cannot be had.
    """
    if sys.version_info[:2] > NEWEST_PYTHON:
        raise OldClientUnavailableError(
            f"tritonclient {VERSION} needs a numpy that Python {sys.version_info[0:2]} lacks"
        )
    target = folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.parent / "lock"):
        if not target.exists():
            # Under another name until it is whole.
            unfinished = target.with_suffix(".new")
            shutil.rmtree(unfinished, ignore_errors=True)
            argv = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(unfinished), *PACKAGES]
            outcome = subprocess.run(argv, capture_output=True, text=True, check=False)
            if outcome.returncode:
                raise OldClientUnavailableError(f"pip cannot install tritonclient {VERSION}:\n{outcome.stderr}")
            unfinished.rename(target)
    return target


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    """Held by one process at a time, where the system can do it."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
