"""docs/reference/metrics.md lists what `/metrics` shows, no more and no less."""

from __future__ import annotations

from pages import REFERENCE, codes, rows

from gateway.web.metrics import FAMILIES, PREFIX

PAGE = REFERENCE / "metrics.md"


def test_the_page_lists_every_family_and_no_other() -> None:
    """Name, kind and label of each metric are those of the program."""
    shown = {codes(name)[0]: (kind, "".join(codes(label))) for name, kind, label, _ in rows(PAGE.read_text())}
    suffix = {"counter": "_total", "gauge": ""}
    assert shown == {
        f"{PREFIX}{name}{suffix[family.kind]}": (family.kind, family.label) for name, family in FAMILIES.items()
    }
