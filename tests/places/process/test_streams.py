"""Deferred requests of models in real processes: responses that come one by one, during the execution or after it."""

import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest

from merrow.backends.base import Deferral, Execution
from merrow.core.errors import CancelledError, InternalError
from merrow.places.process.channel import CANCELLATION_SLOTS
from merrow.places.process.host import ProcessPlace
from merrow.places.process.sections import INLINE_LIMIT
from tests.places.process.place_harness import (
    FAKE_BACKENDS,
    SETTINGS,
    make_request,
    outputs_of,
    running_instance,
    running_place,
)
from tests.places.recording_services import RecordingServices

pytestmark = [
    pytest.mark.skipif(not ProcessPlace.is_available(), reason="needs fork and Unix sockets"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def place():
    """One fork server for all; every test has instances of its own."""
    place = ProcessPlace(SETTINGS, RecordingServices(), FAKE_BACKENDS)
    yield place
    asyncio.run(place.close())


def stream(do: str, count: int, size: int):
    return make_request({"COUNT": np.array([count]), "SIZE": np.array([size])}, do)


@pytest.mark.parametrize("do", ["stream", "stream later"])
@pytest.mark.parametrize("size", [0, 1, INLINE_LIMIT, INLINE_LIMIT + 1, 3_000_000])
def test_responses_of_every_size_come_in_order(place, do, size):
    async def main():
        async with running_instance(place) as (instance, reports):
            request = stream(do, 10, size)
            assert await reports.ask(instance, request) is Deferral.DEFERRED
            *responses, end = await reports.wait_for_end(request)
            assert [response.parameters for response in responses] == [{"number": number} for number in range(10)]
            for number, response in enumerate(responses):
                assert np.array_equal(outputs_of(response)["OUT"], np.full(size, number, np.uint8))
            assert end.is_empty
            assert end.is_final

    asyncio.run(main())


def test_a_request_without_responses_ends(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            request = stream("stream", 0, 0)
            assert await reports.ask(instance, request) is Deferral.DEFERRED
            (end,) = await reports.wait_for_end(request)
            assert end.is_empty

    asyncio.run(main())


def test_batches_are_executed_while_streams_are_open(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            deferred = make_request(do="stream when cancelled")
            assert await reports.ask(instance, deferred) is Deferral.DEFERRED
            later = stream("stream later", 5, 100)
            assert await reports.ask(instance, later) is Deferral.DEFERRED
            data = np.arange(5, dtype=np.float32)
            assert outputs_of(await reports.ask(instance, make_request({"A": data})))["A"].tolist() == data.tolist()
            assert len(await reports.wait_for_end(later)) == 6

            instance.cancel(deferred)
            (end,) = await reports.wait_for_end(deferred)
            assert isinstance(end.error, CancelledError)

    asyncio.run(main())


def test_a_deferred_request_without_responses_is_a_hang(caplog):
    async def main():
        settings = replace(SETTINGS, execution_timeout_seconds=0.3)
        async with running_place(settings) as place, running_instance(place) as (instance, reports):
            # Each response begins the time anew; what is over has none.
            lively = stream("stream later", 3, 1)
            assert await reports.ask(instance, lively) is Deferral.DEFERRED
            await reports.wait_for_end(lively)
            silent = make_request(do="stream when cancelled")
            start = time.monotonic()
            assert await reports.ask(instance, silent) is Deferral.DEFERRED
            (end,) = await reports.wait_for_end(silent)
            assert end.error.message == "Stub process 'm_0_0' is not healthy."
            assert time.monotonic() - start >= 0.3
            await reports.wait_for_health(False, True)
            data = np.arange(5, dtype=np.float32)
            assert outputs_of(await reports.ask(instance, make_request({"A": data})))["A"].tolist() == data.tolist()

    asyncio.run(main())
    what = "instance 'm_0_0' has sent no response to a request that it deferred for more than its time-out of 0.3 s"
    assert sum(what in message for message in caplog.messages) == 1


def test_responses_come_before_what_the_batch_says_afterwards(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            data = np.arange(5, dtype=np.float32)
            for do, expected in (("stream and reschedule", Deferral.RESCHEDULED), ("stream and raise", InternalError)):
                for _ in range(20):
                    request = make_request({"A": data}, do)
                    future = reports.submit(instance, request)
                    came: list[int] = []
                    future.add_done_callback(lambda _, came=came: came.append(len(reports.responses)))
                    before = len(reports.responses)
                    execution = await future
                    assert isinstance(execution, Execution)
                    (outcome,) = execution.outcomes
                    assert outcome is expected or isinstance(outcome, InternalError)
                    assert came == [before + 1]

    asyncio.run(main())


def test_a_slow_client_makes_the_model_wait(place):
    """The model says that it executed only when all was sent."""

    async def main():
        async with running_instance(place) as (instance, reports):
            size = SETTINGS.stream_window_byte_size // 4
            request = stream("stream", 40, size)
            request.is_congested = True
            execution = reports.submit(instance, request)
            sent_at_most = 2 * SETTINGS.stream_window_byte_size // size
            await reports.wait_for_responses(request, 4)
            # Another child's whole life takes longer than what the first would send now if it did not wait.
            async with running_instance(place) as (other, other_reports):
                await other_reports.ask(other, stream("stream", 1, 10))
            assert len(reports.responses) < sent_at_most
            assert not execution.done()

            request.is_congested = False
            instance.resume(request)
            assert len(await reports.wait_for_end(request)) == 41
            await execution

    asyncio.run(main())


def test_a_client_that_is_slow_and_leaves_lets_the_model_go_on(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            request = stream("stream", 40, SETTINGS.stream_window_byte_size // 4)
            request.is_congested = True
            execution = reports.submit(instance, request)
            await reports.wait_for_responses(request, 4)
            request.is_cancelled = True
            instance.cancel(request)
            await reports.wait_for_end(request)
            await execution

    asyncio.run(main())


def test_what_is_deferred_when_the_process_dies_ends_with_an_error(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            deferred = make_request(do="defer")
            ended = stream("stream", 3, 10)
            await reports.ask(instance, deferred)
            await reports.ask(instance, ended)
            await reports.wait_for_end(ended)
            assert isinstance(await reports.submit(instance, make_request(do="kill")), InternalError)
            (end,) = await reports.wait_for_end(deferred)
            assert end.error is not None
            assert end.error.message == "Stub process 'm_0_0' is not healthy."
            assert len(await reports.wait_for_end(ended)) == 4

    asyncio.run(main())


def test_a_cancellation_is_seen_long_after_the_batch(place):
    """The slot of a request is used again by later ones."""

    async def main():
        async with running_instance(place) as (instance, reports):
            deferred = make_request(do="stream when cancelled")
            await reports.ask(instance, deferred)
            for _ in range(CANCELLATION_SLOTS - 1):
                await reports.ask(instance, make_request(do="describe"))
            other = make_request(do="wait until cancelled")
            execution = reports.submit(instance, other)
            instance.cancel(deferred)
            instance.cancel(other)
            (end,) = await reports.wait_for_end(deferred)
            assert isinstance(end.error, CancelledError)
            await execution

    asyncio.run(main())


def test_closing_waits_for_streams(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            request = stream("stream later", 100, 20_000)
            await reports.ask(instance, request)
        assert len(await reports.wait_for_end(request)) == 101

    asyncio.run(main())


def test_memory_of_a_long_stream_is_used_again(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            request = stream("stream later", 300, 1_000_000)
            started = time.monotonic()
            await reports.ask(instance, request)
            while not reports.responses or not reports.responses[-1][1].is_final:
                await asyncio.sleep(0)
                # A client that takes each response and lets it go.
                del reports.responses[:-1]
            assert time.monotonic() - started < 10
            assert shared_byte_size(instance.process_id) < 60_000_000

    asyncio.run(main())


def test_a_large_input_is_given_back_when_its_request_is_over_and_nothing_else_happens(place):
    async def main():
        async with running_instance(place) as (instance, reports):
            request = make_request({"A": np.ones(1_000_000, np.uint8)}, "keep until cancelled")
            await reports.ask(instance, request)
            assert len(instance._session._kept) == 1
            instance.cancel(request)
            await reports.wait_for_end(request)
            deadline = time.monotonic() + 10
            while instance._session._kept:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.005)

    asyncio.run(main())


def shared_byte_size(process_id: int) -> int:
    """Of the shared memory that a process has mapped."""
    size = 0
    with open(f"/proc/{process_id}/maps") as maps:
        for line in maps:
            if "/memfd:merrow" in line:
                start, _, end = line.split()[0].partition("-")
                size += int(end, 16) - int(start, 16)
    return size
