"""Launches real children whose server is the test: it has the server's end of each socket."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from merrow.places.process.arena_pair import ArenaPair
from merrow.places.process.channel import SEGMENT, split_frames, whole_size
from merrow.places.process.control import ControlMessage
from merrow.places.process.environments import Environments
from merrow.places.process.fork_client import ChildProcess
from merrow.places.process.launch import Launcher
from merrow.places.process.limits import ChildLimits
from merrow.places.process.session import LaunchedChild
from merrow.settings import ProcessSettings
from tests.places.process.place_harness import FAKE_BACKENDS, SETTINGS, describe_instance, make_context
from tests.places.recording_services import RecordingServices


@contextmanager
def launching(settings: ProcessSettings = SETTINGS) -> Iterator[Launcher]:
    environments = Environments(FAKE_BACKENDS, settings)
    try:
        yield Launcher(environments, settings, RecordingServices())
    finally:
        environments.close()


async def launch(
    launcher: Launcher,
    name: str = "m",
    backend: str = "fake",
    on_forked: Callable[[ChildProcess], None] | None = None,
) -> LaunchedChild:
    return await asyncio.to_thread(
        launcher.launch,
        make_context(name),
        backend,
        describe_instance(),
        ChildLimits(),
        asyncio.get_running_loop(),
        on_forked,
    )


def discard(child: LaunchedChild) -> None:
    """Let go of a child that has ended or is to end."""
    child.process.kill()
    child.data.close()
    child.control.close()
    child.cancellations.release()
    assert child.services is not None
    child.services.close()


@dataclass
class Talk:
    """With a child, in the server's place; everything blocks."""

    child: LaunchedChild
    rest: bytes = b""
    # What came by the control socket besides segments.
    control: list[ControlMessage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.child.data.settimeout(10)
        self.child.control.connection.settimeout(10)
        self.arenas = ArenaPair(1 << 16, self.child.control.send_frame, self.child.data.sendall, lambda: None)

    def say(self, message: bytes) -> None:
        self.child.data.sendall(message)

    def hear(self) -> tuple[int, int, int, bytes]:
        """Kind, count and number of the next message, and the whole message; no kind at the end."""
        while len(self.rest) < (whole_size(self.rest) or 16):
            chunk = self.child.data.recv(1 << 16)
            if not chunk:
                return 0, 0, 0, b""
            self.rest += chunk
        size = whole_size(self.rest)
        message, self.rest = self.rest[:size], self.rest[size:]
        ((kind, count, number, _, _),), _ = split_frames(message)
        return kind, count, number, message

    def take_segments(self) -> None:
        """Those that were announced."""
        for message in self.child.control.receive() or []:
            if message.kind == SEGMENT:
                self.arenas.take_segment(message.number, message.body, message.descriptor)
            else:
                self.control.append(message)

    def close(self) -> None:
        self.arenas.close()


@asynccontextmanager
async def talking(launcher: Launcher, name: str = "m") -> AsyncIterator[Talk]:
    child = await launch(launcher, name)
    talk = Talk(child)
    try:
        yield talk
    finally:
        talk.close()
        discard(child)
        child.process.exited.result(10)
