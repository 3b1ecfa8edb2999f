//! The programs that are measured. This binary is each of them if it is started with the program's name as
//! its first argument.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Runs the program that the arguments name. Returns false if they name none.
pub(crate) fn run_named_program(arguments: &[String]) -> bool {
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["__saves", dir, saves, files, kib] => {
            write_saves(Path::new(dir), parse_number(saves), parse_number(files), parse_number(kib) * 1024);
        }
        ["__large", dir, mib, synced] => {
            write_large_file(Path::new(dir), parse_number(mib), synced == "synced")
        }
        ["__steps", dir, steps] => train_in_steps(Path::new(dir), parse_number(steps)),
        _ => return false,
    }
    true
}

fn parse_number(text: &str) -> usize {
    text.parse().unwrap()
}

/// Saves several files each time: writes a temporary file and renames it. Only the directory is synced, so
/// that a power loss can leave many states.
fn write_saves(dir: &Path, saves: usize, files: usize, bytes: usize) {
    for save in 1..=saves {
        for file in 0..files {
            let content: Vec<u8> = (0..bytes).map(|index| (index * 31 + save * 7 + file) as u8).collect();
            let temporary = dir.join(format!("part-{file}.tmp"));
            File::create(&temporary).unwrap().write_all(&content).unwrap();
            std::fs::rename(&temporary, dir.join(format!("part-{file}"))).unwrap();
        }
        File::open(dir).unwrap().sync_all().unwrap();
        println!("saved step {save}");
    }
}

/// Writes one temporary file, one MiB at a time, syncs it if `synced`, and renames it. Prints how long that
/// took, in microseconds.
fn write_large_file(dir: &Path, mib: usize, synced: bool) {
    let chunk: Vec<u8> =
        (0..1 << 20).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let start = std::time::Instant::now();
    let temporary = dir.join("checkpoint.tmp");
    let mut file = File::create(&temporary).unwrap();
    (0..mib).for_each(|_| file.write_all(&chunk).unwrap());
    if synced {
        file.sync_all().unwrap();
    }
    drop(file);
    std::fs::rename(&temporary, dir.join("checkpoint")).unwrap();
    if synced {
        File::open(dir).unwrap().sync_all().unwrap();
    }
    println!("took {}", start.elapsed().as_micros());
}

/// The work of one step: some 20 ms on a machine of 2024.
const STEP_OPERATIONS: u32 = 20_000_000;

/// Does what a trainer does, but more often: after each step it prints a line and saves 64 KiB, synced. Prints how
/// long all steps took, in microseconds.
fn train_in_steps(dir: &Path, steps: usize) {
    let start = std::time::Instant::now();
    let mut state = vec![0u8; 64 * 1024];
    for step in 1..=steps {
        let mut sum = step as u32;
        for n in 0..STEP_OPERATIONS {
            sum = std::hint::black_box(sum.wrapping_mul(1_664_525).wrapping_add(n));
        }
        state.fill(sum as u8);
        println!("step {step} loss {sum}");
        let temporary = dir.join("state.tmp");
        let mut file = File::create(&temporary).unwrap();
        file.write_all(&state).unwrap();
        file.sync_all().unwrap();
        std::fs::rename(&temporary, dir.join("state")).unwrap();
        println!("saved step {step}");
    }
    println!("took {}", start.elapsed().as_micros());
}
