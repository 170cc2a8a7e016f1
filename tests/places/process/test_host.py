import ast
import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from merrow.backends.base import Execution
from merrow.core.errors import InternalError, InvalidArgumentError, NotFoundError, UnavailableError
from merrow.core.model_config import ModelConfig, ModelInput
from merrow.core.response import Response
from merrow.places.process.batches import INLINE_LIMIT
from merrow.places.process.channel import FIRST_FLUSH_COUNT
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


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def parent_of(process_id: int) -> int:
    return int(Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[1])


def count_mappings() -> int:
    """Shared memory mapped by this process: a cancellation page for each child, and segments."""
    return Path("/proc/self/maps").read_text().count("/memfd:merrow")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nothing announces."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def test_a_batch_comes_back_with_its_times(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            before_ns = time.monotonic_ns()
            execution = await reports.execute(instance, make_request({"A": FLOATS}), make_request({"B": FLOATS + 1}))
            after_ns = time.monotonic_ns()

            first, second = execution.outcomes
            assert outputs_of(first)["A"].tolist() == FLOATS.tolist()
            assert outputs_of(second)["B"].tolist() == (FLOATS + 1).tolist()
            assert first.parameters == {"do": "echo"}
            times = [execution.start_ns, execution.input_end_ns, execution.output_start_ns, execution.end_ns]
            assert [before_ns, *times, after_ns] == sorted([before_ns, *times, after_ns])

    asyncio.run(main())


def test_the_child_sees_the_whole_request(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            request = make_request(
                {"A": FLOATS, "B": np.array([[b"x"]], dtype=np.object_)},
                "describe",
                id="seven",
                correlation_id="c",
                flags=1,
                priority=2,
                timeout_us=3,
                requested_outputs=("TEXT",),
                parameters={"p": 1.5},
            )
            assert ast.literal_eval(text_of(await reports.ask(instance, request))) == (
                "seven", "c", 1, 2, 3, {"do": "describe", "p": 1.5}, ("TEXT",),
                {"A": ("FP32", [1, 6]), "B": ("BYTES", [1, 1])},
            )  # fmt: skip

    asyncio.run(main())


@pytest.mark.parametrize("size", [0, 1, INLINE_LIMIT, INLINE_LIMIT + 1, 300_000, 3_000_000])
def test_tensors_of_every_size_go_in_and_out(place, size):
    async def main():
        async with running_instance(place) as (instance, reports):
            data = np.random.default_rng(size).integers(0, 255, size, np.uint8)
            for do, expected in (("echo", data), ("double", data * 2), ("tail", data[1:])):
                for _ in range(3):
                    outcome = await reports.ask(instance, make_request({"A": data, "B": data[::-1].copy()}, do))
                    outputs = outputs_of(outcome)
                    assert np.array_equal(outputs["A"], expected)

    asyncio.run(main())


def test_an_output_that_is_an_input_is_not_copied(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            data = np.ones(4_000_000, np.uint8)
            outcome = await reports.ask(instance, make_request({"A": data}))
            assert np.array_equal(outputs_of(outcome)["A"], data)
            # One segment of this side, and none of the child's.
            assert count_mappings() == 2

    asyncio.run(main())


def test_an_answer_stays_as_it_is_while_someone_reads_it(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            kept = []
            for value in range(20):
                data = np.full(100_000, value, np.uint8)
                for do in ("echo", "double"):
                    outcome = await reports.ask(instance, make_request({"A": data}, do))
                    kept.append((outputs_of(outcome)["A"], value * (1 if do == "echo" else 2)))
            assert all((array == value).all() for array, value in kept)

    asyncio.run(main())


def test_memory_is_used_again_when_answers_are_gone(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            for value in range(30):
                data = np.full(400_000, value, np.uint8)
                for do in ("echo", "double"):
                    outcome = await reports.ask(instance, make_request({"A": data}, do))
                    del outcome
            # One segment of each side, and perhaps another while an answer was not yet given back.
            assert count_mappings() <= 5

    asyncio.run(main())


def test_what_a_model_keeps_does_not_change_and_what_it_changes_was_sent(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            arrays = [np.full(50_000, value, np.float32) for value in range(1, 4)]
            answers = [await reports.ask(instance, make_request({"A": array}, "keep")) for array in arrays]
            for _ in range(10):
                await reports.ask(instance, make_request({"A": np.zeros(50_000, np.float32)}))
            sums = ast.literal_eval(text_of(await reports.ask(instance, make_request(do="sum_kept"))))
            assert sums == [50_000.0, 100_000.0, 150_000.0]

            await reports.ask(instance, make_request(do="spoil_kept"))
            for answer, array in zip(answers, arrays, strict=True):
                assert np.array_equal(outputs_of(answer)["A"], array)
            await reports.ask(instance, make_request(do="drop_kept"))
            outcome = await reports.ask(instance, make_request({"A": arrays[0]}))
            assert np.array_equal(outputs_of(outcome)["A"], arrays[0])

    asyncio.run(main())


def test_errors_and_failures_keep_their_kind(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            execution = await reports.execute(
                instance, make_request(do="error"), make_request(do="fail"), make_request({"A": FLOATS})
            )
            answered, failed, succeeded = execution.outcomes
            assert isinstance(answered, Response)
            assert isinstance(answered.error, NotFoundError)
            assert answered.error.message == "no such thing"
            assert isinstance(failed, UnavailableError)
            assert failed.message == "come again"
            assert outputs_of(succeeded)

            execution = await reports.execute(instance, make_request(do="raise"), make_request({"A": FLOATS}))
            assert [(type(outcome), outcome.message) for outcome in execution.outcomes] == [
                (InternalError, "ValueError: boom")
            ] * 2

    asyncio.run(main())


def test_an_answer_that_fits_no_message_fails_its_batch_only(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            outcome = await reports.ask(instance, make_request({"A": np.ones(100_000)}, do="long name"))
            assert isinstance(outcome, InternalError)
            assert outputs_of(await reports.ask(instance, make_request({"A": FLOATS})))

    asyncio.run(main())


def test_a_request_that_fits_no_message_fails_alone(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            outcome = await reports.ask(instance, make_request({"A": FLOATS}, timeout_us=2**70))
            assert isinstance(outcome, InternalError)
            assert outputs_of(await reports.ask(instance, make_request({"A": FLOATS})))

    asyncio.run(main())


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


def test_a_cancelled_request_is_seen_by_a_running_model(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            request = make_request(do="wait until cancelled")
            future = reports.submit(instance, make_request({"A": FLOATS}), request)
            instance.cancel(make_request())
            instance.cancel(request)
            execution = await future
            assert text_of(execution.outcomes[1]) == "cancelled"

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


def test_the_first_of_many_answers_do_not_wait_for_the_last(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            firsts = [reports.submit(instance, make_request({"A": FLOATS + n})) for n in range(FIRST_FLUSH_COUNT + 1)]
            endless = make_request(do="wait until cancelled")
            last = reports.submit(instance, endless)
            for n, future in enumerate(firsts[:FIRST_FLUSH_COUNT]):
                execution = await asyncio.wait_for(future, 10)
                assert float(outputs_of(execution.outcomes[0])["A"][0, 0]) == n
            assert not last.done()

            endless.is_cancelled = True
            instance.cancel(endless)
            await asyncio.gather(firsts[-1], last)

    asyncio.run(main())


def test_an_idle_child_gets_the_first_of_many_batches_before_the_loop_has_seen_all(place, tmp_path):
    async def main():
        async with running_instance(place) as (instance, reports):
            path = tmp_path / "touched"
            futures = [reports.submit(instance, make_request({"A": FLOATS}))]
            futures.append(reports.submit(instance, make_request(do="touch", parameters={"path": str(path)})))
            # The loop is busy until the child has done it.
            futures += [reports.submit(instance, make_request({"A": FLOATS})) for _ in range(FIRST_FLUSH_COUNT)]
            deadline = time.monotonic() + 10
            while not path.exists():
                assert time.monotonic() < deadline
            await asyncio.gather(*futures)

    asyncio.run(main())


def test_more_than_a_socket_holds_may_be_under_way(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            data = np.arange(INLINE_LIMIT, dtype=np.uint8)
            busy = reports.submit(instance, make_request({"SECONDS": np.array([0.1])}, "sleep"))
            futures = [reports.submit(instance, make_request({"A": data})) for _ in range(300)]
            await busy
            for execution in await asyncio.gather(*futures):
                assert np.array_equal(outputs_of(execution.outcomes[0])["A"], data)

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


def test_a_child_whose_sockets_live_on_elsewhere_is_still_found_dead(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            grandchild = int(text_of(await reports.ask(instance, make_request(do="fork"))))
            future = reports.submit(instance, make_request(do="kill"))
            result = await asyncio.wait_for(future, 5)
            assert isinstance(result, InternalError)
            # What the model started does not outlive it.
            await until(lambda: not is_alive(grandchild))

    asyncio.run(main())


def test_a_child_that_says_nonsense_is_replaced(place, caplog):
    async def main():
        async with running_instance(place) as (instance, reports):
            result = await reports.submit(instance, make_request(do="flood"))
            assert isinstance(result, InternalError)
            await reports.wait_for_health(False, True)
            assert "no longer trusted" in caplog.text

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


def test_closing_waits_for_what_was_submitted_and_lets_the_model_finalize(place, tmp_path):
    async def main():
        (tmp_path / "1").mkdir()
        async with running_instance(place, make_context("finalizes", str(tmp_path))) as (instance, reports):
            process_id = instance.process_id
            future = reports.submit(instance, make_request({"SECONDS": np.array([0.05])}, "sleep"))
            await instance.close()
            assert isinstance(future.result(), Execution)
            assert (tmp_path / "1" / "finalized").exists()
            assert not is_alive(process_id)
            assert reports.health == []

    asyncio.run(main())


def test_a_batch_of_many_small_tensors_may_be_large_as_a_whole(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            arrays = [np.full(INLINE_LIMIT, index, np.uint8) for index in range(250)]
            for do, factor in (("echo", 1), ("double", 2)):
                execution = await reports.execute(instance, *[make_request({"A": array}, do) for array in arrays])
                for outcome, array in zip(execution.outcomes, arrays, strict=True):
                    assert np.array_equal(outputs_of(outcome)["A"], array * factor)

    asyncio.run(main())


def test_what_never_comes_back_is_given_up_when_the_instance_closes():
    async def main():
        async with (
            running_place(ProcessSettings(close_timeout_seconds=0)) as place,
            running_instance(place) as (instance, reports),
        ):
            future = reports.submit(instance, make_request({"SECONDS": np.array([60.0])}, "sleep"))
            await asyncio.wait_for(instance.close(), 5)
            assert future.result().message == "Stub process 'm_0_0' is not healthy."
            assert reports.health == []

    asyncio.run(main())


def test_a_model_that_does_not_end_is_killed():
    async def main():
        async with (
            running_place(ProcessSettings(close_timeout_seconds=0)) as place,
            running_instance(place, make_context("never_ends")) as (instance, _),
        ):
            process_id = instance.process_id
            await asyncio.wait_for(instance.close(), 5)
            assert not is_alive(process_id)

    asyncio.run(main())


def test_what_a_child_logs_is_logged_as_of_the_child(place, caplog):
    async def main():
        with caplog.at_level(logging.INFO, "merrow"):
            async with running_instance(place) as (instance, reports):
                await reports.ask(instance, make_request(do="log"))
                await until(lambda: "said so" in caplog.text)
                (record,) = [record for record in caplog.records if "said so" in record.message]
                assert (record.name, record.levelname, record.filename) == (
                    "merrow.python", "WARNING", "fake_backends.py",
                )  # fmt: skip
                assert record.message == "[m_0_0] said so"
                assert record.process == instance.process_id
                assert "loading m_0_0" in caplog.text

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


def test_memory_of_a_burst_is_given_back(monkeypatch):
    monkeypatch.setattr("merrow.places.process.arena.TRIM_AFTER_NS", 0)
    monkeypatch.setattr("merrow.places.process.session.TRIM_AFTER_NS", 10_000_000)
    monkeypatch.setattr("merrow.places.process.session._COLLECT_AFTER_SECONDS", 0.01)

    async def main():
        async with (
            running_place(ProcessSettings(arena_initial_byte_size=64 * 1024)) as place,
            running_instance(place) as (instance, reports),
        ):
            data = np.ones(2_000_000, np.uint8)
            await reports.ask(instance, make_request({"A": data}, "echo"))
            await until(lambda: count_mappings() == 1)

    asyncio.run(main())


def test_the_memory_of_a_dead_child_is_given_back_at_once(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            await reports.ask(instance, make_request({"A": np.ones(2_000_000, np.uint8)}, "double"))
            gc.collect()
            before = count_mappings()
            gc.disable()
            try:
                for _ in range(3):
                    os.kill(instance.process_id, signal.SIGKILL)
                    await until(lambda: not instance.is_healthy)
                    await until(lambda: instance.is_healthy)
            finally:
                gc.enable()
            # The page of the new child; the old ones and their tensors are gone.
            assert count_mappings() < before

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
