//! One connection's conversation: a request is read, put to the server, and the answer streamed back. Then it ends:
//! `Connection: close` is said with each answer, so that nobody holds a connection he does not use, and nothing that
//! follows a request can be taken for another one. If the connection ends before it, so does the request.

use std::{io, time::Duration};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    Method, Response, StatusCode,
    body::{Body, Incoming},
    header::{CONTENT_LENGTH, HeaderName},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::timeout,
};

use super::{
    counts::Tally,
    forward::Forward,
    guest::{End, Opened},
    head::{HEAD_MAX, Head, is_hop_by_hop},
    refusal::Refusal,
};

/// Until a request must be here.
const REQUEST: Duration = Duration::from_secs(15);
/// Until the whole of an answer must have gone.
const ANSWER: Duration = Duration::from_secs(60);

/// Holds it.
pub async fn converse(opened: Opened, forward: &Forward, tally: &Tally) {
    let Opened { mut pipe, from, client, mut end } = opened;
    let asking = async {
        let request = timeout(REQUEST, read(&mut pipe)).await.unwrap_or(Err(Refusal::TooSlow));
        let Some((head, body)) = request? else { return Ok::<_, Refusal>(None) };
        let (method, is_old) = (head.method.clone(), head.is_old);
        Ok(Some((forward.ask(head, body, &client, from).await?, method, is_old)))
    };
    match unless(&mut end, asking).await {
        Some(Ok(Some((response, method, is_old)))) => {
            let status = response.status();
            let answering = timeout(ANSWER, answer(&mut pipe, response, &method, is_old));
            let is_whole = matches!(unless(&mut end, answering).await, Some(Ok(Ok(()))));
            if is_whole {
                let _ = pipe.shutdown().await;
            }
            tally.answered(status, is_whole);
        }
        Some(Ok(None)) => tally.nothing_asked(),
        Some(Err(refusal)) => {
            tally.refused(refusal.name());
            // Whether it is heard is not our concern.
            let _ = unless(&mut end, timeout(REQUEST, pipe.write_all(&refusal.response()))).await;
        }
        None => tally.refused("abandoned"),
    }
}

/// Does something unless the connection ends before it is done; the server is then not asked any longer.
async fn unless<T>(end: &mut End, something: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = end.come() => None,
        done = something => Some(done),
    }
}

/// Reads a request; `None`: there is none.
async fn read(pipe: &mut DuplexStream) -> Result<Option<(Head, Bytes)>, Refusal> {
    const CUT: Refusal = Refusal::Malformed("it ends too early");
    let mut bytes = Vec::with_capacity(1024);
    let (head, len) = loop {
        if let Some(parsed) = Head::parse(&bytes)? {
            break parsed;
        }
        let read = (&mut *pipe).take(HEAD_MAX as u64).read_buf(&mut bytes).await.map_err(|_| CUT)?;
        match read {
            0 if bytes.is_empty() => return Ok(None),
            0 => return Err(CUT),
            _ => {}
        }
    };
    let mut body = bytes.split_off(len);
    // Checked against what a body may have.
    let length = usize::try_from(head.length).map_err(|_| Refusal::BodyTooLarge)?;
    // What follows a request is not looked at.
    body.truncate(length);
    if head.waits && body.is_empty() {
        pipe.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.map_err(|_| CUT)?;
    }
    let missing = (length - body.len()) as u64;
    (&mut *pipe).take(missing).read_to_end(&mut body).await.map_err(|_| CUT)?;
    if body.len() < length {
        return Err(CUT);
    }
    Ok(Some((head, body.into())))
}

/// Writes an answer as it comes.
async fn answer(
    pipe: &mut DuplexStream,
    response: Response<Incoming>,
    method: &Method,
    is_old: bool,
) -> io::Result<()> {
    let (parts, mut body) = response.into_parts();
    let status = parts.status;
    let has_body =
        method != Method::HEAD && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    // Of what is streamed without a length the end of the connection would not tell whether it is whole.
    let in_chunks = has_body && !is_old && body.size_hint().exact().is_none();
    let reason = status.canonical_reason().unwrap_or_default();
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    let mut line = |name: &HeaderName, value: &[u8]| {
        head.extend(name.as_str().as_bytes());
        head.extend(b": ");
        head.extend(value);
        head.extend(b"\r\n");
    };
    let named = hop_by_hop_of(&parts.headers);
    for (name, value) in &parts.headers {
        let is_kept = !is_hop_by_hop(name.as_str()) && !named.iter().any(|it| it == name.as_str());
        if is_kept && name != CONTENT_LENGTH {
            line(name, value.as_bytes());
        }
    }
    if let Some(length) = body.size_hint().exact().filter(|_| has_body) {
        line(&CONTENT_LENGTH, length.to_string().as_bytes());
    } else if let Some(length) = parts.headers.get(CONTENT_LENGTH).filter(|_| method == Method::HEAD) {
        line(&CONTENT_LENGTH, length.as_bytes());
    }
    if in_chunks {
        head.extend(b"transfer-encoding: chunked\r\n");
    }
    head.extend(b"connection: close\r\n\r\n");
    pipe.write_all(&head).await?;
    while has_body && let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(io::Error::other)?.into_data() else { continue };
        if data.is_empty() {
            continue;
        }
        if in_chunks {
            pipe.write_all(format!("{:x}\r\n", data.len()).as_bytes()).await?;
            pipe.write_all(&data).await?;
            pipe.write_all(b"\r\n").await?;
        } else {
            pipe.write_all(&data).await?;
        }
    }
    if in_chunks {
        pipe.write_all(b"0\r\n\r\n").await?;
    }
    Ok(())
}

/// Names of headers that a server's Connection header names.
fn hop_by_hop_of(headers: &hyper::HeaderMap) -> Vec<String> {
    let values = headers.get_all(hyper::header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect()
}
