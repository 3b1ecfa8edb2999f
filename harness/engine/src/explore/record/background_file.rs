//! A file to which another thread writes, so that whoever appends bytes does not wait for each of them. Knows not what
//! the bytes mean.

use std::fs::File;
use std::io::{Error, Write};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

/// Bytes that are written at a time. Until there are as many, no thread is needed.
const BUFFER_BYTES: usize = 256 * 1024;
/// Full buffers that wait to be written. Whoever appends more waits for them.
const MAX_WAITING: usize = 2;

/// A file that is only appended to.
pub(super) struct BackgroundFile {
    file: File,
    buffer: Vec<u8>,
    writer: Option<Writer>,
}

/// The thread that writes, while there is one.
struct Writer {
    full: SyncSender<Vec<u8>>,
    /// Buffers that were written, to be filled again.
    written: Receiver<Vec<u8>>,
    thread: JoinHandle<Result<(), Error>>,
}

impl BackgroundFile {
    pub(super) fn new(file: File) -> BackgroundFile {
        BackgroundFile { file, buffer: Vec::new(), writer: None }
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// These bytes or earlier ones could not be written.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while self.buffer.len() + bytes.len() >= BUFFER_BYTES {
            let (now, later) = bytes.split_at(BUFFER_BYTES - self.buffer.len());
            self.buffer.extend_from_slice(now);
            self.hand_over()?;
            bytes = later;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// Something could not be written.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        self.end_writer()?;
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), Error> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(Writer::start(self.file.try_clone()?)?),
        };
        let mut next = writer.written.try_recv().unwrap_or_default();
        next.clear();
        match writer.full.send(std::mem::replace(&mut self.buffer, next)) {
            Ok(()) => Ok(()),
            // The thread has met an error.
            Err(_) => self.end_writer(),
        }
    }

    fn end_writer(&mut self) -> Result<(), Error> {
        let Some(Writer { full, thread, .. }) = self.writer.take() else { return Ok(()) };
        drop(full);
        thread.join().unwrap_or_else(|_| Err(Error::other("the thread that writes has panicked")))
    }
}

impl Writer {
    fn start(mut file: File) -> Result<Writer, Error> {
        let (full, to_write) = sync_channel::<Vec<u8>>(MAX_WAITING);
        let (give_back, written) = channel();
        let thread = Builder::new().spawn(move || {
            to_write.iter().try_for_each(|buffer| {
                file.write_all(&buffer)?;
                // Nobody may want it any more.
                let _ = give_back.send(buffer);
                Ok(())
            })
        })?;
        Ok(Writer { full, written, thread })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_arrive_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = BackgroundFile::new(File::create_new(&path).unwrap());
        let mut expected = Vec::new();
        for len in [0, 1, BUFFER_BYTES - 1, 1, BUFFER_BYTES, 5 * BUFFER_BYTES + 3, 0, 77, 2 * BUFFER_BYTES] {
            let bytes: Vec<u8> = (0..len).map(|index| (index * 31 + len) as u8).collect();
            file.append(&bytes).unwrap();
            expected.extend(bytes);
            if len % 2 == 1 {
                file.flush().unwrap();
                assert!(std::fs::read(&path).unwrap() == expected, "after {len} bytes");
            }
        }
        file.flush().unwrap();
        assert!(std::fs::read(&path).unwrap() == expected);
    }

    #[test]
    fn an_error_of_the_thread_arrives() {
        // Each write to it fails with ENOSPC.
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut file = BackgroundFile::new(full.try_clone().unwrap());
        let appended = (0..100).try_for_each(|_| file.append(&[1; BUFFER_BYTES]));
        let error = appended.and_then(|()| file.flush()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        let mut file = BackgroundFile::new(full);
        file.append(&[1]).unwrap();
        assert_eq!(file.flush().unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    }
}
