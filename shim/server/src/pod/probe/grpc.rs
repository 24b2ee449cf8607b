//! The gRPC health check (`grpc.health.v1`), in the clear, with the words of kubelet's.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use coracle_proto::health::HealthCheckRequest;
use coracle_proto::health::health_check_response::ServingStatus;
use coracle_proto::health::health_client::HealthClient;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::Code;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::Endpoint;

use super::dial::Dialer;

/// Where a server is.
#[derive(Clone)]
pub struct Target {
    /// From where it is asked.
    pub dialer: Dialer,
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// A target is connected to whatever the URI says, which is made from it.
impl Service<Uri> for Target {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Target { dialer, host, port } = self.clone();
        Box::pin(async move { dialer.connect(&host, port).await.map(TokioIo::new).map_err(io::Error::other) })
    }
}

/// Asks a server for the health of a service of it; the error is why it counts as a failure.
pub async fn check(target: Target, service: &str, agent: &str, timeout: Duration) -> Result<(), String> {
    let Target { host, port, .. } = &target;
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).and_then(|endpoint| endpoint.user_agent(agent));
    let endpoint = endpoint.map_err(|error| format!("error: failed to connect service at {address:?}: {error}"))?;
    let at = tokio::time::Instant::now() + timeout;
    let late =
        || format!("timeout: failed to connect service {address:?} within {timeout:?}: context deadline exceeded");
    let connected = tokio::time::timeout_at(at, endpoint.connect_with_connector(target)).await.map_err(|_| late())?;
    // A server that refuses is tried until the time is over, says kubelet's message; once is enough to know.
    let channel = connected.map_err(|_| late())?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = tokio::time::timeout_at(at, HealthClient::new(channel).check(request)).await;
    let answer = answer.map_err(|_| format!("timeout: health rpc did not complete within {timeout:?}"))?;
    let status = answer.map_err(|status| match status.code() {
        Code::Unimplemented => format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        ),
        Code::DeadlineExceeded => format!("timeout: health rpc did not complete within {timeout:?}: {status}"),
        _ => format!("error: health rpc probe failed: {}", status.message()),
    })?;
    match status.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("service unhealthy (responded with {:?})", other.as_str_name())),
    }
}

#[cfg(test)]
mod tests {
    use coracle_proto::health::HealthCheckResponse;
    use coracle_proto::health::health_server::{Health, HealthServer};
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status};

    use super::*;

    /// Serves `good`, does not serve `bad`, and knows no other service.
    struct Server;

    #[tonic::async_trait]
    impl Health for Server {
        async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
            let status = match request.into_inner().service.as_str() {
                "good" => ServingStatus::Serving,
                "bad" => ServingStatus::NotServing,
                _ => return Err(Status::not_found("unknown service")),
            };
            Ok(Response::new(HealthCheckResponse { status: status.into() }))
        }
    }

    #[tokio::test]
    async fn a_server_is_asked_for_the_health_of_a_service() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = Target { dialer: Dialer::Machine, host: "127.0.0.1".into(), port };
        let server = tonic::transport::Server::builder().add_service(HealthServer::new(Server));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let check = async |service| check(target.clone(), service, "test", Duration::from_secs(5)).await;
        assert_eq!(check("good").await, Ok(()));
        assert_eq!(check("bad").await.unwrap_err(), "service unhealthy (responded with \"NOT_SERVING\")");
        assert_eq!(check("none").await.unwrap_err(), "error: health rpc probe failed: unknown service");
    }
}
