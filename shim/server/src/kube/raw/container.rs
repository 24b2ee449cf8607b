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
    } later {
        "envFrom", "lifecycle", "livenessProbe", "readinessProbe", "resizePolicy", "restartPolicy",
        "restartPolicyRules", "startupProbe", "terminationMessagePath", "terminationMessagePolicy", "volumeDevices",
    }
}

raw! {
    /// An item of `env`.
    EnvVar {
        name = "name": String,
        value = "value": String,
    } later {
        "valueFrom",
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
    } later {}
}

raw! {
    /// `resources`.
    ResourceRequirements {
        limits = "limits": Map<Amount>,
        requests = "requests": Map<Amount>,
    } later {
        "claims",
    }
}

raw! {
    /// An item of `volumeMounts`.
    VolumeMount {
        name = "name": String,
        mount_path = "mountPath": String,
        read_only = "readOnly": bool,
        mount_propagation = "mountPropagation": String,
    } later {
        "recursiveReadOnly", "subPath", "subPathExpr",
    }
}
