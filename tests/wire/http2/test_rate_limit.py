from merrow.wire.http2.rate_limit import ControlFrameLimit, RateLimit

SECOND = 10**9


def test_a_seconds_worth_may_come_at_once():
    limit = RateLimit(3, now_ns=0)

    assert [limit.take(0) for _ in range(4)] == [True, True, True, False]


def test_it_refills_as_time_passes():
    limit = RateLimit(10, now_ns=0)
    for _ in range(10):
        limit.take(0)

    assert not limit.take(0)
    assert [limit.take(SECOND // 5) for _ in range(2)] == [True, False]


def test_it_never_holds_more_than_a_second():
    limit = RateLimit(3, now_ns=0)

    assert [limit.take(100 * SECOND) for _ in range(4)] == [True, True, True, False]


def test_control_frames_have_a_rate_of_their_own():
    limit = ControlFrameLimit(3, now_ns=0)

    assert [limit.take(0, 0, 0) for _ in range(4)] == [True, True, True, False]
    assert limit.take(SECOND, 0, 0)


def test_requests_and_data_allow_more():
    limit = ControlFrameLimit(1, now_ns=0)

    assert [limit.take(0, request_count=1, data_count=0) for _ in range(10)] == [True] * 9 + [False]
    assert [limit.take(0, request_count=1, data_count=1) for _ in range(5)] == [True] * 4 + [False]


def test_what_was_allowed_is_kept_for_some_seconds_worth():
    limit = ControlFrameLimit(2, now_ns=0)

    assert [limit.take(0, request_count=100, data_count=0) for _ in range(23)] == [True] * 22 + [False]
