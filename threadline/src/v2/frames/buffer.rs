//! Cuts a stream of bytes into frames.

use super::{Frame, FrameError, FramePhase};

/// Bytes of a stream that are no whole frame yet. It never holds more than the largest frame of its phase.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl FrameBuffer {
    /// Takes bytes that arrived.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes of a frame that is not whole.
    pub fn pending(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// The next whole frame, `None` while bytes are missing. After an error the stream is of no use.
    pub fn next(&mut self, phase: FramePhase) -> Result<Option<Frame>, FrameError> {
        let rest = self.bytes.get(self.start..).unwrap_or_default();
        let Some((length, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > phase.largest() {
            return Err(FrameError::TooLarge);
        }
        let Some(content) = rest.get(..length) else { return Ok(None) };
        let frame = Frame::decode_content(content, phase);
        self.start += 4 + length;
        if self.start > super::MAX_CONTROL {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        frame.map(Some)
    }
}
