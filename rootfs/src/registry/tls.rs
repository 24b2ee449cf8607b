//! Whom to believe: the system's certificate authorities, further ones from files, and client certificates.
//!
//! Files that were named must be good: a CA file without a certificate, or a key of another certificate, is an error
//! that names the file, long before a server is spoken to.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use crate::error::{Error, ErrorKind, Result};
use crate::hosts::Host;

/// The cryptography, chosen once.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(ring::default_provider())).clone()
}

/// The system's authorities, read when TLS is first needed.
fn system_roots() -> &'static [Certificate<'static>] {
    static ROOTS: OnceLock<Vec<Certificate<'static>>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        // Single files that cannot be read are as good as absent: a server they vouch for is refused, and says so.
        let found = rustls_native_certs::load_native_certs();
        found.certs.iter().map(|cert| Certificate::from_der(cert).to_owned()).collect()
    })
}

/// Does the system have any authority?
pub fn has_system_roots() -> bool {
    !system_roots().is_empty()
}

/// The configuration of connections to a host; for servers other than it (`own` is false), that a redirect or a token
/// service leads to, without its client certificate and without its leave to skip verification.
pub fn config(host: &Host, own: bool, extra_cas: &[impl AsRef<Path>]) -> Result<TlsConfig> {
    let mut roots = system_roots().to_vec();
    for path in extra_cas.iter().map(AsRef::as_ref).chain(host.ca.iter().map(|path| path.as_path())) {
        roots.extend(authorities(path)?);
    }
    let client = match host.client.as_slice() {
        [] => None,
        [(cert, key)] => Some(client_cert(cert, key.as_deref())?),
        [_, (second, _), ..] => {
            let message = format!("client certificate {}: only one can be shown to a server", second.display());
            return Err(Error::new(ErrorKind::Unsupported, message).hint("remove the others"));
        }
    };
    Ok(TlsConfig::builder()
        .unversioned_rustls_crypto_provider(provider())
        .root_certs(RootCerts::from(roots))
        .client_cert(client.filter(|_| own))
        .disable_verification(own && host.skip_verify)
        .build())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|err| Error::io(format_args!("read certificate {}", path.display()), err))
}

fn invalid(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("certificate {}: {why}", path.display())).hint("a PEM file is expected")
}

/// The certificates and the private keys of a PEM file.
fn parse(path: &Path) -> Result<(Vec<Certificate<'static>>, Vec<PrivateKey<'static>>)> {
    let (mut certs, mut keys) = (Vec::new(), Vec::new());
    for item in parse_pem(&read(path)?) {
        match item.map_err(|err| invalid(path, err))? {
            PemItem::Certificate(cert) => certs.push(cert),
            PemItem::PrivateKey(key) => keys.push(key),
            _ => {}
        }
    }
    Ok((certs, keys))
}

fn authorities(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let (certs, _) = parse(path)?;
    if certs.is_empty() {
        return Err(invalid(path, "there is no certificate in it"));
    }
    for cert in &certs {
        RootCertStore::empty().add(CertificateDer::from(cert.der())).map_err(|err| invalid(path, err))?;
    }
    Ok(certs)
}

fn client_cert(cert: &Path, key: Option<&Path>) -> Result<ClientCert> {
    let (chain, keys) = parse(cert)?;
    let keys = match key {
        Some(key) => parse(key)?.1,
        None => keys,
    };
    if chain.is_empty() {
        return Err(invalid(cert, "there is no certificate in it"));
    }
    let key_path = key.unwrap_or(cert);
    let key = keys.into_iter().next().ok_or_else(|| invalid(key_path, "there is no private key in it"))?;
    // The TLS library takes it for granted that they belong together.
    let chain_der = chain.iter().map(|cert| CertificateDer::from(cert.der().to_vec())).collect();
    let key_der = PrivateKeyDer::try_from(key.der().to_vec()).map_err(|err| invalid(key_path, err))?;
    CertifiedKey::from_der(chain_der, key_der, &provider()).map_err(|err| invalid(key_path, err))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}
