//! A pod's resolver settings, by kubelet's rules.
//!
//! | dnsPolicy | servers | search | options |
//! |---|---|---|---|
//! | ClusterFirst, ClusterFirstWithHostNet | the cluster's | the namespace's, the cluster's, the machine's | ndots:5 |
//! | Default, and ClusterFirst on the machine's network or without a cluster's server | the machine's | the machine's | the machine's |
//! | None | | | |
//!
//! What `dnsConfig` says is added to that, without repetition; an option replaces the one of its name.

use std::net::Ipv4Addr;

use coracle_engine::DnsConfig;

/// Where a pod's settings begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The cluster's server.
    Cluster,
    /// The machine's settings.
    Machine,
    /// Nothing.
    Nothing,
}

/// The cluster's server, for pods of a namespace.
#[derive(Debug, Clone, Copy)]
pub struct Cluster<'a> {
    /// Its service address.
    pub server: Ipv4Addr,
    /// The cluster's domain.
    pub domain: &'a str,
    /// The pod's namespace.
    pub namespace: &'a str,
}

/// kubelet's options of a pod that asks the cluster's server.
const CLUSTER_OPTIONS: &str = "ndots:5";

/// The settings; `machine` are those of the machine, `own` the pod's `dnsConfig`. With notes of what was left out.
pub fn settings(base: Base, cluster: Cluster, machine: DnsConfig, own: &DnsConfig) -> (DnsConfig, Vec<String>) {
    let mut config = match base {
        Base::Cluster => {
            let Cluster { server, domain, namespace } = cluster;
            let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
            searches.extend(machine.searches.into_iter().filter(|search| {
                let known = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
                !known.contains(search)
            }));
            DnsConfig { servers: vec![server.to_string()], searches, options: vec![CLUSTER_OPTIONS.to_owned()] }
        }
        Base::Machine => machine,
        Base::Nothing => DnsConfig::default(),
    };
    config.add(own);
    let notes = config.cut();
    (config, notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: Cluster =
        Cluster { server: Ipv4Addr::new(10, 96, 0, 10), domain: "cluster.local", namespace: "shop" };

    fn text(base: Base, own: &str) -> String {
        let machine = DnsConfig::parse("nameserver 192.0.2.1\nsearch lan cluster.local\noptions ndots:1 rotate\n");
        settings(base, CLUSTER, machine, &DnsConfig::parse(own)).0.text()
    }

    #[test]
    fn the_policies_are_kubelets() {
        assert_eq!(
            text(Base::Cluster, ""),
            "search shop.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        assert_eq!(text(Base::Machine, ""), "search lan cluster.local\nnameserver 192.0.2.1\noptions ndots:1 rotate\n");
        assert_eq!(text(Base::Nothing, "nameserver 1.1.1.1\n"), "nameserver 1.1.1.1\n");
    }

    #[test]
    fn the_pods_own_settings_are_added() {
        assert_eq!(
            text(
                Base::Cluster,
                "nameserver 10.96.0.10\nnameserver 1.1.1.1\nsearch lan my.test\noptions ndots:2 edns0\n"
            ),
            "search shop.svc.cluster.local svc.cluster.local cluster.local lan my.test\nnameserver 10.96.0.10\n\
             nameserver 1.1.1.1\noptions ndots:2 edns0\n"
        );
    }
}
