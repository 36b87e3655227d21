"""Interfaces where the parts of the gateway meet, and the values that cross them.

Each method's docstring is its contract: what is durable when it returns, what may be repeated, what every error asks of
the caller. `tests/contract` checks each promise against every backend. Parts import these and `rules`, never each other;
`gateway/service.py` alone builds and connects them.
"""
