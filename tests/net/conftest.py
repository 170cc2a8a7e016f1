import pytest

from merrow.net.loop import new_event_loop


@pytest.fixture(scope="session", autouse=True)
def event_loop_library() -> None:
    """The first loop of a process opens a pipe for signals that stays: no test has left that behind."""
    new_event_loop().close()
