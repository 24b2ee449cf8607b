//! The image service.

use coracle_proto::cri as v1;
use coracle_rootfs::{GcOptions, Image, Reference, Store};
use tonic::Status;

use super::{Answers, Cri, fault, filter, once, pulls, verbose};

impl Cri {
    pub(super) async fn list_images_rpc(
        &self,
        request: v1::ListImagesRequest,
    ) -> Result<v1::ListImagesResponse, Status> {
        Ok(v1::ListImagesResponse { images: self.listed_images(request.filter).await? })
    }

    pub(super) async fn stream_images_rpc(
        &self,
        request: v1::StreamImagesRequest,
    ) -> Result<Answers<v1::StreamImagesResponse>, Status> {
        let images = self.listed_images(request.filter).await?;
        Ok(filter::batches(images, |images| v1::StreamImagesResponse { images }))
    }

    async fn listed_images(&self, wanted: Option<v1::ImageFilter>) -> Result<Vec<v1::Image>, Status> {
        let name = wanted.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default();
        let (store, pinned) = (self.engine().store().clone(), self.pinned());
        let images = super::blocking(move || match name.as_str() {
            "" => store.images().map_err(fault::image),
            name => Ok(find(&store, name)?.into_iter().collect()),
        })
        .await?;
        Ok(images.iter().map(|image| shown(image, &pinned)).collect())
    }

    pub(super) async fn image_status_rpc(
        &self,
        request: v1::ImageStatusRequest,
    ) -> Result<v1::ImageStatusResponse, Status> {
        let name = named("image", request.image)?;
        let store = self.engine().store().clone();
        // An image that is not there is no error: kubelet asks before it pulls.
        let Some(image) = super::blocking(move || find(&store, &name)).await? else {
            return Ok(v1::ImageStatusResponse::default());
        };
        let info = if request.verbose { verbose::image(&image)? } else { Default::default() };
        Ok(v1::ImageStatusResponse { image: Some(shown(&image, &self.pinned())), info })
    }

    pub(super) async fn pull_image_rpc(&self, request: v1::PullImageRequest) -> Result<v1::PullImageResponse, Status> {
        let name = named("image", request.image)?;
        let reference = Reference::parse(&name).map_err(|e| fault::image(e.context("image.image")))?;
        let credentials = pulls::credentials(request.auth, &reference)?;
        let app = self.app().clone();
        let store = self.engine().store().clone();
        // Who shows the same credentials asks for the same thing. Who shows others has the registry decide for
        // himself; the store fetches a layer that several pulls want only once.
        let key = pulls::key(&reference, credentials.as_ref());
        let cri = self.clone();
        let work = async move {
            // It is never closed.
            let _slot = cri.shared.pull_slots.acquire().await;
            super::blocking(move || pulls::pull(&app, &store, &reference, credentials)).await
        };
        let image_ref = self.shared.pulls.run(key, work).await?;
        Ok(v1::PullImageResponse { image_ref })
    }

    pub(super) async fn remove_image_rpc(
        &self,
        request: v1::RemoveImageRequest,
    ) -> Result<v1::RemoveImageResponse, Status> {
        let name = named("image", request.image)?;
        let store = self.engine().store().clone();
        once::to_the_end(super::blocking(move || remove(&store, &name))).await?;
        Ok(v1::RemoveImageResponse {})
    }

    pub(super) async fn image_fs_info_rpc(
        &self,
        _request: v1::ImageFsInfoRequest,
    ) -> Result<v1::ImageFsInfoResponse, Status> {
        self.fs_usage().await
    }

    /// The names of images that kubelet must not collect, whole.
    fn pinned(&self) -> Vec<String> {
        whole_names(&self.app().config.serve.pinned_images)
    }
}

/// The name of an image in a request.
fn named(field: &str, image: Option<v1::ImageSpec>) -> Result<String, Status> {
    match image.map(|image| image.image) {
        Some(name) if !name.is_empty() => Ok(name),
        _ => Err(fault::invalid(format!("{field}.image"), "must not be empty")),
    }
}

/// The image by a name, a digest or an id; a name that is none cannot be one's.
fn find(store: &Store, name: &str) -> Result<Option<Image>, Status> {
    store.image(name).map_err(|e| fault::image(e.context("image.image")))
}

/// Removes an image with all its names, whichever was given, and frees the layers that nothing else needs. Containers
/// that were made from it keep theirs.
fn remove(store: &Store, name: &str) -> Result<(), Status> {
    // Another may remove it or give it a name in between: a name that moved to another image stays.
    let Some(image) = find(store, name)? else { return Ok(()) };
    match store.remove(&image.id.to_string(), true) {
        Ok(removed) => tracing::info!(image = %image.id, names = ?removed.untagged, "removed image"),
        Err(e) if e.kind() == coracle_rootfs::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(fault::image(e)),
    }
    // The image is gone already: a collection that fails leaves garbage for the next one.
    match store.gc(&GcOptions::default()) {
        Ok(report) => {
            tracing::info!(image = %image.id, layers = report.layers.len(), bytes = report.bytes, "freed layers")
        }
        Err(e) => tracing::warn!(image = %image.id, error = %e, "layers were not freed"),
    }
    Ok(())
}

/// An image as the CRI shows it.
fn shown(image: &Image, pinned: &[String]) -> v1::Image {
    let (uid, username) = user(image);
    let annotations = Default::default();
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.names.clone(),
        repo_digests: image.repo_digests.clone(),
        // An image of empty files has a size, too: kubelet takes zero for an error.
        size: image.size.max(1),
        uid: uid.map(|value| v1::Int64Value { value }),
        username,
        spec: Some(v1::ImageSpec {
            image: image.names.first().or(image.repo_digests.first()).cloned().unwrap_or_else(|| image.id.to_string()),
            image_ref: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
            annotations,
            ..Default::default()
        }),
        pinned: image.pinned || image.names.iter().chain(&image.repo_digests).any(|name| pinned.contains(name)),
    }
}

/// The user an image's processes run as: a number, or else a name; neither for root by default. kubelet checks
/// runAsNonRoot by it.
fn user(image: &Image) -> (Option<i64>, String) {
    let user = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let name = user.split(':').next().unwrap_or_default();
    match name.parse::<i64>() {
        Ok(uid) if uid >= 0 => (Some(uid), String::new()),
        _ => (None, name.to_owned()),
    }
}

/// The names that a list of references in the configuration means.
fn whole_names(list: &[String]) -> Vec<String> {
    list.iter().filter_map(|name| Reference::parse(name).ok()).map(|reference| reference.to_string()).collect()
}
