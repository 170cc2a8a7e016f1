from merrow.core.restrictions import ApiCategory, Restriction


def test_only_the_exact_value_is_let_in():
    restriction = Restriction("X-Key", "secret=é")

    assert restriction.admits("secret=é".encode())
    for value in (None, b"", b"secret", b"Secret=\xc3\xa9", b"secret=\xc3\xa9 ", b"secret=\xc3\xa9\0"):
        assert not restriction.admits(value)


def test_categories_have_tritons_names():
    assert [category.value for category in ApiCategory] == [
        "health", "metadata", "inference", "shared-memory", "model-config", "model-repository", "statistics", "trace",
        "logging",
    ]  # fmt: skip
