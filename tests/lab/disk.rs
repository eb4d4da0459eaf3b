//! Disks that are full, or cannot be written at all.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system. Dropping it takes it away, with all that is on it.
pub struct Disk(PathBuf);

impl Disk {
    /// One of `size`, as "64k", at a directory that is made where it is missing.
    pub fn mount(directory: &Path, size: &str) -> Self {
        fs::create_dir_all(directory).unwrap();
        mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "none"], directory);
        Self(directory.to_owned())
    }

    /// Takes all room that is left.
    pub fn fill(&self) {
        let error = fs::write(self.filler(), vec![0; 1 << 22]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }

    /// Gives back what [`Self::fill`] took.
    pub fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    /// Lets nobody write any more, or all again.
    pub fn set_read_only(&self, is_read_only: bool) {
        let access = if is_read_only { "ro" } else { "rw" };
        mount(&["-o", &format!("remount,{access}")], &self.0);
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

fn mount(arguments: &[&str], directory: &Path) {
    let mounted = Command::new("mount").args(arguments).arg(directory).status().unwrap();
    assert!(mounted.success(), "mount {arguments:?}; run scripts/test as root");
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
