"""Health/Watch."""

import asyncio

from merrow.frontends.grpc import health
from merrow.frontends.grpc.health import HealthWatchers
from merrow.wire._generated.health_pb2 import HealthCheckRequest, HealthCheckResponse
from tests.frontends.fakes import FakeCall, FakeEngine

REQUEST = HealthCheckRequest(service="x").SerializeToString()


class Call(FakeCall):
    """A call that can be waited for."""

    async def wait_for_messages(self, count):
        while len(self.sent) < count:
            self.arrived = asyncio.Event()
            await asyncio.wait_for(self.arrived.wait(), 10)

    def send(self, parts):
        super().send(parts)
        if hasattr(self, "arrived"):
            self.arrived.set()


def watched(run):
    engine = FakeEngine()

    async def main():
        watchers = HealthWatchers(engine)
        call = Call()
        await run(engine, watchers, call, watchers.begin(call))
        assert watchers._timer is None
        return call

    call = asyncio.run(main())
    return [HealthCheckResponse.FromString(data).status for data in call.sent], call


def test_the_status_comes_at_once_and_when_it_changes(monkeypatch):
    monkeypatch.setattr(health, "LOOK_SECONDS", 0.001)

    async def run(engine, watchers, call, watch):
        watch.on_message(REQUEST)
        watch.on_half_close()
        engine.ready = False
        await call.wait_for_messages(2)
        engine.ready = True
        await call.wait_for_messages(3)
        call.writable = False
        engine.ready = False
        await asyncio.sleep(0.01)
        assert len(call.sent) == 3
        call.writable = True
        await call.wait_for_messages(4)
        call.on_cancel()

    assert watched(run)[0] == [1, 2, 1, 2]


def test_the_end_of_the_server():
    async def run(engine, watchers, call, watch):
        watch.on_message(REQUEST)
        watch.on_message(REQUEST)
        engine.is_exiting = True
        watchers.shut_down()

    statuses, call = watched(run)
    assert statuses == [1, 2]
    assert (call.status, call.message) == (14, "Server exiting")


def test_requests_that_are_none():
    async def broken(engine, watchers, call, watch):
        watch.on_message(b"\xff")

    async def missing(engine, watchers, call, watch):
        watch.on_half_close()

    for run in (broken, missing):
        _, call = watched(run)
        assert (call.status, call.message) == (13, "Unable to parse request")
