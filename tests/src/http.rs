//! Small HTTP servers for tests: one that answers by a closure, and a proxy that misbehaves on purpose.
//!
//! Both serve one request per connection, each on a thread of its own, on a loopback port of the kernel's choice.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A request's head and body.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `GET`, ...
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// Headers, with lower-case names.
    pub headers: BTreeMap<String, String>,
    /// The body, if a length was given.
    pub body: String,
}

impl Request {
    /// A header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Reads one, or `None` if the client left.
    fn read(stream: &TcpStream) -> io::Result<Option<Request>> {
        // A TLS greeting has no lines to wait for; as a web server does, leave.
        const TLS_HANDSHAKE: u8 = 0x16;
        let mut first = [0];
        if stream.peek(&mut first)? == 0 || first[0] == TLS_HANDSHAKE {
            return Ok(None);
        }
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut request = Request { method, target, ..Request::default() };
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            request.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = request.header("content-length").parse().unwrap_or(0);
        reader.take(length).read_to_string(&mut request.body)?;
        Ok(Some(request))
    }

    /// The head as it goes to the next server, asking it to close the connection after the answer.
    fn forwarded_head(&self) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in self.headers.iter().filter(|(name, _)| *name != "connection") {
            head += &format!("{name}: {value}\r\n");
        }
        head + "connection: close\r\n\r\n"
    }
}

/// Accepts connections until it is dropped.
#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Listener {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on loopback");
        let address = listener.local_addr().expect("the listener's address");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, serve) = (stop.clone(), Arc::new(serve));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
        Listener { address, stop, thread: Some(thread) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // One more connection wakes the thread up, and shows it the flag.
        if TcpStream::connect(self.address).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Headers besides the length.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// An answer with a body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Response {
        Response { status, headers: Vec::new(), body: body.into() }
    }

    /// Adds a header. An empty `content-length` leaves it out.
    pub fn header(mut self, name: &str, value: &str) -> Response {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn write(&self, mut stream: &TcpStream) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {} status\r\nconnection: close\r\n", self.status);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            head += &format!("content-length: {}\r\n", self.body.len());
        }
        for (name, value) in self.headers.iter().filter(|(_, value)| !value.is_empty()) {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(head.as_bytes())?;
        stream.write_all(b"\r\n")?;
        stream.write_all(&self.body)
    }
}

/// A server that answers by a closure, and remembers what it was asked.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts one.
    pub fn start(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Server {
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let seen = requests.clone();
        let listener = Listener::start(move |stream| {
            // A client that hangs up is part of many tests.
            let Ok(Some(request)) = Request::read(&stream) else { return };
            seen.lock().expect("the list of requests").push(request.clone());
            let _ = answer(&request).write(&stream);
        });
        Server { listener, requests }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.listener.address.to_string()
    }

    /// What it was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("the list of requests").clone()
    }
}

/// What a [`Proxy`] does to a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Passes it on.
    None,
    /// Passes it on, and closes the connection after so many bytes of the answer (the head counts too).
    CutAfter(u64),
    /// Passes it on, and after so many bytes of the answer says no more, for so long.
    StallAfter(u64, Duration),
    /// Answers by itself.
    Answer(Response),
}

/// A proxy before a server on loopback, which a closure tells what to do to each request.
#[derive(Debug)]
pub struct Proxy {
    listener: Listener,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Proxy {
    /// Starts one before the server at `upstream`.
    pub fn start(upstream: &str, fault: impl Fn(&Request) -> Fault + Send + Sync + 'static) -> Proxy {
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (seen, upstream) = (requests.clone(), upstream.to_owned());
        let listener = Listener::start(move |stream| {
            let Ok(Some(request)) = Request::read(&stream) else { return };
            seen.lock().expect("the list of requests").push(request.clone());
            let _ = relay(&stream, &request, &upstream, fault(&request));
            let _ = stream.shutdown(Shutdown::Both);
        });
        Proxy { listener, requests }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.listener.address.to_string()
    }

    /// What it was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("the list of requests").clone()
    }
}

fn relay(mut client: &TcpStream, request: &Request, upstream: &str, fault: Fault) -> io::Result<()> {
    let (limit, stall) = match fault {
        Fault::Answer(response) => return response.write(client),
        Fault::None => (u64::MAX, Duration::ZERO),
        Fault::CutAfter(limit) => (limit, Duration::ZERO),
        Fault::StallAfter(limit, stall) => (limit, stall),
    };
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(request.forwarded_head().as_bytes())?;
    server.write_all(request.body.as_bytes())?;
    io::copy(&mut server.take(limit), &mut client)?;
    std::thread::sleep(stall);
    Ok(())
}

/// A forward proxy that takes `CONNECT` only, and leads every tunnel to one server, whatever it was asked for.
#[derive(Debug)]
pub struct Tunnels {
    listener: Listener,
    targets: Arc<Mutex<Vec<String>>>,
}

impl Tunnels {
    /// Starts one that leads to the server at `upstream`.
    pub fn start(upstream: &str) -> Tunnels {
        let targets: Arc<Mutex<Vec<String>>> = Arc::default();
        let (seen, upstream) = (targets.clone(), upstream.to_owned());
        let listener = Listener::start(move |stream| {
            let Ok(Some(request)) = Request::read(&stream) else { return };
            seen.lock().expect("the list of targets").push(format!("{} {}", request.method, request.target));
            let _ = tunnel(stream, &upstream);
        });
        Tunnels { listener, targets }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.listener.address)
    }

    /// The request lines so far: `CONNECT HOST:PORT`.
    pub fn targets(&self) -> Vec<String> {
        self.targets.lock().expect("the list of targets").clone()
    }
}

/// Passes bytes both ways until either side is done.
fn tunnel(mut client: TcpStream, upstream: &str) -> io::Result<()> {
    let mut server = TcpStream::connect(upstream)?;
    client.write_all(b"HTTP/1.1 200 connected\r\n\r\n")?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Both)
}
