"""gateway.rules.sizes: bytes as people read them."""

import pytest

from gateway.rules.sizes import size_text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 52, "1023.9 KiB"),
        ((1 << 20) - 51, "1 MiB"),
        (1 << 20, "1 MiB"),
        (82_301_845_504, "76.6 GiB"),
        (5 << 40, "5 TiB"),
        (1 << 60, "1048576 TiB"),
    ],
)
def test_units(size_bytes, text):
    """The largest unit that leaves a number of at least 1, rounded to a tenth; never 1024 of one."""
    assert size_text(size_bytes) == text
