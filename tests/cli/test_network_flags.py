"""The flags that say what is served where."""

from dataclasses import fields

import pytest

from merrow.cli.flags import FlagError, parse_flags
from merrow.cli.network_flags import NETWORK_FLAGS, tls_flags
from merrow.settings import ConnectionLimits

FLAGS = {flag.name: flag for group in NETWORK_FLAGS for flag in group.flags}


def test_the_groups_stand_in_triton_s_order():
    assert [group.heading for group in NETWORK_FLAGS] == [
        "Network",
        "HTTP",
        "GRPC",
        "Connection limits (merrow's own; for every port)",
        "Sagemaker",
        "Vertex",
    ]


@pytest.mark.parametrize("port_name", ["", "http", "grpc"])
def test_a_port_has_five_flags_for_tls(port_name):
    prefix = f"{port_name}-" if port_name else ""
    names = ["use-ssl", "use-ssl-mutual", "server-cert", "server-key", "root-cert"]

    assert [flag.name for flag in tls_flags(port_name, "a port")] == [prefix + name for name in names]
    assert {prefix + name for name in names} <= FLAGS.keys()


def test_what_is_merrow_s_own_is_said():
    assert [flag.help.endswith(" merrow's own.") for flag in tls_flags("http", "the HTTP port", " merrow's own.")] == (
        [True] * 5
    )
    assert not FLAGS["grpc-use-ssl"].help.endswith("merrow's own.")


def test_every_limit_of_a_connection_has_a_flag():
    limits = NETWORK_FLAGS[3].flags

    assert {flag.name.replace("-", "_").replace("_secs", "_ns") for flag in limits} == {
        field.name for field in fields(ConnectionLimits)
    }


@pytest.mark.parametrize(
    ("name", "least", "greatest"),
    [
        ("port", 0, 65535),
        ("http-port", 0, 65535),
        ("vertex-ai-port", 0, 65535),
        ("grpc-keepalive-time", 1, 2**31 - 1),
        ("grpc-http2-max-ping-strikes", 0, 2**31 - 1),
        ("max-connections", 1, 2**31 - 1),
        ("stream-window-byte-size", 65535, 2**31 - 1),
        ("max-frame-byte-size", 16384, 2**24 - 1),
        ("max-receiving-byte-size", 1, 2**63 - 1),
    ],
)
def test_numbers_have_bounds(name, least, greatest):
    assert [FLAGS[name].read(str(value)) for value in (least, greatest)] == [least, greatest]
    for value in (least - 1, greatest + 1):
        with pytest.raises(FlagError, match=f"Expected {least} to {greatest}"):
            FLAGS[name].read(str(value))


def test_ports_that_sagemaker_allows_are_a_range():
    (given,) = parse_flags(["--sagemaker-safe-port-range=9000-9010"], NETWORK_FLAGS)

    assert given.value == (9000, 9010)
    with pytest.raises(FlagError) as raised:
        parse_flags(["--sagemaker-safe-port-range=9000"], NETWORK_FLAGS)
    assert str(raised.value) == (
        'Bad option: "--sagemaker-safe-port-range".\n'
        "--sagemaker-safe-port-range option format is '<integer>-<integer>'. Got 9000\n"
    )
