"""`gateway bench`: a load generator with real devices, keys, tokens, TLS and envelopes, for users and for `benchmarks/`.

It is built on the gateway's own codec, and knows the gateway only as a client does; whoever calls registers its devices
(`fleet`) and says what to send (`Load`). Everything expensive is done before the clock starts, and the hot path costs
one comparison a read and one join a write, so that the generator is not what is measured (`sender`).
"""

from gateway.bench.fleet import BenchDevice, read_fleet, register, remove, write_fleet
from gateway.bench.load import BenchFailed, Load, Target
from gateway.bench.processes import run
from gateway.bench.report import as_document, print_result
from gateway.bench.run import Result

__all__ = [
    "BenchDevice",
    "BenchFailed",
    "Load",
    "Result",
    "Target",
    "as_document",
    "print_result",
    "read_fleet",
    "register",
    "remove",
    "run",
    "write_fleet",
]
