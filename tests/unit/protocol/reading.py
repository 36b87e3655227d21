"""How the tests of events write one, read it, and look at a refusal."""

import json

import pytest
from protocol_strategies import SOURCE

from edge_protocol.errors import EventRejected
from edge_protocol.events import Limits, decode_batch, decode_event

GOOD = {"specversion": "1.0", "id": "a", "type": "t"}


def text(**members):
    return json.dumps(GOOD | members).encode()


def read(data, **limits):
    return decode_event(data, limits=Limits(**limits), source=SOURCE)


def read_batch(data, **limits):
    return decode_batch(data, limits=Limits(**limits), source=SOURCE)


def refusal(data, reader=read, **limits):
    with pytest.raises(EventRejected) as caught:
        reader(data, **limits)
    return str(caught.value)
