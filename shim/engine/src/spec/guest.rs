//! What is different in the specification of a container that runs in its pod's virtual machine: it is read by the
//! supervisor there, whose own namespaces are the pod's, as on the host, but whose pid is 1. The root filesystem and image
//! volumes are disks with an EROFS: their mounts name the file, and the supervisor on the host plugs it in. What is bound
//! from the host is named by its path here too; the supervisor carries it over or refuses it. Pids are the guest's.

/// The pid of the supervisor in the guest.
pub const SUPERVISOR: i32 = 1;
/// The type of a mount whose source is a file with an image.
pub const EROFS: &str = "erofs";

/// A container's cgroup: the guest has no pods but the one.
pub fn cgroup(container: &str) -> String {
    format!("/coracle/{container}")
}
