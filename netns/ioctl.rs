//! Requests of `ioctl(2)` that neither `nix` nor `netlink` offers.
//!
//! One function for each, taking a borrowed descriptor and plain values, so that nothing outside
//! this file passes the kernel a pointer of its own. Numbers are those of `<linux/nsfs.h>`,
//! `<linux/if_tun.h>` and `<linux/ethtool.h>`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

mod raw {
    // NSIO is 0xb7, and these requests carry no data although they return some.
    nix::ioctl_none!(ns_get_userns, 0xb7, 0x1);
    nix::ioctl_none!(ns_get_nstype, 0xb7, 0x3);
    nix::ioctl_read!(ns_get_owner_uid, 0xb7, 0x4, libc::uid_t);
    // Of these two nix's macros would take the argument's width from a type the kernel's own
    // header gets wrong (TUNSETIFF says int and takes a struct ifreq).
    nix::ioctl_readwrite_bad!(tun_set_iff, nix::request_code_write!(b'T', 202, 4), libc::ifreq);
    nix::ioctl_write_int_bad!(tun_set_offload, nix::request_code_write!(b'T', 208, 4));
    nix::ioctl_write_ptr!(tun_set_vnet_hdr_sz, b'T', 216, libc::c_int);
}

/// The user namespace that owns the namespace `ns` stands for: `ioctl_nsfs(2)`, `NS_GET_USERNS`.
///
/// # Errors
/// `EPERM` where the owner is outside our own user namespace and its descendants.
pub(crate) fn owning_user_namespace(ns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: `ns` is open for the call, and NS_GET_USERNS takes no argument, so no memory of ours
    // is read or written.
    let fd = unsafe { raw::ns_get_userns(ns.as_raw_fd()) }?;
    // SAFETY: on success the request returns a descriptor it has just installed for us alone,
    // close-on-exec (open_related_ns, fs/nsfs.c).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The `CLONE_NEW…` flag of the namespace `ns` stands for: `NS_GET_NSTYPE`.
///
/// # Errors
/// `ENOTTY` where `ns` is no namespace.
pub(crate) fn namespace_type(ns: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: `ns` is open for the call and NS_GET_NSTYPE takes no argument.
    Ok(unsafe { raw::ns_get_nstype(ns.as_raw_fd()) }?)
}

/// The uid that created the user namespace `user`, as our own user namespace numbers it:
/// `NS_GET_OWNER_UID`.
///
/// # Errors
/// `EINVAL` where `user` is a namespace of another type.
pub(crate) fn owner_uid(user: BorrowedFd<'_>) -> io::Result<u32> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: `uid` lives across the call and is the uid_t that NS_GET_OWNER_UID writes.
    unsafe { raw::ns_get_owner_uid(user.as_raw_fd(), &mut uid) }?;
    Ok(uid)
}

/// Makes `fd`, open on `/dev/net/tun`, a queue of the interface `name`: `TUNSETIFF`.
///
/// # Errors
/// `EINVAL` for a name over 15 octets; else what `tun_set_iff` (`drivers/net/tun.c`) says.
pub(crate) fn tun_set_iff(fd: impl AsFd, name: &str, flags: libc::c_int) -> io::Result<()> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            // The field is a short; IFF_NO_CARRIER and IFF_TUN_EXCL use its upper bits.
            #[expect(clippy::cast_possible_truncation, reason = "flags are defined as 16 bits")]
            ifru_flags: flags as libc::c_short,
        },
    };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: `request` is a whole, initialised ifreq that outlives the call; TUNSETIFF copies one
    // ifreq in and one out, whatever size its number encodes.
    unsafe { raw::tun_set_iff(fd.as_fd().as_raw_fd(), &mut request) }?;
    Ok(())
}

/// Tells what the reader of the TAP `fd` takes upon itself: `TUNSETOFFLOAD`.
///
/// # Errors
/// `EINVAL` where a bit is unknown to the kernel.
pub(crate) fn tun_set_offload(fd: impl AsFd, bits: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    unsafe { raw::tun_set_offload(fd.as_fd().as_raw_fd(), bits) }?;
    Ok(())
}

/// Sets the octets of virtio-net header before each frame: `TUNSETVNETHDRSZ`.
///
/// # Errors
/// `EINVAL` for less than 10.
pub(crate) fn tun_set_vnet_hdr_size(fd: impl AsFd, octets: libc::c_int) -> io::Result<()> {
    // SAFETY: `octets` lives across the call and is the one int TUNSETVNETHDRSZ reads.
    unsafe { raw::tun_set_vnet_hdr_sz(fd.as_fd().as_raw_fd(), &octets) }?;
    Ok(())
}
