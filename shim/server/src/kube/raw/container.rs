//! A container of a Pod.

use super::*;

raw! {
    /// An item of `spec.containers` or `spec.initContainers`.
    Container {
        name = "name": String,
        image = "image": String,
        image_pull_policy = "imagePullPolicy": String,
        command = "command": List<String>,
        args = "args": List<String>,
        working_dir = "workingDir": String,
        env = "env": List<EnvVar>,
        ports = "ports": List<ContainerPort>,
        resources = "resources": ResourceRequirements,
        volume_mounts = "volumeMounts": List<VolumeMount>,
        security = "securityContext": SecurityContext,
        stdin = "stdin": bool,
        stdin_once = "stdinOnce": bool,
        tty = "tty": bool,
    } refused {
        "envFrom": "is not honoured yet: remove it",
        "lifecycle": "is not honoured yet: remove it",
        "livenessProbe": "is not honoured yet: remove it",
        "readinessProbe": "is not honoured yet: remove it",
        "resizePolicy": "is not honoured yet: remove it",
        "restartPolicy": "is not honoured yet: remove it",
        "restartPolicyRules": "is not honoured yet: remove it",
        "startupProbe": "is not honoured yet: remove it",
        "terminationMessagePath": "is not honoured yet: remove it",
        "terminationMessagePolicy": "is not honoured yet: remove it",
        "volumeDevices": "is not honoured yet: remove it",
    }
}

raw! {
    /// An item of `env`.
    EnvVar {
        name = "name": String,
        value = "value": String,
    } refused {
        "valueFrom": "is not honoured yet: remove it",
    }
}

raw! {
    /// An item of `ports`.
    ContainerPort {
        name = "name": String,
        container_port = "containerPort": i64,
        host_port = "hostPort": i64,
        host_ip = "hostIP": String,
        protocol = "protocol": String,
    }
}

raw! {
    /// `resources`.
    ResourceRequirements {
        limits = "limits": Map<Amount>,
        requests = "requests": Map<Amount>,
    } refused {
        "claims": "is not honoured yet: remove it",
    }
}

raw! {
    /// An item of `volumeMounts`.
    VolumeMount {
        name = "name": String,
        mount_path = "mountPath": String,
        read_only = "readOnly": bool,
        mount_propagation = "mountPropagation": String,
    } refused {
        "recursiveReadOnly": "is not honoured yet: remove it",
        "subPath": "is not honoured yet: remove it",
        "subPathExpr": "is not honoured yet: remove it",
    }
}
