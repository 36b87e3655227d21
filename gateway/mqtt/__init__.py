"""The MQTT 3.1.1 and 5.0 server around a sans-I/O codec: listeners, connections, sessions, routing, presence.

It meets ingest, the device registry and storage at `gateway.ports`, and decides by `gateway.rules`; `listeners.MqttServer`
is what `gateway.service` builds. What to read first: `connection`, then `inbound` (publishes) and `session` (deliveries);
`journal` says what is durable when, `cursors` which events come from the bus instead of the `router`.
"""
