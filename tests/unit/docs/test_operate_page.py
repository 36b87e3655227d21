"""docs/how-to/operate.md shows the unit that lies in configs/systemd."""

from pages import DOCS, ROOT, blocks


def test_the_unit_is_the_one_in_configs():
    """Whoever copies the page and whoever copies the file run the same."""
    (shown,) = [block.text for block in blocks(DOCS / "how-to" / "operate.md") if block.language == "ini"]
    assert shown.strip() == (ROOT / "configs" / "systemd" / "gateway.service").read_text().strip()
