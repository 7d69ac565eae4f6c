"""Sends one trace of eleven spans with the OpenTelemetry SDK, and prints its id.

Arguments: grpc or http, none or gzip. The endpoint is the environment's.
"""

import sys

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

protocol, compression = sys.argv[1:]
if protocol == "grpc":
    from grpc import Compression
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    compressions = {"none": Compression.NoCompression, "gzip": Compression.Gzip}
else:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    compressions = {"none": Compression.NoCompression, "gzip": Compression.Gzip}

exporter = OTLPSpanExporter(compression=compressions[compression])
provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
provider.add_span_processor(BatchSpanProcessor(exporter))
tracer = provider.get_tracer("tests", "1.0")
with tracer.start_as_current_span("checkout") as root:
    root.set_attribute("items", 10)
    for number in range(10):
        with tracer.start_as_current_span(f"step {number}") as step:
            step.add_event("done", {"number": number})
trace_id = root.get_span_context().trace_id
if not provider.force_flush():
    sys.exit("the spans were not taken")
provider.shutdown()
print(f"{trace_id:032x}")
