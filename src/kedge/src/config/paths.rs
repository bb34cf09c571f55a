//! Where a node keeps what, below its folders.

use std::path::{Path, PathBuf};

use super::{Config, DEFAULT_FILE, file};

impl Config {
    /// The folder of drop-ins and that of the configuration file, where `install` makes them and `uninstall` takes
    /// them away: for the machine's usual node. A file elsewhere is in a folder of its user's.
    pub(crate) fn settings_dirs(&self) -> Vec<PathBuf> {
        if self.file != Path::new(DEFAULT_FILE) || !self.owns_file() {
            return Vec::new();
        }
        let folder = self.file.parent().map(Path::to_path_buf);
        std::iter::once(file::drop_in_dir(&self.file)).chain(folder).collect()
    }

    /// Keys, certificates, `time-floor`.
    pub(crate) fn pki_dir(&self) -> PathBuf {
        self.data_dir.join("pki")
    }

    /// The replicated store's folder.
    pub(crate) fn store_dir(&self) -> PathBuf {
        self.data_dir.join("store")
    }

    /// Where this node keeps snapshots.
    pub(crate) fn snapshot_dir(&self) -> PathBuf {
        self.data_dir.join("snapshots")
    }

    /// Archives of images that are imported at start and when they appear.
    pub(crate) fn image_dir(&self) -> PathBuf {
        self.data_dir.join("images")
    }

    /// Where images are unpacked or built on their way.
    pub(crate) fn image_work_dir(&self) -> PathBuf {
        self.data_dir.join("image-work")
    }

    /// Manifests that are applied at start and when they change.
    pub(crate) fn manifest_dir(&self) -> PathBuf {
        self.data_dir.join("manifests")
    }

    /// The administrator's kubeconfig, rewritten at every start.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("kubeconfig")
    }

    /// Process id and start time of the running `kedge run`.
    pub(crate) fn pid_file(&self) -> PathBuf {
        self.run_dir.join("kedge.pid")
    }

    /// Locked by the running `kedge run`.
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.run_dir.join("kedge.lock")
    }

    /// Why the process ended by itself.
    pub(crate) fn last_failure_file(&self) -> PathBuf {
        self.run_dir.join("last-failure.json")
    }

    /// The first start's work (addons) is done.
    pub(crate) fn first_start_mark(&self) -> PathBuf {
        self.data_dir.join("first-start-done")
    }

    /// Where a running node answers status requests.
    pub(crate) fn status_socket(&self) -> PathBuf {
        self.run_dir.join("kedge.sock")
    }

    /// The socket of the containerd that this node runs.
    pub(crate) fn containerd_socket(&self) -> PathBuf {
        self.run_dir.join("containerd/containerd.sock")
    }

    /// Where the bridge plugin finds its configuration, and where host-local keeps the pods' addresses.
    pub(crate) fn cni_config_dir(&self) -> PathBuf {
        self.data_dir.join("cni/net.d")
    }

    pub(crate) fn cni_address_dir(&self) -> PathBuf {
        self.data_dir.join("cni/networks")
    }
}
