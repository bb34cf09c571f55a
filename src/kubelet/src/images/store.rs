//! containerd's own services beside CRI: blobs in its content store, names in its image store, in the
//! namespace that CRI uses.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{ListSnapshotsRequest, RemoveSnapshotRequest};
use containerd_client::types::Descriptor;
use kedge_base::Order as _;
use tonic::metadata::errors::InvalidMetadataValue;
use tonic::transport::Channel;

use super::archive::{Blob, From, Span, Target, read_at};
use super::layers::Layer;
use crate::Error;
use crate::calls::{MESSAGE_LIMIT, call, in_cri_namespace};
use crate::runtime::Runtime;

/// CRI looks at images with this label only.
const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");
/// CRI of containerd 1.7 and newer knows it too.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// Kedge's own: a person has imported it by hand.
const BY_HAND: (&str, &str) = ("kedge.dev/imported", "by-hand");
const CHUNK: usize = 1 << 20;
const UPDATE_IMAGE: &str = "/containerd.services.images.v1.Images/Update";

/// A connection; it is made at the first call.
#[derive(Clone)]
pub(super) struct Store {
    channel: Channel,
}

/// An image's name, where it leads, and its labels.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) target: Target,
    pub(super) pinned: bool,
    pub(super) by_hand: bool,
}

/// Keeps what is being stored from being collected before it has a name.
pub(super) struct Lease(String);

impl Store {
    pub(super) fn new(socket: &Path) -> Result<Self, Error> {
        Ok(Self { channel: Runtime::new(socket)?.channel() })
    }

    pub(super) fn of(runtime: &Runtime) -> Self {
        Self { channel: runtime.channel() }
    }

    fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// A lease that a crash leaves behind ends by itself after an hour.
    pub(super) async fn lease(&self) -> Result<Lease, Error> {
        let now = jiff::Timestamp::now();
        let end = jiff::Timestamp::from_second(now.as_second() + 3600)
            .map_err(|error| Error::other(error.to_string()))?;
        let id = format!("kedge-import-{}-{}", std::process::id(), now.as_nanosecond());
        let asked = api::CreateRequest {
            id: id.clone(),
            labels: HashMap::from([("containerd.io/gc.expire".to_owned(), end.to_string())]),
        };
        let path = "/containerd.services.leases.v1.Leases/Create";
        call::<_, api::CreateResponse>(&self.channel, path, request(asked, None)?).await?;
        Ok(Lease(id))
    }

    pub(super) async fn release(&self, lease: Lease) {
        let Ok(asked) = request(api::DeleteRequest { id: lease.0, sync: false }, None) else { return };
        let path = "/containerd.services.leases.v1.Leases/Delete";
        let _ = call::<_, ()>(&self.channel, path, asked).await;
    }

    /// All names.
    pub(super) async fn list(&self) -> Result<Vec<Named>, Error> {
        let asked = request(api::ListImagesRequest { filters: Vec::new() }, None)?;
        let path = "/containerd.services.images.v1.Images/List";
        let answer: tonic::Response<api::ListImagesResponse> = call(&self.channel, path, asked).await?;
        let mut images: Vec<Named> = answer
            .into_inner()
            .images
            .into_iter()
            .map(|image| {
                let target = image.target.unwrap_or_default();
                let has = |(key, value)| image.labels.get(key).is_some_and(|found| found == value);
                Named {
                    pinned: has(PINNED),
                    by_hand: has(BY_HAND),
                    name: image.name,
                    target: (target.media_type, target.digest, u64::try_from(target.size).unwrap_or(0)),
                }
            })
            .collect();
        images.order_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// Lets `name` lead to `target`, pinned or as imported by hand; what it was before, it stays, too.
    pub(super) async fn put_image(
        &self,
        lease: &Lease,
        name: &str,
        target: &Target,
        pin: bool,
    ) -> Result<(), Error> {
        let (media_type, digest, size) = target.clone();
        let labels = [MANAGED, if pin { PINNED } else { BY_HAND }];
        let mask = labels.iter().map(|(key, _)| format!("labels.{key}")).chain(["target".to_owned()]);
        let mask = prost_types::FieldMask { paths: mask.collect() };
        let image = api::Image {
            name: name.to_owned(),
            labels: labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            target: Some(Descriptor {
                media_type,
                digest,
                size: i64::try_from(size).unwrap_or(i64::MAX),
                ..Default::default()
            }),
            ..Default::default()
        };
        let create = api::CreateImageRequest { image: Some(image.clone()), ..Default::default() };
        let path = "/containerd.services.images.v1.Images/Create";
        let created = call::<_, api::CreateImageResponse>(&self.channel, path, request(create, Some(lease))?);
        match created.await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::AlreadyExists => {
                let update = api::UpdateImageRequest {
                    image: Some(image),
                    update_mask: Some(mask),
                    ..Default::default()
                };
                call::<_, api::UpdateImageResponse>(
                    &self.channel,
                    UPDATE_IMAGE,
                    request(update, Some(lease))?,
                )
                .await?;
                Ok(())
            }
            Err(status) => Err(status.into()),
        }
    }

    /// Pins or unpins one name; a name that is gone is no error.
    pub(super) async fn set_pinned(&self, name: &str, pin: bool) -> Result<(), Error> {
        let value = if pin { PINNED.1 } else { "" };
        let image = api::Image {
            name: name.to_owned(),
            labels: HashMap::from([(PINNED.0.to_owned(), value.to_owned())]),
            ..Default::default()
        };
        let mask = prost_types::FieldMask { paths: vec![format!("labels.{}", PINNED.0)] };
        let asked =
            api::UpdateImageRequest { image: Some(image), update_mask: Some(mask), ..Default::default() };
        match call::<_, api::UpdateImageResponse>(&self.channel, UPDATE_IMAGE, request(asked, None)?).await {
            Err(status) if status.code() != tonic::Code::NotFound => Err(status.into()),
            _ => Ok(()),
        }
    }

    /// Removes one name; one that is gone is no error.
    pub(super) async fn remove(&self, name: &str) -> Result<(), Error> {
        let asked = api::DeleteImageRequest { name: name.to_owned(), sync: true, ..Default::default() };
        let path = "/containerd.services.images.v1.Images/Delete";
        match call::<_, ()>(&self.channel, path, request(asked, None)?).await {
            Err(status) if status.code() != tonic::Code::NotFound => Err(status.into()),
            _ => Ok(()),
        }
    }

    /// What is unpacked, and the files of containers.
    pub(super) async fn layers(&self, snapshotter: &'static str) -> Result<Vec<Layer>, Error> {
        let asked = ListSnapshotsRequest { snapshotter: snapshotter.to_owned(), ..Default::default() };
        let mut client = SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT);
        let mut answers = match client.list(request(asked, None)?).await {
            Ok(answer) => answer.into_inner(),
            // This machine does not have it.
            Err(status) if matches!(status.code(), tonic::Code::InvalidArgument | tonic::Code::NotFound) => {
                return Ok(Vec::new());
            }
            Err(status) => return Err(status.into()),
        };
        let mut layers = Vec::new();
        while let Some(answer) = answers.message().await? {
            layers.extend(answer.info.into_iter().map(|info| Layer::of(snapshotter, info)));
        }
        Ok(layers)
    }

    /// One that is gone is no error.
    pub(super) async fn remove_layer(&self, snapshotter: &str, name: &str) -> Result<(), Error> {
        let asked = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: name.to_owned() };
        let path = "/containerd.services.snapshots.v1.Snapshots/Remove";
        match call::<_, ()>(&self.channel, path, request(asked, None)?).await {
            Err(status) if status.code() != tonic::Code::NotFound => Err(status.into()),
            _ => Ok(()),
        }
    }

    /// The size of a blob; `None`: it is not there.
    pub(super) async fn size(&self, digest: &str) -> Result<Option<u64>, Error> {
        let asked = request(api::InfoRequest { digest: digest.to_owned() }, None)?;
        match self.content().info(asked).await {
            Ok(answer) => {
                let info = answer.into_inner().info.unwrap_or_default();
                Ok(Some(u64::try_from(info.size).unwrap_or(0)))
            }
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// The blob's bytes, in order, as they come.
    pub(super) async fn read(
        &self,
        digest: &str,
    ) -> Result<tonic::Streaming<api::ReadContentResponse>, Error> {
        let asked =
            request(api::ReadContentRequest { digest: digest.to_owned(), ..Default::default() }, None)?;
        Ok(self.content().read(asked).await?.into_inner())
    }

    /// A small blob as a whole.
    pub(super) async fn read_small(&self, digest: &str) -> Result<Vec<u8>, Error> {
        let mut answers = self.read(digest).await?;
        let mut bytes = Vec::new();
        while let Some(answer) = answers.message().await? {
            bytes.extend_from_slice(&answer.data);
            if bytes.len() > MESSAGE_LIMIT {
                return Err(Error::other(format!("{digest} is too big to be a manifest")));
            }
        }
        Ok(bytes)
    }

    /// Stores a blob with its labels, unless it is there.
    pub(super) async fn write_blob(&self, lease: &Lease, file: &Arc<File>, blob: &Blob) -> Result<(), Error> {
        let mut content = self.content();
        let info = request(api::InfoRequest { digest: blob.digest.clone() }, Some(lease))?;
        if content.info(info).await.is_ok() {
            // There already, but perhaps without the labels.
            if blob.labels.is_empty() {
                return Ok(());
            }
            let paths = blob.labels.keys().map(|key| format!("labels.{key}")).collect();
            let info =
                api::Info { digest: blob.digest.clone(), labels: blob.labels.clone(), ..Default::default() };
            let update =
                api::UpdateRequest { info: Some(info), update_mask: Some(prost_types::FieldMask { paths }) };
            content.update(request(update, Some(lease))?).await?;
            return Ok(());
        }
        let (sender, receiver) = tokio::sync::mpsc::channel::<api::WriteContentRequest>(4);
        let reader = tokio::task::spawn_blocking({
            let (file, blob) = (file.clone(), blob.clone());
            move || send_blob(&file, &blob, &sender)
        });
        let stream = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|message| (message, receiver))
        });
        let written = async {
            let mut answers = content.write(request(stream, Some(lease))?).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok::<(), Error>(())
        }
        .await;
        match reader.await {
            Ok(Err(error)) => return Err(error),
            Err(error) => return Err(Error::other(format!("reading the archive ended abnormally: {error}"))),
            Ok(Ok(())) => {}
        }
        match written {
            Err(Error::Runtime(status)) if status.code() == tonic::Code::AlreadyExists => Ok(()),
            other => other,
        }
    }
}

fn request<T>(message: T, lease: Option<&Lease>) -> Result<tonic::Request<T>, Error> {
    let mut request = in_cri_namespace(message);
    if let Some(Lease(id)) = lease {
        let id = id.parse().map_err(|error: InvalidMetadataValue| Error::other(error.to_string()))?;
        request.metadata_mut().insert("containerd-lease", id);
    }
    Ok(request)
}

fn send_blob(
    file: &File,
    blob: &Blob,
    sender: &tokio::sync::mpsc::Sender<api::WriteContentRequest>,
) -> Result<(), Error> {
    let total = i64::try_from(blob.size).unwrap_or(i64::MAX);
    let message = |offset: u64, data: Vec<u8>, last: bool| api::WriteContentRequest {
        action: if last { api::WriteAction::Commit as i32 } else { api::WriteAction::Write as i32 },
        r#ref: format!("kedge-import-{}", blob.digest),
        total,
        expected: blob.digest.clone(),
        offset: i64::try_from(offset).unwrap_or(i64::MAX),
        data,
        labels: if last { blob.labels.clone() } else { HashMap::new() },
    };
    let mut done = 0;
    loop {
        let wanted = usize::try_from(blob.size - done).unwrap_or(CHUNK).min(CHUNK);
        let data = match &blob.from {
            From::Bytes(bytes) => {
                let start = usize::try_from(done).unwrap_or(bytes.len());
                bytes[start..start + wanted].to_vec()
            }
            From::File(span) => read_at(file, Span { offset: span.offset + done, size: wanted as u64 })?,
        };
        let last = done + wanted as u64 == blob.size;
        if sender.blocking_send(message(done, data, last)).is_err() || last {
            // When nobody listens any more, the other side says why.
            return Ok(());
        }
        done += wanted as u64;
    }
}
