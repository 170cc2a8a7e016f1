from merrow.places.supply import depth_of


def test_a_quick_model_is_kept_supplied():
    assert depth_of(0, max_depth=4) == 4
    assert depth_of(125_000, max_depth=4) == 4
    assert depth_of(125_001, max_depth=4) == 3
    assert depth_of(200_000, max_depth=4) == 2
    assert depth_of(10_000, max_depth=32) == 32


def test_a_slow_one_gets_its_batches_singly():
    assert depth_of(250_001, max_depth=4) == 1
    assert depth_of(500_000, max_depth=4) == 1
    assert depth_of(1e12, max_depth=4) == 1
