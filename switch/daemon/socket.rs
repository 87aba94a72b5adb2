//! Where the daemon listens, and who may stand there.
//!
//! A lock file beside the socket is held for the daemon's life, so that "is one running?" is answered
//! by the kernel and not by a left-over file: a socket whose lock is free belongs to nobody and is
//! replaced. A second lock orders those who would start a daemon at the same time.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;

/// Most octets of a unix socket's path: `sun_path` less the closing zero (`unix(7)`).
pub const MAX_PATH_LEN: usize = 107;

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The path does not fit an address.
    #[error(
        "socket path {0} is longer than {MAX_PATH_LEN} octets; set PONTOON_SOCKET to a shorter one"
    )]
    TooLong(PathBuf),
    /// The path has no directory.
    #[error(
        "socket path {0} names no file; set PONTOON_SOCKET to one, as in /tmp/mine/pontoon.sock"
    )]
    NoFile(PathBuf),
    /// Somebody else could meddle with the directory.
    #[error("directory {path} {why}; remove it, or set PONTOON_SOCKET to a path elsewhere")]
    UnsafeDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A daemon is there already.
    #[error("daemon already running{} on {}", pid_note(.pid), .path.display())]
    Running {
        /// Its process id, where it could be read.
        pid: Option<u32>,
        /// The socket.
        path: PathBuf,
    },
    /// Something else answers there.
    #[error("{} is served by another program; set PONTOON_SOCKET to a path of its own", .0.display())]
    Foreign(PathBuf),
    /// The kernel refused a step.
    #[error("{what} {}: {source}", .path.display())]
    Step {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

fn pid_note(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

/// The socket's path: `$PONTOON_SOCKET`, else `pontoon.sock` in root's `/run/pontoon`, in
/// `$XDG_RUNTIME_DIR/pontoon`, or in `/tmp/pontoon-UID`.
///
/// # Errors
///
/// It does not fit a unix socket's address.
pub fn path() -> Result<PathBuf, SocketError> {
    let given = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = match given("PONTOON_SOCKET") {
        Some(path) => std::path::absolute(&path).unwrap_or(path),
        None => default_directory(given("XDG_RUNTIME_DIR")).join("pontoon.sock"),
    };
    if path.as_os_str().len() > MAX_PATH_LEN {
        return Err(SocketError::TooLong(path));
    }
    if path.file_name().is_none() {
        return Err(SocketError::NoFile(path));
    }
    Ok(path)
}

fn default_directory(runtime: Option<PathBuf>) -> PathBuf {
    let uid = geteuid();
    match runtime {
        _ if uid.is_root() => "/run/pontoon".into(),
        Some(runtime) if runtime.is_absolute() => runtime.join("pontoon"),
        _ => format!("/tmp/pontoon-{uid}").into(),
    }
}

/// Makes the socket's directory for us alone, or checks that the one there is safe to use.
///
/// # Errors
///
/// It cannot be made, is another user's, or others may write to it.
pub fn prepare_directory(socket: &Path) -> Result<(), SocketError> {
    let directory = socket.parent().ok_or_else(|| SocketError::NoFile(socket.to_owned()))?;
    let step = |what, source| SocketError::Step { what, path: directory.to_owned(), source };
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(step("create directory", source)),
    }
    // Not followed: a link of somebody else's making in /tmp must not lead us elsewhere.
    let found =
        fs::symlink_metadata(directory).map_err(|source| step("look at directory", source))?;
    let refuse =
        |why: String| Err(SocketError::UnsafeDirectory { path: directory.to_owned(), why });
    let (uid, mode) = (geteuid().as_raw(), found.mode() & 0o7777);
    if found.is_symlink() && directory.starts_with("/tmp") {
        return refuse("is a symbolic link".to_owned());
    }
    let found = fs::metadata(directory).map_err(|source| step("look at directory", source))?;
    if !found.is_dir() {
        return refuse("is no directory".to_owned());
    }
    if found.uid() != uid && found.uid() != 0 {
        return refuse(format!("belongs to uid {}, and we are uid {uid}", found.uid()));
    }
    // A sticky directory (/tmp itself) lets nobody replace what is ours.
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        return refuse(format!("may be written to by others (mode {mode:04o})"));
    }
    Ok(())
}

/// The listening socket, and the claim to it. Dropped, the socket's file is removed.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    // Held for its lock; the file stays, since removing it would let two daemons hold two of them.
    _lock: Flock<File>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The socket is of no use without us; if it is gone already, all is well.
        let _ = fs::remove_file(&self.path);
    }
}

/// Claims the socket and listens on it, for this user alone (mode 0600).
///
/// Call it while the process has one thread: the umask is the whole process's.
///
/// # Errors
///
/// A daemon is running, another program answers there, or the kernel refuses.
pub fn listen(path: &Path) -> Result<(Claim, UnixListener), SocketError> {
    prepare_directory(path)?;
    let step = |what| move |source| SocketError::Step { what, path: path.to_owned(), source };
    let lock = beside(path, "lock");
    let Some(mut lock) = try_lock(&lock)? else {
        return Err(SocketError::Running { pid: noted_pid(&lock), path: path.to_owned() });
    };
    if UnixStream::connect(path).is_ok() {
        return Err(SocketError::Foreign(path.to_owned()));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(step("replace stale socket")(error));
        }
        _ => {}
    }
    let note_pid = |lock: &mut Flock<File>| {
        lock.set_len(0)?;
        writeln!(&**lock, "{}", std::process::id())
    };
    note_pid(&mut lock).map_err(step("write the lock of"))?;
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener.map_err(step("listen on"))?;
    Ok((Claim { path: path.to_owned(), _lock: lock }, listener))
}

/// Process id of the daemon that holds the socket; `None` where none does, whoever answers there.
#[must_use]
pub fn running(path: &Path) -> Option<u32> {
    let lock = beside(path, "lock");
    let file = File::open(&lock).ok()?;
    if Flock::lock(file, FlockArg::LockSharedNonblock).is_ok() {
        return None;
    }
    noted_pid(&lock)
}

/// What the holder of the lock wrote into it.
fn noted_pid(lock: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(lock).ok()?.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Waits until we are the only one about to start a daemon here; dropped, the next one may.
///
/// # Errors
///
/// The lock's file cannot be made.
pub fn starters_turn(path: &Path) -> Result<impl Drop + use<>, SocketError> {
    prepare_directory(path)?;
    let file = beside(path, "start");
    let step = |source| SocketError::Step { what: "lock", path: file.clone(), source };
    let opened = open(&file).map_err(step)?;
    Flock::lock(opened, FlockArg::LockExclusive).map_err(|(_, errno)| step(errno.into()))
}

/// The file `pontoon.sock.SUFFIX`.
#[must_use]
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn try_lock(file: &Path) -> Result<Option<Flock<File>>, SocketError> {
    let step = |source| SocketError::Step { what: "lock", path: file.to_owned(), source };
    let opened = open(file).map_err(step)?;
    match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(step(errno.into())),
    }
}

fn open(file: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn one_daemon_at_a_time_and_a_stale_socket_is_replaced() {
        let directory = directory();
        let path = directory.path().join("pontoon.sock");
        let (claim, listener) = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(running(&path), Some(std::process::id()));
        let refused = listen(&path).unwrap_err().to_string();
        assert!(
            refused.starts_with(&format!("daemon already running (pid {})", std::process::id()))
        );
        // As if it had been killed: the socket's file stays, its lock is gone.
        std::mem::forget(listener);
        let Claim { .. } = &claim;
        drop(claim);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (claim, _listener) = listen(&path).unwrap();
        drop(claim);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_answers_is_not_taken_from_its_owner() {
        let directory = directory();
        let path = directory.path().join("pontoon.sock");
        let _other = UnixListener::bind(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::Foreign(_))));
        assert!(path.exists());
        assert_eq!(running(&path), None);
    }

    #[test]
    fn a_directory_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = directory();
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let path = open.join("pontoon.sock");
        assert!(matches!(prepare_directory(&path), Err(SocketError::UnsafeDirectory { .. })));
        let ours = directory.path().join("ours/pontoon.sock");
        prepare_directory(&ours).unwrap();
        assert_eq!(fs::metadata(ours.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        fs::write(directory.path().join("file"), "").unwrap();
        let below_a_file = directory.path().join("file/pontoon.sock");
        assert!(prepare_directory(&below_a_file).is_err());
    }

    #[test]
    fn locks_stand_beside_the_socket() {
        assert_eq!(beside(Path::new("/run/p.sock"), "lock"), Path::new("/run/p.sock.lock"));
    }
}
