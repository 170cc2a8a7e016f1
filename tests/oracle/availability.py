"""Whether a test can have the real server: a skip where it cannot run, an error in CI where it should."""

import os
from collections.abc import Callable
from typing import TypeVar

import pytest

from tests.oracle.real_triton import RealTritonUnavailableError, unsupported_reason

Installed = TypeVar("Installed")


def install_or_skip(install: Callable[[], Installed]) -> Installed:
    """What `install` returns; skips the test where the machine is another one than the wheels are for.

    Raises:
        RealTritonUnavailableError: in CI (the variable of that name is set), when the machine is right and yet it
            cannot be installed. Elsewhere, without a network for example, that is a skip too.
    """
    if reason := unsupported_reason():
        pytest.skip(reason)
    try:
        return install()
    except RealTritonUnavailableError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
