//! The head of a workload's request: read strictly, for who sends it is not trusted.
//!
//! What can be understood in two ways is refused, though nothing behind this depends on it: a connection carries one
//! request, and the request to the server is written anew.

use hyper::{
    HeaderMap, Method,
    header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING},
    http::uri::PathAndQuery,
};

use super::refusal::Refusal;

/// Bytes of a head.
pub const HEAD_MAX: usize = 8 << 10;
/// Bytes of a body.
pub const BODY_MAX: u64 = 64 << 10;
const HEADERS_MAX: usize = 64;

/// Names of headers, or what they begin with, by which a server takes who asks: a workload may not say any of it.
const OURS: [&str; 11] = [
    "forwarded",
    "x-forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-instance-id",
    "x-tenant-id",
    "x-project-id",
    "x-neutron-",
    "x-ovn-",
    "x-metadata-provider",
    "x-lb-",
];
/// For this connection alone (RFC 9110, 7.6.1).
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// A request without its body.
#[derive(Debug)]
pub struct Head {
    pub method: Method,
    pub target: PathAndQuery,
    /// What goes on to the server: without what a workload may not say, and what is for this connection alone.
    pub headers: HeaderMap,
    /// Bytes of the body.
    pub length: u64,
    /// The workload waits to be asked for the body.
    pub waits: bool,
    /// It cannot take an answer in chunks.
    pub is_old: bool,
}

impl Head {
    /// Reads one, and how many bytes it has. `None`: not all of it is there.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Refusal> {
        if let Some(first) = bytes.first()
            && !first.is_ascii_uppercase()
        {
            return Err(Refusal::Malformed("it does not begin with a method"));
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let len = match request.parse(bytes) {
            Ok(httparse::Status::Complete(len)) if len <= HEAD_MAX => len,
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Refusal::HeadTooLarge),
            Err(error) => return Err(Refusal::Malformed(complaint(error))),
        };
        line_ends(&bytes[..len])?;
        let (method, target, version) = (request.method, request.path, request.version);
        let (Some(method), Some(target), Some(version)) = (method, target, version) else {
            return Err(Refusal::Malformed("its first line is not whole"));
        };
        let mut all = HeaderMap::with_capacity(request.headers.len());
        for header in &*request.headers {
            let name = HeaderName::from_bytes(header.name.as_bytes());
            let value = HeaderValue::from_bytes(header.value);
            let (Ok(name), Ok(value)) = (name, value) else {
                return Err(Refusal::Malformed("a header has bytes that none may have"));
            };
            all.append(name, value);
        }
        let length = body(&all)?;
        if all.get_all(HOST).iter().count() != 1 && version == 1 {
            return Err(Refusal::Malformed("it must have one Host header"));
        }
        let head = Self {
            method: self::method(method)?,
            target: self::target(target)?,
            waits: length > 0
                && all.get(EXPECT).is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"100-continue")),
            headers: going_on(all),
            length,
            is_old: version == 0,
        };
        Ok(Some((head, len)))
    }
}

/// A line ends with CR LF, and neither stands alone.
fn line_ends(bytes: &[u8]) -> Result<(), Refusal> {
    let stray = |at: usize| match bytes[at] {
        b'\n' => at == 0 || bytes[at - 1] != b'\r',
        b'\r' => bytes.get(at + 1) != Some(&b'\n'),
        _ => false,
    };
    if (0..bytes.len()).any(stray) {
        return Err(Refusal::Malformed("its lines do not end with CR LF"));
    }
    Ok(())
}

fn method(text: &str) -> Result<Method, Refusal> {
    match text.parse() {
        Ok(Method::CONNECT) => Err(Refusal::Method("CONNECT")),
        Ok(Method::TRACE) => Err(Refusal::Method("TRACE")),
        Ok(method) => Ok(method),
        Err(_) => Err(Refusal::Malformed("its method is none")),
    }
}

/// What is asked for: a path, or a URL of it as proxies are asked.
fn target(text: &str) -> Result<PathAndQuery, Refusal> {
    const NONE: Refusal = Refusal::Malformed("what it asks for is no path");
    let path = match text.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => text,
    };
    if !path.starts_with('/') || path.contains('#') {
        return Err(NONE);
    }
    PathAndQuery::try_from(path).map_err(|_| NONE)
}

/// Bytes of the body.
fn body(headers: &HeaderMap) -> Result<u64, Refusal> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(Refusal::Malformed("it has more than one Content-Length"));
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        return Err(match length {
            Some(_) => Refusal::Malformed("it has both Content-Length and Transfer-Encoding"),
            None => Refusal::LengthRequired,
        });
    }
    let Some(length) = length.map(HeaderValue::as_bytes) else { return Ok(0) };
    if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Malformed("its Content-Length is no number"));
    }
    let length =
        length.iter().try_fold(0_u64, |sum, digit| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')));
    length.filter(|&length| length <= BODY_MAX).ok_or(Refusal::BodyTooLarge)
}

/// What a server may be told by a workload.
fn going_on(mut headers: HeaderMap) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| as_understood(name.trim()))
        .collect();
    let written_anew = [HOST, CONTENT_LENGTH, EXPECT];
    let names: Vec<HeaderName> = headers.keys().cloned().collect();
    for name in names {
        let understood = as_understood(name.as_str());
        if is_ours(&understood)
            || is_hop_by_hop(&understood)
            || written_anew.iter().any(|it| it.as_str() == understood)
            || named.contains(&understood)
        {
            headers.remove(name);
        }
    }
    headers
}

/// A name as a server may understand it: those of CGI's kind (WSGI, too) tell no byte that is neither letter nor digit
/// from another.
fn as_understood(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}

/// Whether only this side says it.
fn is_ours(name: &str) -> bool {
    name == "via" || OURS.iter().any(|ours| name.starts_with(ours))
}

/// Whether a header is for one connection alone.
pub fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name) || name.starts_with("proxy-")
}

fn complaint(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "a header's name has bytes that none may have",
        httparse::Error::HeaderValue => "a header's value has bytes that none may have",
        httparse::Error::NewLine => "its lines do not end with CR LF",
        httparse::Error::Version => "its version is neither HTTP/1.1 nor HTTP/1.0",
        httparse::Error::Token => "its method or what it asks for has bytes that none may have",
        httparse::Error::Status | httparse::Error::TooManyHeaders => "it cannot be read",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Head, Refusal> {
        Head::parse(text.as_bytes()).map(|head| head.expect("all of it").0)
    }

    fn get(headers: &str) -> String {
        format!("GET /latest/meta-data HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n")
    }

    #[test]
    fn what_a_workload_may_not_say_does_not_go_on() {
        let forged = "X-Forwarded-For: 10.0.0.66\r\nX-Instance-ID: victim\r\nX-INSTANCE-ID-SIGNATURE: 00\r\n\
            x-tenant-id: other\r\nX-Neutron-Network-ID: n\r\nX-Neutron-Router-ID: r\r\nX-Metadata-Provider: p\r\n\
            X-Metadata-Provider-Signature: s\r\nX_Instance_ID: victim\r\nX-Instance_ID: victim\r\nForwarded: for=1\r\n\
            X-OVN-Network-ID: n\r\nVia: 1.1 x\r\nX-Forwarded-Host: h\r\nX-Real-IP: 1.1.1.1\r\nX-LB-ID: 1\r\n\
            Proxy-Authorization: x\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\nTE: trailers\r\nConnection: x-secret, close\r\n\
            X-Secret: 1\r\nX_Forwarded_For: 1\r\nX.Instance.ID: victim\r\nX!Instance-ID: victim\r\n\
            X-Instance~ID-Signature: 00\r\nX|Tenant'ID: other\r\nX*Neutron+Network-ID: n\r\nProxy.User: x\r\n\
            Content_Length: 9\r\nTransfer.Encoding: chunked\r\nX^Secret: 1\r\n";
        let honest = "X-aws-ec2-metadata-token: t\r\nAccept: */*\r\nUser-Agent: curl\r\nX-Viable: 1\r\nCookie: a\r\nCookie: b\r\n";
        let head = parse(&get(&format!("{forged}{honest}"))).expect("in order");
        let mut names: Vec<&str> = head.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["accept", "cookie", "cookie", "user-agent", "x-aws-ec2-metadata-token", "x-viable"]
        );
        assert_eq!(
            (head.target.as_str(), head.length, head.waits, head.is_old),
            ("/latest/meta-data", 0, false, false)
        );
    }

    #[test]
    fn what_can_be_understood_in_two_ways_is_refused() {
        for (text, refusal) in [
            (get("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"), "both Content-Length and"),
            (get("Content-Length: 3\r\nContent-Length: 3\r\n"), "more than one Content-Length"),
            (get("Content-Length: +3\r\n"), "no number"),
            (get("Content-Length: 3, 3\r\n"), "no number"),
            (get("Content-Length:\r\n"), "no number"),
            (get("Content-Length: 65537\r\n"), "larger than 64 KiB"),
            (get("Content-Length: 99999999999999999999999\r\n"), "larger than 64 KiB"),
            (get("Transfer-Encoding: chunked\r\n"), "must say Content-Length"),
            (get("Transfer-Encoding: identity\r\n"), "must say Content-Length"),
            (get("A: b\r\n folded\r\n"), "a header's name"),
            (get("A : b\r\n"), "a header's name"),
            (get("A: b\0c\r\n"), "a header's value"),
            (get("A: b\nC: d\r\n"), "CR LF"),
            (get("Host: other\r\n"), "one Host"),
            ("GET / HTTP/1.1\r\n\r\n".to_owned(), "one Host"),
            ("GET / HTTP/1.1\nHost: a\n\n".to_owned(), "CR LF"),
            ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "begin with a method"),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "no HTTP/1.1"),
            ("GET latest HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "no path"),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "no path"),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".to_owned(), "version"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "version"),
            ("CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "not take CONNECT"),
            ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "not take TRACE"),
            ("\x16\x03\x01\x02".to_owned(), "begin with a method"),
            (get(&"A: b\r\n".repeat(64)), "more than 64 headers"),
            (get(&format!("A: {}\r\n", "x".repeat(HEAD_MAX))), "larger than 8 KiB"),
        ] {
            let refused = parse(&text).expect_err(&text).to_string();
            assert!(refused.contains(refusal), "{text:?}: {refused}");
        }
    }

    #[test]
    fn a_head_that_comes_in_pieces_is_waited_for_but_not_for_ever() {
        let whole = get("Content-Length: 5\r\nExpect: 100-continue\r\n");
        for len in 0..whole.len() {
            assert!(Head::parse(&whole.as_bytes()[..len]).expect("in order so far").is_none(), "{len} bytes");
        }
        let (head, len) =
            Head::parse(format!("{whole}hello").as_bytes()).expect("in order").expect("all of it");
        assert_eq!((len, head.length, head.waits), (whole.len(), 5, true));
        let endless = format!("GET /{}", "a".repeat(HEAD_MAX));
        assert_eq!(Head::parse(endless.as_bytes()).expect_err("too much"), Refusal::HeadTooLarge);
    }

    #[test]
    fn old_clients_and_those_of_proxies_are_understood() {
        let old = parse("GET /a?b=c HTTP/1.0\r\n\r\n").expect("in order");
        assert_eq!((old.target.as_str(), old.is_old), ("/a?b=c", true));
        let url = parse("GET http://169.254.169.254/a HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n")
            .expect("in order");
        assert_eq!(url.target.as_str(), "/a");
        let bare =
            parse("GET http://169.254.169.254 HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n").expect("in order");
        assert_eq!(bare.target.as_str(), "/");
    }
}
