import logging
import os
import select
import time

import pytest

from merrow.places.process.output_pipes import OutputPipe, OutputPipes
from merrow.settings import ProcessSettings

SECOND = 1_000_000_000
NOW = 10 * SECOND


class Child:
    """One end of a pipe, and the other among the pipes that are read."""

    def __init__(self, **settings):
        self.poll = select.poll()
        self.pipes = OutputPipes(self.poll)
        reader, self.writer = os.pipe()
        self.pipe = OutputPipe(reader, "m_0", ProcessSettings(**settings))
        self.pipe.process_id = 4711
        self.pipes.add(self.pipe)

    def read_all(self, now_ns=NOW):
        """Read while there is something to read; returns how often."""
        count = 0
        while ready := self.poll.poll(0):
            for descriptor, _ in ready:
                self.pipes.read(descriptor, now_ns)
            count += 1
        return count


@pytest.fixture
def texts(caplog):
    caplog.set_level(logging.INFO, "merrow")
    return lambda: [record.message for record in caplog.records]


def test_output_is_logged_as_of_its_process(texts, caplog):
    child = Child()
    os.write(child.writer, b"one\ntwo % 100\n")
    child.read_all()
    os.close(child.writer)
    child.read_all()

    assert texts() == ["[m_0] one", "[m_0] two % 100"]
    assert {(record.process, record.filename, record.levelname) for record in caplog.records} == {
        (4711, "output", "INFO")
    }
    assert child.pipe.descriptor not in child.pipes


def test_what_is_left_in_the_pipe_of_a_dead_child_is_logged(texts):
    child = Child()
    os.write(child.writer, b"Fatal error\nwithout an end")
    child.pipes.remove(child.pipe, NOW)
    child.pipes.remove(child.pipe, NOW)
    os.close(child.writer)

    assert texts() == ["[m_0] Fatal error", "[m_0] without an end"]


def test_a_pipe_that_has_ended_is_not_taken_for_the_next_with_its_number(texts):
    child = Child()
    ended = child.pipe
    os.close(child.writer)
    child.read_all()
    reader, writer = os.pipe()
    assert reader == ended.descriptor
    following = OutputPipe(reader, "m_1", ProcessSettings())
    child.pipes.add(following)
    # The child of the first is reported dead only now.
    child.pipes.remove(ended, NOW)
    os.write(writer, b"still heard\n")
    child.read_all()

    assert texts() == ["[m_1] still heard"]
    child.pipes.remove(following, NOW)
    os.close(writer)


def test_part_of_a_line_is_logged_in_time(texts):
    child = Child()
    assert child.pipes.tick(NOW) is None
    os.write(child.writer, b"Pdb) ")
    child.read_all()
    timeout_ms = child.pipes.tick(NOW)
    assert texts() == []
    child.pipes.tick(NOW + int(timeout_ms * 1e6))

    assert texts() == ["[m_0] Pdb)"]
    child.pipes.remove(child.pipe, NOW)
    os.close(child.writer)


def test_a_flood_is_read_slowly(texts):
    child = Child(output_lines_per_second=2)
    os.write(child.writer, b"a\nb\nc\n")
    assert child.read_all() == 1
    os.write(child.writer, b"d\n")
    # Not registered: nothing is ready.
    assert child.read_all() == 0
    timeout_ms = child.pipes.tick(NOW)
    assert timeout_ms <= 10
    child.pipes.tick(NOW + 10_000_000)
    assert child.read_all(NOW + 10_000_000) == 1
    child.pipes.remove(child.pipe, NOW + 10_000_000)
    os.close(child.writer)

    lines = texts()
    assert lines[:2] == ["[m_0] a", "[m_0] b"]
    # What was dropped comes back as the last words.
    assert lines[-2:] == ["[m_0] c", "[m_0] d"]


def test_an_end_that_others_hold_open_is_not_waited_for(texts):
    child = Child()
    heir = os.dup(child.writer)
    os.write(child.writer, b"last\n")
    os.close(child.writer)
    start = time.monotonic()
    child.pipes.remove(child.pipe, NOW)

    assert time.monotonic() - start < 1
    assert texts() == ["[m_0] last"]
    os.close(heir)
