//! PersistentVolumes and their claims (upstream pkg/controller/volume/persistentvolume and the two
//! protection controllers). Volumes are made and deleted by external provisioners; here claims and
//! volumes find each other.

mod binder;
mod matching;
mod protection;

use crate::context::Context;

pub(crate) fn start(ctx: &Context) {
    binder::start(ctx);
    protection::start(ctx);
}
