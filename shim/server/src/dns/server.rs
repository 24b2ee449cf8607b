//! The server: one process for a state folder, in a session of its own, on the bridge's address and a port that was free.
//! The service address 10.96.0.10:53 leads there (`service`), so that port 53 of the machine stays its owner's.
//!
//! ```text
//! STATE/dns/lock       held for as long as it lives
//! STATE/dns/address    where it listens, written once it does
//! STATE/services/table.json   what it knows: read again whenever it was replaced
//! ```
//!
//! It leaves by itself when no pod asks it any more. Nothing is lost when it is killed: whoever starts, stops or tends the
//! next pod starts another, at the same port if that is still free, so that not even the rules change.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use coracle_engine::lock::LifeLock;
use coracle_engine::net::Subnet;
use coracle_engine::record;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::forward::{self, Servers};
use super::wire::{self, Answer, CLASSIC_UDP, Code, MAX_MESSAGE, MAX_UDP, Query, Question, Wrong};
use super::zone::{Table, Verdict};

/// Queries at once that others are asked for; one more is dropped, and the asker asks again.
const MAX_FORWARDS: usize = 128;
/// Connections at once; one more waits.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(10);
/// How often it is asked whether any pod needs the server.
const LOOK: Duration = Duration::from_secs(2);
/// For how long no pod has needed it when it leaves. One that was just started has as long to be needed.
const UNNEEDED: Duration = Duration::from_secs(20);
/// How many ports are tried until one is free for UDP and TCP alike.
const ATTEMPTS: usize = 16;
/// Aliases that are followed within the cluster's domain.
const MAX_ALIASES: usize = 8;

/// Where the server's files are.
#[derive(Debug, Clone)]
pub struct Places {
    dir: PathBuf,
    table: PathBuf,
}

impl Places {
    /// In a state folder.
    pub fn of(state: &Path) -> Places {
        Places { dir: state.join("dns"), table: state.join("services").join("table.json") }
    }

    /// Held by the server.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// Where it listens.
    pub fn address(&self) -> PathBuf {
        self.dir.join("address")
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it knows.
    pub fn table(&self) -> &Path {
        &self.table
    }
}

/// Serves until no pod needs it; at once if another does.
pub async fn serve(state: &Path, ip: Ipv4Addr, clients: Option<Subnet>) -> Result<()> {
    let places = Places::of(state);
    fs::create_dir_all(places.dir()).with_context(|| format!("make {}", places.dir().display()))?;
    let Some(_life) = LifeLock::try_take(&places.lock())? else { return Ok(()) };
    let (udp, tcp) = bind(&places, ip).await.with_context(|| format!("listen on {ip}"))?;
    let address = udp.local_addr().context("ask for the address")?;
    let text = format!("{address}\n");
    record::write_file(&places.address(), text.as_bytes(), 0o600)?;
    let server = Rc::new(Server {
        udp,
        clients,
        known: RefCell::new(Known { path: places.table().to_owned(), stamp: None, table: Rc::default() }),
        upstream: RefCell::new(Servers::new(address)),
        forwards: Arc::new(Semaphore::new(MAX_FORWARDS)),
        turn: Cell::new(0),
    });
    tokio::select! {
        () = server.clone().over_udp() => {}
        () = server.clone().over_tcp(tcp) => {}
        () = server.unneeded() => {}
    }
    // Whoever looks between this and the lock's release sees a server without an address, and waits for the lock.
    let _ = fs::remove_file(places.address());
    Ok(())
}

/// The port of the last server if it is free, else another: the same for UDP and TCP.
async fn bind(places: &Places, ip: Ipv4Addr) -> io::Result<(UdpSocket, TcpListener)> {
    let last = fs::read_to_string(places.address()).ok();
    let last = last.and_then(|text| text.trim().parse::<SocketAddrV4>().ok()).filter(|last| *last.ip() == ip);
    let mut failed = None;
    for port in last.map(|last| last.port()).into_iter().chain([0; ATTEMPTS]) {
        let bound = async {
            let udp = UdpSocket::bind((ip, port)).await?;
            let tcp = TcpListener::bind(udp.local_addr()?).await?;
            Ok((udp, tcp))
        };
        match bound.await {
            Ok(bound) => return Ok(bound),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// The table, as the file was when it was last looked at.
struct Known {
    path: PathBuf,
    stamp: Option<(u64, i64, i64)>,
    table: Rc<Table>,
}

impl Known {
    fn now(&mut self) -> Rc<Table> {
        let stamp = fs::metadata(&self.path).ok().map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec()));
        if stamp != self.stamp {
            self.stamp = stamp;
            // One that is gone or cannot be read knows nothing, and nobody.
            self.table = Rc::new(record::read_json(&self.path).ok().flatten().unwrap_or_default());
        }
        self.table.clone()
    }
}

struct Server {
    udp: UdpSocket,
    clients: Option<Subnet>,
    known: RefCell<Known>,
    upstream: RefCell<Servers>,
    forwards: Arc<Semaphore>,
    turn: Cell<usize>,
}

impl Server {
    async fn unneeded(&self) {
        let mut needed = Instant::now();
        while needed.elapsed() < UNNEEDED {
            tokio::time::sleep(LOOK).await;
            if self.known.borrow_mut().now().users > 0 {
                needed = Instant::now();
            }
        }
    }

    /// Only pods and the machine itself are answered: neighbours on the machine's networks have servers of their own.
    fn serves(&self, from: SocketAddr) -> bool {
        match (from, self.clients) {
            (SocketAddr::V4(from), Some(subnet)) => subnet.contains(*from.ip()) || from.ip().is_loopback(),
            (SocketAddr::V4(_), None) => true,
            (SocketAddr::V6(_), _) => false,
        }
    }

    async fn over_udp(self: Rc<Self>) {
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            // What the kernel tells of an earlier answer that nobody took is no concern of ours.
            let Ok((len, from)) = self.udp.recv_from(&mut buffer).await else { continue };
            if !self.serves(from) {
                continue;
            }
            match self.own(&buffer[..len], false) {
                Own::Nothing => {}
                Own::Answer(answer) => self.send(&answer, from),
                Own::Ask(asked) => {
                    let Ok(permit) = self.forwards.clone().try_acquire_owned() else { continue };
                    let (server, message) = (self.clone(), buffer[..len].to_vec());
                    tokio::task::spawn_local(async move {
                        let answer = server.foreign(&message, asked, false).await;
                        server.send(&answer, from);
                        drop(permit);
                    });
                }
            }
        }
    }

    /// An answer that does not go out at once is lost, as any packet may be.
    fn send(&self, answer: &[u8], to: SocketAddr) {
        let _ = self.udp.try_send_to(answer, to);
    }

    async fn over_tcp(self: Rc<Self>, listener: TcpListener) {
        const PAUSE: Duration = Duration::from_millis(100);
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, from)) if self.serves(from) => {
                    let server = self.clone();
                    tokio::task::spawn_local(async move {
                        server.connection(stream).await;
                        drop(permit);
                    });
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn connection(&self, mut stream: TcpStream) {
        while let Ok(Ok(message)) = timeout(IDLE, forward::read_message(&mut stream)).await {
            let answer = match self.own(&message, true) {
                Own::Nothing => return,
                Own::Answer(answer) => answer,
                Own::Ask(asked) => self.foreign(&message, asked, true).await,
            };
            if !matches!(timeout(IDLE, forward::write(&mut stream, &answer)).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// What is answered without asking anybody.
    fn own(&self, message: &[u8], tcp: bool) -> Own {
        let query = match wire::query(message) {
            Ok(query) => query,
            Err(Wrong::Silent) => return Own::Nothing,
            Err(Wrong::Refuse(id, code)) => return Own::Answer(wire::encode_refusal(id, code)),
        };
        let turn = self.turn.replace(self.turn.get().wrapping_add(1));
        let table = self.known.borrow_mut().now();
        let mut question = query.question.clone();
        let mut aliases = Vec::new();
        loop {
            match table.answer(&question, turn) {
                Verdict::Answer(mut answer) => {
                    answer.answers.splice(0..0, aliases);
                    return Own::Answer(wire::encode(&query, &answer, limit(&query, tcp)));
                }
                Verdict::Follow(alias, target) if aliases.len() < MAX_ALIASES => {
                    aliases.push(alias);
                    if question.kind == wire::kind::CNAME {
                        let answer = Answer { authoritative: true, answers: aliases, ..Answer::code(Code::Ok) };
                        return Own::Answer(wire::encode(&query, &answer, limit(&query, tcp)));
                    }
                    question.name = target;
                }
                Verdict::Follow(..) => {
                    return Own::Answer(wire::encode(&query, &Answer::code(Code::ServFail), limit(&query, tcp)));
                }
                Verdict::Foreign => return Own::Ask(Asked { query, question, aliases }),
            }
        }
    }

    /// What others answer.
    async fn foreign(&self, message: &[u8], asked: Asked, tcp: bool) -> Vec<u8> {
        let Asked { query, question, aliases } = asked;
        let servers = self.upstream.borrow_mut().now();
        let failed = Answer { answers: aliases.clone(), ..Answer::code(Code::ServFail) };
        if aliases.is_empty() {
            let answer = forward::ask(&servers, message, &question, tcp).await;
            return answer.unwrap_or_else(|| wire::encode(&query, &failed, limit(&query, tcp)));
        }
        let found = self.resolve(&servers, &question).await;
        let answer = found.map_or(failed, |(code, records)| Answer {
            answers: aliases.into_iter().chain(records).collect(),
            ..Answer::code(code)
        });
        wire::encode(&query, &answer, limit(&query, tcp))
    }

    /// The addresses of another's name, for an alias of ours.
    async fn resolve(&self, servers: &[SocketAddr], question: &Question) -> Option<(Code, Vec<wire::Record>)> {
        let mut answer = forward::ask(servers, &wire::encode_query(0, question, true), question, false).await?;
        if wire::is_truncated(&answer) {
            answer = forward::ask(servers, &wire::encode_query(0, question, false), question, true).await?;
        }
        let (code, records) = wire::addresses(&answer)?;
        match code {
            0 => Some((Code::Ok, records)),
            3 => Some((Code::NxDomain, records)),
            _ => None,
        }
    }
}

/// What becomes of a message.
enum Own {
    /// Nothing: it is no query.
    Nothing,
    /// An answer.
    Answer(Vec<u8>),
    /// Others are asked.
    Ask(Asked),
}

/// A query for others.
struct Asked {
    query: Query,
    /// What they are asked: the query's own question, or what its name is an alias for.
    question: Question,
    aliases: Vec<wire::Record>,
}

/// The most bytes of an answer.
fn limit(query: &Query, tcp: bool) -> usize {
    match (tcp, query.edns) {
        (true, _) => MAX_MESSAGE,
        (false, Some(size)) => usize::from(size).clamp(CLASSIC_UDP, MAX_UDP),
        (false, None) => CLASSIC_UDP,
    }
}
