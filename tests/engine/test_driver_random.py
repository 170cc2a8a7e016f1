"""Random lives of drivers and schedulers; `make soak` runs many more."""

import pytest

from tests.engine.driver_simulation import Simulation

SEEDS_PER_TEST = 250


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(0, 4000, SEEDS_PER_TEST))
def test_every_request_gets_its_own_answers_and_one_final_one(first_seed):
    for seed in range(first_seed, first_seed + SEEDS_PER_TEST):
        try:
            Simulation(seed).run()
        except BaseException as error:
            error.add_note(f"seed {seed}") if hasattr(error, "add_note") else print(f"seed {seed}")
            raise
