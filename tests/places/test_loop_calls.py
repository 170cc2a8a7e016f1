import asyncio
import threading

from merrow.places.loop_calls import call_on_loop


def test_a_call_from_a_thread_comes_on_the_loops():
    async def main():
        called = asyncio.get_running_loop().create_future()
        call = (lambda *what: called.set_result((*what, threading.get_ident())), 1, 2)
        await asyncio.to_thread(call_on_loop, asyncio.get_running_loop(), *call)
        assert await called == (1, 2, threading.get_ident())

    asyncio.run(main())


def test_a_closed_loop_is_called_no_more():
    called = []
    loop = asyncio.new_event_loop()
    loop.close()
    call_on_loop(loop, called.append, 1)

    assert called == []
