//! GET by HTTP/1.1, as probes and hooks ask: any certificate is right, redirects are followed within the same host, and
//! of a body no more is read than an event may show.

use std::sync::Arc;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme};

use super::dial::Dialer;
use super::url::{Scheme, Url};

/// No more of a body is kept, as with kubelet.
pub const MAX_BODY: usize = 10 << 10;
/// Redirects followed, as by Go's client.
const MAX_REDIRECTS: usize = 10;

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The first bytes of the body.
    pub body: Vec<u8>,
    /// It is a redirect to another host, which is not followed.
    pub led_away: bool,
}

/// Asks for a URL. `agent` is the User-Agent unless the headers name one; an error is in Go's words.
pub async fn get(dialer: &Dialer, url: Url, headers: &[(String, String)], agent: &str) -> Result<Answer, String> {
    let first = url.to_string();
    let told = |why: String| format!("Get \"{first}\": {why}");
    let headers = header_map(headers, agent).map_err(told)?;
    let mut url = url;
    for _ in 0..MAX_REDIRECTS {
        let response = ask(dialer, &url, &headers).await.map_err(|why| format!("Get \"{url}\": {why}"))?;
        let status = response.status().as_u16();
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let next = match (matches!(status, 301 | 302 | 303 | 307 | 308), location) {
            (true, Some(location)) => Some(url.follow(location).ok_or_else(|| told(bad_location(location)))?),
            _ => None,
        };
        match next {
            Some(next) if next.host == url.host => url = next,
            next => return Ok(Answer { status, body: body(response).await?, led_away: next.is_some() }),
        }
    }
    Err(told(format!("stopped after {MAX_REDIRECTS} redirects")))
}

fn bad_location(location: &str) -> String {
    format!("failed to parse Location header {location:?}")
}

/// The headers as the user wants them. An empty Accept or User-Agent sends none, as with kubelet.
fn header_map(given: &[(String, String)], agent: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("invalid header field name {name:?}"))?;
        let value = HeaderValue::from_bytes(value.as_bytes());
        headers.append(&name, value.map_err(|_| format!("invalid header field value for {:?}", name.as_str()))?);
    }
    let agent = HeaderValue::from_str(agent).map_err(|error| error.to_string())?;
    for (name, value) in [(USER_AGENT, agent), (ACCEPT, HeaderValue::from_static("*/*"))] {
        match headers.get(&name) {
            None => drop(headers.insert(name, value)),
            Some(given) if given.is_empty() => drop(headers.remove(name)),
            Some(_) => {}
        }
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(headers)
}

async fn ask(dialer: &Dialer, url: &Url, headers: &HeaderMap) -> Result<Response<Incoming>, String> {
    let mut request = Request::builder().uri(&url.path).body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    *request.headers_mut() = headers.clone();
    if !headers.contains_key(HOST) {
        let host = HeaderValue::from_str(&url.authority()).map_err(|_| format!("invalid host {:?}", url.host))?;
        request.headers_mut().insert(HOST, host);
    }
    let stream = dialer.connect(&url.host, url.port).await?;
    match url.scheme {
        Scheme::Http => exchange(stream, request).await,
        Scheme::Https => {
            let name = ServerName::try_from(url.host.clone()).map_err(|_| format!("invalid host {:?}", url.host))?;
            let connected = TlsConnector::from(trusting()?).connect(name, stream).await;
            exchange(connected.map_err(|error| tls_words(&error))?, request).await
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(words)?;
    // It ends with the response's body, or when both are dropped.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(words)
}

fn words(error: hyper::Error) -> String {
    match error.is_incomplete_message() || error.is_canceled() {
        true => "EOF".into(),
        false => std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string),
    }
}

fn tls_words(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    match inner {
        Some(TlsError::InvalidMessage(_)) => "http: server gave HTTP response to HTTPS client".into(),
        _ => format!("tls: {error}"),
    }
}

async fn body(response: Response<Incoming>) -> Result<Vec<u8>, String> {
    let (mut kept, mut rest) = (Vec::new(), response.into_body());
    while kept.len() < MAX_BODY {
        let Some(frame) = rest.frame().await else { break };
        if let Ok(data) = frame.map_err(words)?.into_data() {
            kept.extend_from_slice(&data[..data.len().min(MAX_BODY - kept.len())]);
        }
    }
    Ok(kept)
}

/// TLS with whoever answers: a probe asks whether a server serves, not who it is.
fn trusting() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| format!("tls: {error}"))?;
    let config = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    Ok(Arc::new(config.with_no_client_auth()))
}

/// Takes any certificate; the handshake's signatures must still be right.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        // Whose it is is not asked, and certificates of the first version cannot even be read for it.
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that gives these answers, one a connection, and the requests it got.
    async fn serve(answers: Vec<String>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.unwrap();
                requests.push(String::from_utf8_lossy(&request[..read]).into_owned());
                // One who has read enough may be gone.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            requests
        });
        (port, serving)
    }

    fn url(port: u16, path: &str) -> Url {
        Url::new(Scheme::Http, "127.0.0.1", port, path)
    }

    #[tokio::test]
    async fn a_request_says_what_kubelets_says_and_what_the_user_adds() {
        let (port, serving) = serve(vec!["HTTP/1.1 204 No Content\r\n\r\n".into()]).await;
        let headers = [("X-One".to_owned(), "1".to_owned()), ("Accept".to_owned(), String::new())];
        let answer = get(&Dialer::Machine, url(port, "/up?x"), &headers, "kube-probe/x").await.unwrap();
        assert_eq!((answer.status, answer.led_away), (204, false));
        let request = serving.await.unwrap().remove(0).to_lowercase();
        assert!(request.starts_with("get /up?x http/1.1\r\n"), "{request}");
        assert!(request.contains("user-agent: kube-probe/x\r\n") && request.contains("x-one: 1\r\n"), "{request}");
        assert!(request.contains(&format!("host: 127.0.0.1:{port}\r\n")) && !request.contains("accept"), "{request}");
    }

    #[tokio::test]
    async fn redirects_are_followed_within_a_host_and_not_away_from_it() {
        let to = |place: &str| format!("HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n");
        let done = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned();
        let (port, serving) = serve(vec![to("/next"), done]).await;
        let answer = get(&Dialer::Machine, url(port, "/"), &[], "a").await.unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"ok"[..]));
        assert!(serving.await.unwrap()[1].starts_with("GET /next "));
        let (port, _serving) = serve(vec![to("http://example.com/")]).await;
        let answer = get(&Dialer::Machine, url(port, "/"), &[], "a").await.unwrap();
        assert_eq!((answer.status, answer.led_away), (302, true));
        let (port, _serving) = serve(vec![to("/again"); 20]).await;
        let told = get(&Dialer::Machine, url(port, "/"), &[], "a").await.unwrap_err();
        assert!(told.ends_with("stopped after 10 redirects"), "{told}");
    }

    #[tokio::test]
    async fn a_long_body_is_cut_and_a_bad_server_is_told_of() {
        let long = format!("HTTP/1.1 500 Oh\r\nContent-Length: 100000\r\n\r\n{}", "x".repeat(100_000));
        let (port, _serving) = serve(vec![long]).await;
        let answer = get(&Dialer::Machine, url(port, "/"), &[], "a").await.unwrap();
        assert_eq!((answer.status, answer.body.len()), (500, MAX_BODY));
        let (port, _serving) = serve(vec![String::new()]).await;
        assert_eq!(
            get(&Dialer::Machine, url(port, "/"), &[], "a").await.unwrap_err(),
            format!("Get \"http://127.0.0.1:{port}/\": EOF")
        );
        let (port, _serving) = serve(vec!["HTTP/1.1 400 Bad Request\r\n\r\n".into()]).await;
        let https = Url { scheme: Scheme::Https, ..url(port, "/") };
        let told = get(&Dialer::Machine, https, &[], "a").await.unwrap_err();
        assert!(told.contains("server gave HTTP response to HTTPS client"), "{told}");
    }
}
