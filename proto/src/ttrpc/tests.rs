//! The codec against itself, against hostile bytes, and against frames written out by hand.

use super::*;
use crate::task::{WaitRequest, WaitResponse};
use proptest::prelude::*;

fn wait() -> WaitRequest {
    WaitRequest { id: "web".into(), exec_id: String::new() }
}

#[test]
fn the_header_is_laid_out_as_the_protocol_says() {
    let bytes = encode_frame(Kind::Request, 0x0102_0304, 0x80, &wait()).unwrap();
    assert_eq!(bytes[..HEADER_LEN], [0, 0, 0, 5, 1, 2, 3, 4, 1, 0x80]);
    assert_eq!(bytes[HEADER_LEN..], *b"\x0a\x03web");
}

#[test]
fn a_request_survives_the_round_trip() {
    let bytes = encode_request(7, service::TASK_V2, method::WAIT, &wait(), 5).unwrap();
    let frame = FrameReader::new().take(&mut &bytes[..]).unwrap().unwrap();
    assert_eq!(frame.stream_id, 7);
    let request = frame.into_request().unwrap();
    assert_eq!((request.service.as_str(), request.method.as_str()), (service::TASK_V2, method::WAIT));
    assert_eq!(request.timeout_nano, 5);
    assert_eq!(WaitRequest::decode(&request.payload[..]).unwrap(), wait());
}

#[test]
fn a_failure_reaches_the_client_with_its_code() {
    let bytes = encode_response(3, Err(Code::NotFound.status("container web: not found"))).unwrap();
    let frame = FrameReader::new().take(&mut &bytes[..]).unwrap().unwrap();
    let status = frame.into_response().unwrap().unwrap_err();
    assert_eq!(status.meaning(), Code::NotFound);
    assert_eq!(status.message, "container web: not found");
}

#[test]
fn a_status_of_code_zero_is_success() {
    let payload = WaitResponse { exit_status: 3, exited_at: None }.encode_to_vec();
    let response = Response { status: Some(Code::Ok.status("")), payload: payload.clone() };
    let bytes = encode_frame(Kind::Response, 1, 0, &response).unwrap();
    let frame = FrameReader::new().take(&mut &bytes[..]).unwrap().unwrap();
    assert_eq!(frame.into_response().unwrap(), Ok(payload));
}

#[test]
fn an_oversized_frame_is_refused_from_its_header_and_nothing_is_held() {
    let mut reader = FrameReader::new();
    let header = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0];
    assert_eq!(reader.take(&mut &header[..]), Err(FrameError::TooLarge(u32::MAX)));
    assert!(reader.partial.capacity() < 64);
}

#[test]
fn a_large_announcement_allocates_nothing_before_the_bytes_arrive() {
    let mut reader = FrameReader::new();
    let header = [0, 0x40, 0, 0, 0, 0, 0, 1, 1, 0];
    assert_eq!(reader.take(&mut &header[..]), Ok(None));
    assert!(reader.mid_frame() && reader.partial.capacity() < 64);
}

#[test]
fn another_protocol_is_recognised_as_such() {
    let http = b"GET / HTTP/1.1\r\n\r\n";
    assert_eq!(FrameReader::new().take(&mut &http[..]), Err(FrameError::BadKind(b'T')));
}

#[test]
fn too_long_a_message_is_not_sent() {
    let request = Request { payload: vec![0; MAX_PAYLOAD], ..Default::default() };
    assert!(matches!(encode_frame(Kind::Request, 1, 0, &request), Err(FrameError::PayloadTooLarge(_))));
}

#[test]
fn stream_ids_are_odd_and_end() {
    let mut ids = StreamIds::default();
    assert_eq!((ids.next_id(), ids.next_id()), (Some(1), Some(3)));
    ids.next = Some(u32::MAX);
    assert_eq!((ids.next_id(), ids.next_id()), (Some(u32::MAX), None));
}

#[test]
fn codes_of_the_wire_have_one_meaning() {
    for number in 0..17 {
        assert_eq!(Code::from_i32(number) as i32, number);
    }
    assert_eq!((Code::from_i32(-1), Code::from_i32(17)), (Code::Unknown, Code::Unknown));
}

proptest! {
    #[test]
    fn frames_survive_any_cutting(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..8),
        cut in 1usize..500,
    ) {
        let mut wire = Vec::new();
        for (at, payload) in payloads.iter().enumerate() {
            let message = Request { payload: payload.clone(), ..Default::default() };
            wire.extend(encode_frame(Kind::Request, at as u32 * 2 + 1, 0, &message).unwrap());
        }
        let (mut reader, mut back) = (FrameReader::new(), Vec::new());
        for mut piece in wire.chunks(cut) {
            while let Some(frame) = reader.take(&mut piece).unwrap() {
                prop_assert_eq!(frame.stream_id as usize, back.len() * 2 + 1);
                back.push(frame.into_request().unwrap().payload);
            }
            prop_assert!(piece.is_empty());
        }
        prop_assert!(!reader.mid_frame());
        prop_assert_eq!(back, payloads);
    }

    #[test]
    fn garbage_never_panics_and_never_grows_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        let (mut reader, mut input) = (FrameReader::new(), &bytes[..]);
        while let Ok(Some(frame)) = reader.take(&mut input) {
            let _ = frame.into_request();
        }
        prop_assert!(reader.partial.len() <= bytes.len());
    }
}
