"""Slots keep acknowledgements in order; the budget bounds what is in flight."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mqtt.slots import InflightBudget, Slot, Slots
from gateway.ports.ingest import STORED, Receipt


@given(order=st.permutations(range(12)))
def test_in_order_whatever_settles_first(order):
    """Slots leave only from the head, in the order they were taken, and none is left over."""
    slots = Slots()
    taken, answered = [slots.add(Slot(n + 1, 1, 0)) for n in range(12)], []
    for n in order:
        is_head = n == len(answered)
        assert slots.settle(taken[n], STORED) == is_head
        while (done := slots.pop()) is not None:
            answered.append(done[0].packet_id)
        assert answered == list(range(1, len(answered) + 1))
    assert answered == list(range(1, 13))
    assert len(slots) == 0


def test_settled_twice():
    """A second receipt for one publish is a mistake that must not go unseen."""
    slots = Slots()
    slot = slots.add(Slot(7, 1, 0))
    slots.settle(slot, STORED)
    with pytest.raises(RuntimeError, match="publish 7 was settled twice"):
        slots.settle(slot, Receipt(0x80))


class Reader:
    def __init__(self):
        self.inflight_bytes = 0
        self.is_held = False

    def hold_for_budget(self):
        self.is_held = True

    def release_from_budget(self):
        self.is_held = False


@pytest.mark.parametrize(("size", "held"), [(99, False), (100, False), (101, True)])
def test_share_of_a_connection(size, held):
    """A connection is held beyond its share, until half of it is settled."""
    budget, reader = InflightBudget(1000, 100), Reader()
    budget.take(reader, size)
    assert reader.is_held is held
    budget.give(reader, size - 51)
    assert reader.is_held is held
    budget.give(reader, 1)
    assert not reader.is_held


def test_bound_of_all():
    """Who publishes over the bound of all is held until a quarter of everything is free."""
    budget, first, second = InflightBudget(100, 1000), Reader(), Reader()
    budget.take(first, 100)
    assert not first.is_held
    budget.take(second, 1)
    assert (first.is_held, second.is_held) == (False, True)
    budget.give(first, 25)
    assert second.is_held
    budget.give(first, 1)
    assert not second.is_held


def test_forgotten():
    """A connection that is gone is not released, and what it was charged is given back."""
    budget, gone = InflightBudget(10, 10), Reader()
    budget.take(gone, 20)
    budget.forget(gone)
    budget.give(gone, 20)
    assert gone.is_held
    assert budget.used_bytes == 0
