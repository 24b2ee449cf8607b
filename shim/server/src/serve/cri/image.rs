//! Images: pulled, listed, removed.

use coracle_proto::cri as v1;
use tonic::Status;

use super::{Answers, Cri};

impl Cri {
    pub(super) async fn list_images_rpc(
        &self,
        _request: v1::ListImagesRequest,
    ) -> Result<v1::ListImagesResponse, Status> {
        Err(Status::unimplemented("ListImages is not built yet"))
    }

    pub(super) async fn stream_images_rpc(
        &self,
        _request: v1::StreamImagesRequest,
    ) -> Result<Answers<v1::StreamImagesResponse>, Status> {
        Err(Status::unimplemented("StreamImages is not built yet"))
    }

    pub(super) async fn image_status_rpc(
        &self,
        _request: v1::ImageStatusRequest,
    ) -> Result<v1::ImageStatusResponse, Status> {
        Err(Status::unimplemented("ImageStatus is not built yet"))
    }

    pub(super) async fn pull_image_rpc(&self, _request: v1::PullImageRequest) -> Result<v1::PullImageResponse, Status> {
        Err(Status::unimplemented("PullImage is not built yet"))
    }

    pub(super) async fn remove_image_rpc(
        &self,
        _request: v1::RemoveImageRequest,
    ) -> Result<v1::RemoveImageResponse, Status> {
        Err(Status::unimplemented("RemoveImage is not built yet"))
    }

    pub(super) async fn image_fs_info_rpc(
        &self,
        _request: v1::ImageFsInfoRequest,
    ) -> Result<v1::ImageFsInfoResponse, Status> {
        self.fs_usage().await
    }
}
