//! The gRPC health check (`grpc.health.v1`), in the clear, with the words of kubelet's.

use std::time::Duration;

use coracle_proto::health::HealthCheckRequest;
use coracle_proto::health::health_check_response::ServingStatus;
use coracle_proto::health::health_client::HealthClient;
use tonic::Code;
use tonic::transport::Endpoint;

/// Asks a server for the health of a service of it; the error is why it counts as a failure.
pub async fn check(address: &str, service: &str, agent: &str, timeout: Duration) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).and_then(|endpoint| endpoint.user_agent(agent));
    let endpoint = endpoint.map_err(|error| format!("error: failed to connect service at {address:?}: {error}"))?;
    let at = tokio::time::Instant::now() + timeout;
    let late =
        || format!("timeout: failed to connect service {address:?} within {timeout:?}: context deadline exceeded");
    let connected = tokio::time::timeout_at(at, endpoint.connect()).await.map_err(|_| late())?;
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
        let address = listener.local_addr().unwrap().to_string();
        let server = tonic::transport::Server::builder().add_service(HealthServer::new(Server));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let check = async |service| check(&address, service, "test", Duration::from_secs(5)).await;
        assert_eq!(check("good").await, Ok(()));
        assert_eq!(check("bad").await.unwrap_err(), "service unhealthy (responded with \"NOT_SERVING\")");
        assert_eq!(check("none").await.unwrap_err(), "error: health rpc probe failed: unknown service");
    }
}
