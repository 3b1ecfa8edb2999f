//! Makes lines of bytes that arrive in pieces. Pure; knows no meaning of a line.

/// Longest line that is kept, in bytes. The rest of a longer line is dropped.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

/// Splits what it is given into lines. A line ends with `\n`, or with `\r` as those of a progress display do.
#[derive(Debug, Default)]
pub struct LineSplitter {
    /// The bytes after the last end of a line, up to [`MAX_LINE_BYTES`].
    partial: Vec<u8>,
    /// The last byte was `\r`: a `\n` behind it ends no other line.
    after_return: bool,
}

impl LineSplitter {
    /// Calls `on_line` with each line that these bytes complete, without its end.
    pub fn push(&mut self, bytes: &[u8], mut on_line: impl FnMut(&[u8])) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let is_return = rest[end] == b'\r';
            self.keep(&rest[..end]);
            // A display draws over its line with `\r` first.
            let is_empty_again = self.partial.is_empty() && (is_return || self.after_return);
            if !is_empty_again {
                on_line(&self.partial);
            }
            self.partial.clear();
            self.after_return = is_return;
            rest = &rest[end + 1..];
        }
        self.keep(rest);
    }

    /// The bytes after the last end of a line, if there are some.
    pub fn take_rest(&mut self) -> Option<Vec<u8>> {
        Some(std::mem::take(&mut self.partial)).filter(|rest| !rest.is_empty())
    }

    /// Whether the last line has no end yet.
    pub fn is_within_line(&self) -> bool {
        !self.partial.is_empty()
    }

    fn keep(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.after_return = false;
        }
        let room = MAX_LINE_BYTES - self.partial.len();
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of these pieces, and the rest.
    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        let mut add = |line: &[u8]| lines.push(String::from_utf8_lossy(line).into_owned());
        pieces.iter().for_each(|piece| splitter.push(piece, &mut add));
        splitter.take_rest().iter().for_each(|rest| add(rest));
        lines
    }

    #[test]
    fn each_end_of_a_line_ends_one_line() {
        assert_eq!(lines(&[b"a\nb\n"]), ["a", "b"]);
        assert_eq!(lines(&[b"a\r\nb\r\n\r\n"]), ["a", "b"]);
        assert_eq!(lines(&[b"a\n\nb"]), ["a", "", "b"]);
        assert_eq!(lines(&[b"\r 1%\r 2%\r 3%\n"]), [" 1%", " 2%", " 3%"]);
        assert_eq!(lines(&[b"1%\r2%\rdone"]), ["1%", "2%", "done"]);
    }

    #[test]
    fn pieces_make_no_difference() {
        let text = b"one\r\ntwo\rthree\n\nfour";
        for cut in 0..text.len() {
            for next in cut..text.len() {
                let pieces = [&text[..cut], &text[cut..next], &text[next..]];
                assert_eq!(lines(&pieces), lines(&[text]), "{cut} {next}");
            }
        }
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_one_is_whole() {
        let long = vec![b'x'; 3 * MAX_LINE_BYTES];
        let lines = lines(&[&long, &long, b"\nnext\n"]);
        assert_eq!((lines[0].len(), lines[1].as_str()), (MAX_LINE_BYTES, "next"));
    }
}
