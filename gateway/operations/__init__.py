"""What an operator can do, once: the command line, the admin API and the tests call these same functions.

Each takes keyword arguments and returns a value of JSON's kinds. They work on the files of a stopped gateway as on a
running one; only what needs a live process (rates, connections, addresses) comes through `Live`.
"""

from __future__ import annotations
