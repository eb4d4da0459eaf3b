//! Tun devices.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use crate::proto::model::DeviceName;

/// A layer-3 tun device without packet information: it lives as long as the last handle to it.
#[derive(Debug)]
pub struct TunDevice(File);

impl TunDevice {
    /// Makes a device that is down and without addresses.
    ///
    /// # Errors
    /// `AlreadyExists` where a persistent device has the name, `ResourceBusy` where another process holds it,
    /// and what the kernel says otherwise.
    #[allow(unsafe_code, reason = "ownership of the descriptor passes from the tun crate to us")]
    pub fn create(name: &DeviceName) -> io::Result<Self> {
        let mut config = tun::Configuration::default();
        config.tun_name(name.as_str());
        // Addresses, MTU and state are set through netlink.
        config.platform_config(|platform| {
            platform.ensure_root_privileges(false);
        });
        let device = tun::create(&config).map_err(|error| {
            if let tun::Error::Io(error) = error { error } else { io::Error::other(error.to_string()) }
        })?;
        device.set_nonblock()?;
        // SAFETY: `into_raw_fd` gives up ownership, so the descriptor is open and no one else closes it.
        let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
        if is_persistent(&fd)? {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a persistent tun device of others has this name",
            ));
        }
        Ok(Self(File::from(fd)))
    }

    /// A device that is none, where a test needs only its handle.
    #[cfg(test)]
    pub(crate) fn null() -> Self {
        Self(File::options().read(true).write(true).open("/dev/null").unwrap())
    }

    /// Reads one packet; a longer one is cut to the buffer.
    ///
    /// # Errors
    /// `WouldBlock` where none waits; EBADFD (77) where the device is gone.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    /// Gives the kernel one packet.
    ///
    /// # Errors
    /// EINVAL where it is no IP packet; EIO where the device is down; EBADFD (77) where it is gone.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.0).write(packet).map(drop)
    }
}

impl AsFd for TunDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether the device stays when its last descriptor is closed (`IFF_PERSIST` of `linux/if_tun.h`): then it was
/// there before us.
#[allow(unsafe_code, reason = "no crate has TUNGETIFF")]
fn is_persistent(fd: &OwnedFd) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    /// `_IOR('T', 210, unsigned int)` of `linux/if_tun.h`.
    const TUNGETIFF: libc::Ioctl = 0x8004_54d2_u32 as libc::Ioctl;
    /// `IFF_PERSIST` of `linux/if_tun.h`.
    const IFF_PERSIST: libc::c_short = 0x0800;
    // SAFETY: an all-zero `ifreq` is valid: it holds integers and arrays of integers alone.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and TUNGETIFF writes one `ifreq`, for which `request` has room.
    if unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: TUNGETIFF sets the flags of the union, and every bit pattern is a valid `c_short`.
    Ok(unsafe { request.ifr_ifru.ifru_flags } & IFF_PERSIST != 0)
}
