//! What every Kubernetes object has in common, and the Pod's own top level.

use super::*;

raw! {
    /// A Pod document.
    Object {
        api_version = "apiVersion": String,
        kind = "kind": String,
        metadata = "metadata": ObjectMeta,
        spec = "spec": PodSpec,
    } later {
        "status",
    }
}

raw! {
    /// `metadata`.
    ObjectMeta {
        name = "name": String,
        namespace = "namespace": String,
        labels = "labels": Map<String>,
        annotations = "annotations": Map<String>,
    } later {
        "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generateName",
        "generation", "managedFields", "ownerReferences", "resourceVersion", "selfLink", "uid",
    }
}
