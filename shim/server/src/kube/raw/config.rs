//! What Pods refer to by name: ConfigMap, Secret, ServiceAccount, RuntimeClass.

use super::*;

/// Fields that only say which cluster a document came from.
const WRITTEN: &str = "is written by an API server and not taken over";

raw! {
    /// Settings for pods: variables or files.
    ConfigMap {
        /// v1.
        api_version = "apiVersion": String,
        /// ConfigMap.
        kind = "kind": String,
        /// Its name.
        metadata = "metadata": ObjectMeta,
        /// Text by key.
        data = "data": Map<String>,
        /// Bytes by key, in base64.
        binary_data = "binaryData": Map<String>,
        /// Whether its data may never change.
        immutable = "immutable": bool,
    }
}

raw! {
    /// What pods need and nobody else should see: variables, files, registry credentials.
    Secret {
        /// v1.
        api_version = "apiVersion": String,
        /// Secret.
        kind = "kind": String,
        /// Its name.
        metadata = "metadata": ObjectMeta,
        /// Opaque, or a type that asks for certain keys.
        class = "type": String,
        /// Bytes by key, in base64.
        data = "data": Map<String>,
        /// Text by key; wins over `data`.
        string_data = "stringData": Map<String>,
        /// Whether its data may never change.
        immutable = "immutable": bool,
    }
}

raw! {
    /// Here only a carrier of imagePullSecrets: there is no API server to have an account at.
    ServiceAccount {
        /// v1.
        api_version = "apiVersion": String,
        /// ServiceAccount.
        kind = "kind": String,
        /// Its name.
        metadata = "metadata": ObjectMeta,
        /// Secrets for pulling the images of its pods.
        pull_secrets = "imagePullSecrets": List<LocalReference>,
    } idle {
        "automountServiceAccountToken": bool = "there is no API server whose token could be mounted",
        "secrets": Anything = "names tokens for an API server: there is none",
    }
}

raw! {
    /// Another object of the same namespace.
    LocalReference {
        /// Its name.
        name = "name": String,
    }
}

raw! {
    /// A name for the handler that runs a pod.
    RuntimeClass {
        /// node.k8s.io/v1.
        api_version = "apiVersion": String,
        /// RuntimeClass.
        kind = "kind": String,
        /// Its name, for runtimeClassName.
        metadata = "metadata": ObjectMeta,
        /// The handler of coracle's configuration.
        handler = "handler": String,
        /// What the handler itself takes for each pod.
        overhead = "overhead": Overhead,
    } idle {
        "scheduling": Anything = "chooses a node: there is one",
    }
}

raw! {
    /// What a handler takes for each pod.
    Overhead {
        /// By resource.
        pod_fixed = "podFixed": Map<Amount>,
    }
}

raw! {
    /// A namespace: a first part of names, which needs no making here.
    Namespace {
        /// v1.
        api_version = "apiVersion": String,
        /// Namespace.
        kind = "kind": String,
        /// Its name.
        metadata = "metadata": ObjectMeta,
    } idle {
        "spec": Anything = "holds finalizers, which call controllers of a cluster: there are none",
        "status": Anything = WRITTEN,
    }
}
