//! A small trainer that saves in one of several styles, one of them correct: the target of the tests of
//! `explore`. `saver STYLE DIRECTORY [STEPS] [KIB]` trains a sum and saves every second step. It prints
//! "resumed from step N" at its start and "saved step N" after each save. It panics on a checkpoint with a
//! wrong digest, and starts at step 0 without one. Not done: it keeps no old checkpoints.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const SAVE_INTERVAL: u64 = 2;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (style, dir) = (arguments[1].as_str(), PathBuf::from(&arguments[2]));
    let number =
        |index: usize, default| arguments.get(index).map_or(default, |text| text.parse().expect("a number"));
    let (steps, kib) = (number(3, 6), number(4, 10));
    let saver = ExampleSaver { style: style.into(), dir, payload_bytes: kib as usize * 1024 };
    let (mut step, mut sum) = saver.load();
    print_line(&format!("resumed from step {step}"));
    while step < steps {
        step += 1;
        sum = sum.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step);
        if step % SAVE_INTERVAL == 0 {
            saver.save(step, sum);
            print_line(&format!("saved step {step}"));
        }
    }
    print_line(&format!("final sum {sum:016x}"));
}

#[expect(clippy::print_stdout, reason = "the trainer reports its progress on standard output")]
fn print_line(line: &str) {
    println!("{line}");
}

struct ExampleSaver {
    style: String,
    dir: PathBuf,
    payload_bytes: usize,
}

/// Encodes step, sum and padding, followed by a digest of them.
fn encode(step: u64, sum: u64, len_bytes: usize) -> Vec<u8> {
    let mut text = format!("step {step} sum {sum} ").into_bytes();
    text.resize(len_bytes.max(text.len()), b'a' + (step % 26) as u8);
    let digest = blake3::hash(&text).to_hex();
    text.extend(digest.as_bytes());
    text
}

fn decode(path: &Path) -> Option<(u64, u64)> {
    let text = fs::read(path).ok()?;
    let (body, digest) = text.split_at(text.len().checked_sub(64)?);
    (blake3::hash(body).to_hex().as_bytes() == digest).then_some(())?;
    let text = String::from_utf8_lossy(body).into_owned();
    let mut fields = text.split(' ');
    Some((fields.nth(1)?.parse().ok()?, fields.nth(1)?.parse().ok()?))
}

fn write(path: &Path, bytes: &[u8], sync: bool) {
    let mut file = File::create(path).expect("create");
    bytes.chunks(4096).for_each(|chunk| file.write_all(chunk).expect("write"));
    if sync {
        file.sync_all().expect("sync");
    }
}

fn sync_directory(path: &Path) {
    File::open(path).and_then(|dir| dir.sync_all()).expect("sync directory");
}

impl ExampleSaver {
    fn path_of(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn replace(&self, name: &str, bytes: &[u8], sync: bool) {
        let temporary = self.path_of(&format!("{name}.tmp"));
        write(&temporary, bytes, sync);
        fs::rename(&temporary, self.path_of(name)).expect("rename");
    }

    fn save(&self, step: u64, sum: u64) {
        let bytes = encode(step, sum, self.payload_bytes);
        match self.style.as_str() {
            "correct" => {
                self.replace("checkpoint", &bytes, true);
                sync_directory(&self.dir);
            }
            "in-place" => {
                write(&self.path_of("checkpoint"), &bytes, true);
                sync_directory(&self.dir);
            }
            "no-fsync" => {
                self.replace("checkpoint", &bytes, false);
                sync_directory(&self.dir);
            }
            "no-directory-fsync" => self.replace(&format!("step-{step}"), &bytes, true),
            "delete-first" => {
                let temporary = self.path_of("checkpoint.tmp");
                write(&temporary, &bytes, true);
                let _ = fs::remove_file(self.path_of("checkpoint"));
                fs::rename(&temporary, self.path_of("checkpoint")).expect("rename");
                sync_directory(&self.dir);
            }
            "marker-first" => {
                self.replace("latest", format!("step-{step}").as_bytes(), true);
                sync_directory(&self.dir);
                self.replace(&format!("step-{step}"), &bytes, true);
                sync_directory(&self.dir);
            }
            "manifest-first" => self.save_directory(step, &bytes),
            "two-files" => {
                self.replace("model", &bytes, true);
                self.replace("optimizer", &bytes, true);
                sync_directory(&self.dir);
            }
            other => panic!("no style `{other}`"),
        }
    }

    fn save_directory(&self, step: u64, bytes: &[u8]) {
        let dir = self.path_of(&format!("step-{step}"));
        fs::create_dir_all(&dir).expect("create directory");
        let manifest = format!(
            "{{\"step\": {step}, \"files\": [{{\"name\": \"model.bin\", \"bytes\": {}}}, \
             {{\"name\": \"optimizer.bin\", \"bytes\": {}}}]}}",
            bytes.len(),
            bytes.len()
        );
        write(&dir.join("manifest.json"), manifest.as_bytes(), true);
        write(&dir.join("model.bin"), bytes, true);
        write(&dir.join("optimizer.bin"), bytes, true);
        sync_directory(&dir);
        sync_directory(&self.dir);
    }

    fn load(&self) -> (u64, u64) {
        let newest = || {
            let names = fs::read_dir(&self.dir).expect("read directory").map(|entry| entry.expect("entry"));
            let steps = names
                .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("step-")?.parse::<u64>().ok());
            steps.max().map(|step| self.path_of(&format!("step-{step}")))
        };
        let path = match self.style.as_str() {
            "no-directory-fsync" => newest(),
            "marker-first" => fs::read_to_string(self.path_of("latest")).ok().map(|name| self.path_of(&name)),
            "manifest-first" => newest().filter(|dir| dir.join("manifest.json").exists()),
            "two-files" => Some(self.path_of("model")).filter(|path| path.exists()),
            _ => Some(self.path_of("checkpoint")).filter(|path| path.exists()),
        };
        let Some(path) = path else { return (0, 0) };
        let load = |path: &Path| decode(path).unwrap_or_else(|| panic!("`{}` is incomplete", path.display()));
        match self.style.as_str() {
            "manifest-first" => {
                let (model, optimizer) = (load(&path.join("model.bin")), load(&path.join("optimizer.bin")));
                assert_eq!(model, optimizer, "the two files are of different steps");
                model
            }
            "two-files" => {
                let (model, optimizer) = (load(&path), load(&self.path_of("optimizer")));
                assert_eq!(model, optimizer, "the two files are of different steps");
                model
            }
            _ => load(&path),
        }
    }
}
