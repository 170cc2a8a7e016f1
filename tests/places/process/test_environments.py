"""Which fork server a model gets. What is made of archives and requirements is tested in tests/e2e, with a server."""

import sys

import pytest

from merrow.core.errors import InternalError
from merrow.core.model_config import ModelConfig, ModelParameter
from merrow.places.process import environments
from merrow.places.process.environments import Environments
from merrow.places.process.system import is_available
from merrow.settings import ProcessSettings
from tests.places.process.place_harness import make_context

pytestmark = [pytest.mark.skipif(not is_available(), reason="needs fork and Unix sockets"), pytest.mark.slow]

FACTORY = "merrow.backends.registry:backend_of"


def context_with(path, directory="/nowhere"):
    return make_context("m", directory, ModelConfig(parameters={"EXECUTION_ENV_PATH": ModelParameter(path)}))


@pytest.fixture
def made(tmp_path):
    settings = ProcessSettings(environment_cache_directory=str(tmp_path / "cache"))
    made = Environments(FACTORY, settings)
    yield made
    made.close()


def test_a_model_without_an_environment_gets_the_server_s_interpreter(made):
    client, text = made.client_of(make_context("m"))
    other, _ = made.client_of(context_with(""))

    assert client is other
    assert f"({sys.executable}), numpy " in text


def test_models_of_one_environment_share_a_fork_server_which_ends_when_it_is_idle(made, monkeypatch):
    client, text = made.client_of(context_with(sys.executable))
    own, _ = made.client_of(make_context("m"))
    assert made.client_of(context_with(sys.executable, "/elsewhere")) == (client, text)
    assert client is not own

    # It has just been asked for.
    assert made.close_idle()
    monkeypatch.setattr(environments, "LINGER_NS", 0)
    child, data, control = client.fork("m_0")
    assert made.close_idle()
    data.close()
    control.close()
    child.exited.result(10)
    assert not made.close_idle()
    again, _ = made.client_of(context_with(sys.executable))
    assert again is not client


def test_an_environment_that_is_not_there_is_an_error_each_time(made, tmp_path):
    for _ in range(2):
        with pytest.raises(InternalError, match="Failed to get the canonical path"):
            made.client_of(context_with(str(tmp_path / "env")))


def test_requirements_are_not_read_unless_they_are_allowed(made, tmp_path, caplog):
    (tmp_path / "requirements.txt").write_bytes(b"\xff")
    context = make_context("m", str(tmp_path))
    made.client_of(context)
    assert "which is not installed" in caplog.text

    allowed = Environments(FACTORY, ProcessSettings(installs_requirements=True))
    try:
        with pytest.raises(InternalError, match=r"cannot read .*requirements\.txt"):
            allowed.client_of(context)
    finally:
        allowed.close()
