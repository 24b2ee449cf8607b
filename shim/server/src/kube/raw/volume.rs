//! The volumes of a Pod.

use super::*;

raw! {
    /// An item of `spec.volumes`.
    Volume {
        name = "name": String,
        empty_dir = "emptyDir": EmptyDir,
        host_path = "hostPath": HostPath,
    } refused {
        "awsElasticBlockStore": "is not honoured yet: remove it",
        "azureDisk": "is not honoured yet: remove it",
        "azureFile": "is not honoured yet: remove it",
        "cephfs": "is not honoured yet: remove it",
        "cinder": "is not honoured yet: remove it",
        "configMap": "is not honoured yet: remove it",
        "csi": "is not honoured yet: remove it",
        "downwardAPI": "is not honoured yet: remove it",
        "ephemeral": "is not honoured yet: remove it",
        "fc": "is not honoured yet: remove it",
        "flexVolume": "is not honoured yet: remove it",
        "flocker": "is not honoured yet: remove it",
        "gcePersistentDisk": "is not honoured yet: remove it",
        "gitRepo": "is not honoured yet: remove it",
        "glusterfs": "is not honoured yet: remove it",
        "image": "is not honoured yet: remove it",
        "iscsi": "is not honoured yet: remove it",
        "nfs": "is not honoured yet: remove it",
        "persistentVolumeClaim": "is not honoured yet: remove it",
        "photonPersistentDisk": "is not honoured yet: remove it",
        "portworxVolume": "is not honoured yet: remove it",
        "projected": "is not honoured yet: remove it",
        "quobyte": "is not honoured yet: remove it",
        "rbd": "is not honoured yet: remove it",
        "scaleIO": "is not honoured yet: remove it",
        "secret": "is not honoured yet: remove it",
        "storageos": "is not honoured yet: remove it",
        "vsphereVolume": "is not honoured yet: remove it",
    }
}

raw! {
    /// `emptyDir`.
    EmptyDir {
        medium = "medium": String,
    } refused {
        "sizeLimit": "is not honoured yet: remove it",
    }
}

raw! {
    /// `hostPath`.
    HostPath {
        path = "path": String,
        kind = "type": String,
    }
}
