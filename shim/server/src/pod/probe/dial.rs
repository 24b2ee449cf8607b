//! Connections to what is probed, from the machine itself as kubelet makes them, with Go's words for what fails.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;

/// Connects to the first address of a host that answers.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let mut failure = format!("dial tcp: lookup {host}: no such host");
    let found = match tokio::net::lookup_host((host, port)).await {
        Ok(found) => found.collect::<Vec<SocketAddr>>(),
        Err(_) => return Err(failure),
    };
    for address in found {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = format!("dial tcp {address}: {}", reason(&error)),
        }
    }
    Err(failure)
}

/// What Go says of a connection that could not be made.
fn reason(error: &io::Error) -> String {
    let known = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::HostUnreachable => "no route to host",
        io::ErrorKind::NetworkUnreachable => "network is unreachable",
        io::ErrorKind::TimedOut => "connection timed out",
        _ => return format!("connect: {error}"),
    };
    format!("connect: {known}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failures_are_told_as_kubelet_tells_them() {
        let told = connect("127.0.0.1", 1).await.unwrap_err();
        assert_eq!(told, "dial tcp 127.0.0.1:1: connect: connection refused");
        let told = connect("no such name", 1).await.unwrap_err();
        assert_eq!(told, "dial tcp: lookup no such name: no such host");
    }
}
