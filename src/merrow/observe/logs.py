"""The server's log: Triton's line formats over the standard library's logging.

Every module logs to `logging.getLogger(__name__)` below the one logger `merrow`; `start_logging` gives that logger
its handler and `LogSettings` decide which lines pass. A line is

    default   I1125 22:29:35.123456 PID file.py:LINE] "text"
    ISO8601   2026-11-25T22:29:35Z I PID file.py:LINE] "text"

The text is a JSON string, so that one message is one line whatever a client put into it. A record whose `extra` has
`table` set is a table: it starts on a line of its own and is not quoted. Severities are switched one by one, as in
Triton; verbose lines carry the letter I and pass only with `--log-verbose`.

Source: Triton, common/logging.cc.
"""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TextIO

from merrow.settings import LogSettings

TABLE = {"table": True}
"""Pass as `extra` to log a table: `logger.info("\\n%s", table, extra=TABLE)`."""


class LogFilter(logging.Filter):
    """Lets through the severities that the settings switch on."""

    def __init__(self, settings: LogSettings) -> None:
        super().__init__()
        self.settings = settings

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return self.settings.error
        if record.levelno >= logging.WARNING:
            return self.settings.warning
        if record.levelno >= logging.INFO:
            return self.settings.info
        return self.settings.verbose > 0


class LogFormatter(logging.Formatter):
    """One record as one of Triton's lines."""

    def __init__(self, log_format: str, escapes_messages: bool = True) -> None:
        super().__init__()
        self._is_iso8601 = log_format == "ISO8601"
        self._escapes_messages = escapes_messages

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        if self._escapes_messages and not getattr(record, "table", False):
            message = json.dumps(message, ensure_ascii=False)
        severity = _severity_letter(record.levelno)
        origin = f"{record.process} {record.filename}:{record.lineno}]"
        if self._is_iso8601:
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
            return f"{moment} {severity} {origin} {message}"
        moment = time.strftime("%m%d %H:%M:%S", time.gmtime(record.created))
        microseconds = int(record.created % 1 * 1_000_000)
        return f"{severity}{moment}.{microseconds:06d} {origin} {message}"


class ServerLog:
    """The running log. What is logged, and how, can be changed; where it goes cannot."""

    def __init__(self, settings: LogSettings, handler: logging.Handler) -> None:
        self._handler = handler
        self._filter = LogFilter(settings)
        handler.addFilter(self._filter)
        self._obey(settings)

    @property
    def settings(self) -> LogSettings:
        """Those in force."""
        return self._filter.settings

    def change(self, **fields: bool | int | str) -> None:
        """Change fields of the settings; the next line obeys."""
        self._obey(replace(self.settings, **fields))  # type: ignore[arg-type]  # the names and their types go together

    def flush(self) -> None:
        self._handler.flush()

    def close(self) -> None:
        """End the log; see `stop_logging`."""
        logger = logging.getLogger("merrow")
        logger.removeHandler(self._handler)
        logger.propagate = True
        self._handler.close()

    def _obey(self, settings: LogSettings) -> None:
        self._filter.settings = settings
        self._handler.setFormatter(LogFormatter(settings.format, settings.escape_messages))
        logging.getLogger("merrow").setLevel(logging.DEBUG if settings.verbose > 0 else logging.INFO)


def start_logging(settings: LogSettings, stream: TextIO | None = None) -> ServerLog:
    """Send what `merrow` logs to the file of the settings, else to `stream` (standard error).

    Returns:
        The log, to be handed to `stop_logging`.

    Raises:
        OSError: the log file cannot be opened.
    """
    handler: logging.Handler
    if settings.file:
        handler = logging.FileHandler(settings.file, encoding="utf-8", errors="backslashreplace")
    else:
        handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    log = ServerLog(settings, handler)
    logger = logging.getLogger("merrow")
    logger.addHandler(handler)
    logger.propagate = False
    return log


def stop_logging(log: ServerLog) -> None:
    """Undo `start_logging`: flush, detach and close the log."""
    log.close()


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns, boxed as Triton boxes its start-up tables.

    A cell of several lines makes its row as tall. The result ends without a newline.
    """
    cells = [[str(cell).splitlines() or [""] for cell in row] for row in (header, *rows)]
    widths = [max(len(line) for row in cells for line in row[column]) for column in range(len(header))]
    border = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [border]
    for index, row in enumerate(cells):
        for line_index in range(max(len(cell) for cell in row)):
            columns = [
                (cell[line_index] if line_index < len(cell) else "").ljust(width)
                for cell, width in zip(row, widths, strict=True)
            ]
            lines.append("| " + " | ".join(columns) + " |")
        if index == 0:
            lines.append(border)
    lines.append(border)
    return "\n".join(lines)


def _severity_letter(level: int) -> str:
    if level >= logging.ERROR:
        return "E"
    if level >= logging.WARNING:
        return "W"
    return "I"
