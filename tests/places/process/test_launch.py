import asyncio
import logging
import os
import threading

import pytest

from merrow.core.errors import InternalError, UnavailableError
from merrow.core.model_config import ModelConfig, ModelInput
from merrow.places.process.fork_client import ChildProcess
from merrow.places.process.host import ProcessPlace
from merrow.places.process.limits import ChildLimits
from merrow.settings import ProcessSettings
from tests.places.process.launch_harness import discard, launch, launching
from tests.places.process.place_harness import describe_instance, is_alive, make_context

pytestmark = [
    pytest.mark.skipif(not ProcessPlace.is_available(), reason="needs fork and Unix sockets"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def launcher():
    """One fork server for all tests."""
    with launching() as launcher:
        yield launcher


def test_a_launched_child_has_loaded_its_model_and_listens(launcher, caplog):
    async def main():
        forked: list[tuple[ChildProcess, int]] = []
        child = await launch(launcher, on_forked=lambda process: forked.append((process, threading.get_ident())))
        assert is_alive(child.process.process_id)
        assert child.services is not None
        assert child.services.caller.instance_name == "m_0_0"
        assert not child.has_readiness_check
        ((process, thread),) = forked
        assert process is child.process
        assert thread != threading.get_ident()
        assert f"instance 'm_0_0' of model 'm' runs in process {child.process.process_id} with Python" in caplog.text
        # What it logged while it loaded is here.
        assert "[m_0_0] loading m_0_0" in caplog.text
        discard(child)
        assert os.WIFSIGNALED(child.process.exited.result(10))

    with caplog.at_level(logging.INFO, "merrow"):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "error_type", "text"),
    [
        ("refuses", UnavailableError, "not today"),
        ("raises", InternalError, "ZeroDivisionError: by nothing"),
        ("dies", InternalError, "Stub process 'm_0_0' is not healthy."),
        (
            "says nonsense while it loads",
            InternalError,
            "Stub process 'm_0_0' is not healthy: a control message of kind 99",
        ),
    ],
)
def test_a_child_that_cannot_load_is_gone_when_the_reason_is_told(launcher, name, error_type, text):
    async def main():
        forked: list[ChildProcess] = []
        with pytest.raises(error_type) as caught:
            await launch(launcher, name, on_forked=forked.append)
        assert caught.value.message == text
        (process,) = forked
        process.exited.result(10)

    asyncio.run(main())


def test_a_child_that_is_killed_while_it_loads_was_not_healthy(launcher):
    async def main():
        with pytest.raises(InternalError, match=r"^Stub process 'm_0_0' is not healthy\.$"):
            await launch(launcher, on_forked=lambda process: process.kill())

    asyncio.run(main())


def test_what_a_completion_says_is_a_configuration_or_an_error(launcher):
    def complete(name: str) -> ModelConfig:
        return launcher.auto_complete(make_context(name), "fake", ChildLimits())

    assert complete("m") == ModelConfig(name="m", max_batch_size=8, input=(ModelInput("IN", "TYPE_FP32", dims=(-1,)),))
    with pytest.raises(UnavailableError, match=r"^not today$"):
        complete("refuses")
    with pytest.raises(InternalError, match=r"^Stub process 'dies' is not healthy\.$"):
        complete("dies")
    with pytest.raises(InternalError, match=r"^model 'completes wrongly' completed its configuration wrongly: "):
        complete("completes wrongly")


def test_nothing_is_launched_once_the_fork_servers_are_closed():
    async def main():
        with launching(ProcessSettings()) as launcher:
            pass
        with pytest.raises(InternalError, match=r"^cannot start a process for model 'm': the server is stopping$"):
            await launch(launcher)
        with pytest.raises(InternalError, match=r"^cannot start a process for model 'm': the server is stopping$"):
            launcher.auto_complete(make_context(), "fake", ChildLimits())

    asyncio.run(main())


def test_limits_are_logged_with_the_child(launcher, caplog):
    async def main():
        limits = ChildLimits(memory_limit_byte_size=1 << 30)
        child = await asyncio.to_thread(
            launcher.launch,
            make_context("other"),
            "fake",
            describe_instance("other_0_0"),
            limits,
            asyncio.get_running_loop(),
        )
        discard(child)
        child.process.exited.result(10)
        assert str(limits)
        assert caplog.records[-1].message.endswith(str(limits))

    with caplog.at_level(logging.INFO, "merrow"):
        asyncio.run(main())
