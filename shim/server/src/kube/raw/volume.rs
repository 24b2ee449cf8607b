//! The volumes of a Pod.

use super::*;

raw! {
    /// An item of `spec.volumes`.
    Volume {
        name = "name": String,
        empty_dir = "emptyDir": EmptyDir,
        host_path = "hostPath": HostPath,
    } later {
        "awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "configMap", "csi", "downwardAPI",
        "ephemeral", "fc", "flexVolume", "flocker", "gcePersistentDisk", "gitRepo", "glusterfs", "image", "iscsi",
        "nfs", "persistentVolumeClaim", "photonPersistentDisk", "portworxVolume", "projected", "quobyte", "rbd",
        "scaleIO", "secret", "storageos", "vsphereVolume",
    }
}

raw! {
    /// `emptyDir`.
    EmptyDir {
        medium = "medium": String,
    } later {
        "sizeLimit",
    }
}

raw! {
    /// `hostPath`.
    HostPath {
        path = "path": String,
        kind = "type": String,
    } later {}
}
