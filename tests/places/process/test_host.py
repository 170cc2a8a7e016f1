import ast
import asyncio
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from merrow.backends.base import Execution
from merrow.core.errors import InternalError, InvalidArgumentError, UnavailableError
from merrow.core.model_config import ModelConfig, ModelInput
from merrow.places.process.host import MAX_DEPTH, ProcessPlace
from merrow.settings import ProcessSettings
from tests.places.process.place_harness import (
    FAKE_BACKENDS,
    SETTINGS,
    Reports,
    make_context,
    make_request,
    outputs_of,
    running_instance,
    running_place,
    start,
    text_of,
    until,
)
from tests.places.recording_services import RecordingServices

pytestmark = [
    pytest.mark.skipif(not ProcessPlace.is_available(), reason="needs fork and Unix sockets"),
    # Starting the fork server alone takes a quarter of a second.
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def place():
    """One fork server for all; every test has instances of its own."""
    place = ProcessPlace(SETTINGS, RecordingServices(), FAKE_BACKENDS)
    yield place
    asyncio.run(place.close())


FLOATS = np.arange(6, dtype=np.float32).reshape(1, 6)


def parent_of(process_id: int) -> int:
    return int(Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_the_model_runs_on_the_main_thread_with_nothing_of_the_server(place):
    async def main():
        reports = Reports()
        instances = [await start(place, reports, name=f"m_0_{index}") for index in range(2)]
        environments = [
            ast.literal_eval(text_of(await reports.ask(instance, make_request(do="environment"))))
            for instance in instances
        ]
        first, second = environments
        assert first["is_main_thread"]
        assert first["stdin"] == ""
        assert first["pid"] == instances[0].process_id
        assert first["random"] != second["random"]
        # The standard three, three sockets, the cancellation page, the pipe that wakes who sends later, and the listing
        # itself.
        assert len(second["descriptors"]) == 10
        assert os.getsid(first["pid"]) != os.getsid(0)
        assert os.getpgid(first["pid"]) == first["pid"]
        await asyncio.gather(*[instance.close() for instance in instances])

    asyncio.run(main())


def test_many_batches_are_in_flight_at_once_when_they_are_quick(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            assert instance.depth == 1
            for _ in range(60):
                await reports.ask(instance, make_request({"A": FLOATS}))
            assert instance.depth > 1
            assert instance.depth <= MAX_DEPTH
            futures = [reports.submit(instance, make_request({"A": FLOATS + n})) for n in range(200)]
            executions = await asyncio.gather(*futures)
            assert [float(outputs_of(execution.outcomes[0])["A"][0, 0]) for execution in executions] == list(range(200))

            for _ in range(20):
                await reports.ask(instance, make_request({"SECONDS": np.array([0.01])}, "sleep"))
            assert instance.depth == 1

    asyncio.run(main())


@pytest.mark.parametrize(("do", "reason"), [("kill", "of signal 9 (SIGKILL)"), ("exit", "with exit code 7")])
def test_the_death_of_a_child_fails_what_it_had_and_the_instance_comes_back(place, do, reason, caplog):
    async def main():
        async with running_instance(place) as (instance, reports):
            process_id = instance.process_id
            assert outputs_of(await reports.ask(instance, make_request({"A": FLOATS})))
            futures = [reports.submit(instance, make_request({"A": FLOATS}, step)) for step in (do, "echo", "echo")]
            for result in await asyncio.gather(*futures):
                assert isinstance(result, InternalError)
                assert result.message == "Stub process 'm_0_0' is not healthy."
            assert reports.health[0] is False

            if not instance.is_healthy:
                refused = await reports.submit(instance, make_request({"A": FLOATS}))
                assert refused.message == "Stub process 'm_0_0' is not healthy."
            await reports.wait_for_health(False, True)
            assert instance.process_id != process_id
            assert outputs_of(await reports.ask(instance, make_request({"A": FLOATS})))
            await until(lambda: reason in caplog.text)

    asyncio.run(main())


def test_large_tensors_under_way_survive_or_fail_when_the_child_is_killed(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            data = np.arange(3_000_000, dtype=np.uint8)
            answers = []
            for _ in range(3):
                futures = [reports.submit(instance, make_request({"A": data}, "double")) for _ in range(6)]
                answers.append(await futures[0])
                killed = instance.process_id
                os.kill(killed, signal.SIGKILL)
                for result in await asyncio.gather(*futures[1:]):
                    if isinstance(result, Execution):
                        assert np.array_equal(outputs_of(result.outcomes[0])["A"], data * 2)
                    else:
                        assert result.message == "Stub process 'm_0_0' is not healthy."
                await until(lambda killed=killed: instance.is_healthy and instance.process_id != killed)
            # Answers of children long dead are still there.
            for answer in answers:
                assert np.array_equal(outputs_of(answer.outcomes[0])["A"], data * 2)

    asyncio.run(main())


def test_under_load_kills_lose_no_answer_and_double_none(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            results = []

            async def client(number):
                for _ in range(100):
                    result = await reports.submit(instance, make_request({"A": FLOATS + number}))
                    if isinstance(result, Execution):
                        assert float(outputs_of(result.outcomes[0])["A"][0, 0]) == number
                    else:
                        await asyncio.sleep(0.005)
                    results.append(result)

            async def killer():
                killed = None
                for _ in range(4):
                    await asyncio.sleep(0.03)
                    await until(lambda killed=killed: instance.is_healthy and instance.process_id != killed)
                    killed = instance.process_id
                    os.kill(killed, signal.SIGKILL)

            await asyncio.gather(killer(), *[client(number) for number in range(8)])
            assert len(results) == 800
            assert len({id(batch) for batch in reports.reported}) == len(reports.reported) == 800
            assert sum(isinstance(result, Execution) for result in results) > 0

    asyncio.run(main())


def test_a_model_that_no_longer_loads_is_tried_again_and_again(place, tmp_path, caplog):
    async def main():
        (tmp_path / "1").mkdir()
        context = make_context("dies_later", str(tmp_path))
        async with running_instance(place, context) as (instance, reports):
            os.kill(instance.process_id, signal.SIGKILL)
            await until(lambda: caplog.text.count("could not be restarted") >= 3)
            assert reports.health == [False]
            (tmp_path / "1" / "loaded").unlink()
            await reports.wait_for_health(False, True)

    asyncio.run(main())


def test_closing_while_a_restart_waits_or_runs_leaves_nothing(place, tmp_path):
    async def main():
        (tmp_path / "1").mkdir()
        for delay in (0.0, 0.01, 0.02):
            async with running_instance(place, make_context("m", str(tmp_path))) as (instance, _):
                os.kill(instance.process_id, signal.SIGKILL)
                await until(lambda: not instance.is_healthy)
                await asyncio.sleep(delay)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "error_type", "text"),
    [
        ("refuses", UnavailableError, "not today"),
        ("raises", InternalError, "ZeroDivisionError: by nothing"),
        ("dies", InternalError, "Stub process 'm_0_0' is not healthy."),
    ],
)
def test_an_instance_that_cannot_load_says_why(place, name, error_type, text):
    async def main():
        with pytest.raises(error_type) as caught:
            await start(place, Reports(), make_context(name))
        assert caught.value.message == text

    asyncio.run(main())


def test_an_unknown_backend_is_refused(place):
    async def main():
        with pytest.raises(InvalidArgumentError, match="no backend other"):
            await start(place, Reports(), backend="other")

    asyncio.run(main())


def test_a_child_that_does_not_start_in_time_is_given_up():
    async def main():
        async with running_place(ProcessSettings(start_timeout_seconds=0)) as place:
            with pytest.raises(InternalError, match="it did not start within 0 s"):
                await start(place, Reports())

    asyncio.run(main())


def test_a_configuration_is_completed_in_a_process_that_is_thrown_away(place):
    async def main():
        completed = await asyncio.to_thread(place.auto_complete, make_context("m"), "fake")
        assert completed == ModelConfig(name="m", max_batch_size=8, input=(ModelInput("IN", "TYPE_FP32", dims=(-1,)),))
        with pytest.raises(UnavailableError, match="not today"):
            await asyncio.to_thread(place.auto_complete, make_context("refuses"), "fake")
        with pytest.raises(InternalError, match=r"Stub process 'dies' is not healthy\."):
            await asyncio.to_thread(place.auto_complete, make_context("dies"), "fake")

    asyncio.run(main())


def test_a_dead_fork_server_is_replaced(caplog):
    async def main():
        async with running_place() as place, running_instance(place) as (instance, reports):
            os.kill(parent_of(instance.process_id), signal.SIGKILL)
            await reports.wait_for_health(False, True)
            assert "a fork server died" in caplog.text
            assert outputs_of(await reports.ask(instance, make_request({"A": FLOATS})))

    asyncio.run(main())


def test_thirty_instances_start_quickly(place):
    async def main():
        reports = Reports()
        start_time = time.monotonic()
        instances = await asyncio.gather(*[start(place, reports, name=f"m_0_{n}") for n in range(30)])
        elapsed = time.monotonic() - start_time
        assert len({instance.process_id for instance in instances}) == 30
        assert elapsed < 5
        await asyncio.gather(*[instance.close() for instance in instances])

    asyncio.run(main())


def test_a_death_for_want_of_memory_is_told(place, caplog, monkeypatch):
    kills = iter([3, 4, 4, 4])
    monkeypatch.setattr("merrow.places.process.host.count_oom_kills", lambda: next(kills))

    async def main():
        async with running_instance(place) as (instance, reports):
            await reports.submit(instance, make_request(do="kill"))
            await reports.wait_for_health(False, True)
            await until(lambda: "died of signal 9" in caplog.text)

    asyncio.run(main())
    assert "died of signal 9 (SIGKILL), and the system has been killing processes for want of memory" in caplog.text
