//! The calls' spans, as a collector of OpenTelemetry receives them.

use std::sync::{Arc, Mutex};

use coracle_tests::cri::node;
use k8s_cri::v1;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A trace and a span of the client's, as W3C Trace Context writes them.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let spans = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        self.0.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_call_is_a_span_of_its_clients_trace() {
    node(async |node| {
        let collector = Collector::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let service = TraceServiceServer::new(collector.clone());
        let serving = tonic::transport::Server::builder().add_service(service);
        let serving = tokio::spawn(serving.serve_with_incoming(TcpIncoming::from(listener)));

        node.stop().await;
        // A log that is silent takes nothing from the spans.
        node.set_config(&format!("log_level = 'error'\n[serve]\notlp_endpoint = '{endpoint}'\n"));
        node.start().await;
        let config = Some(node.pod("web"));
        let mut request = Request::new(v1::RunPodSandboxRequest { config, runtime_handler: String::new() });
        request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{PARENT}-01").parse().unwrap());
        let id = node.runtime().run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
        // A server that stops sends what is left.
        node.stop().await;

        let spans = collector.0.lock().unwrap().clone();
        let run = spans.iter().find(|span| span.name == "RunPodSandbox").unwrap_or_else(|| panic!("{spans:#?}"));
        assert_eq!((hex(&run.trace_id), hex(&run.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
        assert!(run.end_time_unix_nano > run.start_time_unix_nano);
        let told = format!("{:?}", run.attributes);
        assert!(told.contains("sandbox") && told.contains(&id[..12]), "{told}");
        serving.abort();
        node.start().await;
    });
}
