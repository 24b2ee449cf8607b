//! Stop signals: the CRI names them in an enumeration of its own, whose numbers are not the kernel's.

use coracle_proto::cri as v1;
use tonic::Status;

use super::invalid;

/// The first and last real-time signals as the kernel numbers them for programs; a C library keeps some for itself, and
/// what containers, docker and kubelet mean is glibc's choice, whatever this program was linked with.
const RT_MIN: i32 = 34;
const RT_MAX: i32 = 64;

/// The signals with names, as x86 and ARM number them; the second of two names for one number comes later.
const NAMED: [(v1::Signal, i32); 34] = [
    (v1::Signal::Sighup, 1),
    (v1::Signal::Sigint, 2),
    (v1::Signal::Sigquit, 3),
    (v1::Signal::Sigill, 4),
    (v1::Signal::Sigtrap, 5),
    (v1::Signal::Sigabrt, 6),
    (v1::Signal::Sigiot, 6),
    (v1::Signal::Sigbus, 7),
    (v1::Signal::Sigfpe, 8),
    (v1::Signal::Sigkill, 9),
    (v1::Signal::Sigusr1, 10),
    (v1::Signal::Sigsegv, 11),
    (v1::Signal::Sigusr2, 12),
    (v1::Signal::Sigpipe, 13),
    (v1::Signal::Sigalrm, 14),
    (v1::Signal::Sigterm, 15),
    (v1::Signal::Sigstkflt, 16),
    (v1::Signal::Sigchld, 17),
    (v1::Signal::Sigcld, 17),
    (v1::Signal::Sigcont, 18),
    (v1::Signal::Sigstop, 19),
    (v1::Signal::Sigtstp, 20),
    (v1::Signal::Sigttin, 21),
    (v1::Signal::Sigttou, 22),
    (v1::Signal::Sigurg, 23),
    (v1::Signal::Sigxcpu, 24),
    (v1::Signal::Sigxfsz, 25),
    (v1::Signal::Sigvtalrm, 26),
    (v1::Signal::Sigprof, 27),
    (v1::Signal::Sigwinch, 28),
    (v1::Signal::Sigio, 29),
    (v1::Signal::Sigpoll, 29),
    (v1::Signal::Sigpwr, 30),
    (v1::Signal::Sigsys, 31),
];

/// The kernel's number; `None` where the image is to choose.
pub fn number(field: &str, value: i32) -> Result<Option<i32>, Status> {
    let signal = v1::Signal::try_from(value).map_err(|_| invalid(field, format!("{value} is no signal")))?;
    if signal == v1::Signal::RuntimeDefault {
        return Ok(None);
    }
    let named = NAMED.iter().find(|(known, _)| *known == signal).map(|(_, number)| *number);
    Ok(named.or(Some(RT_MIN + value - v1::Signal::Sigrtmin as i32)))
}

/// The CRI's name for a number of the kernel; the default one for a number that has none.
pub fn of(number: i32) -> v1::Signal {
    if (RT_MIN..=RT_MAX).contains(&number) {
        return v1::Signal::try_from(v1::Signal::Sigrtmin as i32 + number - RT_MIN).unwrap_or_default();
    }
    NAMED.iter().find(|(_, known)| *known == number).map_or(v1::Signal::RuntimeDefault, |(signal, _)| *signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_both_ways_with_the_realtime_ones() {
        let table = [
            (v1::Signal::Sigterm, 15),
            (v1::Signal::Sighup, 1),
            (v1::Signal::Sigrtmin, 34),
            (v1::Signal::Sigrtminplus3, 37),
            (v1::Signal::Sigrtminplus15, 49),
            (v1::Signal::Sigrtmaxminus14, 50),
            (v1::Signal::Sigrtmax, 64),
        ];
        for (signal, number_of) in table {
            assert_eq!(number("stop_signal", signal as i32).unwrap(), Some(number_of), "{signal:?}");
            assert_eq!(of(number_of), signal);
        }
        for other in 1..=65 {
            let number_of = number("stop_signal", other).unwrap().unwrap();
            assert!((1..=64).contains(&number_of), "{other}");
            // Two names of one signal are one.
            assert_eq!(number("stop_signal", of(number_of) as i32).unwrap(), Some(number_of));
        }
    }

    #[test]
    fn the_default_is_the_images_and_an_unknown_one_is_refused() {
        assert_eq!(number("stop_signal", 0).unwrap(), None);
        assert!(number("config.stop_signal", 66).unwrap_err().message().starts_with("config.stop_signal"));
        assert_eq!(of(0), v1::Signal::RuntimeDefault);
    }
}
