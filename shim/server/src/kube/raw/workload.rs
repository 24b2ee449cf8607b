//! What makes pods: Deployment, ReplicaSet, StatefulSet, DaemonSet and Job.

use super::storage::PersistentVolumeClaim;
use super::*;

const WRITTEN: &str = "is written by an API server and not taken over";
const ROLLOUT: &str = "paces a rollout: changed pods are replaced one after another";
const HISTORY: &str = "is about earlier versions: none are kept";

raw! {
    /// The pods that a workload makes.
    PodTemplateSpec {
        /// Labels and annotations of the pods; their names follow from the workload's.
        metadata = "metadata": ObjectMeta,
        /// What runs in each.
        spec = "spec": PodSpec,
    }
}

raw! {
    /// Pods that are all alike.
    Deployment {
        /// apps/v1.
        api_version = "apiVersion": String,
        /// Deployment.
        kind = "kind": String,
        /// Its name: its pods are NAME-0, NAME-1 ...
        metadata = "metadata": ObjectMeta,
        /// How many of which pods.
        spec = "spec": DeploymentSpec,
    } idle {
        "status": Anything = WRITTEN,
    }
}

raw! {
    /// How many of which pods.
    DeploymentSpec {
        /// How many; 1.
        replicas = "replicas": i64,
        /// Labels of the pods: those of the template.
        selector = "selector": LabelSelector,
        /// Which pods.
        template = "template": PodTemplateSpec,
    } idle {
        "minReadySeconds": i64 = ROLLOUT,
        "progressDeadlineSeconds": i64 = ROLLOUT,
        "revisionHistoryLimit": i64 = HISTORY,
        "strategy": Anything = ROLLOUT,
    } refused {
        "paused": "waits for a later rollout, and there is none: remove it",
    }
}

raw! {
    /// Pods that are all alike.
    ReplicaSet {
        /// apps/v1.
        api_version = "apiVersion": String,
        /// ReplicaSet.
        kind = "kind": String,
        /// Its name: its pods are NAME-0, NAME-1 ...
        metadata = "metadata": ObjectMeta,
        /// How many of which pods.
        spec = "spec": ReplicaSetSpec,
    } idle {
        "status": Anything = WRITTEN,
    }
}

raw! {
    /// How many of which pods.
    ReplicaSetSpec {
        /// How many; 1.
        replicas = "replicas": i64,
        /// Labels of the pods: those of the template.
        selector = "selector": LabelSelector,
        /// Which pods.
        template = "template": PodTemplateSpec,
    } idle {
        "minReadySeconds": i64 = ROLLOUT,
    }
}

raw! {
    /// One pod for each node: one.
    DaemonSet {
        /// apps/v1.
        api_version = "apiVersion": String,
        /// DaemonSet.
        kind = "kind": String,
        /// Its name: its pod is NAME-0.
        metadata = "metadata": ObjectMeta,
        /// Which pod.
        spec = "spec": DaemonSetSpec,
    } idle {
        "status": Anything = WRITTEN,
    }
}

raw! {
    /// Which pod.
    DaemonSetSpec {
        /// Labels of the pod: those of the template.
        selector = "selector": LabelSelector,
        /// Which pod.
        template = "template": PodTemplateSpec,
    } idle {
        "minReadySeconds": i64 = ROLLOUT,
        "revisionHistoryLimit": i64 = HISTORY,
        "updateStrategy": Anything = ROLLOUT,
    }
}

raw! {
    /// Pods with names and directories of their own, started in order.
    StatefulSet {
        /// apps/v1.
        api_version = "apiVersion": String,
        /// StatefulSet.
        kind = "kind": String,
        /// Its name: its pods are NAME-0, NAME-1 ...
        metadata = "metadata": ObjectMeta,
        /// How many of which pods.
        spec = "spec": StatefulSetSpec,
    } idle {
        "status": Anything = WRITTEN,
    }
}

raw! {
    /// How many of which pods.
    StatefulSetSpec {
        /// How many; 1.
        replicas = "replicas": i64,
        /// Labels of the pods: those of the template.
        selector = "selector": LabelSelector,
        /// Which pods.
        template = "template": PodTemplateSpec,
        /// The headless Service below which the pods have DNS names.
        service_name = "serviceName": String,
        /// OrderedReady: each starts when the one before it is ready; or Parallel.
        management = "podManagementPolicy": String,
        /// A claim of its own for each pod.
        claims = "volumeClaimTemplates": List<PersistentVolumeClaim>,
        /// The number of the first pod.
        ordinals = "ordinals": StatefulSetOrdinals,
    } idle {
        "minReadySeconds": i64 = ROLLOUT,
        "revisionHistoryLimit": i64 = HISTORY,
        "updateStrategy": Anything = ROLLOUT,
    } refused {
        "persistentVolumeClaimRetentionPolicy": "is decided by `coracle down`: claims stay, or go with --volumes",
    }
}

raw! {
    /// How the pods are numbered.
    StatefulSetOrdinals {
        /// The first.
        start = "start": i64,
    }
}

raw! {
    /// Pods that run to success.
    Job {
        /// batch/v1.
        api_version = "apiVersion": String,
        /// Job.
        kind = "kind": String,
        /// Its name: its pods are NAME-0, NAME-1 ...
        metadata = "metadata": ObjectMeta,
        /// How many of which pods.
        spec = "spec": JobSpec,
    } idle {
        "status": Anything = WRITTEN,
    }
}

raw! {
    /// How many successes of which pods.
    JobSpec {
        /// How many successes; 1.
        completions = "completions": i64,
        /// How many pods run at a time; 1.
        parallelism = "parallelism": i64,
        /// NonIndexed, or Indexed: each success is one of an index, told as JOB_COMPLETION_INDEX.
        mode = "completionMode": String,
        /// Failed pods after which the Job has failed; 6.
        backoff_limit = "backoffLimit": i64,
        /// Seconds after which the Job has failed.
        deadline = "activeDeadlineSeconds": i64,
        /// Seconds after its end when the Job and its pods are removed.
        ttl = "ttlSecondsAfterFinished": i64,
        /// Whether no pods are made.
        suspend = "suspend": bool,
        /// Which pods.
        template = "template": PodTemplateSpec,
    } idle {
        "podReplacementPolicy": String = "a pod is replaced once it has ended",
        "selector": LabelSelector = "is made by an API server; pods are known by their owner",
        "manualSelector": bool = "is about the selector, which is not used: pods are known by their owner",
    } refused {
        "backoffLimitPerIndex": "is not honoured: backoffLimit is",
        "managedBy": "names a controller of a cluster: there is none",
        "maxFailedIndexes": "is not honoured: backoffLimit is",
        "podFailurePolicy": "is not honoured: backoffLimit is",
        "successPolicy": "is not honoured: completions is",
    }
}
