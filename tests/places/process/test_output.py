from merrow.places.process.output import PARTIAL_NS, OutputLines
from merrow.settings import ProcessSettings

SECOND = 1_000_000_000
NOW = 10 * SECOND


def lines_with(line_byte_size=100, lines_per_second=1000, bytes_per_second=100_000):
    return OutputLines(
        ProcessSettings(
            output_line_byte_size=line_byte_size,
            output_lines_per_second=lines_per_second,
            output_bytes_per_second=bytes_per_second,
        )
    )


def test_lines_come_out_whole_wherever_the_output_is_cut():
    output = b"one\ntwo\r\n\n  three\n"
    for cut in range(len(output)):
        lines = lines_with()

        assert lines.feed(output[:cut], NOW) + lines.feed(output[cut:], NOW) == ["one", "two", "  three"]
        assert lines.due_ns is None
        assert lines.end(NOW) == []


def test_part_of_a_line_is_logged_when_nothing_follows():
    lines = lines_with()
    assert lines.feed(b"password: ", NOW) == []
    assert lines.due_ns == NOW + PARTIAL_NS
    assert lines.tick(NOW + PARTIAL_NS - 1) == []

    assert lines.tick(NOW + PARTIAL_NS) == ["password:"]
    assert lines.due_ns is None
    assert lines.feed(b"secret\n", NOW + SECOND) == ["secret"]


def test_part_of_a_line_is_not_lost_at_the_end():
    lines = lines_with()
    lines.feed(b"Fatal", NOW)

    assert lines.end(NOW) == ["Fatal"]


def test_of_a_progress_bar_the_latest_counts():
    assert lines_with().feed(b"10 %\r20 %\r30 %\ndone\n", NOW) == ["30 %", "done"]


def test_long_lines_are_cut():
    lines = lines_with(line_byte_size=4)

    assert lines.feed(b"abcdefghij", NOW) == ["abcd", "efgh"]
    assert lines.feed(b"kl\nmnopqr\n", NOW) == ["ijkl", "mnop", "qr"]


def test_bytes_that_are_no_text_are_shown():
    assert lines_with().feed(b"a\xff\x00b \xe2\x82\xac\n", NOW) == ["a\\xff\x00b €"]


def test_more_lines_than_a_second_allows_are_dropped_and_counted():
    lines = lines_with(lines_per_second=2)
    assert lines.feed(b"1\n2\n3\n4\n", NOW) == ["1", "2"]
    assert lines.is_dropping
    assert lines.due_ns == NOW + SECOND

    (notice,) = lines.tick(NOW + SECOND)
    assert notice.startswith("... 2 lines (4 bytes) of output were dropped: more than 2 lines or 100000 bytes in a ")
    assert not lines.is_dropping
    assert lines.feed(b"5\n", NOW + SECOND) == ["5"]


def test_more_bytes_than_a_second_allows_are_dropped():
    lines = lines_with(bytes_per_second=10)

    assert lines.feed(b"12345678\nabc\n", NOW) == ["12345678"]
    assert lines.is_dropping


def test_the_last_of_what_was_dropped_is_logged_at_the_end():
    lines = lines_with(lines_per_second=2)
    lines.feed(b"".join(b"%d %s\n" % (number, b"x" * 80) for number in range(1000)), NOW)
    lines.feed(b"Fatal Python error: Aborted\n", NOW)

    notice, *last = lines.end(NOW)
    assert notice.startswith("... ")
    assert last[-1] == "Fatal Python error: Aborted"
    assert last[-2].startswith("999 ")
    assert 100 < len(last) < 300


def test_nothing_is_dropped_twice_over_many_seconds():
    lines = lines_with(lines_per_second=5)
    logged = []
    for tenth in range(50):
        now = NOW + tenth * SECOND // 10
        logged += lines.tick(now)
        logged += lines.feed(b"a\nb\n", now)
    logged += lines.end(NOW + 5 * SECOND)
    told = [line for line in logged if line not in ("a", "b")]
    dropped = sum(int(line.split()[1]) for line in told)

    assert len(logged) - len(told) + dropped == 100
