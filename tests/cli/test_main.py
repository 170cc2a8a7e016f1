"""The commands of `merrow`."""

import pytest

import merrow
from merrow.cli import main as cli
from merrow.settings import LogSettings, Settings


@pytest.fixture
def served(monkeypatch):
    """What `merrow serve` would have run."""
    calls = []

    def run(settings, warnings):
        calls.append((settings, warnings))
        return 7

    monkeypatch.setattr(cli, "run", run)
    return calls


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"merrow {merrow.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help_prints_the_usage(arguments, capsys):
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == cli.USAGE


@pytest.mark.parametrize(("arguments", "last_line"), [([], "       merrow --version"), (["x"], "unknown command: x")])
def test_anything_else_is_answered_with_the_usage(arguments, last_line, capsys):
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err.splitlines()[-1] == last_line


def test_serve_runs_the_settings_and_returns_the_exit_code(served):
    assert cli.main(["serve", "--model-repository=/m", "--http-thread-count=1"], environment={}) == 7
    ((settings, warnings),) = served
    assert settings.repository.model_repositories == ("/m",)
    assert settings.log == LogSettings()
    assert len(warnings) == 1


def test_the_environment_says_whether_the_log_is_escaped(served):
    cli.main(["serve", "--model-repository=/m"], environment={"TRITON_SERVER_ESCAPE_LOG_MESSAGES": "0"})
    assert served[0][0].log.escape_messages is False


def test_serve_help_tells_every_flag(served, capsys):
    assert cli.main(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    assert "\n  --model-repository <string> " in text
    assert "\n  --max-connections <integer> " in text
    assert "[no effect: one thread serves all connections, without locks]" in " ".join(text.split())
    assert served == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--http-port=abc"], 'Bad option: "--http-port".\nInvalid option value. Got abc\n\n'),
        (["positional"], "Unexpected argument: positional\n"),
        (
            ["--load-model=m"],
            "Error: Use of '--load-model' requires setting '--model-control-mode=explicit' as well.\n",
        ),
    ],
)
def test_a_wrong_command_line_is_told_after_a_short_usage(arguments, text, served, capsys):
    assert cli.main(["serve", *arguments], environment={}) == 1
    assert capsys.readouterr().err == (
        "Usage: merrow serve --model-repository=DIR [options]\n       merrow serve --help tells the options\n\n" + text
    )
    assert served == []


def test_a_server_needs_a_repository(served, capsys):
    assert cli.main(["serve"], environment={}) == 1
    assert capsys.readouterr().err == (
        "error: creating server: Invalid argument - --model-repository must be specified\n"
    )
    assert Settings().repository.model_repositories == ()
    assert served == []
