"""Values of flags from a file and from variables, and which of them counts."""

import re
from pathlib import Path

import pytest

from merrow.cli.flags import (
    Flag,
    FlagError,
    FlagGroup,
    parse_flags,
    read_backend_setting,
    read_bool,
    read_float,
    read_int,
    read_string,
)
from merrow.cli.serve_flags import SERVE_FLAGS
from merrow.cli.sources import gather_flags

GROUPS = (
    FlagGroup(
        "All",
        (
            Flag("help", read_string, "", is_switch=True),
            Flag("config", read_string, ""),
            Flag("port", read_int, ""),
            Flag("grpc-port", read_int, ""),
            Flag("interval", read_float, ""),
            Flag("allow-http", read_bool, ""),
            Flag("quiet", read_string, "", is_switch=True),
            Flag("id", read_string, ""),
            Flag("load-model", read_string, "", may_repeat=True),
            Flag("model-repository", read_string, "", may_repeat=True),
            Flag("model-store", read_string, "", may_repeat=True),
            Flag("backend-config", read_backend_setting, "", may_repeat=True, has_settings=True),
        ),
    ),
)


def gather(*arguments, file=None, environment=None, tmp_path=None):
    words = list(arguments)
    if file is not None:
        path = tmp_path / "merrow.toml"
        path.write_text(file)
        words.append(f"--config={path}")
    given, warnings = gather_flags(parse_flags(words, GROUPS), GROUPS, environment or {})
    return [(each.flag.name, each.value) for each in given if each.flag.name != "config"], warnings


@pytest.fixture
def of_file(tmp_path):
    return lambda file: gather(file=file, tmp_path=tmp_path)[0]


class TestFile:
    @pytest.mark.parametrize(
        ("file", "expected"),
        [
            ("port = 80", [("port", 80)]),
            ('port = "80"', [("port", 80)]),
            ("grpc_port = 1\ninterval = 2.5", [("grpc-port", 1), ("interval", 2.5)]),
            ("[grpc]\nport = 1", [("grpc-port", 1)]),
            ("grpc.port = 1", [("grpc-port", 1)]),
            ("allow-http = false", [("allow-http", False)]),
            ("quiet = true", [("quiet", True)]),
            ("quiet = false", [("quiet", False)]),
            ('load-model = ["a", "b"]', [("load-model", "a"), ("load-model", "b")]),
            ('load-model = "a"', [("load-model", "a")]),
            ("load-model = []", []),
            (
                'backend-config = ["python,a=1", "b=2"]',
                [("backend-config", ("python", "a", "1")), ("backend-config", ("", "b", "2"))],
            ),
            (
                "[backend-config]\nmin = 1.5\n[backend-config.python]\nflag = true\nnames = ['x', 'y']",
                [
                    ("backend-config", ("", "min", "1.5")),
                    ("backend-config", ("python", "flag", "true")),
                    ("backend-config", ("python", "names", "x")),
                    ("backend-config", ("python", "names", "y")),
                ],
            ),
            ("", []),
        ],
    )  # fmt: skip
    def test_keys_are_flags(self, of_file, file, expected):
        assert of_file(file) == expected

    @pytest.mark.parametrize(
        ("file", "text"),
        [
            ("\nprot = 1", ":2: prot: unknown key; did you mean 'port'?"),
            ("[grpc]\nprot = 1", ":2: grpc.prot: unknown key; did you mean 'grpc.port'?"),
            ("help = true", ":1: help: unknown key"),
            ('config = "x"', ":1: config: unknown key; did you mean 'backend.config'?"),
            ('\n\nport = "x"', ":3: port: Invalid option value. Got x\n"),
            ("port = [1, 2]", ":1: port: takes one value, not a list"),
            ("port = 2024-01-01", ":1: port: takes a string, a number or a boolean, got date"),
            ("load-model = [['a']]", ":1: load-model: takes a string, a number or a boolean, got list"),
            ("quiet = 5", ":1: quiet: invalid value for bool option: 5"),
            ("port = \n", ": Invalid value (at line 1, column 8)"),
        ],
    )
    def test_errors_name_the_place(self, of_file, tmp_path, file, text):
        with pytest.raises(FlagError) as raised:
            of_file(file)
        assert str(raised.value) == f"{tmp_path / 'merrow.toml'}{text}"

    def test_a_file_that_cannot_be_read(self, tmp_path):
        with pytest.raises(FlagError, match=r"^cannot read the configuration file /none/m.toml: No such file"):
            gather("--config=/none/m.toml")
        (tmp_path / "m.toml").write_bytes(b"\xff")
        with pytest.raises(FlagError, match=r"it is not UTF-8$"):
            gather(f"--config={tmp_path / 'm.toml'}")

    def test_a_variable_may_name_it(self, tmp_path):
        path = tmp_path / "m.toml"
        path.write_text("port = 1")

        assert gather(environment={"MERROW_CONFIG": str(path)}) == ([("port", 1)], [])


class TestEnvironment:
    @pytest.mark.parametrize(
        ("variable", "text", "expected"),
        [
            ("MERROW_GRPC_PORT", "1", [("grpc-port", 1)]),
            ("MERROW_QUIET", "on", [("quiet", True)]),
            ("MERROW_LOAD_MODEL", "a", [("load-model", "a")]),
            ("MERROW_LOAD_MODEL", '["a", "b"]', [("load-model", "a"), ("load-model", "b")]),
            ("MERROW_ID", '["a"]', [("id", '["a"]')]),
            ("GRPC_PORT", "1", []),
        ],
    )
    def test_variables_are_flags(self, variable, text, expected):
        assert gather(environment={variable: text}) == (expected, [])

    @pytest.mark.parametrize(
        ("variable", "text", "error"),
        [
            ("MERROW_PORT", "x", "^MERROW_PORT: Invalid option value. Got x"),
            ("MERROW_LOAD_MODEL", "[", "^MERROW_LOAD_MODEL: is no JSON list: "),
            ("MERROW_LOAD_MODEL", "[1]", "^MERROW_LOAD_MODEL: is a list of something else than strings$"),
        ],
    )
    def test_errors_name_the_variable(self, variable, text, error):
        with pytest.raises(FlagError, match=error):
            gather(environment={variable: text})

    def test_what_names_no_flag_is_warned_about(self):
        assert gather(environment={"MERROW_GRPC_PROT": "1", "MERROW_XYZZY": "1", "MERROW_HELP": "1"}) == (
            [],
            [
                "environment variable MERROW_GRPC_PROT sets nothing: no flag has this name; did you mean "
                "'MERROW_GRPC_PORT'?",
                "environment variable MERROW_HELP sets nothing: no flag has this name",
                "environment variable MERROW_XYZZY sets nothing: no flag has this name",
            ],
        )


class TestPrecedence:
    def test_the_command_line_before_the_environment_before_the_file(self, tmp_path):
        given, _ = gather(
            "--port=3",
            file="port = 1\ngrpc-port = 1\nid = 'file'",
            environment={"MERROW_PORT": "2", "MERROW_GRPC_PORT": "2"},
            tmp_path=tmp_path,
        )

        assert given == [("id", "file"), ("grpc-port", 2), ("port", 3)]

    def test_lists_are_not_gathered_from_several(self, tmp_path):
        given, _ = gather("--load-model=c", file="load-model = ['a', 'b']", tmp_path=tmp_path)

        assert given == [("load-model", "c")]

    def test_two_names_of_one_setting_are_one(self, tmp_path):
        given, _ = gather("--model-store=/b", file="model-repository = '/a'", tmp_path=tmp_path)

        assert given == [("model-store", "/b")]


def test_every_flag_has_a_variable_of_its_own():
    names = [flag.name for group in SERVE_FLAGS for flag in group.flags]

    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
    assert len({name.upper().replace("-", "_") for name in names}) == len(names)


def test_settings_of_a_flag_are_never_a_flag_themselves():
    """Or a table in a file would mean two things."""
    flags = [flag for group in SERVE_FLAGS for flag in group.flags]
    names = {flag.name for flag in flags}

    for flag in flags:
        if flag.has_settings:
            assert flag.may_repeat, flag.name
            assert not [name for name in names if name.startswith(f"{flag.name}-")]


def test_the_example_of_the_documentation_is_read(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "flags.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "merrow.toml"
    path.write_text(example)

    given, warnings = gather_flags(parse_flags([f"--config={path}"], SERVE_FLAGS), SERVE_FLAGS, {})

    assert {"http-port", "grpc-port", "backend-config", "model-repository"} <= {each.flag.name for each in given}
    assert warnings == []
