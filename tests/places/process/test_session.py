"""A session with a real child, by way of its instance. Streams and calls: `test_streams`, `test_services`."""

import ast
import asyncio
import gc
import logging
import os
import signal
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from merrow.backends.base import Execution
from merrow.core.errors import InternalError, NotFoundError, UnavailableError
from merrow.core.response import Response
from merrow.places.process.channel import (
    ANSWER,
    BATCH,
    DROP,
    FIRST_FLUSH_COUNT,
    FREE,
    KEEP,
    LOG,
    READY,
    SEGMENT,
    encode_blocks,
    frame,
)
from merrow.places.process.host import ProcessPlace
from merrow.places.process.sections import INLINE_LIMIT
from merrow.settings import ProcessSettings
from tests.places.process.fake_backends import CONTROL, DATA, SERVICES
from tests.places.process.place_harness import (
    FAKE_BACKENDS,
    SETTINGS,
    is_alive,
    make_context,
    make_request,
    outputs_of,
    running_instance,
    running_place,
    text_of,
    until,
)
from tests.places.recording_services import RecordingServices

pytestmark = [
    pytest.mark.skipif(not ProcessPlace.is_available(), reason="needs fork and Unix sockets"),
    pytest.mark.slow,
]

FLOATS = np.arange(6, dtype=np.float32).reshape(1, 6)
LARGE = np.arange(100_000, dtype=np.float32)
STAMPS = struct.pack("<QQQQ", 1, 2, 3, 4)
# An outcome without outputs: no layout but the count of its tensors, no extras, succeeded.
OUTCOME = struct.pack("<IIII", 8, 0, 0, 0) + bytes(8)


@pytest.fixture(scope="module")
def place():
    """One fork server for all; every test has instances of its own."""
    place = ProcessPlace(SETTINGS, RecordingServices(), FAKE_BACKENDS)
    yield place
    asyncio.run(place.close())


def count_mappings() -> int:
    """Shared memory mapped by this process: a cancellation page for each child, and segments."""
    return Path("/proc/self/maps").read_text().count("/memfd:merrow")


def say(socket: int, message: bytes, **inputs: np.ndarray):
    return make_request(inputs, do="say", parameters={"socket": socket, "bytes": message.hex()})


@pytest.mark.parametrize(
    ("socket", "message", "reason"),
    [
        (DATA, frame(99), "a message of kind 99"),
        (DATA, frame(BATCH), "a message of kind 1"),
        (DATA, b"\x04\0\0\0" + bytes(12), "a message of 4 bytes"),
        # Number 7 is no batch; number 1 is, of two requests.
        (DATA, frame(ANSWER, 7, STAMPS + OUTCOME, 1), "KeyError(7)"),
        (DATA, frame(ANSWER, 1, STAMPS + OUTCOME, 1), "1 outcomes for 2 requests"),
        (DATA, frame(ANSWER, 1, STAMPS + OUTCOME, 2), "unpack_from requires a buffer"),
        (DATA, frame(ANSWER, 1, STAMPS + OUTCOME * 3, 2), "an answer ends at"),
        (DATA, encode_blocks(KEEP, 7, [(0, 0)]), "KeyError(7)"),
        (DATA, encode_blocks(KEEP, 1, [(0, 64)]), "KeyError((0, 64))"),
        (DATA, encode_blocks(FREE, 0, [(0, 0)]), "KeyError((0, 0))"),
        (DATA, frame(FREE, 0, bytes(16), 2), "2 blocks in 16 bytes"),
        (DATA, frame(DROP, 3), "segment 3 was never announced"),
        (CONTROL, frame(READY), "a control message of kind 17"),
        (CONTROL, frame(SEGMENT, 3, bytes(8)), "a message of kind 21 came without its descriptor"),
        (CONTROL, frame(LOG, 0, bytes(4)), "unpack_from requires a buffer"),
        (SERVICES, frame(99), "a services message of kind 99"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_child_that_says_something_senseless_is_replaced(place, caplog, socket, message, reason):
    async def main():
        async with running_instance(place) as (instance, reports):
            # One of the two is never answered by itself.
            batch = reports.submit(instance, say(socket, message, A=LARGE), make_request(do="wait until cancelled"))
            result = await asyncio.wait_for(batch, 10)
            assert isinstance(result, InternalError)
            assert result.message == "Stub process 'm_0_0' is not healthy."
            await reports.wait_for_health(False, True)
            assert outputs_of(await reports.ask(instance, make_request({"A": FLOATS})))

    asyncio.run(main())
    (record,) = [record for record in caplog.records if "no longer trusted" in record.message]
    assert reason in record.message


def test_a_reference_to_what_was_not_lent_is_not_followed(place, caplog):
    # One output of 100,000 bytes that is said to lie in this side's arena, where the batch has no block.
    layout = struct.pack("<I", 1) + struct.pack("<BBHIQ", 1, 1, 1, 1, 100_000) + struct.pack("<Q", 100_000) + b"X\0\0\0"
    outcome = struct.pack("<IIII", len(layout), 0, 0, 0) + layout + struct.pack("<IIQ", 2, 0, 0)

    async def main():
        async with running_instance(place) as (instance, reports):
            assert outputs_of(await reports.ask(instance, make_request({"A": LARGE})))
            lie = frame(ANSWER, 2, STAMPS + outcome, 1)
            assert isinstance(await reports.submit(instance, say(DATA, lie)), InternalError)
            await reports.wait_for_health(False, True)

    asyncio.run(main())
    assert "a reference to 100000 bytes at 0 in segment 0, which were not lent" in caplog.text


def test_what_was_answered_before_something_senseless_counts(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            first = reports.submit(instance, say(DATA, frame(ANSWER, 1, STAMPS + OUTCOME, 1) + frame(99)))
            second = reports.submit(instance, make_request({"A": FLOATS}))
            execution = await first
            assert isinstance(execution, Execution)
            assert (execution.start_ns, execution.end_ns) == (1, 4)
            assert isinstance(await second, InternalError)

    asyncio.run(main())


def test_batches_that_are_copied_on_a_thread_when_the_child_dies_are_reported_once(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            batch = reports.submit(instance, make_request({"A": np.ones(4_000_000, np.uint8)}, "double"))
            instance._session.lose()
            assert isinstance(await batch, InternalError)
            await reports.wait_for_health(False, True)
            assert len(reports.reported) == 1

    asyncio.run(main())


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


def test_a_child_is_found_dead_although_another_process_has_its_sockets(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            holder = int(text_of(await reports.ask(instance, make_request(do="hand on the sockets"))))
            try:
                result = await asyncio.wait_for(reports.submit(instance, make_request(do="kill")), 5)
                assert isinstance(result, InternalError)
                assert is_alive(holder)
                await reports.wait_for_health(False, True)
            finally:
                os.kill(holder, signal.SIGKILL)

    asyncio.run(main())


def test_a_child_that_says_nonsense_is_replaced(place, caplog):
    async def main():
        async with running_instance(place) as (instance, reports):
            result = await reports.submit(instance, make_request(do="flood"))
            assert isinstance(result, InternalError)
            await reports.wait_for_health(False, True)
            assert "no longer trusted" in caplog.text

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
