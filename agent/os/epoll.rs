//! Readiness of descriptors for a data thread, level-triggered (`epoll(7)`), and a way to wake it (`eventfd(2)`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// The most descriptors that one wait reports.
const EVENTS: usize = 64;

/// A set of descriptors, each with a number of the caller's choice.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Watches `fd` for reading, as `id`.
    pub fn add(&self, fd: impl AsFd, id: u64) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(id), EventFlags::IN)?)
    }

    /// Watches `fd` no more.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }

    /// Waits until at least one descriptor is readable or has an error, and puts their numbers into `ready`: none where
    /// there is none for `patience`.
    pub fn wait(&self, ready: &mut Vec<u64>, patience: Option<Duration>) -> io::Result<()> {
        ready.clear();
        let patience = patience.map(timespec).transpose()?;
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS];
        let count = match epoll::wait(&self.0, &mut events[..], patience.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        ready.extend(events.iter().take(count).map(|event| event.data.u64()));
        Ok(())
    }
}

/// Wakes a thread that waits on an [`Epoll`] with it.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// A waker that has not been woken.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes the descriptor readable.
    pub fn wake(&self) {
        // A full counter is readable, too.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Takes all wakes so far.
    pub fn reset(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until `fd` takes more, at most `patience`.
pub fn wait_writable(fd: impl AsFd, patience: Duration) -> io::Result<()> {
    wait_for(fd, PollFlags::OUT, patience)
}

/// Waits until `fd` has something to read, at most `patience`.
pub fn wait_readable(fd: impl AsFd, patience: Duration) -> io::Result<()> {
    wait_for(fd, PollFlags::IN, patience)
}

fn wait_for(fd: impl AsFd, what: PollFlags, patience: Duration) -> io::Result<()> {
    let timeout = timespec(patience)?;
    poll(&mut [PollFd::new(&fd, what)], Some(&timeout))?;
    Ok(())
}

fn timespec(time: Duration) -> io::Result<Timespec> {
    Timespec::try_from(time).map_err(io::Error::other)
}
