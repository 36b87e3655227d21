// One scenario with MQTT.js: node client.mjs '{"url": ..., "options": {...}, "topic": ..., "count": 100, "qos": 1}'.
// Subscribes, publishes `count` numbers, and prints what came back, as JSON, once all of it is there.
import fs from "node:fs";
import mqtt from "mqtt";

const { url, options, topic, count, qos, ca, retained } = JSON.parse(process.argv[2]);
if (ca) options.ca = fs.readFileSync(ca);
const client = await mqtt.connectAsync(url, { connectTimeout: 8000, reconnectPeriod: 0, ...options });
const got = [];
const all = new Promise((resolve) => {
  client.on("message", (from, payload, packet) => {
    got.push({ topic: from, payload: payload.toString(), retain: packet.retain, qos: packet.qos });
    if (got.length === count) resolve();
  });
});
if (retained) {
  for (let n = 0; n < count; n++) await client.publishAsync(`${topic}/${n}`, String(n), { qos, retain: true });
  await client.subscribeAsync(`${topic}/#`, { qos });
} else {
  await client.subscribeAsync(topic, { qos });
  await Promise.all(Array.from({ length: count }, (_, n) => client.publishAsync(topic, String(n), { qos })));
}
await all;
await client.endAsync();
console.log(JSON.stringify(got));
