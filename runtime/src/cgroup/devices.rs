//! Device rules: `linux.resources.devices` in the two forms that kernels take.
//!
//! The list is ordered and starts from "nothing is allowed"; a later rule wins over an earlier one, for each access bit alone.
//! The devices that every container needs (and may make) come last, so that no list can lock them out, as in runc.
//!
//! v1 has no order: a default and exceptions from it. A list that cannot be said so (a deny that takes a part out of a
//! wildcard) is refused, since the kernel would silently keep allowing. v2 takes a program and says everything: see
//! [`super::device_program`].

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::error::{Error, Result};

/// Reading, bit of [`Rule::access`].
pub(super) const READ: u8 = 1;
/// Writing.
pub(super) const WRITE: u8 = 2;
/// Making a node.
pub(super) const MKNOD: u8 = 4;
const ALL: u8 = READ | WRITE | MKNOD;

/// Which devices a rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    All,
    Char,
    Block,
}

/// One rule with its meaning worked out; `None` is a wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub allow: bool,
    pub kind: Kind,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: u8,
}

const fn allow(major: u32, minor: Option<u32>) -> Rule {
    Rule { allow: true, kind: Kind::Char, major: Some(major), minor, access: ALL }
}

/// Allowed in every container: the devices of the OCI specification, and making (not opening) of any node.
const DEFAULTS: &[Rule] = &[
    Rule { allow: true, kind: Kind::Char, major: None, minor: None, access: MKNOD },
    Rule { allow: true, kind: Kind::Block, major: None, minor: None, access: MKNOD },
    allow(1, Some(3)), // null
    allow(1, Some(5)), // zero
    allow(1, Some(7)), // full
    allow(1, Some(8)), // random
    allow(1, Some(9)), // urandom
    allow(5, Some(0)), // tty
    allow(5, Some(1)), // console
    allow(5, Some(2)), // ptmx
    allow(136, None),  // pts/*
];

impl Rule {
    /// True when there is no device that this rule leaves out.
    pub fn covers_everything(&self) -> bool {
        self.access == ALL && self.major.is_none() && self.minor.is_none() && self.kind == Kind::All
    }

    fn overlaps(&self, other: &Rule) -> bool {
        let kinds = self.kind == Kind::All || other.kind == Kind::All || self.kind == other.kind;
        let meets = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        kinds && meets(self.major, other.major) && meets(self.minor, other.minor) && self.access & other.access != 0
    }

    /// A raw rule as one or two rules: one without a type that is not about everything speaks of both kinds.
    fn convert(raw: &LinuxDeviceCgroup) -> Result<Vec<Rule>> {
        let refused = |why: String| Error::refused("linux.resources.devices", why);
        let kind = match raw.typ() {
            None | Some(LinuxDeviceType::A) => Kind::All,
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Kind::Char,
            Some(LinuxDeviceType::B) => Kind::Block,
            Some(other) => return Err(refused(format!("type {other:?} has no device rules; a, b or c have"))),
        };
        // -1 is runc's wildcard. The kernel reads numbers as 32 bits.
        let number = |value: Option<i64>| match value {
            None | Some(-1) => Ok(None),
            Some(value) => u32::try_from(value).map(Some).map_err(|_| refused(format!("{value} is no device number"))),
        };
        let mut access = 0;
        for letter in raw.access().as_deref().unwrap_or("rwm").chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                other => return Err(refused(format!("access {other:?} is none of r, w, m"))),
            };
        }
        if access == 0 {
            return Err(refused("access is empty; give some of r, w, m".to_owned()));
        }
        let rule = Rule { allow: raw.allow(), kind, major: number(raw.major())?, minor: number(raw.minor())?, access };
        // v1 reads nothing behind the letter "a": written as it stands, "a 1:3 r" would open every device.
        Ok(if kind == Kind::All && !rule.covers_everything() {
            vec![Rule { kind: Kind::Char, ..rule }, Rule { kind: Kind::Block, ..rule }]
        } else {
            vec![rule]
        })
    }
}

/// The whole ordered list: the caller's rules, then the defaults.
pub(super) fn rules(raw: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let mut rules = raw.iter().map(Rule::convert).collect::<Result<Vec<_>>>()?.concat();
    // What precedes a rule about everything means nothing any more.
    if let Some(last) = rules.iter().rposition(Rule::covers_everything) {
        rules.drain(..last);
    }
    let all_allowed = rules.len() == 1 && rules[0].allow && rules[0].covers_everything();
    if !all_allowed {
        rules.extend_from_slice(DEFAULTS);
    }
    Ok(rules)
}

type Device = (Kind, Option<u32>, Option<u32>);

/// What a v1 cgroup holds: a default, and exceptions from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct V1State {
    pub default_allow: bool,
    exceptions: BTreeMap<Device, u8>,
}

impl V1State {
    /// The state that an ordered list comes to.
    pub fn from_rules(rules: &[Rule]) -> Result<V1State> {
        let mut state = V1State::default();
        for rule in rules {
            if rule.covers_everything() {
                state = V1State { default_allow: rule.allow, exceptions: BTreeMap::new() };
                continue;
            }
            let device = (rule.kind, rule.major, rule.minor);
            if rule.allow != state.default_allow {
                *state.exceptions.entry(device).or_default() |= rule.access;
                continue;
            }
            // The rule takes access back from exceptions: the kernel can do that for the very same device only.
            let hidden = state.exceptions.iter().find(|&(&(kind, major, minor), &access)| {
                (kind, major, minor) != device && rule.overlaps(&Rule { allow: rule.allow, kind, major, minor, access })
            });
            if let Some((&other, &access)) = hidden {
                return Err(Error::refused(
                    "linux.resources.devices",
                    format!(
                        "rule {:?} takes a part out of rule {:?}, which cgroup v1 cannot express",
                        v1_text(device, rule.access),
                        v1_text(other, access)
                    ),
                ));
            }
            if let Some(access) = state.exceptions.get_mut(&device) {
                *access &= !rule.access;
                if *access == 0 {
                    state.exceptions.remove(&device);
                }
            }
        }
        Ok(state)
    }

    /// Whether there are no exceptions from the default.
    pub fn is_plain(&self) -> bool {
        self.exceptions.is_empty()
    }

    /// The exceptions: kind, major, minor, access.
    pub fn exceptions(&self) -> impl Iterator<Item = (Kind, Option<u32>, Option<u32>, u8)> + '_ {
        self.exceptions.iter().map(|(&(kind, major, minor), &access)| (kind, major, minor, access))
    }

    /// Reads `devices.list`. (Exceptions from "allow all" are not shown there.)
    pub fn parse(list: &str) -> Option<V1State> {
        let mut state = V1State::default();
        for line in list.lines() {
            let (kind, rest) = line.split_once(' ')?;
            let (numbers, letters) = rest.split_once(' ')?;
            let (major, minor) = numbers.split_once(':')?;
            let kind = match kind {
                "a" => return Some(V1State { default_allow: true, exceptions: BTreeMap::new() }),
                "c" => Kind::Char,
                "b" => Kind::Block,
                _ => return None,
            };
            let number = |text: &str| if text == "*" { Some(None) } else { text.parse().ok().map(Some) };
            let bits = |(letter, bit)| if letters.contains(letter) { bit } else { 0 };
            let access = [('r', READ), ('w', WRITE), ('m', MKNOD)].into_iter().map(bits).sum();
            state.exceptions.insert((kind, number(major)?, number(minor)?), access);
        }
        Some(state)
    }

    /// The writes (true: `devices.allow`) that make this state out of one just reset to its default.
    pub fn after_reset(&self) -> Vec<(bool, String)> {
        self.exceptions.iter().map(|(&device, &access)| (!self.default_allow, v1_text(device, access))).collect()
    }

    /// The writes that lead from `current` here without locking out, even for a moment, what both states allow.
    pub fn changes_from(&self, current: &V1State) -> Vec<(bool, String)> {
        if self.default_allow || current.default_allow {
            let mut writes = vec![(self.default_allow, "a".to_owned())];
            writes.extend(self.after_reset());
            return writes;
        }
        let beyond = |a: &V1State, b: &V1State, allow| {
            let extra = |(&device, &access): (&Device, &u8)| {
                let access = access & !b.exceptions.get(&device).copied().unwrap_or(0);
                (access != 0).then(|| (allow, v1_text(device, access)))
            };
            a.exceptions.iter().filter_map(extra).collect::<Vec<_>>()
        };
        let mut writes = beyond(self, current, true);
        writes.extend(beyond(current, self, false));
        writes
    }
}

/// A rule as `devices.allow` takes it.
fn v1_text((kind, major, minor): Device, access: u8) -> String {
    let kind = match kind {
        Kind::All => 'a',
        Kind::Char => 'c',
        Kind::Block => 'b',
    };
    let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
    let letters = [('r', READ), ('w', WRITE), ('m', MKNOD)];
    let letters: String = letters.into_iter().filter(|(_, bit)| access & bit != 0).map(|(letter, _)| letter).collect();
    format!("{kind} {}:{} {letters}", number(major), number(minor))
}

/// What the ordered list says of one request: the reference that both forms are tested against.
#[cfg(test)]
pub(super) fn permits(rules: &[Rule], kind: Kind, major: u32, minor: u32, access: u8) -> bool {
    [READ, WRITE, MKNOD].into_iter().filter(|bit| access & bit != 0).all(|bit| {
        let matching = |rule: &&Rule| {
            (rule.kind == Kind::All || rule.kind == kind)
                && rule.major.is_none_or(|m| m == major)
                && rule.minor.is_none_or(|m| m == minor)
                && rule.access & bit != 0
        };
        rules.iter().rev().find(matching).is_some_and(|rule| rule.allow)
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw(json: &str) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_str(json).unwrap()
    }

    pub fn any_rule() -> impl Strategy<Value = Rule> {
        let kind = prop_oneof![Just(Kind::Char), Just(Kind::Block)];
        let number = || prop::option::of(0u32..3);
        prop_oneof![
            8 => (any::<bool>(), kind, number(), number(), 1u8..8)
                .prop_map(|(allow, kind, major, minor, access)| Rule { allow, kind, major, minor, access }),
            1 => any::<bool>().prop_map(|allow| Rule { allow, kind: Kind::All, major: None, minor: None, access: ALL }),
        ]
    }

    /// The kernel's own rule for v1: every bit asked for in one exception (default deny), or none in any (default allow).
    fn v1_permits(state: &V1State, kind: Kind, major: u32, minor: u32, access: u8) -> bool {
        let hit = |(&(k, ma, mi), &a): (&Device, &u8)| {
            let device = k == kind && ma.is_none_or(|m| m == major) && mi.is_none_or(|m| m == minor);
            device && if state.default_allow { a & access != 0 } else { a & access == access }
        };
        state.exceptions.iter().any(hit) != state.default_allow
    }

    #[test]
    fn the_usual_list_denies_all_and_allows_the_defaults() {
        let rules = rules(&raw(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]"#,
        ));
        let state = V1State::from_rules(&rules.unwrap()).unwrap();
        assert!(!state.default_allow);
        let writes: Vec<String> = state.after_reset().into_iter().map(|(_, text)| text).collect();
        assert!(writes.contains(&"c 10:229 rw".to_owned()) && writes.contains(&"c 136:* rwm".to_owned()), "{writes:?}");
        assert_eq!(writes.len(), 1 + DEFAULTS.len());
    }

    #[test]
    fn privileged_containers_get_one_rule() {
        let rules =
            rules(&raw(r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"a","access":"rwm"}]"#)).unwrap();
        assert_eq!(rules.len(), 1);
        assert!(V1State::from_rules(&rules).unwrap().default_allow);
    }

    #[test]
    fn a_hole_in_a_wildcard_is_refused_on_v1() {
        let list = raw(
            r#"[{"allow":true,"type":"c","major":1,"access":"r"},{"allow":false,"type":"c","major":1,"minor":3,"access":"r"}]"#,
        );
        let error = V1State::from_rules(&rules(&list).unwrap()).unwrap_err().to_string();
        assert!(error.contains("c 1:3 r") && error.contains("c 1:* r"), "{error}");
    }

    #[test]
    fn a_rule_without_a_type_opens_no_more_than_it_says() {
        let rules = rules(&raw(r#"[{"allow":true,"major":1,"minor":3,"access":"r"}]"#)).unwrap();
        assert!(!V1State::from_rules(&rules).unwrap().default_allow);
        assert!(permits(&rules, Kind::Block, 1, 3, READ) && !permits(&rules, Kind::Block, 8, 0, READ));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            r#"{"allow":true,"access":"x"}"#,
            r#"{"allow":true,"access":""}"#,
            r#"{"allow":true,"type":"c","major":-5}"#,
        ] {
            assert!(rules(&raw(&format!("[{bad}]"))).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_change_keeps_open_what_both_states_allow() {
        let old = V1State::parse("c 1:3 rwm\nb 8:0 r\n").unwrap();
        let new = V1State::parse("c 1:3 rw\nc 10:200 rw\n").unwrap();
        let writes = new.changes_from(&old);
        let expected = [(true, "c 10:200 rw"), (false, "c 1:3 m"), (false, "b 8:0 r")];
        assert_eq!(writes, expected.map(|(allow, text)| (allow, text.to_owned())));
        assert_eq!(V1State::parse("a *:* rwm\n").unwrap().changes_from(&old), [(true, "a".to_owned())]);
    }

    proptest! {
        #[test]
        fn a_v1_state_never_permits_more_than_the_list(
            rules in prop::collection::vec(any_rule(), 0..8), major in 0u32..3, minor in 0u32..3, access in 1u8..8
        ) {
            let Ok(state) = V1State::from_rules(&rules) else { return Ok(()) };
            for kind in [Kind::Char, Kind::Block] {
                let asked = permits(&rules, kind, major, minor, access);
                if v1_permits(&state, kind, major, minor, access) {
                    prop_assert!(asked);
                }
                // One bit at a time v1 says exactly the same.
                if access.count_ones() == 1 {
                    prop_assert_eq!(v1_permits(&state, kind, major, minor, access), asked);
                }
            }
        }
    }
}
