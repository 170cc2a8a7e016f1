// Drives a running server with grpc-js and prints what it saw, as JSON. Arguments: host:port, directory of the protos.
"use strict";

const path = require("path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, protos] = process.argv.slice(2);
const definition = loader.loadSync(path.join(protos, "grpc_service.proto"), {
  keepCase: true, longs: Number, enums: String, defaults: true, includeDirs: [protos],
});
const { GRPCInferenceService } = grpc.loadPackageDefinition(definition).inference;

function connect(options = {}) {
  const unlimited = { "grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1 };
  return new GRPCInferenceService(address, grpc.credentials.createInsecure(), { ...unlimited, ...options });
}

function call(client, method, request, options = {}) {
  return new Promise((resolve) => {
    const running = client[method](request, new grpc.Metadata(), options, (error, response) =>
      resolve(error ? { code: error.code, details: error.details } : response));
    if (options.cancels) setTimeout(() => running.cancel(), 100);
  });
}

function inferRequest(count, id = "") {
  const data = Buffer.alloc(count * 4);
  for (let i = 0; i < count; i++) data.writeFloatLE(i % 1000, i * 4);
  const shape = [1, count];
  return { model_name: "identity", id, inputs: [{ name: "INPUT0", datatype: "FP32", shape }], raw_input_contents: [data] };
}

async function isEchoed(client, count) {
  const request = inferRequest(count);
  const response = await call(client, "ModelInfer", request);
  return response.raw_output_contents !== undefined
    && response.raw_output_contents[0].equals(request.raw_input_contents[0]);
}

function stream(client, count) {
  return new Promise((resolve) => {
    const ids = [];
    const running = client.ModelStreamInfer();
    running.on("data", (message) => ids.push(message.infer_response.id));
    running.on("status", (status) => resolve({ code: status.code, ids }));
    running.on("error", () => {});
    for (let i = 0; i < count; i++) running.write(inferRequest(100, String(i)));
    running.end();
  });
}

async function main() {
  const seen = {};
  const client = connect();
  seen.live = await call(client, "ServerLive", {});
  seen.metadata = (await call(client, "ServerMetadata", {})).name;
  seen.echoed = [];
  for (const count of [0, 1, 1000, 2000000]) seen.echoed.push(await isEchoed(client, count));
  seen.parallel = (await Promise.all(Array.from({ length: 50 }, (_, i) => isEchoed(client, i * 100)))).every(Boolean);
  seen.unknown = await call(client, "ModelReady", { name: "nothing" });
  seen.late = await call(client, "ModelInfer", { ...inferRequest(4), model_name: "sleeper" },
    { deadline: Date.now() + 200 });
  seen.cancelled = await call(client, "ModelInfer", { ...inferRequest(4), model_name: "sleeper" }, { cancels: true });
  seen.stream = await stream(client, 20);
  seen.compressed = [];
  for (const algorithm of [1, 2]) {
    const compressing = connect({ "grpc.default_compression_algorithm": algorithm });
    seen.compressed.push(await isEchoed(compressing, 1000), await isEchoed(compressing, 2000000));
    compressing.close();
  }
  client.close();
  console.log(JSON.stringify(seen));
}

main();
