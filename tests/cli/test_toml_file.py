import pytest

from merrow.cli.toml_file import TomlError, line_of_key, parse_toml

TEXT = """\
# http-port = 1
http-port = 8000

[grpc]   # the other door
port = 8001
"server.cert" = "x"
nested.key = 1

[backend-config.python]
grpc-timeout-ms = 5
[backend-config]
default-max-batch-size = 4
trace = { level = "OFF" }
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (["http-port"], 2),
        (["grpc", "port"], 5),
        (["grpc", "server.cert"], 6),
        (["grpc", "nested", "key"], 7),
        (["backend-config", "python", "grpc-timeout-ms"], 10),
        (["backend-config", "default-max-batch-size"], 12),
        (["backend-config", "trace", "level"], 13),
        (["grpc"], 4),
        (["elsewhere"], 1),
    ],
)
def test_where_a_key_is(path, line):
    assert line_of_key(TEXT, path) == line


def test_what_is_no_toml_says_where():
    with pytest.raises(TomlError, match="at line 2, column"):
        parse_toml("a = 1\nb = \n")
