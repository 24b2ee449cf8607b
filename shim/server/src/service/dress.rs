//! What a new pod is called and whom it asks for names, by kubelet's rules.
//!
//! A pod with a subdomain has the name `HOSTNAME.SUBDOMAIN.NAMESPACE.svc.DOMAIN`: it stands in its hosts file, and with
//! setHostnameAsFQDN it is also its host name. It asks the cluster's DNS server (see [`crate::dns`]) if its dnsPolicy says
//! so and there is something to ask for.

use std::fs;

use anyhow::{Context, Result, bail};
use coracle_engine::net::files;
use coracle_engine::{DnsConfig, Engine, SandboxConfig};

use crate::dns;
use crate::dns::resolver::{self, Base, Cluster};
use crate::kube::pod::{DnsPolicy, Pod};
use crate::kube::service::Service;
use crate::objects::Objects;

/// The kernel's longest host name.
const MAX_HOSTNAME: usize = 64;

/// Completes a pod's sandbox with its names and its resolver settings. The answer are notes of what was left out, for an
/// event.
pub fn dress(engine: &Engine, pod: &Pod, config: &mut SandboxConfig) -> Result<Vec<String>> {
    if !pod.host_network {
        names(pod, &engine.config().network.cluster_domain, config)?;
    }
    let cluster = uses_cluster(engine, pod)?;
    let base = match pod.dns.policy {
        DnsPolicy::None => Base::Nothing,
        _ if cluster => Base::Cluster,
        _ => Base::Machine,
    };
    let own = DnsConfig {
        servers: pod.dns.nameservers.clone(),
        searches: pod.dns.searches.clone(),
        options: pod.dns.options.clone(),
    };
    if base == Base::Machine && own == DnsConfig::default() {
        // The engine's own way.
        return Ok(Vec::new());
    }
    let (machine, mut notes) = if base == Base::Nothing { Default::default() } else { machine(pod.host_network)? };
    if base == Base::Cluster {
        notes.clear();
    }
    let at = Cluster {
        server: dns::address(engine),
        domain: &engine.config().network.cluster_domain,
        namespace: &pod.namespace,
    };
    let (dns, cut) = resolver::settings(base, at, machine, &own);
    config.dns = Some(dns);
    notes.extend(cut);
    Ok(notes)
}

/// Whether a pod asks the cluster's server: it would, and there is a Service, or a name below a subdomain.
fn uses_cluster(engine: &Engine, pod: &Pod) -> Result<bool> {
    let would = match pod.dns.policy {
        DnsPolicy::ClusterFirst => !pod.host_network,
        DnsPolicy::ClusterFirstWithHostNet => true,
        DnsPolicy::Default | DnsPolicy::None => false,
    };
    Ok(would && (pod.subdomain.is_some() || !Objects::open(engine.paths()).list::<Service>(None)?.is_empty()))
}

/// The machine's resolver settings, as far as a pod can use them.
fn machine(host_network: bool) -> Result<(DnsConfig, Vec<String>)> {
    let path = files::HOST_RESOLV_CONF;
    let etc = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    if host_network {
        return Ok((DnsConfig::parse(&etc), Vec::new()));
    }
    let resolved = fs::read_to_string(files::RESOLVED_RESOLV_CONF).ok();
    let mut config = DnsConfig::parse(files::host_source(&etc, resolved.as_deref()));
    let notes = config.drop_loopback();
    Ok((config, notes))
}

fn names(pod: &Pod, domain: &str, config: &mut SandboxConfig) -> Result<()> {
    if let Some(name) = &pod.hostname_override {
        config.hostname = name.clone();
        return Ok(());
    }
    let Some(subdomain) = &pod.subdomain else { return Ok(()) };
    config.host_domain = format!("{subdomain}.{}.svc.{domain}", pod.namespace);
    if pod.hostname_as_fqdn {
        let fqdn = format!("{}.{}", pod.hostname, config.host_domain);
        if fqdn.len() > MAX_HOSTNAME {
            let asked = fqdn.len();
            bail!(
                "failed to construct FQDN from Pod hostname and cluster domain, FQDN {fqdn} is too long ({MAX_HOSTNAME} \
                 characters is the max, {asked} characters requested)"
            );
        }
        config.hostname = fqdn;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(spec: &str) -> Result<(String, String)> {
        let mut pod = Pod { hostname: "db-0".into(), ..pod() };
        for word in spec.split_whitespace() {
            match word.split_once('=') {
                Some(("subdomain", value)) => pod.subdomain = Some(value.to_owned()),
                Some(("override", value)) => pod.hostname_override = Some(value.to_owned()),
                _ => pod.hostname_as_fqdn = true,
            }
        }
        let mut config = SandboxConfig { hostname: pod.hostname.clone(), ..SandboxConfig::default() };
        names(&pod, "cluster.local", &mut config)?;
        Ok((config.hostname, config.host_domain))
    }

    fn pod() -> Pod {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: db-0}\nspec: {containers: [{name: c, image: b}]}\n";
        crate::kube::pod::read("f", text).unwrap().remove(0)
    }

    #[test]
    fn a_subdomain_makes_a_full_name_and_an_override_none() {
        let domain = "db.default.svc.cluster.local".to_owned();
        assert_eq!(named("").unwrap(), ("db-0".to_owned(), String::new()));
        assert_eq!(
            named("fqdn").unwrap(),
            ("db-0".to_owned(), String::new()),
            "as kubelet: without a subdomain nothing"
        );
        assert_eq!(named("subdomain=db").unwrap(), ("db-0".to_owned(), domain.clone()));
        assert_eq!(named("subdomain=db fqdn").unwrap(), (format!("db-0.{domain}"), domain));
        assert_eq!(named("subdomain=db override=x.y").unwrap(), ("x.y".to_owned(), String::new()));
        let long = named(&format!("subdomain={} fqdn", "s".repeat(60))).unwrap_err().to_string();
        assert!(long.contains("64 characters is the max"), "{long}");
    }
}
