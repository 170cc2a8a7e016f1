from tests.engine import driver_simulation
from tests.soak import __main__ as soak


def test_a_run_says_what_it_did(capsys):
    assert soak.main(["--seed=7", "--count=3", "--events=20"]) == 0
    assert capsys.readouterr().out == "3 lives of 20 events, from seed 7: every promise was kept\n"


def test_a_broken_promise_ends_the_run_with_its_seed(capsys, monkeypatch):
    def run(self, event_count):
        raise AssertionError("a promise")

    monkeypatch.setattr(driver_simulation.Simulation, "run", run)

    assert soak.main(["--seed=7", "--count=3"]) == 1
    assert "make soak ARGS='--seed=7 --count=1 --events=400'" in capsys.readouterr().err
