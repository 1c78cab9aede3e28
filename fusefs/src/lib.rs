//! The volume as the kernel sees it.
//!
//! FUSE requests come in, operations and commits on a [`nasd_volume::Volume`] go out. This is the
//! only crate that knows FUSE, and it decides nothing: what an operation does, who may do it and
//! when a commit is done is the volume's to say.
//!
//! [`mount`] puts a volume at a mount point and serves it; [`MountedVolume::unmount`] ends that. With
//! [`mount_with_special`] the mount has, besides the volume's files, those in which a node tells of itself: [`NodeInfo`].

mod convert;
mod directory;
mod handles;
mod mount;
mod mountinfo;
mod shim;
mod special;

pub use mount::{MountError, MountedVolume, mount, mount_with_special, prepare};
pub use special::{NodeInfo, Subscription};
