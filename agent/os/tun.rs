//! Tun devices.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::agent::packet::coalesce::{Merges, SEGMENTS};
use crate::agent::packet::vnet;
use crate::proto::model::DeviceName;

/// The most parts of one write: a header, and a part for each packet that was merged.
const PARTS: usize = 1 + SEGMENTS as usize;

/// What a device may leave to whoever reads it (`TUN_F_*` of linux/if_tun.h): checksums.
const CHECKSUM: libc::c_ulong = 0x01;
/// TCP segments of both versions, and those with ECN.
const TSO: libc::c_ulong = 0x02 | 0x04 | 0x08;
/// UDP segments of both versions; kernels before 6.2 know none.
const USO: libc::c_ulong = 0x20 | 0x40;

/// A layer-3 tun device without packet information, with a [`vnet`] header before each packet: it lives as long as the
/// last handle to it.
#[derive(Debug)]
pub struct TunDevice {
    file: File,
    merges_tcp: AtomicBool,
    merges_udp: AtomicBool,
}

impl TunDevice {
    /// Makes a device that is down and without addresses, and that takes packets one by one.
    ///
    /// # Errors
    /// `AlreadyExists` where a persistent device has the name, `ResourceBusy` where another process holds it,
    /// and what the kernel says otherwise.
    pub fn create(name: &DeviceName) -> io::Result<Self> {
        Self::open(name.as_str())
    }

    /// Makes a device as [`create`](Self::create) does, under a name that the kernel chooses.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn anonymous() -> io::Result<Self> {
        Self::open("tunmesh%d")
    }

    #[allow(unsafe_code, reason = "ownership of the descriptor passes from the tun crate to us")]
    fn open(name: &str) -> io::Result<Self> {
        let mut config = tun::Configuration::default();
        config.tun_name(name);
        // Addresses, MTU and state are set through netlink.
        config.platform_config(|platform| {
            platform.ensure_root_privileges(false);
            platform.vnet_hdr(true);
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
        let device = Self {
            file: File::from(fd),
            merges_tcp: AtomicBool::new(false),
            merges_udp: AtomicBool::new(false),
        };
        device.set_merging(Merges::default())?;
        Ok(device)
    }

    /// A device that is none, where a test needs only its handle.
    #[cfg(test)]
    pub(crate) fn null() -> Self {
        let file = File::options().read(true).write(true).open("/dev/null").unwrap();
        Self { file, merges_tcp: AtomicBool::new(true), merges_udp: AtomicBool::new(true) }
    }

    /// Sets what may cross the device as one packet that is many, in both directions.
    ///
    /// # Errors
    /// EINVAL where the kernel knows no such packets; nothing has changed then.
    pub fn set_merging(&self, merges: Merges) -> io::Result<()> {
        let tso = if merges.tcp { TSO } else { 0 };
        let uso = if merges.udp { USO } else { 0 };
        set_offloads(&self.file, CHECKSUM | tso | uso)?;
        self.merges_tcp.store(merges.tcp, Ordering::Relaxed);
        self.merges_udp.store(merges.udp, Ordering::Relaxed);
        Ok(())
    }

    /// What the device takes as one packet that is many.
    pub fn merges(&self) -> Merges {
        Merges { tcp: self.merges_tcp.load(Ordering::Relaxed), udp: self.merges_udp.load(Ordering::Relaxed) }
    }

    /// Notes that the device did not take what it should: from now on it is given packets one by one.
    pub fn refuse_merged(&self) {
        self.merges_tcp.store(false, Ordering::Relaxed);
        self.merges_udp.store(false, Ordering::Relaxed);
    }

    /// Reads one packet, or one that is many as `header` says then; a longer one is cut to the buffer. Returns its length.
    ///
    /// # Errors
    /// `WouldBlock` where none waits; EBADFD (77) where the device is gone.
    pub fn receive(&self, header: &mut [u8; vnet::LENGTH], buffer: &mut [u8]) -> io::Result<usize> {
        let mut parts = [IoSliceMut::new(header), IoSliceMut::new(buffer)];
        let length = rustix::io::readv(&self.file, &mut parts)?;
        length.checked_sub(vnet::LENGTH).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Gives the kernel one packet, or one that is many as `header` says, in at most 64 parts.
    ///
    /// # Errors
    /// EINVAL where it is no IP packet or not what the header says; EIO where the device is down; EBADFD (77) where it is
    /// gone.
    pub fn send<'p>(
        &self,
        header: &[u8; vnet::LENGTH],
        parts: impl Iterator<Item = &'p [u8]>,
    ) -> io::Result<()> {
        let mut all = [IoSlice::new(header); PARTS];
        let mut count = 1;
        for (place, part) in all.iter_mut().skip(1).zip(parts) {
            *place = IoSlice::new(part);
            count += 1;
        }
        rustix::io::writev(&self.file, all.get(..count).unwrap_or_default())?;
        Ok(())
    }
}

impl AsFd for TunDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
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

#[allow(unsafe_code, reason = "no crate in use has TUNSETOFFLOAD")]
fn set_offloads(fd: &File, offloads: libc::c_ulong) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    /// `_IOW('T', 208, unsigned int)` of `linux/if_tun.h`.
    const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0_u32 as libc::Ioctl;
    // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes an integer.
    if unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, offloads) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
