//! Connections to what is probed, with Go's words for what fails: from the machine itself as kubelet makes them, or from
//! within a pod whose address the machine does not reach.

use std::io;
use std::net::SocketAddr;

use coracle_engine::{Engine, Error};
use tokio::net::TcpStream;

/// From where connections are made.
#[derive(Clone)]
pub enum Dialer {
    /// From the machine.
    Machine,
    /// From the network of a pod.
    Pod {
        /// What runs it.
        engine: Engine,
        /// Its sandbox.
        sandbox: String,
    },
}

impl Dialer {
    /// Connects to the first address of a host that answers.
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let mut failure = format!("dial tcp: lookup {host}: no such host");
        let found = match tokio::net::lookup_host((host, port)).await {
            Ok(found) => found.collect::<Vec<SocketAddr>>(),
            Err(_) => return Err(failure),
        };
        for address in found {
            match self.one(address).await {
                Ok(stream) => return Ok(stream),
                Err(why) => failure = format!("dial tcp {address}: {why}"),
            }
        }
        Err(failure)
    }

    async fn one(&self, address: SocketAddr) -> Result<TcpStream, String> {
        match self {
            Dialer::Machine => TcpStream::connect(address).await.map_err(|error| reason(&error)),
            Dialer::Pod { engine, sandbox } => {
                engine.dial_address(sandbox, address).await.map_err(|error| match error {
                    Error::Io { operation: "connect to", source, .. } => reason(&source),
                    other => other.to_string(),
                })
            }
        }
    }
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
        let told = Dialer::Machine.connect("127.0.0.1", 1).await.unwrap_err();
        assert_eq!(told, "dial tcp 127.0.0.1:1: connect: connection refused");
        let told = Dialer::Machine.connect("no such name", 1).await.unwrap_err();
        assert_eq!(told, "dial tcp: lookup no such name: no such host");
    }
}
