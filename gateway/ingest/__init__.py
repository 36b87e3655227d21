"""From event publishes to durable batches: open, check, append, acknowledge (`Pipeline` implements the `Ingest` port).

Knows neither MQTT packets nor a database: it meets the server and the bus at `gateway.ports`.
"""

from gateway.ingest.pipeline import Pipeline
from gateway.ingest.stats import IngestStats

__all__ = ["IngestStats", "Pipeline"]
