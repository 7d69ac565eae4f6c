// Sends one trace of eleven spans with the OpenTelemetry SDK, and prints its id.
//
// Arguments: the directory of the SDK; grpc, http/protobuf or http/json; none or gzip. The endpoint
// is the environment's.

import { createRequire } from "node:module";

const [directory, protocol, compression] = process.argv.slice(2);
const require = createRequire(`${directory}/package.json`);
const { context, trace } = require("@opentelemetry/api");
const { BasicTracerProvider, BatchSpanProcessor } = require("@opentelemetry/sdk-trace-node");
const exporters = {
  "grpc": "@opentelemetry/exporter-trace-otlp-grpc",
  "http/protobuf": "@opentelemetry/exporter-trace-otlp-proto",
  "http/json": "@opentelemetry/exporter-trace-otlp-http",
};
const { OTLPTraceExporter } = require(exporters[protocol]);
const exporter = new OTLPTraceExporter({ compression });
const provider = new BasicTracerProvider({ spanProcessors: [new BatchSpanProcessor(exporter)] });
const tracer = provider.getTracer("tests");
const root = tracer.startSpan("checkout", { attributes: { items: 10 } });
const inside = trace.setSpan(context.active(), root);
for (let number = 0; number < 10; number++) {
  const step = tracer.startSpan(`step ${number}`, {}, inside);
  step.addEvent("done", { number });
  step.end();
}
root.end();
await provider.forceFlush();
await provider.shutdown();
console.log(root.spanContext().traceId);
