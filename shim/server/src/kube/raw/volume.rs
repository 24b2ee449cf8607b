//! The volumes of a Pod.

use super::*;

const REMOTE: &str = "is storage beyond this machine, which is not mounted here: mount it and use hostPath";

raw! {
    /// A volume: a name and one source.
    Volume {
        /// The name by which containers mount it.
        name = "name": String,
        /// An empty directory that goes with the pod.
        empty_dir = "emptyDir": EmptyDir,
        /// A file or directory of the machine.
        host_path = "hostPath": HostPath,
        /// The keys of a ConfigMap as files.
        config_map = "configMap": ConfigMapVolume,
        /// The keys of a Secret as files.
        secret = "secret": SecretVolume,
        /// Fields of the pod as files.
        downward = "downwardAPI": DownwardVolume,
        /// Several of these in one directory.
        projected = "projected": ProjectedVolume,
        /// The files of an image.
        image = "image": ImageVolume,
        /// A directory that outlives pods.
        claim = "persistentVolumeClaim": ClaimVolume,
    } refused {
        "awsElasticBlockStore": REMOTE,
        "azureDisk": REMOTE,
        "azureFile": REMOTE,
        "cephfs": REMOTE,
        "cinder": REMOTE,
        "csi": "needs a CSI driver, which is not run here: use hostPath or a claim",
        "ephemeral": "makes a claim for each pod, which is not done here: use emptyDir",
        "fc": REMOTE,
        "flexVolume": REMOTE,
        "flocker": REMOTE,
        "gcePersistentDisk": REMOTE,
        "gitRepo": "is obsolete: clone into an emptyDir by an init container",
        "glusterfs": REMOTE,
        "iscsi": REMOTE,
        "nfs": REMOTE,
        "photonPersistentDisk": REMOTE,
        "portworxVolume": REMOTE,
        "quobyte": REMOTE,
        "rbd": REMOTE,
        "scaleIO": REMOTE,
        "storageos": REMOTE,
        "vsphereVolume": REMOTE,
    }
}

raw! {
    /// An empty directory.
    EmptyDir {
        /// Memory for a tmpfs; empty or absent for the disk.
        medium = "medium": String,
        /// At most.
        size_limit = "sizeLimit": Amount,
    }
}

raw! {
    /// A file or directory of the machine.
    HostPath {
        /// Its path.
        path = "path": String,
        /// What is expected there: Directory, DirectoryOrCreate, File, FileOrCreate, Socket, CharDevice, BlockDevice.
        kind = "type": String,
    }
}

raw! {
    /// The keys of a ConfigMap as files.
    ConfigMapVolume {
        /// The ConfigMap.
        name = "name": String,
        /// Only these keys, at these paths.
        items = "items": List<KeyToPath>,
        /// Permissions of the files; 0644.
        default_mode = "defaultMode": i64,
        /// Whether it may be missing.
        optional = "optional": bool,
    }
}

raw! {
    /// The keys of a Secret as files.
    SecretVolume {
        /// The Secret.
        name = "secretName": String,
        /// Only these keys, at these paths.
        items = "items": List<KeyToPath>,
        /// Permissions of the files; 0644.
        default_mode = "defaultMode": i64,
        /// Whether it may be missing.
        optional = "optional": bool,
    }
}

raw! {
    /// A key and the file that it becomes.
    KeyToPath {
        /// The key.
        key = "key": String,
        /// The file, within the volume.
        path = "path": String,
        /// Its permissions.
        mode = "mode": i64,
    }
}

raw! {
    /// Fields of the pod as files.
    DownwardVolume {
        /// The files.
        items = "items": List<DownwardFile>,
        /// Permissions of the files; 0644.
        default_mode = "defaultMode": i64,
    }
}

raw! {
    /// A field of the pod and the file that it becomes.
    DownwardFile {
        /// The file, within the volume.
        path = "path": String,
        /// A field of the pod.
        field = "fieldRef": FieldReference,
        /// A resource of a container.
        resource = "resourceFieldRef": ResourceReference,
        /// Its permissions.
        mode = "mode": i64,
    }
}

raw! {
    /// Several sources in one directory.
    ProjectedVolume {
        /// The sources; of two files of one path the later counts.
        sources = "sources": List<Projection>,
        /// Permissions of the files; 0644.
        default_mode = "defaultMode": i64,
    }
}

raw! {
    /// A source of a projected volume.
    Projection {
        /// Keys of a ConfigMap.
        config_map = "configMap": KeyProjection,
        /// Keys of a Secret.
        secret = "secret": KeyProjection,
        /// Fields of the pod.
        downward = "downwardAPI": DownwardProjection,
    } refused {
        "clusterTrustBundle": "is kept by an API server: there is none",
        "podCertificate": "is signed by a cluster: there is none",
        "serviceAccountToken": "is signed by an API server: there is none",
    }
}

raw! {
    /// Keys of an object in a projected volume.
    KeyProjection {
        /// The object.
        name = "name": String,
        /// Only these keys, at these paths.
        items = "items": List<KeyToPath>,
        /// Whether it may be missing.
        optional = "optional": bool,
    }
}

raw! {
    /// Fields of the pod in a projected volume.
    DownwardProjection {
        /// The files.
        items = "items": List<DownwardFile>,
    }
}

raw! {
    /// The files of an image, read-only.
    ImageVolume {
        /// The image.
        reference = "reference": String,
        /// Always, IfNotPresent or Never; as for a container's image.
        pull = "pullPolicy": String,
    }
}

raw! {
    /// A directory that outlives pods.
    ClaimVolume {
        /// The PersistentVolumeClaim.
        name = "claimName": String,
        /// Whether it can only be read.
        read_only = "readOnly": bool,
    }
}
