//! Every field of the Kubernetes Pod, by the API reference: done, told as without effect, or refused by name.

use std::collections::{BTreeMap, BTreeSet};

use super::{code, file};
use coracle_tests::machine::Machine;

/// The fields of each type that a Pod is made of, written down from the API reference of Kubernetes 1.35.
const FIELDS: &[(&str, &str)] = &[
    ("pod", "apiVersion kind metadata spec status"),
    (
        "pod.metadata",
        "name generateName namespace labels annotations creationTimestamp deletionGracePeriodSeconds deletionTimestamp \
         finalizers generation managedFields ownerReferences resourceVersion selfLink uid",
    ),
    (
        "pod.spec",
        "activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig dnsPolicy enableServiceLinks \
         ephemeralContainers hostAliases hostIPC hostNetwork hostPID hostUsers hostname hostnameOverride \
         imagePullSecrets initContainers nodeName nodeSelector os overhead preemptionPolicy priority priorityClassName \
         readinessGates resourceClaims resources restartPolicy runtimeClassName schedulerName schedulingGates \
         schedulingGroup securityContext serviceAccount serviceAccountName setHostnameAsFQDN shareProcessNamespace \
         subdomain terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes workloadRef",
    ),
    (
        "pod.spec.containers",
        "args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe resizePolicy \
         resources restartPolicy restartPolicyRules securityContext startupProbe stdin stdinOnce \
         terminationMessagePath terminationMessagePolicy tty volumeDevices volumeMounts workingDir",
    ),
    ("pod.spec.containers.env", "name value valueFrom"),
    ("pod.spec.containers.env.valueFrom", "configMapKeyRef fieldRef fileKeyRef resourceFieldRef secretKeyRef"),
    ("pod.spec.containers.env.valueFrom.configMapKeyRef", "key name optional"),
    ("pod.spec.containers.env.valueFrom.secretKeyRef", "key name optional"),
    ("pod.spec.containers.env.valueFrom.fieldRef", "apiVersion fieldPath"),
    ("pod.spec.containers.env.valueFrom.resourceFieldRef", "containerName divisor resource"),
    ("pod.spec.containers.envFrom", "configMapRef prefix secretRef"),
    ("pod.spec.containers.envFrom.configMapRef", "name optional"),
    ("pod.spec.containers.lifecycle", "postStart preStop stopSignal"),
    ("pod.spec.containers.lifecycle.preStop", "exec httpGet sleep tcpSocket"),
    ("pod.spec.containers.lifecycle.preStop.sleep", "seconds"),
    (
        "pod.spec.containers.livenessProbe",
        "exec failureThreshold grpc httpGet initialDelaySeconds periodSeconds successThreshold tcpSocket \
         terminationGracePeriodSeconds timeoutSeconds",
    ),
    ("pod.spec.containers.livenessProbe.exec", "command"),
    ("pod.spec.containers.livenessProbe.grpc", "port service"),
    ("pod.spec.containers.livenessProbe.httpGet", "host httpHeaders path port scheme"),
    ("pod.spec.containers.livenessProbe.httpGet.httpHeaders", "name value"),
    ("pod.spec.containers.livenessProbe.tcpSocket", "host port"),
    ("pod.spec.containers.ports", "containerPort hostIP hostPort name protocol"),
    ("pod.spec.containers.resizePolicy", "resourceName restartPolicy"),
    ("pod.spec.containers.resources", "claims limits requests"),
    ("pod.spec.containers.restartPolicyRules", "action exitCodes"),
    ("pod.spec.containers.restartPolicyRules.exitCodes", "operator values"),
    (
        "pod.spec.containers.securityContext",
        "allowPrivilegeEscalation appArmorProfile capabilities privileged procMount readOnlyRootFilesystem runAsGroup \
         runAsNonRoot runAsUser seLinuxOptions seccompProfile windowsOptions",
    ),
    ("pod.spec.containers.securityContext.capabilities", "add drop"),
    ("pod.spec.containers.securityContext.seccompProfile", "localhostProfile type"),
    ("pod.spec.containers.securityContext.appArmorProfile", "localhostProfile type"),
    ("pod.spec.containers.securityContext.seLinuxOptions", "level role type user"),
    (
        "pod.spec.containers.volumeMounts",
        "mountPath mountPropagation name readOnly recursiveReadOnly subPath subPathExpr",
    ),
    (
        "pod.spec.securityContext",
        "appArmorProfile fsGroup fsGroupChangePolicy runAsGroup runAsNonRoot runAsUser seLinuxChangePolicy \
         seLinuxOptions seccompProfile supplementalGroups supplementalGroupsPolicy sysctls windowsOptions",
    ),
    ("pod.spec.securityContext.sysctls", "name value"),
    ("pod.spec.dnsConfig", "nameservers options searches"),
    ("pod.spec.dnsConfig.options", "name value"),
    ("pod.spec.hostAliases", "hostnames ip"),
    ("pod.spec.imagePullSecrets", "name"),
    ("pod.spec.os", "name"),
    ("pod.spec.affinity", "nodeAffinity podAffinity podAntiAffinity"),
    ("pod.spec.tolerations", "effect key operator tolerationSeconds value"),
    (
        "pod.spec.topologySpreadConstraints",
        "labelSelector matchLabelKeys maxSkew minDomains nodeAffinityPolicy nodeTaintsPolicy topologyKey \
         whenUnsatisfiable",
    ),
    (
        "pod.spec.volumes",
        "awsElasticBlockStore azureDisk azureFile cephfs cinder configMap csi downwardAPI emptyDir ephemeral fc \
         flexVolume flocker gcePersistentDisk gitRepo glusterfs hostPath image iscsi name nfs persistentVolumeClaim \
         photonPersistentDisk portworxVolume projected quobyte rbd scaleIO secret storageos vsphereVolume",
    ),
    ("pod.spec.volumes.configMap", "defaultMode items name optional"),
    ("pod.spec.volumes.configMap.items", "key mode path"),
    ("pod.spec.volumes.secret", "defaultMode items optional secretName"),
    ("pod.spec.volumes.downwardAPI", "defaultMode items"),
    ("pod.spec.volumes.downwardAPI.items", "fieldRef mode path resourceFieldRef"),
    ("pod.spec.volumes.projected", "defaultMode sources"),
    (
        "pod.spec.volumes.projected.sources",
        "clusterTrustBundle configMap downwardAPI podCertificate secret serviceAccountToken",
    ),
    ("pod.spec.volumes.projected.sources.configMap", "items name optional"),
    ("pod.spec.volumes.emptyDir", "medium sizeLimit"),
    ("pod.spec.volumes.hostPath", "path type"),
    ("pod.spec.volumes.image", "pullPolicy reference"),
    ("pod.spec.volumes.persistentVolumeClaim", "claimName readOnly"),
];

/// The fields of a type as `coracle explain` tells them, each with its status.
fn explained(machine: &Machine, path: &str) -> BTreeMap<String, String> {
    let json: serde_json::Value = serde_json::from_str(&machine.ok(&["explain", "-o", "json", path])).expect("JSON");
    let text = |line: &serde_json::Value, key: &str| line[key].as_str().expect("a text").to_owned();
    let lines = json.as_array().expect("a list");
    lines.iter().map(|line| (text(line, "field"), text(line, "status"))).collect()
}

#[test]
fn every_field_of_the_pod_is_done_or_without_effect_or_refused() {
    let machine = Machine::new();
    for (path, fields) in FIELDS {
        let wanted: BTreeSet<&str> = fields.split_whitespace().collect();
        let told = explained(&machine, path);
        assert_eq!(told.keys().map(String::as_str).collect::<BTreeSet<_>>(), wanted, "{path}");
        for (field, status) in &told {
            assert!(["done", "no effect", "refused"].contains(&status.as_str()), "{path}.{field}: {status}");
        }
    }
}

/// A Pod in which this field stands, with a value that says something.
fn with(path: &str, field: &str) -> Option<String> {
    let (containers, spec) = ("containers: [{name: c, image: b:1", "spec: {");
    let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\n{spec}{containers}}}]}}\n");
    match path {
        "pod.spec" => Some(text.replace(spec, &format!("{spec}{field}: [x], "))),
        "pod.spec.containers" => Some(text.replace(containers, &format!("{containers}, {field}: [x]"))),
        "pod.spec.volumes" => Some(text.replace(spec, &format!("{spec}volumes: [{{name: v, {field}: {{a: b}}}}], "))),
        "pod.spec.containers.securityContext" => {
            Some(text.replace(containers, &format!("{containers}, securityContext: {{{field}: {{a: b}}}}")))
        }
        _ => None,
    }
}

#[test]
fn a_field_that_is_told_as_refused_is_refused_by_its_name() {
    let machine = Machine::new();
    let mut refused = 0;
    for (path, _) in FIELDS {
        for (field, status) in explained(&machine, path).iter().filter(|(_, status)| *status == "refused") {
            let Some(text) = with(path, field) else { continue };
            let said = machine.coracle(&["run", "--dry-run", &file(&machine, "p.yaml", &text)]);
            assert_eq!(code(&said), 2, "{path}.{field} is told as {status}: {}", said.err);
            assert!(said.err.contains(&format!("{field} ")), "{path}.{field}: {}", said.err);
            refused += 1;
        }
    }
    assert!(refused > 20, "{refused} fields were tried");
}
