"""The contract between device and gateway, implemented once (docs/reference/wire-protocol.md).

Pure functions over bytes and values: no I/O, no clock, no randomness but what the callers hand in. `edge_agent` and
`gateway` both import it; it imports neither.
"""
