//! What is measured: small programs that this binary itself plays when it is started with their names.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Plays a program, if the arguments name one.
pub(crate) fn run_named_program(arguments: &[String]) -> bool {
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["__saves", folder, saves, files, kib] => {
            write_saves(
                Path::new(folder),
                parse_number(saves),
                parse_number(files),
                parse_number(kib) * 1024,
            );
        }
        ["__large", folder, mib, synced] => {
            write_large_file(Path::new(folder), parse_number(mib), synced == "synced")
        }
        _ => return false,
    }
    true
}

fn parse_number(text: &str) -> usize {
    text.parse().unwrap()
}

/// Saves of several files each, aside and renamed; only the folder is synced, so that a power loss leaves many states.
fn write_saves(folder: &Path, saves: usize, files: usize, bytes: usize) {
    for save in 1..=saves {
        for file in 0..files {
            let content: Vec<u8> = (0..bytes).map(|at| (at * 31 + save * 7 + file) as u8).collect();
            let aside = folder.join(format!("part-{file}.tmp"));
            File::create(&aside).unwrap().write_all(&content).unwrap();
            std::fs::rename(&aside, folder.join(format!("part-{file}"))).unwrap();
        }
        File::open(folder).unwrap().sync_all().unwrap();
        println!("saved step {save}");
    }
}

/// One file, written aside in MiB by MiB, synced if asked, renamed; says how long that took, in microseconds.
fn write_large_file(folder: &Path, mib: usize, synced: bool) {
    let chunk: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let began = std::time::Instant::now();
    let aside = folder.join("checkpoint.tmp");
    let mut file = File::create(&aside).unwrap();
    (0..mib).for_each(|_| file.write_all(&chunk).unwrap());
    if synced {
        file.sync_all().unwrap();
    }
    drop(file);
    std::fs::rename(&aside, folder.join("checkpoint")).unwrap();
    if synced {
        File::open(folder).unwrap().sync_all().unwrap();
    }
    println!("took {}", began.elapsed().as_micros());
}
