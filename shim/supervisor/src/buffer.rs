//! Bytes on their way to a descriptor that may be slow. Nothing is allocated while the descriptor keeps up.

use std::io::{self, ErrorKind, IoSlice, Write};

/// What a descriptor has not taken yet.
#[derive(Debug, Default)]
pub struct OutBuffer {
    bytes: Vec<u8>,
    sent: usize,
}

impl OutBuffer {
    /// How many bytes wait.
    pub fn pending(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Writes `pieces` after what already waits; what the descriptor does not take now is kept.
    pub fn send(&mut self, to: &mut impl Write, pieces: &[&[u8]]) -> io::Result<()> {
        let mut taken = 0;
        if self.pending() == 0 {
            let slices: Vec<IoSlice> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            taken = match to.write_vectored(&slices) {
                Ok(count) => count,
                Err(error) if would_block(&error) => 0,
                Err(error) => return Err(error),
            };
        }
        for piece in pieces {
            let skip = taken.min(piece.len());
            taken -= skip;
            self.bytes.extend_from_slice(&piece[skip..]);
        }
        Ok(())
    }

    /// Keeps bytes for a descriptor that is not there yet.
    pub fn hold(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes as much of what waits as the descriptor takes.
    pub fn flush(&mut self, to: &mut impl Write) -> io::Result<()> {
        while self.pending() > 0 {
            match to.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if would_block(&error) => break,
                Err(error) => return Err(error),
            }
        }
        if self.pending() == 0 {
            *self = OutBuffer::default();
        } else if self.sent >= self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }
}

/// Whether the descriptor is merely full, or empty.
pub fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a given number of bytes, then is full.
    struct Slow {
        room: usize,
        got: Vec<u8>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(self.room);
            self.room -= count;
            self.got.extend_from_slice(&bytes[..count]);
            Ok(count)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_reach_a_slow_descriptor_in_order_and_once() {
        let mut slow = Slow { room: 2, got: Vec::new() };
        let mut buffer = OutBuffer::default();
        buffer.send(&mut slow, &[b"abc", b"def"]).unwrap();
        buffer.send(&mut slow, &[b"gh"]).unwrap();
        assert_eq!(buffer.pending(), 6);
        slow.room = 4;
        buffer.flush(&mut slow).unwrap();
        buffer.send(&mut slow, &[b"i"]).unwrap();
        slow.room = 100;
        buffer.flush(&mut slow).unwrap();
        assert_eq!((slow.got.as_slice(), buffer.pending()), (&b"abcdefghi"[..], 0));
        assert_eq!(buffer.bytes.capacity(), 0);
    }
}
