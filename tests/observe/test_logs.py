"""Lines of the log, and tables in it."""

import io
import logging
import re

import pytest

from merrow.observe.logs import TABLE, LogFormatter, format_table, start_logging, stop_logging
from merrow.settings import LogSettings

LOG = logging.getLogger("merrow.test")


def record(level, message, *arguments, created=1795646975.123456, **extra):
    made = logging.LogRecord("merrow.x", level, "/a/file.py", 12, message, arguments, None)
    made.created = created
    made.process = 77
    made.__dict__.update(extra)
    return made


@pytest.mark.parametrize(
    ("level", "letter"),
    [(logging.DEBUG, "I"), (logging.INFO, "I"), (logging.WARNING, "W"), (logging.ERROR, "E"), (logging.CRITICAL, "E")],
)
def test_the_default_line_is_triton_s(level, letter):
    line = LogFormatter("default").format(record(level, "loaded '%s'", "m"))
    assert line == f"""{letter}1125 22:49:35.123456 77 file.py:12] "loaded 'm'\""""


def test_an_iso8601_line():
    line = LogFormatter("ISO8601").format(record(logging.WARNING, "text"))
    assert line == '2026-11-25T22:49:35Z W 77 file.py:12] "text"'


def test_a_message_cannot_forge_a_line():
    line = LogFormatter("default").format(record(logging.INFO, 'a\nE1125 "é"'))
    assert line.endswith('] "a\\nE1125 \\"é\\""')


def test_a_table_and_unescaped_messages_stand_as_they_are():
    assert LogFormatter("default").format(record(logging.INFO, "\n+--+", table=True)).endswith("] \n+--+")
    assert LogFormatter("default", escapes_messages=False).format(record(logging.INFO, 'a\n"')).endswith('] a\n"')


def test_a_traceback_follows_the_message():
    try:
        raise ValueError("why")
    except ValueError as error:
        made = record(logging.ERROR, "failed")
        made.exc_info = (ValueError, error, error.__traceback__)
    line = LogFormatter("default").format(made)
    assert re.search(r'\] "failed\\nTraceback .*ValueError: why"$', line)
    assert "\n" not in line


def logged(settings):
    stream = io.StringIO()
    log = start_logging(settings, stream)
    try:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            LOG.log(level, "%s", logging.getLevelName(level))
    finally:
        stop_logging(log)
    return [line.partition("] ")[2].strip('"') for line in stream.getvalue().splitlines()]


def test_severities_are_switched_one_by_one():
    assert logged(LogSettings()) == ["INFO", "WARNING", "ERROR"]
    assert logged(LogSettings(info=False)) == ["WARNING", "ERROR"]
    assert logged(LogSettings(warning=False)) == ["INFO", "ERROR"]
    assert logged(LogSettings(error=False)) == ["INFO", "WARNING"]
    assert logged(LogSettings(verbose=1, info=False, warning=False, error=False)) == ["DEBUG"]


def test_a_table_is_logged_as_it_is():
    stream = io.StringIO()
    log = start_logging(LogSettings(), stream)
    LOG.info("\n%s", "+--+\n+--+", extra=TABLE)
    stop_logging(log)
    assert stream.getvalue().endswith("] \n+--+\n+--+\n")


def test_a_file_takes_the_lines_and_is_closed(tmp_path):
    path = tmp_path / "log"
    log = start_logging(LogSettings(file=str(path)))
    LOG.warning("to the file \udcff")
    stop_logging(log)
    LOG.warning("after")
    assert path.read_text().endswith('] "to the file \\udcff"\n')


def test_a_table_is_boxed_and_a_cell_may_have_several_lines():
    assert format_table(("Model", "Status"), [("add_sub", "READY"), ("broken", "UNAVAILABLE:\nwhy")]) == (
        "+---------+--------------+\n"
        "| Model   | Status       |\n"
        "+---------+--------------+\n"
        "| add_sub | READY        |\n"
        "| broken  | UNAVAILABLE: |\n"
        "|         | why          |\n"
        "+---------+--------------+"
    )
    assert format_table(("Model",), []) == "+-------+\n| Model |\n+-------+\n+-------+"


def test_changes_are_obeyed_by_the_next_line():
    stream = io.StringIO()
    log = start_logging(LogSettings(), stream)
    try:
        LOG.debug("not yet")
        log.change(verbose=1, info=False)
        LOG.debug("now")
        LOG.info("no more")
        log.change(format="ISO8601", info=True, verbose=0)
        LOG.info("at another time")
        LOG.debug("no more")
        log.flush()
    finally:
        stop_logging(log)
    first, second = stream.getvalue().splitlines()
    assert first.endswith('] "now"')
    assert re.match(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ I \d+ test_logs.py:\d+\] "at another time"$', second)
    assert log.settings == LogSettings(format="ISO8601")
