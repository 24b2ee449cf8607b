//! What kubelet makes of a pod's requests and limits: its QoS class, the limits of its cgroup, and whom the OOM killer takes
//! first. Pure functions, by kubelet's rules.
//!
//! | class | when | OOM score |
//! |---|---|---|
//! | Guaranteed | every container has limits of CPU and memory and asks for just these | -997 |
//! | BestEffort | nobody asks for anything | 1000 |
//! | Burstable | else | 1000 less the thousandths of the machine's memory that the container asks for, 3 to 999 |
//!
//! Requests and limits of the pod as a whole (`spec.resources`) count instead of the containers'. Init containers run one
//! at a time, so of them the largest counts; a sidecar runs on beside those after it.
//!
//! The pod's cgroup is limited only if all its containers are, since the limits of some say nothing about the others.
//! kubelet's `memory.min` and `memory.high` belong to a feature that is off unless told, and are not set here either.

use std::collections::BTreeMap;
use std::{fs, iter};

use coracle_engine::{HugepageLimit, Qos, Resources};
use coracle_rootfs::in_user_namespace;

use crate::kube::container::Container;
use crate::kube::container::Resources as Asked;
use crate::kube::pod::Pod;
use crate::kube::quantity::Quantity;

const GUARANTEED_SCORE: i32 = -997;
const BEST_EFFORT_SCORE: i32 = 1000;
/// A burstable container's lowest: above those of the guaranteed.
const LEAST_BURSTABLE: i64 = 3;
/// The CFS period in microseconds, as kubelet has it.
const PERIOD: i64 = 100_000;
/// The kernel takes no smaller quota, in microseconds.
const MIN_QUOTA: i64 = 1000;
/// The kernel's bounds of cpu.shares.
const SHARES: (i64, i64) = (2, 262_144);
/// How the names of huge pages begin.
const HUGE: &str = "hugepages-";
/// The resources that decide on the class.
const CLASSIC: [&str; 2] = ["cpu", "memory"];

/// Amounts by resource: thousandths of CPUs, bytes of all else.
type Amounts = BTreeMap<String, i64>;

fn amounts<'a>(list: impl IntoIterator<Item = (&'a String, &'a Quantity)>) -> Amounts {
    let amount = |(name, quantity): (&'a String, &'a Quantity)| {
        let amount = if name == "cpu" { quantity.milli() } else { quantity.value() };
        (name.clone(), amount)
    };
    list.into_iter().map(amount).filter(|(_, amount)| *amount > 0).collect()
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn raise(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let most = to.entry(name.clone()).or_default();
        *most = (*most).max(*amount);
    }
}

/// What the containers come to, by `of` each.
fn total(pod: &Pod, of: impl Fn(&Asked) -> Amounts) -> Amounts {
    let mut all = Amounts::new();
    pod.containers.iter().for_each(|container| add(&mut all, &of(&container.resources)));
    let (mut most, mut sidecars) = (Amounts::new(), Amounts::new());
    for container in &pod.init {
        let own = of(&container.resources);
        if container.is_sidecar(true) {
            add(&mut all, &own);
            add(&mut sidecars, &own);
            raise(&mut most, &sidecars);
        } else {
            let mut both = own;
            add(&mut both, &sidecars);
            raise(&mut most, &both);
        }
    }
    raise(&mut all, &most);
    all
}

/// The pod's requests: the containers' together, or its own; without its overhead.
fn requests(pod: &Pod) -> Amounts {
    let mut all = total(pod, |asked| amounts(&asked.requests));
    all.extend(pod.resources.iter().flat_map(|own| amounts(&own.requests)));
    all
}

fn limits(pod: &Pod) -> Amounts {
    let mut all = total(pod, |asked| amounts(&asked.limits));
    all.extend(pod.resources.iter().flat_map(|own| amounts(&own.limits)));
    all
}

/// The pod's class.
pub fn class(pod: &Pod) -> Qos {
    let own = pod.resources.as_ref().filter(|own| !own.requests.is_empty() || !own.limits.is_empty());
    let all: Vec<&Asked> = match own {
        Some(own) => vec![own],
        None => pod.all_containers().map(|container| &container.resources).collect(),
    };
    let classic = |list: Amounts| list.into_iter().filter(|(name, _)| CLASSIC.contains(&name.as_str())).collect();
    let (mut asked, mut guaranteed) = (false, true);
    for resources in all {
        let requests: Amounts = classic(amounts(&resources.requests));
        let limits: Amounts = classic(amounts(&resources.limits));
        asked |= !requests.is_empty() || !limits.is_empty();
        guaranteed &= limits.len() == CLASSIC.len() && requests.iter().all(|(name, amount)| limits[name] == *amount);
    }
    match (asked, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

fn shares(milli: i64) -> u64 {
    (milli.saturating_mul(1024) / 1000).clamp(SHARES.0, SHARES.1).unsigned_abs()
}

/// The limits of the pod's cgroup, without its overhead, which the engine adds.
pub fn pod_resources(pod: &Pod) -> Resources {
    let (requests, limits) = (requests(pod), limits(pod));
    let get = |list: &Amounts, name: &str| list.get(name).copied();
    let own = pod.resources.as_ref().map(|own| amounts(&own.limits)).unwrap_or_default();
    let all_have = |name: &str| {
        own.contains_key(name) || pod.all_containers().all(|c| amounts(&c.resources.limits).contains_key(name))
    };
    let qos = class(pod);
    let limit = |name: &str| get(&limits, name).filter(|_| qos != Qos::BestEffort && all_have(name));
    let quota = limit("cpu").map(|milli| (milli.saturating_mul(PERIOD) / 1000).max(MIN_QUOTA));
    Resources {
        cpu_shares: Some(if qos == Qos::BestEffort { shares(0) } else { shares(get(&requests, "cpu").unwrap_or(0)) }),
        cpu_quota: quota,
        cpu_period: quota.map(|_| PERIOD.unsigned_abs()),
        memory: limit("memory"),
        hugepage_limits: hugepages(&limits),
        ..Resources::default()
    }
}

/// The overhead of a handler, as the limits of a cgroup.
pub fn overhead<'a>(list: impl IntoIterator<Item = (&'a String, &'a Quantity)>) -> Resources {
    let list = amounts(list);
    let milli = list.get("cpu").copied();
    Resources {
        cpu_shares: milli.map(shares),
        cpu_quota: milli.map(|milli| milli.saturating_mul(PERIOD) / 1000),
        cpu_period: milli.map(|_| PERIOD.unsigned_abs()),
        memory: list.get("memory").copied(),
        hugepage_limits: hugepages(&list),
        ..Resources::default()
    }
}

/// The limits of a container's cgroup.
pub fn container_resources(pod: &Pod, container: &Container, machine: &Machine) -> Resources {
    let asked = &container.resources;
    Resources {
        cpu_shares: Some(asked.cpu_shares),
        cpu_quota: asked.cpu_quota,
        cpu_period: asked.cpu_quota.map(|_| asked.cpu_period),
        memory: asked.memory_limit,
        oom_score_adj: Some(score(pod, container, machine.memory)),
        hugepage_limits: hugepages(&amounts(&asked.limits)),
        unified: machine.unified.clone(),
        ..Resources::default()
    }
}

/// Limits of huge pages, by their sizes in the words of cgroups.
fn hugepages(limits: &Amounts) -> Vec<HugepageLimit> {
    let limit = |(name, limit): (&String, &i64)| {
        let size = Quantity::parse(name.strip_prefix(HUGE)?).ok()?.value();
        Some(HugepageLimit { page_size: page_size(size), limit: limit.unsigned_abs() })
    };
    limits.iter().filter_map(limit).collect()
}

fn page_size(bytes: i64) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "GB"), (20, "MB"), (10, "KB")];
    let unit = UNITS.into_iter().find(|(shift, _)| bytes > 0 && bytes % (1 << shift) == 0);
    unit.map_or(format!("{bytes}B"), |(shift, word)| format!("{}{word}", bytes >> shift))
}

/// Whom the OOM killer takes first.
fn score(pod: &Pod, container: &Container, memory: i64) -> i32 {
    match class(pod) {
        Qos::Guaranteed => return GUARANTEED_SCORE,
        Qos::BestEffort => return BEST_EFFORT_SCORE,
        Qos::Burstable => {}
    }
    let request = |container: &Container| amounts(&container.resources.requests).get("memory").copied().unwrap_or(0);
    let of = |bytes: i64| 1000 - bytes.saturating_mul(1000) / memory.max(1);
    // What the pod asks for beyond its containers is shared out among them.
    let own = pod.resources.as_ref().and_then(|own| amounts(&own.requests).get("memory").copied());
    let rest = own.map_or(0, |own| {
        let all: i64 = pod.all_containers().map(request).sum();
        (own - all).max(0) / i64::try_from(pod.all_containers().count()).unwrap_or(1).max(1)
    });
    let mut score = of(request(container).saturating_add(rest));
    if pod.init.iter().any(|init| init.name == container.name) && container.is_sidecar(true) {
        // A sidecar does not go before those it serves.
        let least = pod.containers.iter().map(request).min().unwrap_or(0);
        score = score.min(of(least.saturating_add(rest)));
    }
    i32::try_from(score.clamp(LEAST_BURSTABLE, i64::from(BEST_EFFORT_SCORE) - 1)).unwrap_or(BEST_EFFORT_SCORE - 1)
}

/// What the rules need to know of the machine.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Bytes of memory.
    pub memory: i64,
    /// Files that every container has on cgroup v2: it dies as a whole, and does not swap.
    pub unified: BTreeMap<String, String>,
}

impl Machine {
    /// This one. An ordinary user may have no cgroups, and is asked for nothing that he did not ask for himself.
    pub fn look() -> Machine {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        let groups = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        // Of a kernel without it, or with swap not counted, the root's children have no such file.
        let swap = groups.into_iter().any(|group| group.path().join("memory.swap.max").exists());
        Machine {
            memory: memory(&meminfo),
            unified: if in_user_namespace() { BTreeMap::new() } else { unified(&controllers, swap) },
        }
    }
}

fn memory(meminfo: &str) -> i64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok());
    // Of a machine that does not tell, nothing can be a part.
    kibibytes.map_or(i64::MAX, |k| k.saturating_mul(1024))
}

fn unified(controllers: &str, swap: bool) -> BTreeMap<String, String> {
    if !controllers.split_whitespace().any(|name| name == "memory") {
        return BTreeMap::new();
    }
    let group = iter::once(("memory.oom.group".to_owned(), "1".to_owned()));
    group.chain(swap.then(|| ("memory.swap.max".to_owned(), "0".to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pod whose containers have these resources.
    fn pod(containers: &[&str]) -> Pod {
        full(containers, "")
    }

    fn full(containers: &[&str], spec: &str) -> Pod {
        let list = containers.iter().enumerate().map(|(i, r)| format!("{{name: c{i}, image: b, resources: {r}}}"));
        let list = list.collect::<Vec<_>>().join(", ");
        let text =
            format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec: {{containers: [{list}]{spec}}}\n");
        crate::kube::pod::read("web.yaml", &text).unwrap().remove(0)
    }

    #[test]
    fn the_class_is_by_kubelets_rules() {
        let both = "{limits: {cpu: 1, memory: 1Gi}}";
        assert_eq!(class(&pod(&["{}", "{}"])), Qos::BestEffort);
        assert_eq!(class(&pod(&["{requests: {cpu: 0}}"])), Qos::BestEffort);
        assert_eq!(class(&pod(&[both, both])), Qos::Guaranteed);
        assert_eq!(
            class(&pod(&["{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1000m, memory: 1Gi}}"])),
            Qos::Guaranteed
        );
        assert_eq!(class(&pod(&["{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m}}"])), Qos::Burstable);
        assert_eq!(class(&pod(&[both, "{}"])), Qos::Burstable);
        assert_eq!(class(&pod(&["{limits: {memory: 1Gi}}"])), Qos::Burstable);
        let init = ", initContainers: [{name: i, image: b}]";
        assert_eq!(class(&full(&[both], init)), Qos::Burstable, "init containers count, too");
    }

    #[test]
    fn a_pods_limits_are_the_sum_where_all_have_one() {
        let limited = pod_resources(&pod(&["{limits: {cpu: 1, memory: 64Mi}}", "{limits: {cpu: 500m, memory: 36Mi}}"]));
        assert_eq!((limited.cpu_quota, limited.memory), (Some(150_000), Some(100 << 20)));
        assert_eq!(limited.cpu_shares, Some(1536));
        let half = pod_resources(&pod(&["{limits: {memory: 64Mi}}", "{requests: {cpu: 500m}}"]));
        assert_eq!((half.cpu_quota, half.memory, half.cpu_shares), (None, None, Some(512)));
        assert_eq!(pod_resources(&pod(&["{}"])).cpu_shares, Some(2));
    }

    #[test]
    fn of_init_containers_the_largest_counts_and_sidecars_add() {
        let init = |more: &str| {
            format!(", initContainers: [{{name: i, image: b, resources: {{limits: {{cpu: 1, memory: 50Mi}}}}{more}}}]")
        };
        let one = "{limits: {cpu: 100m, memory: 20Mi}}";
        let both = pod_resources(&full(&[one, one], &init("")));
        assert_eq!((both.cpu_quota, both.memory), (Some(100_000), Some(50 << 20)));
        let sidecar = full(&[one, one], &init(""));
        let mut sidecar = sidecar;
        sidecar.init[0].restart = Some(crate::kube::pod::RestartPolicy::Always);
        assert_eq!(pod_resources(&sidecar).memory, Some(90 << 20));
    }

    #[test]
    fn the_oom_killer_takes_those_first_who_asked_for_least() {
        let memory = 1 << 30;
        let of = |pod: &Pod, index: usize| score(pod, &pod.containers[index], memory);
        let burstable = pod(&["{requests: {memory: 512Mi}}", "{}", "{requests: {memory: 2Gi}}"]);
        assert_eq!([of(&burstable, 0), of(&burstable, 1), of(&burstable, 2)], [500, 999, 3]);
        assert_eq!(of(&pod(&["{}"]), 0), 1000);
        assert_eq!(of(&pod(&["{limits: {cpu: 1, memory: 1Mi}}"]), 0), -997);
    }

    #[test]
    fn sizes_of_huge_pages_are_in_the_words_of_cgroups() {
        assert_eq!([2 << 20, 1 << 30, 64 << 10].map(page_size), ["2MB", "1GB", "64KB"]);
        let limits = Amounts::from([("hugepages-2Mi".to_owned(), 4 << 20), ("memory".to_owned(), 1)]);
        assert_eq!(hugepages(&limits), [HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }]);
    }

    #[test]
    fn the_machine_is_read_as_it_tells() {
        assert_eq!(memory("MemTotal:       24 kB\nMemFree: 1 kB\n"), 24 << 10);
        assert!(unified("hugetlb", true).is_empty());
        assert_eq!(unified("cpu memory pids", false).len(), 1);
        assert_eq!(unified("memory", true)["memory.swap.max"], "0");
    }
}
