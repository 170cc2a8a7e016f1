"""How flags are spelled and read."""

import pytest

from merrow.cli.flags import (
    Flag,
    FlagError,
    FlagGroup,
    format_help,
    integer_from,
    one_of,
    parse_flags,
    read_backend_setting,
    read_bool,
    read_float,
    read_int,
    read_int64,
    read_string,
    read_verbose_level,
)

GROUPS = (
    FlagGroup(
        "Numbers",
        (
            Flag("port", read_int, "A port.", "integer"),
            Flag("port-range", read_string, "Ports."),
            Flag("allow-http", read_bool, "HTTP or not.", "boolean"),
        ),
    ),
    FlagGroup("Switches", (Flag("quiet", read_string, "Say less.", is_switch=True),)),
)


def parse(*arguments):
    return [(given.flag.name, given.value, given.text) for given in parse_flags(arguments, GROUPS)]


def test_a_value_follows_an_equals_sign_or_is_the_next_argument():
    assert parse("--port=80", "--port", "81") == [("port", 80, "80"), ("port", 81, "81")]


def test_a_value_may_be_empty_or_hold_equals_signs():
    assert parse("--port-range=", "--port-range=a=b") == [("port-range", "", ""), ("port-range", "a=b", "a=b")]


def test_a_name_may_be_cut_short_while_it_is_unambiguous():
    assert parse("--allow=true", "--port=1") == [("allow-http", True, "true"), ("port", 1, "1")]


def test_a_switch_takes_no_value():
    assert parse("--quiet", "--port=1") == [("quiet", True, ""), ("port", 1, "1")]
    with pytest.raises(FlagError, match=r"^option '--quiet' doesn't allow an argument$"):
        parse("--quiet=true")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["80"], "Unexpected argument: 80"),
        (["-p"], "Unexpected argument: -p"),
        (["--"], "Unexpected argument: --"),
        (["--por"], "option '--por' is ambiguous; possibilities: '--port' '--port-range'"),
        (["--prot=1"], "unrecognized option '--prot'; did you mean '--port'?"),
        (["--zzz"], "unrecognized option '--zzz'"),
        (["--=x"], "unrecognized option '--'"),
        (["--port"], "option '--port' requires an argument"),
        (["--port=abc"], 'Bad option: "--port".\nInvalid option value. Got abc\n'),
        (["--allow-http=maybe"], 'Bad option: "--allow-http".\ninvalid value for bool option: maybe'),
    ],
)
def test_what_is_wrong_is_said(arguments, text):
    with pytest.raises(FlagError) as raised:
        parse(*arguments)
    assert str(raised.value) == text


@pytest.mark.parametrize("text", ["true", "True", "ON", "1"])
def test_true_in_any_case(text):
    assert read_bool(text) is True


@pytest.mark.parametrize("text", ["false", "FALSE", "off", "0"])
def test_false_in_any_case(text):
    assert read_bool(text) is False


def test_integers_have_bounds():
    assert read_int("-5") == -5
    assert read_int64(str(2**40)) == 2**40
    with pytest.raises(FlagError) as raised:
        read_int("99999999999")
    assert str(raised.value) == (
        "Provided option value is out of bound. Got 99999999999\nExpected -2147483648 to 2147483647."
    )
    with pytest.raises(FlagError, match=r"^Provided option value is out of bound\. Got 0\nExpected 1 to 9\.$"):
        integer_from(1, 9)("0")


@pytest.mark.parametrize("text", ["", "80x", "0x10", "1.5", "1_000"])
def test_what_is_no_integer_is_refused(text):
    with pytest.raises(FlagError):
        read_int(text)


def test_a_float_is_a_decimal_number():
    assert read_float("6.0") == 6.0
    assert read_float("2e3") == 2000.0
    for text in ("", "x", "nan", "1 2"):
        with pytest.raises(FlagError):
            read_float(text)


def test_a_verbose_level_may_be_a_boolean():
    assert [read_verbose_level(text) for text in ("true", "false", "2", "-1")] == [1, 0, 2, 0]


def test_words_are_listed_when_another_is_given():
    read = one_of("log-format", "default", "ISO8601")
    assert read("ISO8601") == "ISO8601"
    with pytest.raises(FlagError) as raised:
        read("iso8601")
    assert str(raised.value) == "invalid argument for --log-format\nExpected one of default, ISO8601; got iso8601"


def test_backend_settings_are_of_one_backend_or_of_all():
    assert read_backend_setting("python,shm-default-byte-size=1048576") == (
        "python",
        "shm-default-byte-size",
        "1048576",
    )
    assert read_backend_setting("a,b,c=v") == ("a", "b,c", "v")
    assert read_backend_setting("default-max-batch-size=8") == ("", "default-max-batch-size", "8")


@pytest.mark.parametrize("text", ["abc", "a,b", "=v", "a,=v"])
def test_a_backend_setting_without_its_parts_is_refused(text):
    with pytest.raises(FlagError) as raised:
        read_backend_setting(text)
    assert str(raised.value) == (f"--backend-config option format is '<backend name>,<setting>=<value>'. Got {text}\n")


def test_a_backend_setting_without_a_backend_is_refused():
    with pytest.raises(FlagError, match=r"^No backend specified\. "):
        read_backend_setting(",k=v")


def test_help_lists_every_flag_under_its_heading():
    assert format_help("Usage: x", GROUPS) == (
        "Usage: x\n"
        "\n"
        "Numbers:\n"
        "  --port <integer>                A port.\n"
        "  --port-range <string>           Ports.\n"
        "  --allow-http <boolean>          HTTP or not.\n"
        "\n"
        "Switches:\n"
        "  --quiet                         Say less.\n"
    )
