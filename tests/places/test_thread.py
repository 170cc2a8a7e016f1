import asyncio
import threading
import time

import pytest

from merrow.backends.base import Execution, Instance
from merrow.core.errors import InternalError
from merrow.core.response import Response
from merrow.places.base import Caller
from merrow.places.local_host import LocalEnvironment
from merrow.places.thread import MAX_DEPTH, ThreadInstance
from tests.places.recording_services import RecordingServices


class Events:
    def __init__(self):
        self.executions = []
        self.arrived = asyncio.Event()
        self.wanted = 1

    def on_execution(self, instance, requests, execution):
        self.executions.append((threading.current_thread(), requests, execution))
        if len(self.executions) >= self.wanted:
            self.arrived.set()


class Recording(Instance):
    def __init__(self):
        self.threads = [threading.current_thread()]
        self.is_closed = False

    def execute(self, requests):
        self.threads.append(threading.current_thread())
        if isinstance(requests[0], int):
            # What it says that it took.
            return Execution([Response("m", 1) for _ in requests], 0, 0, 0, requests[0])
        if requests[0] == "raise":
            raise ValueError("boom")
        if requests[0] == "refuse":
            raise InternalError("mine")
        if requests[0] == "short":
            return Execution([], 0, 0, 0, 0)
        now = time.monotonic_ns()
        return Execution([Response("m", 1) for _ in requests], now, now, now, now)

    def close(self):
        self.threads.append(threading.current_thread())
        self.is_closed = True


async def run(*batches, makes_calls=False, depths=None):
    events, created = Events(), []
    events.wanted = len(batches)

    def create(host):
        created.append(Recording())
        created[0].makes_calls = makes_calls
        return created[0]

    environment = LocalEnvironment(asyncio.get_running_loop(), RecordingServices(), 1000)
    instance = await asyncio.to_thread(ThreadInstance, Caller("m", 1, "m_0"), create, events, environment)
    for batch in batches:
        instance.submit(batch)
    await asyncio.wait_for(events.arrived.wait(), 5)
    if depths is not None:
        depths.append(instance.depth)
    await instance.close()
    return created[0], events.executions


def test_a_model_lives_on_one_thread_and_reports_on_the_loops():
    recording, executions = asyncio.run(run(["a"], ["b"]))

    assert len(set(recording.threads)) == 1
    assert recording.threads[0] is not threading.main_thread()
    assert {thread for thread, _, _ in executions} == {threading.main_thread()}
    assert [requests for _, requests, _ in executions] == [["a"], ["b"]]
    assert recording.is_closed


def test_what_a_model_raises_fails_its_batch_and_nothing_else():
    _, executions = asyncio.run(run(["raise", "x"], ["refuse"], ["short"], ["fine"]))
    outcomes = [execution.outcomes for _, _, execution in executions]

    assert [str(outcome) for outcome in outcomes[0]] == ["ValueError: boom"] * 2
    assert str(outcomes[1][0]) == "mine"
    assert str(outcomes[2][0]) == "instance 'm_0' answered 0 of 1 requests"
    assert isinstance(outcomes[3][0], Response)


def test_a_model_that_cannot_be_created_raises_in_the_constructor():
    def create(host):
        raise InternalError("no file")

    async def scenario():
        services = RecordingServices()
        environment = LocalEnvironment(asyncio.get_running_loop(), services, 1000)
        caller = Caller("m", 1, "m_0")
        try:
            await asyncio.to_thread(ThreadInstance, caller, create, Events(), environment)
        finally:
            # What it had asked for while it was being created is let go of.
            await asyncio.sleep(0)
            assert services.closed == [caller]

    with pytest.raises(InternalError, match="no file"):
        asyncio.run(scenario())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("instance")]


@pytest.mark.parametrize(
    ("duration_ns", "makes_calls", "depth"),
    [(10_000, False, MAX_DEPTH), (200_000, False, 2), (400_000, False, 1), (10_000, True, 1)],
)
def test_a_quick_model_that_calls_no_other_gets_batches_in_advance(duration_ns, makes_calls, depth):
    depths = []

    asyncio.run(run(*[[duration_ns]] * 60, makes_calls=makes_calls, depths=depths))

    assert depths == [depth]


def test_nothing_is_known_of_a_new_model():
    depths = []

    asyncio.run(run(["a"], makes_calls=False, depths=depths))

    assert depths == [1]
