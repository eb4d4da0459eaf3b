//! Who is at the other end of a Unix socket.

use std::fmt;
use std::fs;

use rustix::process::geteuid;
use tokio::net::unix::UCred;
use tonic::codegen::http::Extensions;
use tonic::transport::server::UdsConnectInfo;

use super::socket::{GROUP, group_id};
use crate::proto::trust::{Caller, Role};

/// Who calls over a Unix socket, by what the kernel says of the connection: whoever may steer may do everything.
pub fn caller(extensions: &Extensions) -> Caller {
    let credentials = extensions.get::<UdsConnectInfo>().and_then(|info| info.peer_cred.as_ref());
    let Some(user) = credentials.map(LocalUser::of) else {
        return Caller::Stranger("the kernel does not say who calls".to_owned());
    };
    match user.may_steer() {
        true => Caller::Operator(Role::Admin, user.to_string()),
        false => Caller::Stranger(format!(
            "{user} is neither root nor a member of the group tunmesh: run this as one of them"
        )),
    }
}

/// A user of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LocalUser {
    user: u32,
    group: u32,
    process: Option<i32>,
}

impl LocalUser {
    /// Of what the kernel says, `SO_PEERCRED` of `unix(7)`.
    fn of(credentials: &UCred) -> Self {
        Self { user: credentials.uid(), group: credentials.gid(), process: credentials.pid() }
    }

    /// Whether it may steer agent and controller: root, this process's own user, or a member of the group. The
    /// socket's mode says the same, unless somebody has changed it.
    fn may_steer(&self) -> bool {
        if self.user == 0 || self.user == geteuid().as_raw() {
            return true;
        }
        let Some(group) = group_id(GROUP) else { return false };
        self.group == group || self.others().contains(&group)
    }

    /// The supplementary groups of the calling process, `proc_pid_status(5)`.
    fn others(&self) -> Vec<u32> {
        let status =
            self.process.and_then(|process| fs::read_to_string(format!("/proc/{process}/status")).ok());
        let status = status.unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        // Of the process that called, not of one that has its number by now.
        let is_same =
            field("Uid:").is_some_and(|ids| ids.split_whitespace().any(|id| id.parse() == Ok(self.user)));
        let groups = field("Groups:").filter(|_| is_same).unwrap_or_default();
        groups.split_whitespace().filter_map(|id| id.parse().ok()).collect()
    }
}

impl fmt::Display for LocalUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(self.user)).then_some(name)
        });
        match name {
            Some(name) => f.write_str(name),
            None => write!(f, "user {}", self.user),
        }
    }
}
