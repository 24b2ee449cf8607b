//! The two sockets to the kernel's network, and the few acts that every kind of network shares.

use std::fs::{self, File};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use super::nl::{Refusal, Socket};
use super::{Error, link};

/// The two sockets to the kernel's network.
pub(super) struct Kernel {
    pub(super) route: Socket,
    pub(super) filter: Socket,
}

/// Sockets that wait for the next act. They are kept because closing a netfilter socket waits some 13 ms for the kernel
/// to free what was removed through it.
#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<Kernel>>,
}

impl Pool {
    /// Sockets of the network namespace of the thread that called first: the host's.
    pub(super) fn kernel(&self) -> Result<Loan<'_>, Error> {
        let spare = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let kernel = match spare {
            Some(kernel) => kernel,
            None => Kernel {
                route: Socket::route().map_err(|e| Error::kernel("open a routing netlink socket", e))?,
                filter: Socket::netfilter().map_err(|e| Error::kernel("open a netfilter netlink socket", e))?,
            },
        };
        Ok(Loan { idle: &self.idle, kernel: Some(kernel) })
    }
}

/// Sockets on loan: they go back for the next act.
pub(super) struct Loan<'a> {
    idle: &'a Mutex<Vec<Kernel>>,
    kernel: Option<Kernel>,
}

impl Deref for Loan<'_> {
    type Target = Kernel;

    fn deref(&self) -> &Kernel {
        self.kernel.as_ref().expect("present until dropped")
    }
}

impl DerefMut for Loan<'_> {
    fn deref_mut(&mut self) -> &mut Kernel {
        self.kernel.as_mut().expect("present until dropped")
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        const MOST_IDLE: usize = 4;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE {
            idle.extend(self.kernel.take());
        }
    }
}

/// Sets a link of the socket's namespace up, and tells its index.
pub(super) fn up(socket: &mut Socket, name: &str) -> Result<u32, Refusal> {
    let link = link::find(socket, name)?.ok_or(Errno::ENODEV)?;
    link::set_up(socket, link.index, true)?;
    Ok(link.index)
}

/// Opens a network namespace, and makes sure that it is one and not the caller's own, whose links it would change.
pub(super) fn open_netns(path: &Path) -> Result<File, Error> {
    const OWN: &str = "/proc/thread-self/ns/net";
    let identity = |path: &Path, meta: io::Result<fs::Metadata>| {
        meta.map(|m| (m.dev(), m.ino())).map_err(|e| Error::file("stat network namespace", path, e))
    };
    let file = File::open(path).map_err(|e| Error::file("open network namespace", path, e))?;
    if identity(path, file.metadata())? == identity(OWN.as_ref(), fs::metadata(OWN))? {
        return Err(Error::Invalid(format!("network namespace {} is the host's own", path.display())));
    }
    Ok(file)
}

/// Runs `work` inside a network namespace. A namespace belongs to a thread: a new one enters it and ends there. Sockets
/// of the host's namespace that `work` takes along stay what they are.
pub(super) fn inside<T: Send>(netns: &File, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::kernel("enter the pod's network namespace", e.into()))?;
            work()
        });
        inside.join().unwrap_or_else(|_| Err(Error::Invalid("the thread in the pod's namespace panicked".into())))
    })
}
