//! Signals by name or number.

use nix::sys::signal::Signal;

/// The number of `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, in any case.
pub fn parse(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => Some(libc::SIGRTMIN() + offset(rest)?),
        (_, Some(rest)) => Some(libc::SIGRTMAX() + offset(rest)?),
        _ => None,
    };
    match real_time {
        Some(number) => (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number).then_some(number),
        None => format!("SIG{name}").parse::<Signal>().ok().map(|s| s as i32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, number) in [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", libc::SIGRTMIN() + 3)] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "SIGFOO", "0", "-1", "99", "RTMIN-9", "SIGRTMAX+1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
