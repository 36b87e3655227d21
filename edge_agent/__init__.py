"""The edge agent: events on disk at once, at the gateway as soon as it is reached, forgotten only on its receipt.

An application uses `Agent`; everything else is run by the command `edge-agent`.
"""

from edge_agent.agent import Agent
from edge_agent.errors import AgentError, ConfigError, EventInvalid, OutboxFull, OutboxUnavailable

__all__ = ["Agent", "AgentError", "ConfigError", "EventInvalid", "OutboxFull", "OutboxUnavailable"]
