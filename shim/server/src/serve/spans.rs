//! OpenTelemetry: each call of the CRI as a span, sent to a collector by OTLP over gRPC. Only with `serve.otlp_endpoint`;
//! without it a call costs one look at its headers.
//!
//! kubelet sends the context of its own spans along with a call (`traceparent`, W3C Trace Context): the start of a pod is
//! then one trace over both. What a call logs becomes the span's events, the ids that it is about its attributes.
//! Spans are sent in batches by a thread of the library's; a collector that is not there costs spans and nothing else.

use std::time::Duration;

use anyhow::{Context, Result};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tonic::codegen::http::HeaderMap;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::registry::LookupSpan;

/// What the server calls itself.
const SERVICE: &str = "coracle";
/// How long a stopping server waits for the collector to take the last spans.
const FAREWELL: Duration = Duration::from_secs(2);

/// The way of spans to their collector.
pub struct Spans(SdkTracerProvider);

impl Spans {
    /// Begins to send to `endpoint`, `http://HOST:PORT`. Needs the event loop's context.
    pub fn start(endpoint: &str) -> Result<Spans> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
        let exporter = exporter.with_context(|| format!("send spans to serve.otlp_endpoint {endpoint:?}"))?;
        let resource = Resource::builder().with_service_name(SERVICE).build();
        Ok(Spans(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
    }

    /// Takes spans from the log.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> OpenTelemetryLayer<S, SdkTracer> {
        tracing_opentelemetry::layer().with_tracer(self.0.tracer(SERVICE)).with_threads(false).with_location(false)
    }

    /// Sends what is left. Blocks.
    pub fn stop(self) {
        if let Err(error) = self.0.shutdown_with_timeout(FAREWELL) {
            tracing::warn!("the last spans were not taken by the collector: {error}");
        }
    }
}

/// Names a call's span, and makes it a part of its client's trace if the request's headers tell of one.
pub fn adopt(span: &Span, rpc: &str, headers: &HeaderMap) {
    // Without a collector the span is none of OpenTelemetry's, which this tells.
    if span.set_parent(TraceContextPropagator::new().extract(&Headers(headers))).is_ok() {
        span.context().span().update_name(rpc.to_owned());
    }
}

/// A request's headers, for the propagator.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}
