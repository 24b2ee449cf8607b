//! PersistentVolumeClaim and PersistentVolume.

use super::*;

const WRITTEN: &str = "is written by an API server and not taken over";
const REMOTE: &str = "is storage beyond this machine: use hostPath or local";

raw! {
    /// A wish for a directory that outlives pods.
    PersistentVolumeClaim {
        /// v1.
        api_version = "apiVersion": String,
        /// PersistentVolumeClaim.
        kind = "kind": String,
        /// Its name.
        metadata = "metadata": ObjectMeta,
        /// What is wished for.
        spec = "spec": ClaimSpec,
    } idle {
        "status": Anything = WRITTEN,
    }
}

raw! {
    /// What a claim wishes for.
    ClaimSpec {
        /// ReadWriteOnce, ReadOnlyMany, ReadWriteMany or ReadWriteOncePod.
        access_modes = "accessModes": List<String>,
        /// How much, as `requests.storage`.
        resources = "resources": ClaimResources,
        /// The PersistentVolume to take; without one a fitting one is chosen, or a directory is made.
        volume_name = "volumeName": String,
        /// The class: binds only to volumes of the same.
        storage_class = "storageClassName": String,
        /// Labels of the volume to take.
        selector = "selector": LabelSelector,
        /// Filesystem: block devices are refused.
        volume_mode = "volumeMode": String,
    } refused {
        "dataSource": "copies a snapshot or a claim, which is not done here: remove it",
        "dataSourceRef": "copies a snapshot or a claim, which is not done here: remove it",
        "volumeAttributesClassName": "is for CSI drivers, which are not run here: remove it",
    }
}

raw! {
    /// How much storage.
    ClaimResources {
        /// At least.
        requests = "requests": Map<Amount>,
        /// At most.
        limits = "limits": Map<Amount>,
    }
}

raw! {
    /// Which objects are meant, by their labels.
    LabelSelector {
        /// Labels and the value of each.
        match_labels = "matchLabels": Map<String>,
        /// Conditions on labels.
        match_expressions = "matchExpressions": List<LabelRequirement>,
    }
}

raw! {
    /// A condition on a label.
    LabelRequirement {
        /// The label.
        key = "key": String,
        /// In, NotIn, Exists or DoesNotExist.
        operator = "operator": String,
        /// The values for In and NotIn.
        values = "values": List<String>,
    }
}

raw! {
    /// A directory of the machine that claims may have.
    PersistentVolume {
        /// v1.
        api_version = "apiVersion": String,
        /// PersistentVolume.
        kind = "kind": String,
        /// Its name.
        metadata = "metadata": ObjectMeta,
        /// Where it is and who may have it.
        spec = "spec": VolumeSpec,
    } idle {
        "status": Anything = WRITTEN,
    }
}

raw! {
    /// Where a volume is and who may have it.
    VolumeSpec {
        /// How much it holds, as `storage`.
        capacity = "capacity": Map<Amount>,
        /// What claims of it may ask for.
        access_modes = "accessModes": List<String>,
        /// A directory of the machine.
        host_path = "hostPath": HostPath,
        /// A directory of the machine.
        local = "local": LocalVolume,
        /// Retain or Delete: what becomes of the data when the claim goes.
        reclaim = "persistentVolumeReclaimPolicy": String,
        /// The class: claims of the same may have it.
        storage_class = "storageClassName": String,
        /// The one claim that may have it.
        claim = "claimRef": ClaimReference,
        /// Filesystem: block devices are refused.
        volume_mode = "volumeMode": String,
    } idle {
        "nodeAffinity": Anything = "chooses a node: there is one",
    } refused {
        "awsElasticBlockStore": REMOTE,
        "azureDisk": REMOTE,
        "azureFile": REMOTE,
        "cephfs": REMOTE,
        "cinder": REMOTE,
        "csi": REMOTE,
        "fc": REMOTE,
        "flexVolume": REMOTE,
        "flocker": REMOTE,
        "gcePersistentDisk": REMOTE,
        "glusterfs": REMOTE,
        "iscsi": REMOTE,
        "mountOptions": "is for mounted storage: a directory of the machine is bound as it is",
        "nfs": REMOTE,
        "photonPersistentDisk": REMOTE,
        "portworxVolume": REMOTE,
        "quobyte": REMOTE,
        "rbd": REMOTE,
        "scaleIO": REMOTE,
        "storageos": REMOTE,
        "volumeAttributesClassName": "is for CSI drivers, which are not run here: remove it",
        "vsphereVolume": REMOTE,
    }
}

raw! {
    /// A directory of the machine.
    LocalVolume {
        /// Its path.
        path = "path": String,
    } refused {
        "fsType": "is for block devices, which are not mounted here: remove it",
    }
}

raw! {
    /// The claim that may have a volume.
    ClaimReference {
        /// Its name.
        name = "name": String,
        /// Its namespace.
        namespace = "namespace": String,
    } idle {
        "apiVersion": String = "is v1",
        "fieldPath": String = "points into an object: the whole claim is meant",
        "kind": String = "is PersistentVolumeClaim",
        "resourceVersion": String = WRITTEN,
        "uid": String = WRITTEN,
    }
}
