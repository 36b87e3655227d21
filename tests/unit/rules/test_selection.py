"""gateway.rules.selection and gateway.rules.idempotency: what a handler gets, and the name it gets it under."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.idempotency import idempotency_key
from gateway.rules.selection import Selection, matches_pattern


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("order_placed", "order_placed", True),
        ("order_placed", "order_placed2", False),
        ("order_*", "order_placed", True),
        ("order_*", "order_", True),
        ("order_*", "orde", False),
        ("*", "anything", True),
        ("a.*.c", "a.b.c", False),
    ],
)
def test_patterns(pattern: str, text: str, matches: bool) -> None:
    """A pattern is exact, or ends in one star."""
    assert matches_pattern(pattern, text) is matches


def test_empty_selection_wants_everything() -> None:
    """No condition means all events, of services too."""
    selection = Selection()
    assert selection.wants_any(("a",))
    assert selection.wants_type("b")
    assert selection.wants_source("/services/shop", {})


def test_types_of_a_batch() -> None:
    """A batch is wanted if any of its types is."""
    selection = Selection(types=("order_*", "x"))
    assert selection.wants_any(("a", "order_placed"))
    assert not selection.wants_any(("a", "b"))


def test_devices_and_labels_exclude_services() -> None:
    """A condition on devices never matches a service's event."""
    assert not Selection(devices=("*",)).wants_source("/services/shop", {})
    assert not Selection(labels=(("site", "a"),)).wants_source("/services/shop", {"site": "a"})
    assert Selection(devices=("cart-*",)).wants_source("/devices/cart-7", {})
    assert not Selection(devices=("cart-*",)).wants_source("/devices/till-7", {})


def test_all_labels_must_match() -> None:
    """Every label named must be there with its value."""
    selection = Selection(labels=(("site", "a"), ("kind", "cart")))
    assert selection.wants_source("/devices/d", {"site": "a", "kind": "cart", "more": "1"})
    assert not selection.wants_source("/devices/d", {"site": "a"})
    assert not selection.wants_source("/devices/d", {"site": "b", "kind": "cart"})


def test_key_is_readable() -> None:
    """For ids as agents make them the key is source and id."""
    assert idempotency_key("/devices/cart-7", "0190-ab") == "/devices/cart-7#0190-ab"


def test_key_encodes_what_headers_cannot_carry() -> None:
    """Blanks, separators and what is not ASCII are percent-encoded."""
    assert idempotency_key("/services/a#b", "ü 1%") == "/services/a%23b#%C3%BC%201%25"


@pytest.mark.parametrize(("length", "hashed"), [(252, False), (253, False), (254, True)])
def test_long_keys_are_hashed(length: int, hashed: bool) -> None:
    """A key has at most 255 characters."""
    key = idempotency_key("s", "x" * length)
    assert key.startswith("sha256:") == hashed
    assert len(key) <= 255


TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=300)


@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_keys_differ_and_are_legal(source: str, id_: str, source2: str, id2: str) -> None:
    """Two events share a key only if they share source and id; it is visible ASCII."""
    key = idempotency_key(source, id_)
    assert key.isascii()
    assert all("!" <= c <= "~" for c in key)
    assert (key == idempotency_key(source2, id2)) == ((source, id_) == (source2, id2))
