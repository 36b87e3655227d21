"""Metrics: plain snapshots become Prometheus text."""

import re

import pytest

from gateway.web.metrics import FAMILIES, Metrics


def test_snapshots_are_rendered_with_names_units_and_labels():
    """Counters end in `_total`, gauges do not; a labelled family has a line a value."""
    metrics = Metrics(lambda: {"events_stored": 7, "connections": 2}, lambda: {"handler_lag_events": {"orders": 3}})
    text, content_type = metrics.render()
    lines = text.decode().splitlines()
    assert "lockgate_events_stored_total 7.0" in lines
    assert "lockgate_connections 2.0" in lines
    assert 'lockgate_handler_lag_events{handler="orders"} 3.0' in lines
    assert content_type.startswith("text/plain")


def test_sources_are_read_at_every_scrape():
    """Nothing is cached between two scrapes."""
    counts = iter((1, 2))
    metrics = Metrics(lambda: {"events_stored": next(counts)})
    assert b"events_stored_total 1.0" in metrics.render()[0]
    assert b"events_stored_total 2.0" in metrics.render()[0]


@pytest.mark.parametrize("snapshot", [{"nonsense": 1}, {"connections": {"a": 1}}, {"handler_up": 1}])
def test_a_name_or_shape_that_is_not_declared_is_refused(snapshot):
    """The list of families is complete: nothing is exported that does not stand there."""
    with pytest.raises(ValueError, match="expected a name of FAMILIES with its label"):
        Metrics(lambda: snapshot).render()


def test_every_family_has_a_proper_name_and_help():
    """Names are snake case without a prefix or `_total`, labels are of few values."""
    for name, family in FAMILIES.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
        assert not name.endswith("_total")
        assert family.help
        assert family.label in {"", "cause", "handler", "reason_code"}
