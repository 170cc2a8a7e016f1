from merrow.wire.http2.rate_limit import RateLimit

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


def test_what_is_given_counts():
    limit = RateLimit(1, now_ns=0)
    limit.take(0)
    limit.give(1)

    assert [limit.take(0), limit.take(0)] == [True, False]
