//! What every Kubernetes object has in common, and the Pod's own top level.

use super::*;

/// Why what the API server writes is taken and left alone, so that `kubectl get -o yaml` can be run.
const WRITTEN: &str = "is written by an API server and not taken over";

raw! {
    /// A Pod: containers that share a network, a host name and volumes.
    Pod {
        /// v1.
        api_version = "apiVersion": String,
        /// Pod.
        kind = "kind": String,
        /// Its name and what it carries.
        metadata = "metadata": ObjectMeta,
        /// What runs.
        spec = "spec": PodSpec,
    } idle {
        "status": Anything = WRITTEN,
    }
}

raw! {
    /// What every object carries.
    ObjectMeta {
        /// The name, unique among its kind in the namespace.
        name = "name": String,
        /// Instead of a name: its beginning, to which five random characters are added.
        generate_name = "generateName": String,
        /// The namespace; `default` where none is given.
        namespace = "namespace": String,
        /// What selectors match.
        labels = "labels": Map<String>,
        /// Other facts, for programs and people.
        annotations = "annotations": Map<String>,
    } idle {
        "creationTimestamp": Anything = WRITTEN,
        "deletionGracePeriodSeconds": Anything = WRITTEN,
        "deletionTimestamp": Anything = WRITTEN,
        "finalizers": List<String> = "calls controllers of a cluster: there are none",
        "generation": Anything = WRITTEN,
        "managedFields": Anything = WRITTEN,
        "ownerReferences": Anything = "names objects of a cluster: there is none",
        "resourceVersion": Anything = WRITTEN,
        "selfLink": Anything = WRITTEN,
        "uid": Anything = WRITTEN,
    }
}
