//! A container of a Pod.

use super::*;

raw! {
    /// A container: an image, what is run of it, and how it is kept alive.
    Container {
        /// Its name in the pod.
        name = "name": String,
        /// The image, by tag or digest.
        image = "image": String,
        /// Always, IfNotPresent or Never; Always for the tag latest, else IfNotPresent.
        image_pull_policy = "imagePullPolicy": String,
        /// Instead of the image's entrypoint; $(VAR) is replaced.
        command = "command": List<String>,
        /// Instead of the image's arguments; $(VAR) is replaced.
        args = "args": List<String>,
        /// Instead of the image's working directory.
        working_dir = "workingDir": String,
        /// Variables, in order; $(VAR) is replaced.
        env = "env": List<EnvVar>,
        /// Variables from all keys of ConfigMaps and Secrets.
        env_from = "envFrom": List<EnvFromSource>,
        /// Ports; hostPort is opened on the machine.
        ports = "ports": List<ContainerPort>,
        /// What it asks for and what it may take.
        resources = "resources": ResourceRequirements,
        /// Volumes in its filesystem.
        volume_mounts = "volumeMounts": List<VolumeMount>,
        /// Identity and privileges.
        security = "securityContext": SecurityContext,
        /// Hooks after its start and before its end.
        lifecycle = "lifecycle": Lifecycle,
        /// Ends the container when it fails.
        liveness = "livenessProbe": Probe,
        /// Decides whether Services send it traffic.
        readiness = "readinessProbe": Probe,
        /// Holds back the other probes until it succeeds.
        startup = "startupProbe": Probe,
        /// Instead of the pod's; Always makes an init container a sidecar.
        restart = "restartPolicy": String,
        /// Exit codes after which it is started again whatever the policy says.
        restart_rules = "restartPolicyRules": List<RestartRule>,
        /// Where it may leave a last message.
        message_path = "terminationMessagePath": String,
        /// File, or FallbackToLogsOnError.
        message_policy = "terminationMessagePolicy": String,
        /// Whether standard input is kept open for attached clients.
        stdin = "stdin": bool,
        /// Whether it is closed when the first client leaves.
        stdin_once = "stdinOnce": bool,
        /// Whether it has a terminal.
        tty = "tty": bool,
    } idle {
        "resizePolicy": List<ResizePolicy> = "is about changing the resources of a running pod, which is not done here",
    } refused {
        "volumeDevices": "is block storage, which is not done here: mount a directory",
    }
}

raw! {
    /// What changing a resource would restart.
    ResizePolicy {
        /// cpu or memory.
        resource = "resourceName": String,
        /// NotRequired or RestartContainer.
        restart = "restartPolicy": String,
    }
}

raw! {
    /// A variable.
    EnvVar {
        /// Its name.
        name = "name": String,
        /// Its value; $(VAR) is replaced.
        value = "value": String,
        /// Where its value comes from instead.
        from = "valueFrom": EnvVarSource,
    }
}

raw! {
    /// Where a variable's value comes from.
    EnvVarSource {
        /// A key of a ConfigMap.
        config_map = "configMapKeyRef": KeyReference,
        /// A key of a Secret.
        secret = "secretKeyRef": KeyReference,
        /// A field of the pod.
        field = "fieldRef": FieldReference,
        /// A resource of a container.
        resource = "resourceFieldRef": ResourceReference,
    } refused {
        "fileKeyRef": "is read of a file that an init container wrote, which is not done here: remove it",
    }
}

raw! {
    /// A key of another object.
    KeyReference {
        /// The object.
        name = "name": String,
        /// The key.
        key = "key": String,
        /// Whether it may be missing.
        optional = "optional": bool,
    }
}

raw! {
    /// A field of the pod.
    FieldReference {
        /// v1.
        api_version = "apiVersion": String,
        /// metadata.name, metadata.labels['KEY'], status.podIP ...
        path = "fieldPath": String,
    }
}

raw! {
    /// A resource of a container.
    ResourceReference {
        /// The container; in `env` the same one where none is named.
        container = "containerName": String,
        /// limits.cpu, requests.memory ...
        resource = "resource": String,
        /// The unit: 1m, 1Mi ...
        divisor = "divisor": Amount,
    }
}

raw! {
    /// All keys of a ConfigMap or Secret as variables.
    EnvFromSource {
        /// Put before each name.
        prefix = "prefix": String,
        /// The ConfigMap.
        config_map = "configMapRef": ObjectReference,
        /// The Secret.
        secret = "secretRef": ObjectReference,
    }
}

raw! {
    /// Another object that may be missing.
    ObjectReference {
        /// Its name.
        name = "name": String,
        /// Whether it may be missing.
        optional = "optional": bool,
    }
}

raw! {
    /// A port.
    ContainerPort {
        /// A name by which Services and probes find it.
        name = "name": String,
        /// The port inside.
        container_port = "containerPort": i64,
        /// The machine's port that leads to it.
        host_port = "hostPort": i64,
        /// The machine's address that hostPort is open at.
        host_ip = "hostIP": String,
        /// TCP, UDP or SCTP.
        protocol = "protocol": String,
    }
}

raw! {
    /// What is asked for and what may be taken, by resource: cpu, memory.
    ResourceRequirements {
        /// At most.
        limits = "limits": Map<Amount>,
        /// At least.
        requests = "requests": Map<Amount>,
    } refused {
        "claims": "needs drivers of dynamic resource allocation, which are not run here: remove it",
    }
}

raw! {
    /// A volume in a container.
    VolumeMount {
        /// The volume's name.
        name = "name": String,
        /// Where it is seen.
        mount_path = "mountPath": String,
        /// Whether it can only be read.
        read_only = "readOnly": bool,
        /// Disabled, IfPossible or Enabled: the same for what is mounted below it.
        recursive = "recursiveReadOnly": String,
        /// Only this path of the volume.
        sub_path = "subPath": String,
        /// The same, with $(VAR).
        sub_path_expr = "subPathExpr": String,
        /// None, HostToContainer or Bidirectional.
        mount_propagation = "mountPropagation": String,
    }
}

raw! {
    /// An exit code after which a container starts again.
    RestartRule {
        /// Restart.
        action = "action": String,
        /// Which exit codes.
        exit_codes = "exitCodes": RestartExitCodes,
    }
}

raw! {
    /// Exit codes.
    RestartExitCodes {
        /// In or NotIn.
        operator = "operator": String,
        /// These.
        values = "values": List<i64>,
    }
}
