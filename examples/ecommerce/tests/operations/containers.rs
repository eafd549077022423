//! The compose file and the Kubernetes manifests: all their fields exist, the program takes what they give it, and the shop opens with it.

use crate::{PATIENCE, opened::ecommerce};
use jsonschema::Validator;
use reqwest::{Client, StatusCode};
use saga_kafka::{EmbeddedBroker, TopicSpec};
use saga_postgres::testing::Postgres;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Stdio,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader, Lines},
    process::{Child, Command},
    time::timeout,
};

const SERVICES: [(&str, u16); 8] = [
    ("gateway", 8080),
    ("user", 8081),
    ("order", 8082),
    ("inventory", 8084),
    ("payment", 8085),
    ("delivery", 8086),
    ("product", 8087),
    ("notification", 8088),
];

/// A file of `deploy`: its documents.
fn yaml(file: &str) -> Vec<Value> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

fn compose() -> Value {
    yaml("compose.yaml").remove(0)
}

/// All manifests, and the example of a secret.
fn manifests() -> Vec<Value> {
    let kustomization = yaml("kubernetes/kustomization.yaml").remove(0);
    let resources = kustomization["resources"].as_array().unwrap().iter().map(|file| file.as_str().unwrap().to_owned());
    let files = resources.chain(["databases.example.yaml".into()]);
    files.flat_map(|file| yaml(&format!("kubernetes/{file}"))).collect()
}

/// Those of a kind, by name.
fn of_kind(kind: &str) -> BTreeMap<String, Value> {
    let of_kind = manifests().into_iter().filter(|manifest| manifest["kind"] == kind);
    of_kind.map(|manifest| (manifest["metadata"]["name"].as_str().unwrap().to_owned(), manifest)).collect()
}

fn compose_schema() -> Validator {
    jsonschema::validator_for(&serde_json::from_str(include_str!("schemas/compose.json")).unwrap()).unwrap()
}

fn schema_of(kind: &str) -> Validator {
    let mut schema: Value = serde_json::from_str(include_str!("schemas/kubernetes.json")).unwrap();
    let group = match kind {
        "Deployment" => "apps",
        "PodDisruptionBudget" => "policy",
        _ => "core",
    };
    schema["$ref"] = format!("#/$defs/io.k8s.api.{group}.v1.{kind}").into();
    jsonschema::validator_for(&schema).unwrap()
}

fn errors(schema: &Validator, document: &Value) -> Vec<String> {
    schema.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[test]
fn all_fields_of_the_compose_file_and_of_the_manifests_exist() {
    assert_eq!(errors(&compose_schema(), &compose()), Vec::<String>::new());
    let mut count = BTreeMap::new();
    for manifest in manifests() {
        let kind = manifest["kind"].as_str().unwrap();
        assert_eq!(errors(&schema_of(kind), &manifest), Vec::<String>::new(), "{manifest}");
        *count.entry(kind.to_owned()).or_insert(0) += 1;
    }
    let expected = [("ConfigMap", 3), ("Deployment", 8), ("PodDisruptionBudget", 2), ("Secret", 1), ("Service", 8)];
    assert_eq!(count, expected.map(|(kind, count)| (kind.to_owned(), count)).into());
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes")).unwrap() {
        let file = file.unwrap().file_name().into_string().unwrap();
        let known = yaml("kubernetes/kustomization.yaml")[0]["resources"].as_array().unwrap().contains(&json!(file));
        let apart = ["kustomization.yaml", "databases.example.yaml", "databases.yaml"].contains(&file.as_str());
        assert!(known || apart, "{file} is not in the kustomization");
    }
}

/// The document with a field of another name, or with another value.
fn with(document: &Value, pointer: &str, change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Value {
    let mut changed = document.clone();
    change(changed.pointer_mut(pointer).unwrap().as_object_mut().unwrap());
    assert_ne!(&changed, document);
    changed
}

fn renamed<'a>(from: &'a str, to: &'a str) -> impl FnOnce(&mut serde_json::Map<String, Value>) + 'a {
    move |fields| {
        let value = fields.remove(from).unwrap();
        fields.insert(to.into(), value);
    }
}

fn set(field: &str, value: Value) -> impl FnOnce(&mut serde_json::Map<String, Value>) {
    move |fields| drop(fields.insert(field.into(), value))
}

#[test]
fn a_misspelt_field_or_a_wrong_type_is_found() {
    let (order, schema) = (of_kind("Deployment").remove("order").unwrap(), schema_of("Deployment"));
    let container = "/spec/template/spec/containers/0";
    let wrong = [
        with(&order, "/spec", set("replicas", json!("2"))),
        with(&order, "/spec", renamed("replicas", "replica")),
        with(&order, "/spec/template/spec", renamed("terminationGracePeriodSeconds", "terminationGracePeriod")),
        with(&order, container, renamed("readinessProbe", "readynessProbe")),
        with(&order, container, set("args", json!("serve order"))),
        with(&order, &format!("{container}/readinessProbe"), renamed("httpGet", "httpget")),
        with(&order, &format!("{container}/securityContext"), set("readOnlyRootFilesystem", json!("true"))),
        with(&order, &format!("{container}/env/1/valueFrom/secretKeyRef"), renamed("key", "entry")),
    ];
    for wrong in &wrong {
        assert!(!schema.is_valid(wrong), "{wrong}");
    }
    let (budget, schema) = (of_kind("PodDisruptionBudget").remove("order").unwrap(), schema_of("PodDisruptionBudget"));
    assert!(!schema.is_valid(&with(&budget, "/spec", renamed("minAvailable", "minimum"))));
    let (service, schema) = (of_kind("Service").remove("order").unwrap(), schema_of("Service"));
    assert!(!schema.is_valid(&with(&service, "/spec/ports/0", set("port", json!("http")))));

    let (compose, schema) = (compose(), compose_schema());
    let wrong = [
        with(&compose, "/services/order", renamed("healthcheck", "health")),
        with(&compose, "/services/order/healthcheck", renamed("test", "tests")),
        with(&compose, "/services/order/depends_on/kafka", set("condition", json!("healthy"))),
        with(&compose, "/services/gateway", set("ports", json!("8080:8080"))),
        with(&compose, "/services/order", set("read_only", json!([true]))),
        with(&compose, "", renamed("volumes", "volume")),
    ];
    for wrong in &wrong {
        assert!(!schema.is_valid(wrong), "{wrong}");
    }
}

/// What a container is started with.
#[derive(Debug)]
struct Container {
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

fn of_compose() -> BTreeMap<String, Container> {
    let compose = compose();
    let ours = compose["services"].as_object().unwrap().iter().filter(|(_, service)| service["image"] == "ecommerce");
    ours.map(|(name, service)| {
        let arguments = service["command"].as_array().unwrap().iter().map(text).collect();
        let environment = service["environment"].as_object().unwrap().iter();
        let environment = environment.map(|(name, value)| (name.clone(), text(value))).collect();
        (name.clone(), Container { arguments, environment })
    })
    .collect()
}

fn of_kubernetes() -> BTreeMap<String, Container> {
    let (settings, secrets) = (of_kind("ConfigMap"), of_kind("Secret"));
    let container = |deployment: Value| {
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let mut environment = BTreeMap::new();
        for from in container["envFrom"].as_array().unwrap() {
            let data = &settings[from["configMapRef"]["name"].as_str().unwrap()]["data"];
            environment.extend(data.as_object().unwrap().iter().map(|(name, value)| (name.clone(), text(value))));
        }
        for variable in container["env"].as_array().unwrap() {
            let value = match &variable["valueFrom"]["secretKeyRef"] {
                Value::Null => text(&variable["value"]),
                secret => text(&secrets[&text(&secret["name"])]["stringData"][text(&secret["key"])]),
            };
            assert!(environment.insert(text(&variable["name"]), value).is_none(), "{variable} is there twice");
        }
        Container { arguments: container["args"].as_array().unwrap().iter().map(text).collect(), environment }
    };
    of_kind("Deployment").into_iter().map(|(name, deployment)| (name, container(deployment))).collect()
}

/// The variables that the program reads, as its help says.
async fn known(arguments: &[String]) -> BTreeSet<String> {
    let help = ecommerce().args(arguments).arg("--help").output().await.unwrap();
    assert!(help.status.success(), "{arguments:?}: {help:?}");
    let help = String::from_utf8(help.stdout).unwrap();
    let variables = help.split("[env: ").skip(1).map(|rest| rest.split([']', '=']).next().unwrap().to_owned());
    variables.collect()
}

#[tokio::test]
async fn the_program_knows_every_argument_and_variable_that_its_containers_are_given() {
    assert!(known(&["serve".into(), "order".into()]).await.contains("DATABASE_URL"));
    for containers in [of_compose(), of_kubernetes()] {
        assert_eq!(
            containers.keys().map(String::as_str).collect::<BTreeSet<_>>(),
            SERVICES.map(|(name, _)| name).into()
        );
        for (name, Container { arguments, environment }) in &containers {
            assert_eq!(arguments, &["serve", name]);
            let known = known(arguments).await;
            let given: BTreeSet<_> = environment.keys().cloned().collect();
            assert!(given.is_subset(&known), "{name} does not know {:?}", given.difference(&known));
            // Whatever has a default that is good for one machine only has to be given.
            let is_needed = |it: &&String| match it.as_str() {
                "LISTEN" | "KAFKA_BROKERS" => true,
                "JWKS_URL" | "ZIPKIN_URL" => false,
                other => other.ends_with("_URL"),
            };
            let needed = known.iter().filter(is_needed);
            let needed: BTreeSet<_> = needed.cloned().collect();
            assert!(needed.is_subset(&given), "{name} is not given {:?}", needed.difference(&given));
        }
    }
}

#[test]
fn services_are_where_others_look_for_them() {
    let (deployments, services) = (of_kind("Deployment"), of_kind("Service"));
    let (compose, started) = (compose(), [of_compose(), of_kubernetes()]);
    for (name, port) in SERVICES {
        let listen = format!("0.0.0.0:{port}");
        for containers in &started {
            assert_eq!(containers[name].environment["LISTEN"], listen);
            for Container { environment, .. } in containers.values() {
                if let Some(url) = environment.get(&format!("{}_URL", name.to_uppercase())) {
                    assert_eq!(url, &format!("http://{name}:{port}"));
                }
            }
        }
        let health = compose["services"][name]["healthcheck"]["test"].as_array().unwrap();
        assert_eq!(health.last().unwrap(), &json!(format!("http://127.0.0.1:{port}/health/ready")));
        let published = &compose["services"][name]["ports"];
        assert_eq!(published, &if name == "gateway" { json!(["8080:8080"]) } else { Value::Null });

        let (deployment, service) = (&deployments[name], &services[name]);
        let pod = &deployment["spec"]["template"];
        let labels = pod["metadata"]["labels"].as_object().unwrap();
        for selector in [&service["spec"]["selector"], &deployment["spec"]["selector"]["matchLabels"]] {
            assert_eq!(selector, &json!({ "app.kubernetes.io/name": name }));
            assert_eq!(labels["app.kubernetes.io/name"], *name);
        }
        assert_eq!(
            (&service["spec"]["ports"][0]["port"], &service["spec"]["ports"][0]["targetPort"]),
            (&json!(port), &json!("http"))
        );
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["ports"], json!([{ "name": "http", "containerPort": port }]));
        for (probe, path) in [("startupProbe", "live"), ("livenessProbe", "live"), ("readinessProbe", "ready")] {
            assert_eq!(container[probe]["httpGet"], json!({ "path": format!("/health/{path}"), "port": "http" }));
        }
        let context = &container["securityContext"];
        assert_eq!(
            (&pod["spec"]["securityContext"]["runAsNonRoot"], &context["readOnlyRootFilesystem"]),
            (&json!(true), &json!(true))
        );
        assert!(container["resources"]["requests"].is_object() && container["resources"]["limits"].is_object());
    }
    for (name, budget) in of_kind("PodDisruptionBudget") {
        assert_eq!(budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"], *name);
        assert!(deployments[&name]["spec"]["replicas"].as_i64() > budget["spec"]["minAvailable"].as_i64());
    }
}

/// A container of ours, as a process on this machine.
struct Node {
    process: Child,
    url: String,
    complaints: Lines<BufReader<Box<dyn AsyncRead + Send + Unpin>>>,
}

impl Node {
    async fn start(container: &Container, environment: &BTreeMap<String, String>, mocked: bool) -> Self {
        let mut command = ecommerce();
        command.args(&container.arguments).envs(&container.environment).envs(environment);
        if mocked {
            command.arg("--embedded-broker");
        }
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
        let complaints: Box<dyn AsyncRead + Send + Unpin> = Box::new(process.stderr.take().unwrap());
        let url = timeout(PATIENCE, said.next_line()).await.expect("it listens").unwrap().expect("it starts");
        Self { process, url, complaints: BufReader::new(complaints).lines() }
    }

    /// What it printed behind this.
    async fn printed(&mut self, name: &str) -> String {
        let found = async {
            loop {
                let line = self.complaints.next_line().await.unwrap().expect("it says so");
                if let Some(rest) = line.strip_prefix(name) {
                    return rest.to_owned();
                }
            }
        };
        timeout(PATIENCE, found).await.unwrap()
    }
}

#[tokio::test]
async fn the_shop_opens_with_what_compose_tells_it_and_two_nodes_share_the_orders() {
    let postgres = Postgres::start().await.unwrap();
    let commands = ["inventory", "payment", "delivery"];
    let mut topics =
        commands.map(|name| TopicSpec::new(format!("{name}.commands")).partitions(2).read_by(name)).to_vec();
    topics.push(TopicSpec::new("order.replies").partitions(2).read_by("order"));
    topics.extend(
        ["order.events", "delivery.events"].map(|topic| TopicSpec::new(topic).partitions(2).read_by("notification")),
    );
    let kafka = EmbeddedBroker::start(&topics).unwrap();

    let containers = of_compose();
    let mut elsewhere: BTreeMap<String, String> = [("LISTEN", "0.0.0.0:0"), ("KAFKA_BROKERS", kafka.brokers())]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let mut nodes = vec![];
    for names in [
        &["user", "inventory", "payment", "delivery", "product", "notification"][..],
        &["order", "order"],
        &["gateway"],
    ] {
        let mut starting = vec![];
        for name in names {
            let mut environment = elsewhere.clone();
            if let Some(url) = containers[*name].environment.get("DATABASE_URL") {
                let database = url.rsplit('/').next().unwrap();
                postgres.create_database(database).await.unwrap();
                environment.insert("DATABASE_URL".into(), postgres.url_for(database));
            }
            let mocked = containers[*name].environment.contains_key("KAFKA_BROKERS");
            let container = &containers[*name];
            starting.push(async move { (*name, Node::start(container, &environment, mocked).await) });
        }
        for (name, node) in futures::future::join_all(starting).await {
            elsewhere.insert(format!("{}_URL", name.to_uppercase()), node.url.clone());
            nodes.push((name, node));
        }
    }
    let (http, (_, gateway)) = (Client::new(), nodes.last_mut().unwrap());
    let token = gateway.printed("BUYER=").await;
    let gateway = gateway.url.clone();
    for (name, node) in &nodes {
        let ready = http.get(format!("{}/health/ready", node.url)).send().await.unwrap();
        assert_eq!(ready.status(), StatusCode::OK, "{name}");
    }
    let wanted = json!({ "userId": 1, "productId": 1, "quantity": 1 });
    let through =
        http.post(format!("{gateway}/orders?wait=30s")).bearer_auth(&token).json(&wanted).send().await.unwrap();
    assert_eq!(through.status(), StatusCode::OK);
    assert_eq!(through.json::<Value>().await.unwrap()["state"], "CONFIRMED");
    // One node takes it, the other one is asked how it ended.
    let [one, other] = [6, 7].map(|n| nodes[n].1.url.clone());
    let placed: Value = http.post(format!("{one}/orders")).json(&wanted).send().await.unwrap().json().await.unwrap();
    let ended = http.get(format!("{other}/orders/{}?wait=30s", placed["id"].as_str().unwrap())).send().await.unwrap();
    assert_eq!(ended.json::<Value>().await.unwrap()["state"], "CONFIRMED");

    for (name, node) in &mut nodes {
        let id = node.process.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
        let ended = timeout(PATIENCE, node.process.wait()).await.expect("it stops").unwrap();
        assert!(ended.success(), "{name}: {ended}");
    }
    postgres.stop().await;
}
