// Produce and fetch with the npm package zeromq and JSON: npm install, then node ten_lines.mjs ENDPOINT [TOPIC].
import { Dealer } from "zeromq";

let [endpoint, topic = "greetings"] = process.argv.slice(2);
const broker = new Dealer({ linger: 100, receiveTimeout: 10_000 });
broker.connect(endpoint);

// One request, its one answer: the header and the frames behind it. Who does not lead says who does.
async function ask(header, ...frames) {
  await broker.send([JSON.stringify({ id: 1, mode: "simple", topic, partition: 0, ...header }), ...frames]);
  const [head, ...rest] = await broker.receive();
  const answer = JSON.parse(head);
  if (answer.error === 6 && answer.endpoint) {
    broker.disconnect(endpoint);
    broker.connect(endpoint = answer.endpoint);
    return ask(header, ...frames);
  }
  if (answer.error) throw new Error(`error ${answer.error}: ${answer.message}`);
  return [answer, rest];
}

const [{ base_offset: first }] = await ask({ op: "produce", count: 1 }, "key", "value from Node");
const [{ base_offset, count }, frames] = await ask({ op: "fetch", offset: first });
for (let i = 0; i < count; i++) { // frames: key, value, key, value, ...
  console.log(base_offset + i, frames[2 * i].toString(), frames[2 * i + 1].toString());
}
broker.close();
