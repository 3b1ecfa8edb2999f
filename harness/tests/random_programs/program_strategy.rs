//! Random programs for `targets/random_calls.c`, as proptest strategies: failures shrink to the first choices. Knows
//! the syntax of programs, and nothing of the gate.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;

/// The most calls of a program, not counting those that open its first files.
const MAX_CALLS: usize = 24;

/// The kernel allows this link only to the process that opened the file. Behind the gate that is the supervisor,
/// which makes the link for any process: so the programs use it only where both allow it.
const OWN_DESCRIPTOR_ONLY: &str = "linkat @0 : ";

type Words = BoxedStrategy<String>;

/// A program: its lines.
pub(crate) fn program() -> BoxedStrategy<Vec<String>> {
    let first_files = (
        call("open =0", [simple_path(), one_of(&OPEN_TO_WRITE), mode()]),
        call("open =1", [simple_path(), one_of(&OPEN_TO_WRITE), mode()]),
        call(
            "open =2 :dir",
            [one_of(&["O_RDONLY", "O_RDONLY|O_DIRECTORY", "O_PATH", "O_RDONLY|O_CLOEXEC"]), mode()],
        ),
    );
    let first_files = (first_files, any::<[bool; 3]>()).prop_map(|((a, b, c), kept)| {
        [a, b, c].into_iter().zip(kept).filter_map(|(line, kept)| kept.then_some(line)).collect::<Vec<_>>()
    });
    let line =
        (select(vec!["", "", "", "", "", "", "", "", "", ">"]), any_call()).prop_map(|(prefix, call)| {
            match call.contains(OWN_DESCRIPTOR_ONLY) {
                true => call,
                false => format!("{prefix}{call}"),
            }
        });
    (first_files, vec(line, 1..=MAX_CALLS))
        .prop_map(|(first, rest)| first.into_iter().chain(rest).collect())
        .boxed()
}

fn one_of(words: &'static [&'static str]) -> Words {
    select(words).prop_map(str::to_owned).boxed()
}

/// A call with its arguments, separated by spaces.
fn call<const N: usize>(name: &'static str, arguments: [Words; N]) -> Words {
    arguments.to_vec().prop_map(move |arguments| format!("{name} {}", arguments.join(" "))).boxed()
}

const OPEN_TO_WRITE: [&str; 12] = [
    "O_RDWR|O_CREAT",
    "O_RDWR",
    "O_WRONLY|O_CREAT|O_TRUNC",
    "O_RDWR|O_CREAT|O_APPEND",
    "O_RDWR|O_CREAT|O_EXCL",
    "O_RDWR|O_CREAT|O_SYNC",
    "O_WRONLY|O_CREAT|O_DSYNC|O_APPEND",
    "O_RDWR|O_CREAT|O_DIRECT",
    "O_WRONLY|O_CREAT|O_DIRECT|O_APPEND",
    "O_RDWR|O_CREAT|O_CLOEXEC",
    "O_RDWR|O_NOFOLLOW|O_CREAT",
    "O_WRONLY|O_TRUNC",
];
const OPEN_OTHERWISE: [&str; 16] = [
    "O_RDONLY",
    "O_RDONLY|O_TRUNC",
    "O_RDONLY|O_CREAT",
    "O_PATH",
    "O_PATH|O_NOFOLLOW",
    "O_RDONLY|O_DIRECTORY",
    "O_RDWR|O_DIRECTORY",
    "O_RDWR|O_CREAT|O_DIRECTORY",
    "O_TMPFILE|O_RDWR",
    "O_TMPFILE|O_WRONLY|O_EXCL",
    "O_TMPFILE|O_RDONLY",
    "O_WRONLY|O_RDWR|O_CREAT",
    "O_RDWR|O_NOATIME",
    "O_RDONLY|O_NOFOLLOW",
    "O_PATH|O_CREAT|O_RDWR",
    "O_RDWR|O_CREAT|0x20000000",
];

fn open_flags() -> Words {
    Union::new_weighted(vec![(2, one_of(&OPEN_TO_WRITE)), (1, one_of(&OPEN_OTHERWISE))]).boxed()
}

fn mode() -> Words {
    one_of(&["0644", "0600", "0755", "0444", "0", "0666", "02755", "04755", "01777", "07777"])
}

/// A descriptor: mostly one that the program has opened.
fn fd() -> Words {
    let slots = one_of(&["@0", "@0", "@0", "@1", "@1", "@2", "@3"]);
    Union::new_weighted(vec![(20, slots), (1, one_of(&["99", "-1", "AT_FDCWD"]))]).boxed()
}

/// Where a path starts.
fn dir_fd() -> Words {
    one_of(&["AT_FDCWD", "AT_FDCWD", "@2", "@2", "@0", "99"])
}

fn new_slot() -> Words {
    one_of(&["=0", "=1", "=2", "=3"])
}

fn simple_path() -> Words {
    one_of(&[":old", ":new", ":other", ":hard", ":link", ":new2", ":dir/new", ":dir/inner", ":full/inner"])
}

fn path() -> Words {
    let names = [":dir", ":empty", ":full", ":dirlink", ":dangling", ":pipe", ":made", ":loop"];
    let names = select(names.to_vec()).prop_map(str::to_owned).boxed();
    let odd = one_of(&[
        ":./new",
        ":dir/../new",
        ":dir//./new",
        ":old/",
        ":dir/",
        ":new/",
        ":made/",
        ":link/",
        ":dirlink/",
        ":old/x",
        ":dirlink/new",
        ":dirlink/../new2",
        ":dir/up/new",
        ":made/new",
        ":made/../other",
        ":missing/x",
        ":../beside",
        ":dangling/x",
        ":dangling/",
        ":dir/.",
        ":empty/..",
        ":old/.",
    ]);
    let proc = one_of(&[
        ":~/new",
        ":~//dir/.././old",
        ":/proc/self/fd/{0}",
        ":/proc/self/fd/{1}",
        ":/proc/thread-self/fd/{2}",
        ":/dev/fd/{0}",
        ":/proc/self/fd/{2}/new",
        ":/proc/self/cwd/new",
        ":/proc/self/cwd",
        ":/proc/self/cwd/dir/../old",
        ":/proc/self/root~/other",
        ":/proc/self/fd/{0}/",
    ]);
    let wrong =
        one_of(&[":", ":.", ":..", ":/", "low", "null", "kernel", "*long", "*longest", ":/proc/self/fd/99"]);
    Union::new_weighted(vec![(8, simple_path()), (5, names), (5, odd), (3, proc), (1, wrong)]).boxed()
}

/// Where bytes are in memory. Wrong addresses are rare.
fn memory() -> Words {
    let right = one_of(&["buf", "buf", "buf+1", "buf+512", "buf+4096", "end-5", "end-5000"]);
    Union::new_weighted(vec![(15, right), (1, one_of(&["low", "null", "kernel"]))]).boxed()
}

fn len_bytes() -> Words {
    let usual = one_of(&["5", "1", "0", "100", "512", "4096", "4097", "8192", "10000"]);
    let large = one_of(&["262144", "262145", "300000", "655360", "700000"]);
    let wrong = one_of(&["0x7ffff000", "0x80000000", "0xffffffffffffffff", "0x7fffffffffffffff"]);
    Union::new_weighted(vec![(10, usual), (2, large), (1, wrong)]).boxed()
}

fn offset() -> Words {
    let usual = one_of(&["0", "1", "5", "512", "4096", "4095", "8192", "9999", "10000", "12345", "300000"]);
    let wrong = one_of(&["-1", "-5", "0x7fffffffffffffff"]);
    Union::new_weighted(vec![(10, usual), (1, wrong)]).boxed()
}

fn offset_address() -> Words {
    let with = one_of(&["0", "5", "100", "4096", "9000", "20000", "-4"]);
    Union::new_weighted(vec![(5, one_of(&["null"])), (5, with), (1, one_of(&["low"]))]).boxed()
}

fn size() -> Words {
    // A tmpfs has files of any size, which would have to be compared.
    one_of(&["0", "5", "100", "4096", "5000", "20000", "70000", "-1", "0x8000000000000000"])
}

fn parts() -> Words {
    one_of(&[
        "buf:5",
        "buf:5,buf+10:0,buf+100:50",
        "buf:4096,buf+8192:4096",
        "buf+1:262144,buf+3:262144",
        "buf:3,end-4:10",
        "end-4:10,buf:3",
        "buf:5,low:5",
        "low:5",
        "buf:0",
        "buf:0x7fffffffffffffff",
        "buf:0xffffffffffffffff",
        "buf:0x7fffffff,buf:0x7fffffff",
        "*0",
        "*1024",
        "*1025",
        "*-1",
        "low",
    ])
}

fn any_call() -> Words {
    Union::new_weighted(vec![
        (3, open_call()),
        (5, byte_call()),
        (2, size_call()),
        (3, name_call()),
        (2, other_call()),
    ])
    .boxed()
}

fn open_call() -> Words {
    let resolve = one_of(&[
        "0",
        "RESOLVE_NO_SYMLINKS",
        "RESOLVE_BENEATH",
        "RESOLVE_IN_ROOT",
        "RESOLVE_NO_MAGICLINKS",
        "RESOLVE_NO_XDEV",
        "RESOLVE_BENEATH|RESOLVE_IN_ROOT",
        "0x100000",
    ]);
    Union::new_weighted(vec![
        (6, call("open", [new_slot(), path(), open_flags(), mode()])),
        (3, call("openat", [new_slot(), dir_fd(), path(), open_flags(), mode()])),
        (
            3,
            call(
                "openat2",
                [new_slot(), dir_fd(), path(), open_flags(), one_of(&["0", "0644", "0600"]), resolve],
            ),
        ),
        (1, call("creat", [new_slot(), path(), mode()])),
        (1, call("close", [fd()])),
        (1, call("dup", [new_slot(), fd()])),
        (1, call("dup2", [new_slot(), fd(), one_of(&["150", "0", "1", "3"])])),
        (1, call("dupfd", [new_slot(), fd(), one_of(&["0", "120"])])),
        (1, call("setfl", [fd(), one_of(&["0", "O_APPEND", "O_DIRECT", "O_NONBLOCK", "O_NOATIME"])])),
        (1, call("pass", [new_slot(), fd()])),
        (1, call("chdir", [path()])),
        (1, call("fchdir", [fd()])),
        (1, call("umask", [one_of(&["0", "027", "077", "0777"])])),
        (1, call("limit_fsize", [one_of(&["20000", "10000", "100", "4096", "0"])])),
        (1, call("limit_nofile", [one_of(&["5", "4", "60"])])),
    ])
    .boxed()
}

fn byte_call() -> Words {
    let flags = || {
        one_of(&[
            "0",
            "RWF_APPEND",
            "RWF_DSYNC",
            "RWF_SYNC",
            "RWF_NOAPPEND",
            "RWF_APPEND|RWF_NOAPPEND",
            "RWF_HIPRI",
            "RWF_NOWAIT",
            "0x80",
            "0x4000",
        ])
    };
    Union::new_weighted(vec![
        (5, call("write", [fd(), memory(), len_bytes()])),
        (4, call("pwrite", [fd(), memory(), len_bytes(), offset()])),
        (3, call("writev", [fd(), parts()])),
        (2, call("pwritev", [fd(), parts(), offset()])),
        (4, call("pwritev2", [fd(), parts(), offset(), flags()])),
        (2, call("read", [fd(), memory(), len_bytes()])),
        (1, call("pread", [fd(), memory(), len_bytes(), offset()])),
        (1, call("preadv2", [fd(), parts(), offset(), one_of(&["0", "RWF_HIPRI", "0x4000"])])),
        (2, call("lseek", [fd(), offset(), one_of(&["SEEK_SET", "SEEK_CUR", "SEEK_END"])])),
        (2, call("sendfile", [fd(), fd(), offset_address(), len_bytes()])),
        (
            3,
            call(
                "copy_file_range",
                [fd(), offset_address(), fd(), offset_address(), len_bytes(), one_of(&["0", "0", "1"])],
            ),
        ),
        (1, one_of(&["pipe =4 =5"])),
        (1, call("write @5", [memory(), len_bytes()])),
        (1, call("splice @4 null", [fd(), offset_address(), len_bytes(), one_of(&["0", "SPLICE_F_MOVE"])])),
        (1, call("splice", [fd(), offset_address(), one_of(&["@5 null"]), len_bytes(), one_of(&["0"])])),
    ])
    .boxed()
}

fn size_call() -> Words {
    let modes = one_of(&[
        "0",
        "FALLOC_FL_KEEP_SIZE",
        "FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE",
        "FALLOC_FL_PUNCH_HOLE",
        "FALLOC_FL_ZERO_RANGE",
        "FALLOC_FL_ZERO_RANGE|FALLOC_FL_KEEP_SIZE",
        "FALLOC_FL_COLLAPSE_RANGE",
        "FALLOC_FL_INSERT_RANGE",
        "FALLOC_FL_UNSHARE_RANGE",
        "0x80",
        "0x4000",
    ]);
    let range = || one_of(&["0", "4096", "8192", "5", "5000", "-1", "100000", "0x7ffffffffffff000"]);
    let protection = || one_of(&["PROT_READ|PROT_WRITE", "PROT_READ", "PROT_WRITE"]);
    let mapping = one_of(&["MAP_SHARED", "MAP_PRIVATE", "3"]);
    Union::new_weighted(vec![
        (3, call("ftruncate", [fd(), size()])),
        (2, call("truncate", [path(), size()])),
        (4, call("fallocate", [fd(), modes, range(), range()])),
        (
            2,
            call(
                "map =0",
                [
                    fd(),
                    one_of(&["8192", "4096", "20000", "0"]),
                    protection(),
                    mapping,
                    one_of(&["0", "4096", "5"]),
                ],
            ),
        ),
        (2, call("store =0", [one_of(&["0", "10", "4090", "9000"]), one_of(&["5", "1", "4096"])])),
        (
            1,
            call(
                "msync =0",
                [
                    one_of(&["0", "4096", "1"]),
                    one_of(&["4096", "8192", "0"]),
                    one_of(&["MS_SYNC", "MS_ASYNC", "MS_SYNC|MS_ASYNC"]),
                ],
            ),
        ),
        (1, call("mprotect =0", [protection()])),
        (1, one_of(&["unmap =0"])),
        (1, call("ficlone", [fd(), fd()])),
        (1, call("ficlonerange", [fd(), fd(), one_of(&["0", "4096"]), one_of(&["0", "4096"])])),
    ])
    .boxed()
}

fn name_call() -> Words {
    let rename_flags =
        one_of(&["0", "RENAME_NOREPLACE", "RENAME_EXCHANGE", "RENAME_NOREPLACE|RENAME_EXCHANGE", "0x100"]);
    let link_flags = one_of(&["0", "AT_SYMLINK_FOLLOW", "0x40"]);
    let text = one_of(&[
        ":old",
        ":missing",
        ":dir",
        ":..",
        ":/proc/self/cwd",
        ":",
        ":a//b",
        ":~/other",
        "*longest",
        "low",
    ]);
    let types = one_of(&[
        "S_IFREG|0644",
        "0600",
        "S_IFIFO|0600",
        "S_IFSOCK|0600",
        "S_IFDIR|0755",
        "S_IFCHR|0600",
        "0170000",
    ]);
    Union::new_weighted(vec![
        (6, call("rename", [path(), path()])),
        (2, call("renameat", [dir_fd(), path(), dir_fd(), path()])),
        (4, call("renameat2", [dir_fd(), path(), dir_fd(), path(), rename_flags])),
        (3, call("link", [path(), path()])),
        (4, call("linkat", [dir_fd(), path(), dir_fd(), path(), link_flags])),
        (1, call("linkat AT_FDCWD :/proc/self/fd/{0} AT_FDCWD", [path(), one_of(&["AT_SYMLINK_FOLLOW"])])),
        (1, call("linkat @0 : AT_FDCWD", [path(), one_of(&["AT_EMPTY_PATH"])])),
        (3, call("symlink", [text.clone(), path()])),
        (1, call("symlinkat", [text, dir_fd(), path()])),
        (4, call("unlink", [path()])),
        (2, call("rmdir", [path()])),
        (2, call("unlinkat", [dir_fd(), path(), one_of(&["0", "AT_REMOVEDIR", "0x1"])])),
        (3, call("mkdir", [path(), mode()])),
        (1, call("mkdir :made", [mode()])),
        (1, call("mkdirat", [dir_fd(), path(), mode()])),
        (2, call("mknod", [path(), types.clone()])),
        (1, call("mknodat", [dir_fd(), path(), types])),
    ])
    .boxed()
}

fn other_call() -> Words {
    let id = || one_of(&["0", "-1", "1000"]);
    let follow = || one_of(&["0", "AT_SYMLINK_NOFOLLOW", "AT_EMPTY_PATH", "0x4"]);
    let time = || one_of(&["UTIME_NOW", "UTIME_OMIT", "5000", "1500000000"]);
    let timed_path = || prop_oneof![3 => path(), 1 => one_of(&["null"])].boxed();
    let name = || one_of(&[":user.a", ":user.b", ":trusted.a", ":wrong"]);
    let value = || one_of(&[":1", ":22", ":", ":333"]);
    let create = || one_of(&["0", "XATTR_CREATE", "XATTR_REPLACE", "0x8"]);
    Union::new_weighted(vec![
        (2, call("chmod", [path(), mode()])),
        (2, call("fchmod", [fd(), mode()])),
        (2, call("fchmodat2", [dir_fd(), path(), mode(), follow()])),
        (1, call("chown", [path(), id(), id()])),
        (1, call("lchown", [path(), id(), id()])),
        (1, call("fchown", [fd(), id(), id()])),
        (1, call("fchownat", [dir_fd(), path(), id(), id(), follow()])),
        (2, call("utimensat", [dir_fd(), timed_path(), time(), time(), follow()])),
        (1, call("setxattr", [path(), name(), value(), create()])),
        (1, call("lsetxattr", [path(), name(), value(), create()])),
        (1, call("fsetxattr", [fd(), name(), value(), create()])),
        (1, call("removexattr", [path(), name()])),
        (1, call("fremovexattr", [fd(), name()])),
        (2, call("fsync", [fd()])),
        (2, call("fdatasync", [fd()])),
        (1, call("syncfs", [fd()])),
        (
            1,
            call("sync_file_range", [fd(), offset(), size(), one_of(&["SYNC_FILE_RANGE_WRITE", "0", "0x8"])]),
        ),
    ])
    .boxed()
}
