//! What a host knows the names of others by.

use std::fs;
use std::path::{Path, PathBuf};

use super::Host;

/// Files of /etc that programs on one host find in the place of the usual ones, ip-netns(8). Dropping it removes them.
pub struct Names {
    directory: PathBuf,
    /// What a bare machine lacks: without a file of that name there is none to put another in the place of.
    made: Vec<PathBuf>,
}

impl Names {
    /// Those of `host`, by a file as /etc/hosts alone: no resolver is asked for names that it lacks.
    pub fn new(host: &Host, hosts: &str) -> Self {
        let directory = Path::new("/etc/netns").join(host.namespace());
        fs::create_dir_all(&directory).unwrap();
        let mut names = Self { directory, made: Vec::new() };
        names.write("hosts", hosts);
        names.write("nsswitch.conf", "hosts: files\n");
        names
    }

    /// What programs that start from now on find in the file of this name.
    pub fn write(&mut self, file: &str, content: &str) {
        fs::write(self.directory.join(file), content).unwrap();
        let of_all = Path::new("/etc").join(file);
        if fs::File::create_new(&of_all).is_ok() {
            self.made.push(of_all);
        }
    }

    /// Has names that the file lacks asked for at the resolver at `address`, whose answer is waited for so many seconds.
    pub fn resolve_at(&mut self, address: &str, seconds: u32) {
        self.write("nsswitch.conf", "hosts: files dns\n");
        self.write("resolv.conf", &format!("nameserver {address}\noptions timeout:{seconds} attempts:1\n"));
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
        for file in &self.made {
            let _ = fs::remove_file(file);
        }
    }
}
