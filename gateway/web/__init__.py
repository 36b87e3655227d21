"""HTTP: the admin listener (health, metrics, event bus for services), the device listener, and the Unix socket of the CLI.

Each application is built from plain callables, which `gateway/service.py` hands in. Knows no bus and no registry.
"""
