"""Where the real server is missed silently, and where loudly."""

import sys

import pytest

from tests.oracle import real_triton
from tests.oracle.availability import install_or_skip
from tests.oracle.real_triton import RealTritonUnavailableError

needs_its_machine = pytest.mark.skipif(
    real_triton.unsupported_reason() is not None, reason="a machine that the real server runs on"
)


def fail_to_install() -> None:
    raise RealTritonUnavailableError("no network")


def test_another_platform_is_a_skip_that_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(sys, "platform", "darwin")

    with pytest.raises(pytest.skip.Exception, match="runs on Linux x86-64 only, this is darwin"):
        install_or_skip(fail_to_install)


@needs_its_machine
def test_a_failed_installation_is_an_error_in_ci(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CI", "true")

    with pytest.raises(RealTritonUnavailableError, match="no network"):
        install_or_skip(fail_to_install)


@needs_its_machine
def test_a_failed_installation_is_a_skip_elsewhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CI", raising=False)

    with pytest.raises(pytest.skip.Exception, match="no network"):
        install_or_skip(fail_to_install)


@needs_its_machine
def test_what_was_installed_is_returned():
    assert install_or_skip(lambda: 5) == 5
