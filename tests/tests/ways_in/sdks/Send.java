// Sends one trace of eleven spans with the OpenTelemetry SDK, and prints its id. All settings are
// the environment's.

import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Context;
import io.opentelemetry.sdk.OpenTelemetrySdk;
import io.opentelemetry.sdk.autoconfigure.AutoConfiguredOpenTelemetrySdk;
import java.util.concurrent.TimeUnit;

public class Send {
    public static void main(String[] arguments) {
        OpenTelemetrySdk sdk = AutoConfiguredOpenTelemetrySdk.initialize().getOpenTelemetrySdk();
        Tracer tracer = sdk.getTracer("tests");
        Span root = tracer.spanBuilder("checkout").setAttribute("items", 10).startSpan();
        Context inside = Context.current().with(root);
        for (int number = 0; number < 10; number++) {
            Span step = tracer.spanBuilder("step " + number).setParent(inside).startSpan();
            step.addEvent("done");
            step.end();
        }
        root.end();
        sdk.getSdkTracerProvider().forceFlush().join(30, TimeUnit.SECONDS);
        sdk.close();
        System.out.println(root.getSpanContext().getTraceId());
    }
}
