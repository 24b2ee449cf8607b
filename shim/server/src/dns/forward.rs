//! Asking the machine's own name servers for what is not the cluster's.
//!
//! Each query goes out from a port of its own that the kernel picks, with a number from the kernel's random bytes; only
//! an answer from the asked server, with that number and the same question, counts. The asker's own words are passed on
//! and the answer is passed back as it came, so EDNS, truncation and whatever else they agree on stays theirs.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use coracle_engine::DnsConfig;
use coracle_engine::net::files;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::wire::{self, MAX_MESSAGE, Question};

/// How long a server may take before the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often all of them are asked over UDP: an asker gives up after some five seconds.
const ROUNDS: usize = 2;
/// How often resolv.conf is looked at.
const LOOK: Duration = Duration::from_secs(1);
const DNS: u16 = 53;

/// The machine's name servers, as its resolv.conf says by now.
#[derive(Debug)]
pub struct Servers {
    /// Our own address, which must not be asked.
    own: SocketAddr,
    looked: Option<Instant>,
    stamp: Option<SystemTime>,
    found: Vec<SocketAddr>,
}

impl Servers {
    /// None yet.
    pub fn new(own: SocketAddr) -> Servers {
        Servers { own, looked: None, stamp: None, found: Vec::new() }
    }

    /// Those of now.
    pub fn now(&mut self) -> Vec<SocketAddr> {
        if self.looked.is_none_or(|at| at.elapsed() >= LOOK) {
            self.looked = Some(Instant::now());
            let stamp = fs::metadata(files::HOST_RESOLV_CONF).and_then(|meta| meta.modified()).ok();
            if stamp != self.stamp || self.found.is_empty() {
                self.stamp = stamp;
                self.found = read(self.own);
            }
        }
        self.found.clone()
    }
}

/// The servers of resolv.conf; loopback ones are within our reach.
fn read(own: SocketAddr) -> Vec<SocketAddr> {
    let text = fs::read_to_string(files::HOST_RESOLV_CONF).unwrap_or_default();
    let servers = DnsConfig::parse(&text).servers;
    let addresses = servers.iter().filter_map(|server| server.parse::<IpAddr>().ok());
    addresses.map(|ip| SocketAddr::new(ip, DNS)).filter(|server| *server != own).take(files::MAX_NAMESERVERS).collect()
}

/// A number that nobody guesses.
pub fn random() -> io::Result<u16> {
    let mut bytes = [0; 2];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u16::from_ne_bytes(bytes))
}

/// Passes a query on and its answer back; the number is replaced on the way. `None` when nobody answers.
pub async fn ask(servers: &[SocketAddr], message: &[u8], question: &Question, tcp: bool) -> Option<Vec<u8>> {
    let own = message.get(..2)?;
    for _ in 0..if tcp { 1 } else { ROUNDS } {
        for server in servers {
            let Ok(id) = random() else { return None };
            let sent = [&id.to_be_bytes(), &message[2..]].concat();
            let answer = async {
                match tcp {
                    true => over_tcp(*server, &sent).await,
                    false => over_udp(*server, &sent, id, question).await,
                }
            };
            // A server that cannot be reached is one that says nothing.
            if let Ok(Ok(mut answer)) = timeout(PATIENCE, answer).await
                && wire::answers(&answer, id, question)
            {
                answer[..2].copy_from_slice(own);
                return Some(answer);
            }
        }
    }
    None
}

async fn over_udp(server: SocketAddr, message: &[u8], id: u16, question: &Question) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // The kernel then passes over what comes from anyone else.
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut answer = vec![0; MAX_MESSAGE];
    loop {
        let len = socket.recv(&mut answer).await?;
        // A guess of somebody else's is passed over, and the true answer waited for.
        if wire::answers(&answer[..len], id, question) {
            answer.truncate(len);
            answer.shrink_to_fit();
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write(&mut stream, message).await?;
    read_message(&mut stream).await
}

/// Reads a message with its length before it.
pub async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut message = vec![0; usize::from(len)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message with its length before it.
pub async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    stream.write_all(&[&len.to_be_bytes(), message].concat()).await
}
