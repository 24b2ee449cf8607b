//! Images: pulled by the policy of each container, with errors in kubelet's words.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use coracle_rootfs::{Image, Reference, Store};

use crate::app::App;
use crate::exit::{self, Coded};
use crate::kube::container::{Container, PullPolicy};
use crate::kube::pod::Pod;
use crate::pull;

/// Has each container's image in the store; answers their ids by container.
pub fn ensure(app: &App, store: &Store, pod: &Pod) -> Result<BTreeMap<String, String>> {
    let mut images = BTreeMap::new();
    // One image of several containers is pulled once.
    let mut pulled: HashMap<String, String> = HashMap::new();
    for container in pod.all_containers() {
        let key = container.image.clone();
        let id = match pulled.get(&key) {
            Some(id) => id.clone(),
            None => {
                let image = one(app, store, container);
                let image = image.map_err(|error| error.context(format!("container {}", container.name)))?;
                image.id.to_string()
            }
        };
        pulled.insert(key, id.clone());
        images.insert(container.name.clone(), id);
    }
    Ok(images)
}

fn one(app: &App, store: &Store, container: &Container) -> Result<Image> {
    let name = &container.image;
    let reference = Reference::parse(name).map_err(|error| anyhow::Error::from(error).context("InvalidImageName"))?;
    let present = store.image(name)?;
    match (container.pull, present) {
        (PullPolicy::Never | PullPolicy::IfNotPresent, Some(image)) => Ok(image),
        (PullPolicy::Never, None) => {
            let text = format!(
                "ErrImageNeverPull: image {name} is not in the store and imagePullPolicy is Never \
                 (`coracle pull {name}` or `coracle load` brings it)"
            );
            Err(Coded::error(exit::IMAGE, text))
        }
        (PullPolicy::Always | PullPolicy::IfNotPresent, _) => {
            pull::pull(app, store, &reference).map_err(|error| error.context("ErrImagePull"))
        }
    }
}
