//! Takes a data file out of the body of a request and puts it into the inbox, piece by piece and of bounded
//! size. A body that ends early leaves nothing. Knows nothing of who may do that.

use std::io::{Error, ErrorKind, Read};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::timeout;

use crate::settings::Guards;
use crate::store::RootLayout;
use crate::submission::{Submission, SubmissionError, Submitted};

/// Pieces that wait for the disk.
const QUEUED_PIECES: usize = 4;
/// How long a client may take for the next piece.
const PIECE_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a data file does not get into the inbox.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    /// It has more bytes than the settings allow.
    #[error("the data has more than {max_bytes} bytes; raise `monitor.upload_bytes`, or use `submit`")]
    TooLarge { max_bytes: u64 },
    /// The client does not send it.
    #[error("the data did not arrive in time")]
    TooSlow,
    /// The client has ended the connection.
    #[error("the data ended early")]
    Incomplete,
    /// The name is wrong, or the disk refuses it.
    #[error(transparent)]
    Submission(#[from] SubmissionError),
    /// No thread can be started.
    #[error("the machine has no thread to write the data")]
    NoThread,
}

/// A piece of the data.
enum Piece {
    Data(Bytes),
    /// There is no more of it. Without this, it is not complete.
    End,
}

/// Reads the pieces of a body as they come.
struct PieceReader {
    pieces: Receiver<Piece>,
    current: Bytes,
    is_complete: bool,
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() && !self.is_complete {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(bytes)) => self.current = bytes,
                Some(Piece::End) => self.is_complete = true,
                None => return Err(Error::new(ErrorKind::UnexpectedEof, "the data ended early")),
            }
        }
        let len = buffer.len().min(self.current.len());
        buffer[..len].copy_from_slice(&self.current.split_to(len));
        Ok(len)
    }
}

/// Where data goes, and how much of it.
#[derive(Debug, Clone)]
pub(super) struct UploadSpec {
    pub(super) layout: RootLayout,
    pub(super) name: String,
    /// `None`: any size.
    pub(super) max_bytes: Option<u64>,
    pub(super) guards: Guards,
}

/// Puts the body into the inbox.
///
/// # Errors
/// If the body is too large, too slow or not complete, or the file can't be written. The inbox is unchanged.
pub(super) async fn upload(spec: UploadSpec, body: Body) -> Result<Submitted, UploadError> {
    let (sender, pieces) = channel(QUEUED_PIECES);
    let max_bytes = spec.max_bytes;
    let writing = tokio::task::spawn_blocking(move || {
        let mut reader = PieceReader { pieces, current: Bytes::new(), is_complete: false };
        Submission::copy(&spec.layout, &spec.name, &spec.guards, &mut reader)?.finish()
    });
    let sent = send_pieces(body, max_bytes, &sender).await;
    // The writer knows by that that there is nothing more.
    drop(sender);
    let written = writing.await.map_err(|_| UploadError::NoThread)?;
    sent?;
    written.map_err(UploadError::Submission)
}

/// Passes the body on to the writer. If that has ended, it has an error of its own.
async fn send_pieces(
    mut body: Body,
    max_bytes: Option<u64>,
    writer: &Sender<Piece>,
) -> Result<(), UploadError> {
    let mut len_bytes = 0;
    while let Some(frame) = timeout(PIECE_TIMEOUT, body.frame()).await.map_err(|_| UploadError::TooSlow)? {
        let Ok(bytes) = frame.map_err(|_| UploadError::Incomplete)?.into_data() else { continue };
        len_bytes += bytes.len() as u64;
        if let Some(max_bytes) = max_bytes.filter(|max_bytes| len_bytes > *max_bytes) {
            return Err(UploadError::TooLarge { max_bytes });
        }
        if writer.send(Piece::Data(bytes)).await.is_err() {
            return Ok(());
        }
    }
    // An error means that the writer has ended.
    let _ = writer.send(Piece::End).await;
    Ok(())
}
