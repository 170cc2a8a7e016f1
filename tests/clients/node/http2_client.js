// Drives a running server with Node's own HTTP/2 and prints what it saw, as JSON. Argument: host:port.
"use strict";

const http2 = require("http2");

const session = http2.connect("http://" + process.argv[2]);

function request(method, path, body, headers = {}) {
  return new Promise((resolve) => {
    const stream = session.request({ ":method": method, ":path": path, ...headers });
    const pieces = [];
    let status;
    stream.on("response", (answer) => (status = answer[":status"]));
    stream.on("data", (piece) => pieces.push(piece));
    stream.on("end", () => resolve({ status, body: Buffer.concat(pieces).toString() }));
    stream.end(body);
  });
}

function inferBody(count) {
  const data = Array.from({ length: count }, (_, i) => i);
  return JSON.stringify({ inputs: [{ name: "INPUT0", datatype: "FP32", shape: [1, count], data }] });
}

async function isEchoed(count) {
  const { status, body } = await request("POST", "/v2/models/identity/infer", inferBody(count));
  return status === 200 && JSON.parse(body).outputs[0].data.every((value, index) => value === index);
}

async function main() {
  const seen = {};
  seen.live = (await request("GET", "/v2/health/live")).status;
  seen.metadata = JSON.parse((await request("GET", "/v2")).body).name;
  seen.echoed = await Promise.all([1, 10, 1000, 100000].map(isEchoed));
  seen.parallel = (await Promise.all(Array.from({ length: 50 }, (_, i) => isEchoed(i + 1)))).every(Boolean);
  seen.unknown = await request("GET", "/v2/nothing");
  seen.wrongMethod = (await request("DELETE", "/v2")).status;
  const reset = session.request({ ":method": "POST", ":path": "/v2/models/sleeper/infer" });
  reset.on("error", () => {});
  reset.write(inferBody(4));
  reset.close(http2.constants.NGHTTP2_CANCEL);
  seen.pinged = await new Promise((resolve) => session.ping((error) => resolve(error === null)));
  session.close();
  console.log(JSON.stringify(seen));
}

main();
