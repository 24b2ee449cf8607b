//! The image service against a real registry: whose credentials count, what is shared, by which names an image is known.

use coracle_tests::cri::{LONG, Node, node, script};
use coracle_tests::image::Layout;
use coracle_tests::registry::{Options, Registry};
use k8s_cri::v1;
use tonic::{Code, Status};

/// A user of the registry, with a password that must be nowhere else.
const USER: (&str, &str) = ("kubelet", "hunter2secret");

/// A registry that asks for [`USER`], with one image: its name there.
fn private(node: &Node) -> (Registry, String) {
    let registry = Registry::start_with(&Options { user: Some(USER), ..Options::default() });
    let layout = Layout::create(&node.path("layout"));
    layout
        .image("app")
        .busybox()
        .layer()
        .file("etc/motd", 0o644, b"hello")
        .config(&["--config.user", "1000:100"])
        .build();
    registry.push(&layout, "app", "team/app:1", &[]);
    let name = registry.name("team/app:1");
    (registry, name)
}

fn spec(image: &str) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec { image: image.into(), ..Default::default() })
}

async fn pull(node: &Node, image: &str, auth: Option<v1::AuthConfig>) -> Result<String, Status> {
    let request = v1::PullImageRequest { image: spec(image), auth, sandbox_config: None };
    Ok(node.images().pull_image(request).await?.into_inner().image_ref)
}

async fn status(node: &Node, image: &str) -> Option<v1::Image> {
    let request = v1::ImageStatusRequest { image: spec(image), verbose: false };
    node.images().image_status(request).await.unwrap().into_inner().image
}

async fn list(node: &Node) -> Vec<v1::Image> {
    node.images().list_images(v1::ListImagesRequest::default()).await.unwrap().into_inner().images
}

async fn remove(node: &Node, image: &str) {
    node.images().remove_image(v1::RemoveImageRequest { image: spec(image) }).await.unwrap();
}

fn auth() -> v1::AuthConfig {
    v1::AuthConfig { username: USER.0.into(), password: USER.1.into(), ..Default::default() }
}

#[test]
fn a_private_image_is_for_those_who_show_its_credentials_and_no_log_tells_them() {
    node(async |node| {
        let (registry, name) = private(node);
        for wrong in [None, Some(v1::AuthConfig { password: "wrong".into(), ..auth() })] {
            let refused = pull(node, &name, wrong).await.unwrap_err();
            assert!(matches!(refused.code(), Code::Unauthenticated | Code::PermissionDenied), "{refused:?}");
            assert!(!refused.message().contains("wrong"), "{refused:?}");
        }
        // What is meant for another server is not shown to this one.
        let elsewhere = v1::AuthConfig { server_address: "https://registry.example".into(), ..auth() };
        assert!(pull(node, &name, Some(elsewhere)).await.is_err());
        let here = v1::AuthConfig { server_address: registry.host(), ..auth() };
        let id = pull(node, &name, Some(here)).await.unwrap();
        assert!(id.starts_with("sha256:"), "{id}");
        // That it is on the node now opens it to nobody.
        assert!(pull(node, &name, None).await.is_err());
        assert!(!node.server_log().contains(USER.1), "{}", node.server_log());
        assert!(node.server_log().contains("pulled"), "{}", node.server_log());
    });
}

#[test]
fn an_image_is_known_by_every_name_at_once_and_gone_at_once() {
    node(async |node| {
        let (_registry, name) = private(node);
        assert_eq!(status(node, &name).await, None);
        let before = list(node).await.len();
        let id = pull(node, &name, Some(auth())).await.unwrap();
        let image = status(node, &name).await.unwrap();
        assert_eq!(image.id, id);
        assert_eq!(image.repo_tags, std::slice::from_ref(&name));
        assert_eq!((image.uid.as_ref().map(|uid| uid.value), image.username.as_str()), (Some(1000), ""));
        assert!(image.size > 0);
        let digest = image.repo_digests[0].clone();
        let short = &id["sha256:".len()..][..12];
        for known in [id.as_str(), digest.as_str(), short, &format!("{name}@{}", digest.split_once('@').unwrap().1)] {
            assert_eq!(status(node, known).await.as_ref(), Some(&image), "{known}");
        }
        assert_eq!(list(node).await.len(), before + 1);
        // By its digest it has a second name; removal by either takes both.
        pull(node, &digest, Some(auth())).await.unwrap();
        assert_eq!(list(node).await.len(), before + 1);
        for _ in 0..2 {
            remove(node, &digest).await;
            assert_eq!(status(node, &name).await, None);
            assert_eq!(list(node).await.len(), before);
        }
    });
}

#[test]
fn pulls_of_one_image_at_once_fetch_its_layers_once() {
    node(async |node| {
        let (registry, name) = private(node);
        let mut pulls = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let mut images = node.images();
            let request = v1::PullImageRequest { image: spec(&name), auth: Some(auth()), sandbox_config: None };
            pulls.spawn(async move { images.pull_image(request).await.unwrap().into_inner().image_ref });
        }
        let ids = pulls.join_all().await;
        assert!(ids.iter().all(|id| *id == ids[0]));
        let blobs = registry.log();
        let fetched = blobs.lines().filter(|line| line.contains("GET /v2/team/app/blobs/")).count();
        // Two layers and the configuration; a line in each of the registry's two logs at most.
        assert!((1..=6).contains(&fetched), "{fetched} requests for blobs:\n{blobs}");
    });
}

#[test]
fn a_removed_image_stays_whole_for_the_container_that_uses_it() {
    node(async |node| {
        let (_registry, name) = private(node);
        let id = pull(node, &name, Some(auth())).await.unwrap();
        let config = node.pod("web");
        let pod = node.run_pod(&config).await.unwrap();
        let mut main = script("main", &format!("cat /etc/motd; {LONG}"));
        main.image =
            Some(v1::ImageSpec { image: id.clone(), user_specified_image: name.clone(), ..Default::default() });
        let container = node.launch(&pod, &config, main).await;
        remove(node, &id).await;
        assert_eq!(status(node, &name).await, None);
        let shown = node.container_status(&container).await.unwrap();
        assert_eq!((shown.image.unwrap().image, shown.image_id), (name.clone(), id));
        assert!(shown.image_ref.contains("team/app@sha256:"), "{}", shown.image_ref);
        let exec = v1::ExecSyncRequest {
            container_id: container.clone(),
            cmd: ["cat", "/etc/motd"].map(String::from).to_vec(),
            timeout: 10,
        };
        assert_eq!(node.runtime().exec_sync(exec).await.unwrap().into_inner().stdout, b"hello");
        // A new container cannot have it any more.
        let mut late = script("late", LONG);
        late.image = spec(&name);
        let refused = node.create(&pod, &config, late).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        assert!(refused.message().starts_with("config.image.image"), "{refused:?}");
    });
}

#[test]
fn what_names_no_image_is_refused_by_its_field() {
    node(async |node| {
        for bad in ["", "Upper/Case", "a b"] {
            let error = pull(node, bad, None).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{bad}: {error:?}");
            assert!(error.message().starts_with("image.image"), "{bad}: {error:?}");
        }
        for absent in
            ["example.invalid/none:1", "sha256:0000000000000000000000000000000000000000000000000000000000000000"]
        {
            assert_eq!(status(node, absent).await, None, "{absent}");
            remove(node, absent).await;
        }
    });
}
