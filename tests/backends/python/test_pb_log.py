import logging

import pytest

from merrow.backends.python.pb_log import Logger


@pytest.mark.parametrize(
    ("write", "severity"),
    [
        (lambda: Logger.log("text"), logging.INFO),
        (lambda: Logger.log("text", Logger.INFO), logging.INFO),
        (lambda: Logger.log("text", Logger.WARNING), logging.WARNING),
        (lambda: Logger.log(message="text", level=Logger.ERROR), logging.ERROR),
        (lambda: Logger.log("text", Logger.LogLevel.VERBOSE), logging.DEBUG),
        (lambda: Logger.log_info("text"), logging.INFO),
        (lambda: Logger.log_warn("text"), logging.WARNING),
        (lambda: Logger.log_error(message="text"), logging.ERROR),
        (lambda: Logger.log_verbose("text"), logging.DEBUG),
    ],
)
def test_lines_are_logged_as_of_the_models_own_line(write, severity, caplog):
    with caplog.at_level(logging.DEBUG, "merrow.python"):
        write()

    (record,) = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == ("merrow.python", severity, "text")
    assert (record.pathname, record.lineno) == (__file__, write.__code__.co_firstlineno)


def test_what_the_server_does_not_log_is_dropped(caplog):
    with caplog.at_level(logging.ERROR, "merrow.python"):
        Logger.log_warn("text")

    assert caplog.records == []


def test_a_message_is_not_a_format(caplog):
    with caplog.at_level(logging.INFO, "merrow.python"):
        Logger.log_info("100 %s")

    assert caplog.records[0].getMessage() == "100 %s"


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (
            lambda: Logger.log("a", 1),
            "log(): incompatible function arguments. The following argument types are supported:\n    1. (message: "
            "str, level: c_python_backend_utils.Logger.LogLevel = <LogLevel.INFO: 0>) -> None\n\n"
            "Invoked with: 'a', 1",
        ),
        (
            lambda: Logger.log_info(1),
            "log_info(): incompatible function arguments. The following argument types are supported:\n    1. "
            "(message: str) -> None\n\nInvoked with: 1",
        ),
        (lambda: Logger(), "c_python_backend_utils.Logger: No constructor defined!"),
    ],
)
def test_wrong_arguments_are_refused(write, text):
    with pytest.raises(TypeError) as caught:
        write()

    assert str(caught.value) == text


def test_levels_print_as_those_of_pybind11():
    assert repr(Logger.INFO) == "<LogLevel.INFO: 0>"
    assert int(Logger.VERBOSE) == 3
