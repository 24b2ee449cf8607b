//! Documents of every kind, and what each mistake about them is answered with.

use super::*;
use crate::kube::service::{ClusterIp, Type};
use crate::kube::volume;

fn of(text: &str) -> Result<Documents, String> {
    read(&[Source { name: "f".into(), text: text.into() }]).map_err(|fault| fault.to_string())
}

fn fault(text: &str) -> String {
    of(text).unwrap_err()
}

const TEMPLATE: &str = "{metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: b:1}]}}";

fn workload(kind: &str, spec: &str) -> Result<Workload, String> {
    let version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
    let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: web}}\nspec: {{{spec}}}\n");
    of(&text).map(|mut documents| documents.workloads.remove(0))
}

fn selected(fields: &str) -> String {
    format!("selector: {{matchLabels: {{app: web}}}}, template: {TEMPLATE}{fields}")
}

#[test]
fn kinds_that_are_not_done_are_refused_by_name_with_a_hint() {
    let cron = fault("apiVersion: batch/v1\nkind: CronJob\n");
    assert!(cron.starts_with("f:2:1: kind CronJob is not done here: start its Job by a timer"), "{cron}");
    assert!(fault("apiVersion: v1\nkind: Podd\n").contains("did you mean Pod?"));
    assert!(
        fault("apiVersion: example.com/v1\nkind: Zebra\n").contains("unknown kind Zebra: known are Pod, ConfigMap")
    );
    assert!(fault("apiVersion: v2\nkind: Pod\n").contains("apiVersion of a Pod is v1, not \"v2\""));
    assert!(fault("kind: Pod\n").contains("apiVersion is missing"));
    assert!(fault("a: 1\n").contains("kind is missing"));
    assert!(fault("- 1\n").contains("expected a document such as a Pod, found a list"));
    assert!(fault("\n").contains("holds no document"));
}

#[test]
fn lists_and_json_are_unpacked() {
    let list = "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n- apiVersion: v1\n  kind: ConfigMap\n  \
        metadata: {name: a}\n- {apiVersion: v1, kind: Namespace, metadata: {name: ns}}\n";
    assert_eq!(of(list).unwrap().objects.len(), 1);
    let wrong = fault(&list.replace("name: a", "nam: a"));
    assert!(wrong.starts_with("f:7:14: items[0].metadata: unknown field `nam`"), "{wrong}");
    let json = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}}"#;
    assert_eq!(of(json).unwrap().objects[0].meta().name, "a");
}

#[test]
fn one_name_stands_once_for_each_kind() {
    let one = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
    assert!(fault(&format!("{one}---\n{one}")).contains("a second ConfigMap of this name"));
    assert_eq!(of(&format!("{one}---\n{}", one.replace("ConfigMap", "Secret"))).unwrap().objects.len(), 2);
    let elsewhere = one.replace("name: a", "name: a, namespace: b");
    assert_eq!(of(&format!("{one}---\n{elsewhere}")).unwrap().objects.len(), 2);
}

#[test]
fn what_a_cluster_writes_is_taken_and_told() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  creationTimestamp: '2024-01-01T00:00:00Z'\n  uid: x\n  \
        resourceVersion: '7'\n  managedFields: [{manager: kubectl}]\nspec:\n  nodeName: node-1\n  tolerations:\n  \
        - {effect: NoExecute, key: k, operator: Exists, tolerationSeconds: 300}\n  containers: [{name: c, image: b}]\n\
        status: {phase: Running}\n";
    let notes = of(text).unwrap().notes;
    let fields: Vec<&str> = notes.iter().map(|note| note.field.as_str()).collect();
    let wanted = ["metadata.creationTimestamp", "metadata.uid", "metadata.resourceVersion", "metadata.managedFields"];
    assert_eq!(fields[..4], wanted);
    assert_eq!(fields[4..], ["spec.nodeName", "spec.tolerations", "status"]);
    assert_eq!((notes[4].of.as_str(), notes[4].why), ("Pod web", "chooses a node: there is one"));
    assert!(fault(&text.replace("effect:", "efect:")).contains("unknown field `efect`: did you mean `effect`?"));
}

#[test]
fn a_name_is_generated_as_the_api_server_does() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {generateName: web-}\nspec: {containers: [{name: c, image: b}]}\n";
    let pod = of(text).unwrap().pods.remove(0);
    assert!(pod.name.starts_with("web-") && pod.name.len() == 9, "{}", pod.name);
    assert_eq!(pod.generated.as_deref(), Some("web-"));
}

#[test]
fn secrets_are_decoded_and_held_to_their_type() {
    let secret = |fields: &str| of(&format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n{fields}"));
    let read = secret("data: {a: 'aGk=', b: 'eA=='}\nstringData: {b: plain}\n").unwrap();
    let AnyObject::Secret(read) = &read.objects[0] else { panic!() };
    assert_eq!((read.kind.as_str(), &read.data["a"][..], &read.data["b"][..]), ("Opaque", &b"hi"[..], &b"plain"[..]));
    let wrong = |fields: &str| secret(fields).unwrap_err();
    assert!(wrong("data: {a: 'hi there'}\n").contains("data.a: not base64"));
    assert!(wrong("data: {../a: 'aGk='}\n").contains("must not be '.' nor start with '..'"));
    assert!(wrong("type: kubernetes.io/tls\nstringData: {tls.crt: x}\n").contains("has the key tls.key"));
    assert!(
        wrong("type: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: x}\n").contains("is not JSON")
    );
    assert!(wrong("type: kubernetes.io/service-account-token\n").contains("no API server"));
}

#[test]
fn services_are_validated() {
    let service = |spec: &str| {
        let read = of(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {{{spec}}}\n"))?;
        match read.objects.into_iter().next() {
            Some(AnyObject::Service(service)) => Ok(service),
            _ => Err(String::new()),
        }
    };
    let plain = service("ports: [{port: 80, targetPort: http}], selector: {app: web}").unwrap();
    assert_eq!((plain.kind, plain.cluster_ip), (Type::ClusterIP, ClusterIp::Unset));
    assert_eq!(plain.ports[0].target.to_string(), "http");
    assert_eq!(service("clusterIP: None, selector: {a: b}").unwrap().cluster_ip, ClusterIp::Headless);
    let wrong = |spec: &str| service(spec).unwrap_err();
    assert!(wrong("selector: {a: b}").contains("ports is missing"));
    assert!(wrong("ports: [{port: 80, nodePort: 30000}]").contains("goes with the types NodePort"));
    assert!(wrong("ports: [{port: 80}, {port: 81}]").contains("of several ports each has one"));
    assert!(wrong("type: ExternalName").contains("externalName is missing"));
    assert!(wrong("ports: [{port: 1}], externalIPs: [1.1.1.1]").contains("use a NodePort"));
}

#[test]
fn a_deployment_becomes_numbered_pods_with_their_owner() {
    let deployment = workload("Deployment", &selected(", replicas: 2")).unwrap();
    let pods = deployment.pods();
    let names: Vec<(&str, &str)> = pods.iter().map(|pod| (pod.name.as_str(), pod.hostname.as_str())).collect();
    assert_eq!(names, [("web-0", "web-0"), ("web-1", "web-1")]);
    assert_eq!(pods[0].annotations[workload::OWNER], "Deployment/web");
    assert_eq!(Workload::key_of("Deployment/web").as_deref(), Some("deployment.web"));
    assert_eq!(workload("DaemonSet", &selected("")).unwrap().pods().len(), 1);
    let wrong = selected("").replace("app: web}}, template", "app: other}}, template");
    assert!(workload("Deployment", &wrong).unwrap_err().contains("must match the labels of the template"));
    let wrong = selected("").replace("spec: {", "spec: {restartPolicy: Never, ");
    assert!(workload("ReplicaSet", &wrong).unwrap_err().contains("is Always"));
    assert!(workload("Deployment", &selected(", paused: true")).unwrap_err().contains("paused waits for"));
}

#[test]
fn a_stateful_set_has_claims_and_names_of_its_own_for_each_pod() {
    let claims = "volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], \
        resources: {requests: {storage: 1Gi}}}}]";
    let mount = "image: b:1, volumeMounts: [{name: data, mountPath: /data}]";
    let spec = selected(&format!(", replicas: 2, serviceName: db, {claims}")).replace("image: b:1", mount);
    let set = workload("StatefulSet", &spec).unwrap();
    let pods = set.pods();
    assert_eq!(pods[1].subdomain.as_deref(), Some("db"));
    assert_eq!(pods[1].labels["statefulset.kubernetes.io/pod-name"], "web-1");
    let source = volume::Source::Claim { name: "data-web-1".into(), read_only: false };
    assert_eq!(pods[1].volumes[0].source, source);
    let names: Vec<String> = set.claims().into_iter().map(|claim| claim.meta.name).collect();
    assert_eq!(names, ["data-web-0", "data-web-1"]);
}

#[test]
fn a_job_says_how_many_successes_it_needs() {
    let template = TEMPLATE.replace("spec: {", "spec: {restartPolicy: Never, ");
    let job = |fields: &str| workload("Job", &format!("template: {template}{fields}"));
    let wanted = |fields: &str| match job(fields).unwrap().kind {
        workload::Kind::Job(job) => (job.completions, job.indexed, job.backoff_limit),
        _ => panic!(),
    };
    assert_eq!(wanted(""), (Some(1), false, 6));
    assert_eq!(wanted(", parallelism: 3"), (None, false, 6), "a work queue");
    assert_eq!(wanted(", completions: 4, completionMode: Indexed, backoffLimit: 0"), (Some(4), true, 0));
    assert!(job(", podFailurePolicy: {rules: []}").unwrap_err().contains("podFailurePolicy is not honoured"));
    assert!(workload("Job", &format!("template: {TEMPLATE}")).unwrap_err().contains("OnFailure or Never"));
}

#[test]
fn every_field_that_is_told_has_a_description() {
    fn walk(table: &'static Table, seen: &mut Vec<&'static str>) {
        if seen.contains(&table.name) {
            return;
        }
        seen.push(table.name);
        assert!(!table.about.trim().is_empty(), "{}", table.name);
        for field in table.fields {
            assert!(field.fate != Fate::Done || !field.about.trim().is_empty(), "{}.{}", table.name, field.key);
            if let Some(table) = (field.shape)().table() {
                walk(table, seen);
            }
        }
    }
    let mut seen = Vec::new();
    KINDS.iter().for_each(|known| walk(known.table, &mut seen));
    assert!(seen.len() > 50, "{seen:?}");
}
