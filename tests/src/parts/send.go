// Sends one trace of eleven spans with the OpenTelemetry SDK, and prints its id.
//
// Arguments: grpc or http, none or gzip. The endpoint is the environment's.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/trace"
)

func main() {
	ctx := context.Background()
	protocol, compression := os.Args[1], os.Args[2]
	exporter, err := newExporter(ctx, protocol, compression)
	if err != nil {
		log.Fatal(err)
	}
	provider := trace.NewTracerProvider(trace.WithBatcher(exporter))
	tracer := provider.Tracer("tests")
	inside, root := tracer.Start(ctx, "checkout")
	root.SetAttributes(attribute.Int("items", 10))
	for number := range 10 {
		_, step := tracer.Start(inside, fmt.Sprintf("step %d", number))
		step.AddEvent("done")
		step.End()
	}
	root.End()
	if err := provider.ForceFlush(ctx); err != nil {
		log.Fatal(err)
	}
	if err := provider.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(root.SpanContext().TraceID())
}

func newExporter(ctx context.Context, protocol, compression string) (trace.SpanExporter, error) {
	if protocol == "grpc" {
		var options []otlptracegrpc.Option
		if compression == "gzip" {
			options = append(options, otlptracegrpc.WithCompressor("gzip"))
		}
		return otlptracegrpc.New(ctx, options...)
	}
	var options []otlptracehttp.Option
	if compression == "gzip" {
		options = append(options, otlptracehttp.WithCompression(otlptracehttp.GzipCompression))
	}
	return otlptracehttp.New(ctx, options...)
}
