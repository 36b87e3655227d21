"""Delivery of events from the bus to targets: order, retries, targets that are down, dead letters.

One `Dispatcher` a handler. Decisions are made in `gateway/rules` (plan, retry, breaker); this package does the waiting:
it reads the bus, hands events to a `Deliverer`, and saves what must outlive the process through `Subscriptions`.
"""

from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.stats import DispatchState, DispatchStats, Tally

__all__ = ["DispatchState", "DispatchStats", "Dispatcher", "Tally"]
