//! The interfaces of a network namespace, by the `/proc/PID/net/dev` of somebody who lives in it.

use std::fs;

use super::Interface;

/// The end of a virtual machine's interface: what passes it also passes the pod's own.
const TAP: &str = "coracle-tap";

/// All interfaces but the loopback.
pub(super) fn interfaces(pid: i32) -> Option<Vec<Interface>> {
    Some(parse(&fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?))
}

/// Two lines of headings, then `name: 8 numbers received, 8 numbers sent`.
fn parse(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, numbers) = line.rsplit_once(':')?;
        let n: Vec<u64> = numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let [rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, tx_bytes, tx_packets, tx_errors, tx_dropped, ..] =
            n[..]
        else {
            return None;
        };
        let name = name.trim().to_owned();
        (name != "lo" && name != TAP).then_some(Interface {
            name,
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        })
    };
    text.lines().skip(2).filter_map(interface).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_interface_has_its_counters_and_loopback_is_left_out() {
        let text = "Inter-|   Receive                      |  Transmit\n \
            face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed\n    \
            lo:  1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
            eth0: 1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0\n";
        let found = parse(text);
        assert_eq!(found.len(), 1);
        let eth0 = &found[0];
        assert_eq!((eth0.name.as_str(), eth0.rx_bytes, eth0.rx_packets), ("eth0", 1000, 10));
        assert_eq!((eth0.rx_errors, eth0.rx_dropped, eth0.tx_bytes), (1, 2, 2000));
        assert_eq!((eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped), (20, 3, 4));
    }
}
