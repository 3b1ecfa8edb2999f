//! The calls on which decisions are tried: at least one for each kind of call. Knows no decisions.

use engine::gate::CallKind;

/// One call, with what is needed before it.
#[derive(Debug, Clone)]
pub(crate) struct CallRow {
    pub(crate) kind: CallKind,
    /// Lines of a program that run before.
    pub(crate) before: &'static [&'static str],
    pub(crate) call: String,
    /// For a call that moves bytes: the same call for fewer bytes.
    pub(crate) shortened: Option<String>,
    /// The file at the path that the call takes, if there is one: it can be replaced.
    pub(crate) path: Option<&'static str>,
    /// Only the kernel can perform the call.
    pub(crate) only_kernel: bool,
}

/// The number of bytes to which calls are shortened.
pub(crate) const SHORT_BYTES: u64 = 70;

impl CallRow {
    fn new(kind: CallKind, before: &'static [&'static str], call: &str) -> CallRow {
        CallRow { kind, before, call: call.into(), shortened: None, path: None, only_kernel: false }
    }

    /// A call that moves bytes. `LEN` stands for their number.
    fn moving(kind: CallKind, before: &'static [&'static str], call: &str) -> CallRow {
        let with = |len: &str| call.replace("LEN", len);
        CallRow { shortened: Some(with("70")), ..CallRow::new(kind, before, &with("300")) }
    }

    fn at(self, path: &'static str) -> CallRow {
        CallRow { path: Some(path), ..self }
    }

    fn by_kernel(self) -> CallRow {
        CallRow { only_kernel: true, ..self }
    }
}

/// All kinds of call. The next kind after each.
fn kind_after(kind: CallKind) -> Option<CallKind> {
    Some(match kind {
        CallKind::Open => CallKind::OpenToRead,
        CallKind::OpenToRead => CallKind::Read,
        CallKind::Read => CallKind::Write,
        CallKind::Write => CallKind::Truncate,
        CallKind::Truncate => CallKind::Allocate,
        CallKind::Allocate => CallKind::Rename,
        CallKind::Rename => CallKind::Link,
        CallKind::Link => CallKind::Symlink,
        CallKind::Symlink => CallKind::Unlink,
        CallKind::Unlink => CallKind::Mkdir,
        CallKind::Mkdir => CallKind::Rmdir,
        CallKind::Rmdir => CallKind::Chmod,
        CallKind::Chmod => CallKind::Fsync,
        CallKind::Fsync => CallKind::Fdatasync,
        CallKind::Fdatasync => CallKind::Close,
        CallKind::Close => CallKind::Stat,
        CallKind::Stat => CallKind::Access,
        CallKind::Access => CallKind::Chown,
        CallKind::Chown => CallKind::Utimens,
        CallKind::Utimens => CallKind::SetXattr,
        CallKind::SetXattr => CallKind::Mknod,
        CallKind::Mknod => CallKind::SyncRange,
        CallKind::SyncRange => CallKind::Syncfs,
        CallKind::Syncfs => CallKind::Msync,
        CallKind::Msync => CallKind::Map,
        CallKind::Map => return None,
    })
}

/// The rows of every kind.
pub(crate) fn all_rows() -> Vec<CallRow> {
    let kinds = std::iter::successors(Some(CallKind::Open), |kind| kind_after(*kind));
    kinds.flat_map(rows_of).collect()
}

const OLD: &[&str] = &["open =0 :old O_RDWR 0"];
const OLD_TO_READ: &[&str] = &["open =0 :old O_RDONLY 0"];
const OLD_AND_NEW: &[&str] = &["open =0 :old O_RDWR 0", "open =1 :new O_RDWR|O_CREAT 0644"];

fn rows_of(kind: CallKind) -> Vec<CallRow> {
    let none: &[&str] = &[];
    let row = |before, call| CallRow::new(kind, before, call);
    match kind {
        CallKind::Open => open_rows(),
        CallKind::OpenToRead => vec![
            row(none, "open =0 :old O_RDONLY 0").at(":old"),
            row(none, "openat2 =0 AT_FDCWD :dir O_RDONLY|O_DIRECTORY 0 0"),
        ],
        CallKind::Read => vec![
            CallRow::moving(kind, OLD, "read @0 buf LEN"),
            CallRow::moving(kind, OLD, "pread @0 buf LEN 1000"),
            CallRow::moving(kind, OLD, "preadv2 @0 buf:LEN 5 0"),
            row(&["open =0 :old O_WRONLY 0"], "read @0 buf 300").by_kernel(),
        ],
        CallKind::Write => write_rows(),
        CallKind::Truncate => vec![
            row(OLD, "ftruncate @0 100"),
            row(none, "truncate :old 20000").at(":old"),
            row(OLD_TO_READ, "ftruncate @0 100"),
            row(none, "truncate :old 0x7fffffffffffffff").at(":old"),
        ],
        CallKind::Allocate => vec![
            row(OLD, "fallocate @0 0 9000 5000"),
            row(OLD, "fallocate @0 FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE 0 5000"),
            row(OLD, "fallocate @0 FALLOC_FL_ZERO_RANGE 100 50"),
            row(OLD, "fallocate @0 FALLOC_FL_COLLAPSE_RANGE 0 4096"),
            row(OLD_TO_READ, "fallocate @0 0 0 5"),
        ],
        CallKind::Rename => vec![
            row(none, "rename :old :new").at(":old"),
            row(none, "renameat AT_FDCWD :old AT_FDCWD :other").at(":old"),
            row(none, "renameat2 AT_FDCWD :old AT_FDCWD :other RENAME_EXCHANGE").at(":old"),
            row(none, "renameat2 AT_FDCWD :old AT_FDCWD :other RENAME_NOREPLACE").at(":old"),
        ],
        CallKind::Link => vec![
            row(none, "link :old :new").at(":old"),
            row(none, "linkat AT_FDCWD :old AT_FDCWD :new AT_SYMLINK_FOLLOW").at(":old"),
            row(OLD, "linkat AT_FDCWD :/proc/self/fd/{0} AT_FDCWD :new AT_SYMLINK_FOLLOW"),
            row(none, "link :old :other").at(":old"),
        ],
        CallKind::Symlink => vec![
            row(none, "symlink :old :new"),
            row(none, "symlinkat :old AT_FDCWD :new"),
            row(none, "symlink :old :other").at(":other"),
        ],
        CallKind::Unlink => vec![
            row(none, "unlink :old").at(":old"),
            row(none, "unlinkat AT_FDCWD :old 0").at(":old"),
            row(none, "unlink :dir"),
        ],
        CallKind::Mkdir => vec![
            row(none, "mkdir :new 0750"),
            row(none, "mkdirat AT_FDCWD :new 0750"),
            row(none, "mkdir :old 0750").at(":old"),
        ],
        CallKind::Rmdir => vec![
            row(none, "rmdir :empty"),
            row(none, "unlinkat AT_FDCWD :empty AT_REMOVEDIR"),
            row(none, "rmdir :full"),
        ],
        _ => other_rows(kind),
    }
}

/// The rows of the kinds that change neither names nor sizes.
fn other_rows(kind: CallKind) -> Vec<CallRow> {
    let none: &[&str] = &[];
    let row = |before, call| CallRow::new(kind, before, call);
    match kind {
        CallKind::Chmod => vec![
            row(none, "chmod :old 0600"),
            row(OLD, "fchmod @0 0600"),
            row(none, "fchmodat2 AT_FDCWD :old 0600 0"),
        ],
        CallKind::Chown => vec![
            row(none, "chown :old -1 0").by_kernel(),
            row(OLD, "fchown @0 -1 0").by_kernel(),
            row(none, "lchown :link 0 0").by_kernel(),
        ],
        CallKind::Utimens => vec![row(none, "utimensat AT_FDCWD :old 5000 6000 0").by_kernel()],
        CallKind::SetXattr => vec![
            row(none, "setxattr :old :user.a :1 0").by_kernel(),
            row(OLD, "fsetxattr @0 :user.a :1 0").by_kernel(),
            row(none, "removexattr :old :user.a").by_kernel(),
        ],
        CallKind::Mknod => vec![
            row(none, "mknod :new S_IFREG|0644"),
            row(none, "mknod :new S_IFIFO|0600"),
            row(none, "mknodat AT_FDCWD :other S_IFREG|0600").at(":other"),
            row(none, "mknod :new S_IFCHR|0600").by_kernel(),
        ],
        CallKind::Fsync => vec![row(OLD, "fsync @0"), row(&["open =0 :dir O_RDONLY 0"], "fsync @0")],
        CallKind::Fdatasync => vec![row(OLD, "fdatasync @0")],
        CallKind::SyncRange => vec![row(OLD, "sync_file_range @0 0 100 SYNC_FILE_RANGE_WRITE").by_kernel()],
        CallKind::Syncfs => vec![row(OLD, "syncfs @0")],
        CallKind::Msync => vec![
            row(
                &[
                    "open =0 :old O_RDWR 0",
                    "map =0 @0 8192 PROT_READ|PROT_WRITE MAP_SHARED 0",
                    "store =0 10 5",
                ],
                "msync =0 0 4096 MS_SYNC",
            )
            .by_kernel(),
        ],
        CallKind::Map => {
            vec![row(OLD, "map =0 @0 4096 PROT_READ|PROT_WRITE MAP_SHARED 0").by_kernel()]
        }
        CallKind::Close => vec![row(OLD, "close @0").by_kernel()],
        CallKind::Stat => vec![row(none, "stat :old").at(":old").by_kernel()],
        CallKind::Access => vec![row(none, "access :old 0").at(":old").by_kernel()],
        _ => Vec::new(),
    }
}

fn open_rows() -> Vec<CallRow> {
    let row = |call| CallRow::new(CallKind::Open, &[], call);
    vec![
        row("open =0 :new O_RDWR|O_CREAT 0640"),
        row("open =0 :old O_RDWR|O_TRUNC 0").at(":old"),
        row("openat =0 AT_FDCWD :old O_WRONLY|O_APPEND 0").at(":old"),
        row("openat2 =0 AT_FDCWD :old O_RDWR 0 RESOLVE_NO_SYMLINKS").at(":old"),
        row("creat =0 :old 0600").at(":old"),
        row("open =0 :. O_TMPFILE|O_RDWR 0644"),
        row("open =0 :old O_RDWR|O_CREAT|O_EXCL 0644").at(":old"),
    ]
}

fn write_rows() -> Vec<CallRow> {
    let moving = |before, call| CallRow::moving(CallKind::Write, before, call);
    vec![
        moving(OLD, "write @0 buf LEN"),
        moving(&["open =0 :old O_RDWR|O_APPEND 0"], "write @0 buf LEN"),
        moving(OLD, "pwrite @0 buf LEN 5000"),
        CallRow {
            shortened: Some("writev @0 buf:40,buf+9:0,end-30:30".into()),
            ..CallRow::new(CallKind::Write, OLD, "writev @0 buf:40,buf+9:0,end-30:30,buf+100:200")
        },
        moving(OLD, "pwritev @0 buf:LEN 5000"),
        moving(OLD, "pwritev2 @0 buf:LEN 5000 RWF_DSYNC"),
        moving(OLD_AND_NEW, "sendfile @1 @0 null LEN"),
        moving(OLD_AND_NEW, "sendfile @1 @0 100 LEN"),
        moving(OLD_AND_NEW, "copy_file_range @0 100 @1 20 LEN 0"),
        CallRow::new(
            CallKind::Write,
            &["open =0 :old O_RDWR 0", "pipe =4 =5", "write @5 buf 300"],
            "splice @4 null @0 null 300 0",
        )
        .by_kernel(),
        CallRow::new(CallKind::Write, OLD_AND_NEW, "ficlone @1 @0"),
        CallRow::new(CallKind::Write, OLD_TO_READ, "write @0 buf 300").by_kernel(),
        CallRow::new(CallKind::Write, OLD, "write @0 low 300").by_kernel(),
    ]
}
