"""The chaos of `make soak-processes`, for a quarter of a minute."""

import pytest

from merrow.places.process.system import is_available
from tests.e2e.chaos import check, run_chaos

pytestmark = [pytest.mark.skipif(not is_available(), reason="needs fork and Unix sockets"), pytest.mark.slow]


def test_every_request_is_answered_and_nothing_leaks(tmp_path):
    report = run_chaos(15, tmp_path)

    print("\n".join(report.lines()))
    check(report)
