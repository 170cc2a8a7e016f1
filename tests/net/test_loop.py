import asyncio
import sys

from merrow.net.loop import copies_output, new_event_loop


def test_a_loop_runs():
    loop = new_event_loop()
    try:
        assert loop.run_until_complete(asyncio.sleep(0, "done")) == "done"
    finally:
        loop.close()


def test_without_uvloop_there_is_a_loop_too(monkeypatch):
    # What stands in for a missing module.
    monkeypatch.setitem(sys.modules, "uvloop", None)

    loop = new_event_loop()
    try:
        assert type(loop).__module__.startswith("asyncio")
    finally:
        loop.close()


def test_only_an_old_asyncio_copies_what_a_socket_does_not_take():
    loop = asyncio.new_event_loop()
    try:
        assert copies_output(loop) == (sys.version_info < (3, 12))
    finally:
        loop.close()
    assert not copies_output(object())
