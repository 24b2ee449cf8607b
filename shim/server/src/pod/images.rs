//! Images: pulled by the policy of each container, with errors in kubelet's words.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::Result;
use coracle_rootfs::{Image, Reference, Store};

use crate::app::App;
use crate::exit::{self, Coded};
use crate::kube::container::{Container, PullPolicy};
use crate::kube::pod::Pod;
use crate::pod::events::{On, Recorder};
use crate::pull;

/// Has each container's image in the store; answers their ids by container.
pub fn ensure(app: &App, store: &Store, pod: &Pod, recorder: &Recorder) -> Result<BTreeMap<String, String>> {
    let mut images = BTreeMap::new();
    // One image of several containers is pulled once.
    let mut pulled: HashMap<String, String> = HashMap::new();
    for container in pod.all_containers() {
        let key = container.image.clone();
        let id = match pulled.get(&key) {
            Some(id) => id.clone(),
            None => {
                let image = one(app, store, container, recorder, On::container(pod, &container.name));
                let image = image.map_err(|error| error.context(format!("container {}", container.name)))?;
                image.id.to_string()
            }
        };
        pulled.insert(key, id.clone());
        images.insert(container.name.clone(), id);
    }
    Ok(images)
}

fn one(app: &App, store: &Store, container: &Container, recorder: &Recorder, on: On<'_>) -> Result<Image> {
    let name = &container.image;
    let reference = Reference::parse(name).map_err(|error| anyhow::Error::from(error).context("InvalidImageName"))?;
    let present = store.image(name)?;
    match (container.pull, present) {
        (PullPolicy::Never | PullPolicy::IfNotPresent, Some(image)) => {
            recorder.normal(on, "Pulled", format!("Container image {name:?} already present on machine"));
            Ok(image)
        }
        (PullPolicy::Never, None) => {
            let text = format!(
                "ErrImageNeverPull: image {name} is not in the store and imagePullPolicy is Never \
                 (`coracle pull {name}` or `coracle load` brings it)"
            );
            recorder.warning(
                on,
                "ErrImageNeverPull",
                format!("Container image {name:?} is not present with pull policy of Never"),
            );
            recorder.warning(on, "Failed", "Error: ErrImageNeverPull");
            Err(Coded::error(exit::IMAGE, text))
        }
        (PullPolicy::Always | PullPolicy::IfNotPresent, _) => {
            recorder.normal(on, "Pulling", format!("Pulling image {name:?}"));
            let begun = Instant::now();
            let pulled = pull::pull(app, store, &reference);
            match &pulled {
                Ok(image) => recorder.normal(on, "Pulled", pulled_message(name, begun.elapsed(), image.size)),
                Err(error) => {
                    recorder.warning(on, "Failed", format!("Failed to pull image {name:?}: {error:#}"));
                    recorder.warning(on, "Failed", "Error: ErrImagePull");
                }
            }
            pulled.map_err(|error| error.context("ErrImagePull"))
        }
    }
}

/// kubelet's sentence; nothing waits for its turn here, so both times are one.
fn pulled_message(name: &str, took: Duration, size: u64) -> String {
    let seconds = format!("{:.3}s", took.as_secs_f64());
    format!("Successfully pulled image {name:?} in {seconds} ({seconds} including waiting). Image size: {size} bytes.")
}
