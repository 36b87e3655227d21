"""From errors to HTTP: one table."""

import json

import pytest

from edge_protocol.errors import EventRejected, KeyInvalid, Rejected, TokenRejected
from gateway.errors import BusFull, BusUnavailable, ConfigError, Conflict, NotFound
from gateway.web.problems import problem_of, status_of


@pytest.mark.parametrize(
    ("error", "status", "rule"),
    [
        (TokenRejected("token-expired", "x"), 401, "token-expired"),
        (Rejected("not-authorized", "x"), 403, "not-authorized"),
        (EventRejected("bad-json", "x"), 400, "bad-json"),
        (EventRejected("unsupported-content-type", "x"), 415, "unsupported-content-type"),
        (Rejected("code-used", "x"), 403, "code-used"),
        (Rejected("too-many-attempts", "x"), 429, "too-many-attempts"),
        (KeyInvalid("x"), 400, "key-invalid"),
        (NotFound("x"), 404, "not-found"),
        (Conflict("x"), 409, "conflict"),
        (BusFull("x", retry_after_s=7.2), 503, "bus-full"),
        (BusUnavailable("x"), 503, "bus-unavailable"),
        (ConfigError("a.b", 1, "two"), 400, "config-error"),
    ],
)
def test_every_error_has_its_status_and_rule(error, status, rule):
    """Peers get RFC 9457 with the rule; what asks them to come back says when."""
    answer = problem_of(error)
    body = json.loads(answer.body)
    assert (status_of(error), answer.status, body["status"], body["rule"]) == (status, status, status, rule)
    assert body["title"]
    assert "x" in body["detail"] or "a.b: expected two" in body["detail"]
    assert ("Retry-After" in answer.headers) == (status in {429, 503})
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)


def test_retry_after_is_rounded_up():
    """Coming back early would be refused again."""
    assert problem_of(BusFull("x", retry_after_s=7.2)).headers["Retry-After"] == "8"
