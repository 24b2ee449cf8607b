//! Feeds the bytes of a connection to the readers of ttrpc's and of the attach socket's frames, whole and in pieces: both ways
//! find the same frames, hold no more than what came, and what is encoded again is what came.
#![no_main]

use coracle_proto::{Message, attach, task, ttrpc};

/// Frames of ttrpc; the number of them that decoded, and whether the stream was refused.
fn calls(pieces: &[&[u8]]) -> (Vec<ttrpc::Frame>, bool) {
    let (mut reader, mut found) = (ttrpc::FrameReader::new(), Vec::new());
    for mut piece in pieces.iter().copied() {
        loop {
            match reader.take(&mut piece) {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(_) => return (found, true),
            }
        }
        assert!(piece.is_empty(), "the reader takes all");
    }
    (found, false)
}

fn attached(pieces: &[&[u8]]) -> (Vec<attach::Frame>, bool) {
    let (mut reader, mut found) = (attach::FrameReader::new(), Vec::new());
    for mut piece in pieces.iter().copied() {
        loop {
            match reader.take(&mut piece) {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(_) => return (found, true),
            }
        }
        assert!(piece.is_empty(), "the reader takes all");
    }
    (found, false)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&size, bytes)) = data.split_first() else { return };
    let pieces: Vec<&[u8]> = bytes.chunks(usize::from(size).max(1)).collect();
    let (frames, refused) = calls(&pieces);
    assert_eq!((&frames, refused), (&calls(&[bytes]).0, calls(&[bytes]).1));
    let mut at = 0;
    for frame in frames {
        let head = &bytes[at..at + ttrpc::HEADER_LEN];
        assert_eq!(head[..4], (frame.payload.len() as u32).to_be_bytes());
        assert_eq!(head[4..8], frame.stream_id.to_be_bytes());
        at += ttrpc::HEADER_LEN + frame.payload.len();
        if let Ok(request) = frame.clone().into_request() {
            // What a handler does first.
            let _ = task::CreateTaskRequest::decode(request.payload.as_slice());
            let _ = task::ExecProcessRequest::decode(request.payload.as_slice());
        }
        let _ = frame.into_response();
    }
    let (frames, refused) = attached(&pieces);
    assert_eq!((&frames, refused), (&attached(&[bytes]).0, attached(&[bytes]).1));
    assert!(frames.iter().all(|frame| frame.payload.len() <= attach::MAX_PAYLOAD));
});
