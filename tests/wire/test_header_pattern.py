"""Header patterns: RE2's syntax, its answers, and its promise."""

import re
import time

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from merrow.wire.header_pattern import MAX_NAME_LENGTH, HeaderPattern, HeaderPatternError

try:
    import re2
except ImportError:
    re2 = None

PIECES: tuple[str, ...] = (
    *(
        "a",
        "B",
        "x",
        "-",
        "_",
        "7",
        ".",
        "^",
        "$",
        "|",
        "(",
        ")",
        "(?:",
        "*",
        "+",
        "?",
        "{2}",
        "{1,}",
        "{0,2}",
        "{",
        "}",
    ),
    *("[", "]", "[a-c]", "[^a-c]", "[[:alpha:]-]", "[]a]", "[^]a]", r"\d", r"\D", r"\w", r"\W", r"\s", r"\b", r"\B"),
    *(
        r"\A",
        r"\z",
        r"\-",
        r"\.",
        r"\x41",
        r"\x{62}",
        r"\101",
        r"\1",
        "(?i)",
        "(?-i)",
        "(?s:",
        "(?m)",
        "(?P<n>",
        "(?<n>",
    ),
    *("(?=", "(?!", r"\Qa.b\E", r"\Q", r"\n", r"[\d-]", r"[\W]", "[a-", r"\C", "*?", "+?", "**", "é"),
)
NAMES = st.text("aAbBcxX-_79. \n", max_size=8)


def of_re2(pattern):
    options = re2.Options()
    options.log_errors = False
    # Names are bytes for Triton, too.
    options.encoding = re2.Options.Encoding.LATIN1
    return re2.compile(("(?i)" + pattern).encode("latin-1"), options)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6), st.lists(NAMES, min_size=1, max_size=4))
@pytest.mark.slow
@pytest.mark.skipif(re2 is None, reason="NOT TESTED against RE2: google-re2 is not installed")
def test_re2_says_the_same(pieces, names):
    pattern = "".join(pieces)
    # RE2 repeats what stands before the flags; that is a mistake here.
    assume(not re.search(r"\(\?-?[im]\)[*+?{]", pattern))
    try:
        theirs = of_re2(pattern)
    except re2.error:
        theirs = None
    try:
        ours = HeaderPattern(pattern)
    except HeaderPatternError:
        ours = None

    assert (ours is None) == (theirs is None), pattern
    if ours is not None:
        for name in names:
            assert ours.is_found_in(name) == (theirs.search(name.encode("latin-1")) is not None), (pattern, name)


@pytest.mark.parametrize(
    ("pattern", "found", "not_found"),
    [
        ("X-Fwd.*", ["X-Fwd-A", "x-fwd-b", "my-x-fwd"], ["X-Fw", ""]),
        ("^my_header$", ["MY_HEADER"], ["my_header2", "a_my_header"]),
        ("(PREFIX_.*|EXTRA_.*)", ["prefix_a", "b-extra_"], ["prefix-"]),
        ("", ["", "anything"], []),
        ("(?-i)Abc", ["Abc"], ["abc", "ABC"]),
        (r"^x-\w{3}-\d+$", ["X-abc-12"], ["x-ab-12", "x-abc-"]),
    ],
)
def test_patterns_as_operators_write_them(pattern, found, not_found):
    compiled = HeaderPattern(pattern)

    assert [compiled.is_found_in(name) for name in found] == [True] * len(found)
    assert [compiled.is_found_in(name) for name in not_found] == [False] * len(not_found)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a", "missing ): (a"),
        ("a)", "unexpected ): a)"),
        ("[a", "missing ]: [a"),
        ("*a", "no argument for repetition operator: *"),
        ("a**", "bad repetition operator: **"),
        ("a{1001}", "bad repetition operator: {1001}"),
        ("(?=a)", "invalid perl operator: (?= (RE2 has no look-around)"),
        (r"(a)\1", r"invalid escape sequence: \1"),
        (r"\pL", r"invalid escape sequence: \p"),
        ("[b-a]", "invalid character class range: b-"),
        ("[[:what:]]", "invalid character class range: [:what:]"),
        ("((a{100}){100}){100}", "pattern too large - compile failed"),
        ("(" * 200 + ")" * 200, "pattern is nested too deeply"),
        ("a\\", "missing argument at the end of the pattern: a\\"),
    ],
)
def test_what_is_wrong_with_a_pattern_is_told(pattern, text):
    with pytest.raises(HeaderPatternError) as raised:
        HeaderPattern(pattern)
    assert str(raised.value) == text


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|aa)+$", "(.*)*(.*)*x$", "(a?){50}a{50}$", "^(([a-z])+.)+[A-Z]([a-z])+$"]
)
def test_no_name_makes_it_slow(pattern):
    compiled = HeaderPattern(pattern)
    start = time.perf_counter()
    for length in range(1000, 1010):
        compiled.is_found_in("a" * length + "!")

    assert time.perf_counter() - start < 2


def test_what_is_remembered_is_bounded_and_long_names_are_not_searched():
    compiled = HeaderPattern("b.{15}$")
    name = "".join("ab"[number * number * 7919 >> 5 & 1] for number in range(4000))
    for start in range(0, 4000, 100):
        compiled.is_found_in(name[start:])

    assert len(compiled._steps) <= 64 * 1024 + MAX_NAME_LENGTH
    assert not HeaderPattern("a").is_found_in("a" * (MAX_NAME_LENGTH + 1))
