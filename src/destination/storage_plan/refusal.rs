//! What an object store's refusal means. Pure functions.
//!
//! Only the code, the region and the request's id are read from an answer. A message, or any other field, may repeat what was sent.

use std::fmt;

use crate::destination::DeliveryError;
use crate::destination::url::http::Failure;
use crate::destination::url::http::exchange::Reply;

/// The longest code or id that is believed.
const LONGEST: usize = 64;

/// A refusal that only the plan's owner can mend: credentials, bucket, policy, certificate or address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRefusal {
    /// The server, without credentials.
    pub host: String,
    pub status: Option<u16>,
    /// The server's code, or our own name for a refusal without an answer.
    pub code: String,
    pub request_id: Option<String>,
}

impl fmt::Display for PlanRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} refuses the storage plan:", self.host)?;
        if let Some(status) = self.status {
            write!(f, " {status}")?;
        }
        write!(f, " {}", self.code)?;
        if let Some(id) = &self.request_id {
            write!(f, " (request {id})")?;
        }
        Ok(())
    }
}

/// The code of an answer: of S3 from its XML, of Azure from a header. Empty if there is none.
pub fn code(reply: &Reply) -> String {
    let header = reply.header("x-ms-error-code").map(str::to_owned);
    header
        .or_else(|| element(&reply.body, "Code"))
        .filter(|code| is_plain(code))
        .unwrap_or_default()
}

/// The region of a bucket, if the answer has it.
pub fn region(reply: &Reply) -> Option<String> {
    let header = reply.header("x-amz-bucket-region").map(str::to_owned);
    header
        .or_else(|| element(&reply.body, "Region"))
        .filter(|region| is_region(region))
}

/// A region becomes a part of a host's name.
pub fn is_region(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.len() <= 32 && text.bytes().all(good) && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether the store refuses a PUT because its condition does not hold: S3 answers 412, and Azure 409 if an object has the name. An object
/// that is to be replaced and is gone is 404 in S3.
pub fn is_taken(reply: &Reply, condition: &str) -> bool {
    match reply.status {
        412 => true,
        409 => code(reply) == "BlobAlreadyExists",
        404 => condition == "if-match" && code(reply) == "NoSuchKey",
        _ => false,
    }
}

/// Whether the store refuses a PUT because of a header that it does not know. Some servers answer 400, which can have other reasons too: it
/// counts only if no other recording can have the object's name.
pub fn knows_no_condition(reply: &Reply, is_own: bool) -> bool {
    let unknown = [
        "InvalidArgument",
        "InvalidRequest",
        "NotImplemented",
        "UnsupportedHeader",
    ];
    reply.status == 501 || (is_own && reply.status == 400 && unknown.contains(&code(reply).as_str()))
}

/// Whether an answer to a PUT looks like an object store's. A page that answers 200 to each request does not.
pub fn is_stores_answer(reply: &Reply) -> bool {
    ["etag", "x-amz-request-id", "x-ms-request-id"]
        .iter()
        .any(|name| reply.header(name).is_some_and(|value| !value.is_empty()))
}

fn request_id(reply: &Reply) -> Option<String> {
    let header = ["x-amz-request-id", "x-ms-request-id"]
        .iter()
        .find_map(|name| reply.header(name));
    header
        .map(str::to_owned)
        .or_else(|| element(&reply.body, "RequestId"))
        .filter(|id| is_plain(id))
}

fn is_plain(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':');
    !text.is_empty() && text.len() <= LONGEST && text.bytes().all(good)
}

/// The text of an XML element without children.
fn element(body: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once('<')?;
    Some(inner.trim().to_owned())
}

/// What an answer other than success means for the recording.
pub fn judged(host: &str, reply: &Reply) -> DeliveryError {
    let code = code(reply);
    let shown = |code: &str| format!("{host} answered {} {code}", reply.status).trim_end().to_owned();
    match class(reply.status, &code) {
        Class::Store => DeliveryError::Store {
            why: shown(&code),
            retry_after: reply.retry_after,
        },
        Class::Recording => DeliveryError::Recording(shown(&code)),
        Class::Plan => DeliveryError::Plan(Box::new(PlanRefusal {
            host: host.to_owned(),
            status: Some(reply.status),
            request_id: request_id(reply),
            code,
        })),
    }
}

/// A refusal by the worker itself, before any request.
pub fn refused(host: String, code: &str) -> DeliveryError {
    DeliveryError::Plan(Box::new(PlanRefusal {
        host,
        status: None,
        code: code.to_owned(),
        request_id: None,
    }))
}

/// What a request without an answer means.
pub fn unanswered(host: &str, failure: Failure) -> DeliveryError {
    let plan = |code: &str| refused(host.to_owned(), code);
    match failure {
        Failure::Source(why) => DeliveryError::Source(why),
        Failure::TooLarge(_) | Failure::Unsendable(_) => DeliveryError::Recording(format!("{host}: {failure}")),
        // Kazoo's handlers check no certificate, so an account's plan may name a server with one that nothing trusts.
        Failure::Tls(_) => plan("CertificateNotTrusted"),
        Failure::Address(refused) => plan(&format!("AddressRefused:{}", refused.kind.name())),
        other => DeliveryError::Store {
            why: format!("{host}: {other}"),
            retry_after: None,
        },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// It may pass.
    Store,
    Plan,
    Recording,
}

fn class(status: u16, code: &str) -> Class {
    match code {
        "BadDigest"
        | "InvalidDigest"
        | "XAmzContentSHA256Mismatch"
        | "Md5Mismatch"
        | "RequestTimeout"
        | "SlowDown"
        | "IncompleteBody"
        | "InternalError"
        | "ServiceUnavailable"
        | "OperationAborted"
        | "RequestTimeTooSkewed"
        | "ServerBusy"
        | "OperationTimedOut" => Class::Store,
        "EntityTooLarge" | "KeyTooLongError" | "InvalidRequest" | "NotImplemented" | "RequestBodyTooLarge" => {
            Class::Recording
        }
        _ => match status {
            501 | 413 => Class::Recording,
            408 | 409 | 425 | 429 | 500.. => Class::Store,
            _ => Class::Plan,
        },
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderMap, HeaderValue};
    use proptest::prelude::*;

    use crate::destination::Fault;

    use super::*;

    fn reply(status: u16, body: &str) -> Reply {
        Reply {
            status,
            headers: HeaderMap::new(),
            body: body.as_bytes().to_vec(),
            retry_after: None,
        }
    }

    fn of(status: u16, code: &str) -> Fault {
        judged("h", &reply(status, &format!("<Error><Code>{code}</Code></Error>"))).fault()
    }

    #[test]
    fn each_refusal_has_its_class() {
        for (status, code, fault) in [
            (403, "SignatureDoesNotMatch", Fault::Plan),
            (403, "InvalidAccessKeyId", Fault::Plan),
            (403, "AccessDenied", Fault::Plan),
            (400, "ExpiredToken", Fault::Plan),
            (404, "NoSuchBucket", Fault::Plan),
            (400, "InvalidBucketName", Fault::Plan),
            (301, "PermanentRedirect", Fault::Plan),
            (403, "", Fault::Plan),
            (400, "BadDigest", Fault::Target),
            (400, "XAmzContentSHA256Mismatch", Fault::Target),
            (503, "SlowDown", Fault::Target),
            (403, "RequestTimeTooSkewed", Fault::Target),
            (409, "OperationAborted", Fault::Target),
            (500, "", Fault::Target),
            (429, "", Fault::Target),
            (400, "EntityTooLarge", Fault::Recording),
            (501, "NotImplemented", Fault::Recording),
            (413, "", Fault::Recording),
        ] {
            assert_eq!(of(status, code), fault, "{status} {code}");
        }
    }

    #[test]
    fn a_refusal_names_code_and_request_and_nothing_else() {
        let body = "<?xml version=\"1.0\"?><Error><Code>InvalidAccessKeyId</Code><Message>for AKIASECRET</Message>\
                    <AWSAccessKeyId>AKIASECRET</AWSAccessKeyId><RequestId>4442587FB7D0A2F9</RequestId></Error>";
        let told = judged("s3.example.com:9000", &reply(403, body)).to_string();
        assert_eq!(
            told,
            "s3.example.com:9000 refuses the storage plan: 403 InvalidAccessKeyId (request 4442587FB7D0A2F9)"
        );
        let mut azure = reply(403, "");
        azure
            .headers
            .insert("x-ms-error-code", HeaderValue::from_static("AuthenticationFailed"));
        assert_eq!(code(&azure), "AuthenticationFailed");
    }

    #[test]
    fn a_condition_that_does_not_hold_is_told_from_one_that_is_not_known() {
        let reply = |status, code| reply(status, &format!("<Error><Code>{code}</Code></Error>"));
        for (status, code, condition) in [
            (412, "PreconditionFailed", "if-none-match"),
            (409, "BlobAlreadyExists", "if-none-match"),
            (404, "NoSuchKey", "if-match"),
        ] {
            assert!(is_taken(&reply(status, code), condition), "{status} {code}");
        }
        assert!(!is_taken(&reply(404, "NoSuchBucket"), "if-match"));
        assert!(!is_taken(&reply(409, "OperationAborted"), "if-match"));
        assert!(knows_no_condition(&reply(501, "NotImplemented"), false));
        assert!(knows_no_condition(&reply(400, "InvalidArgument"), true));
        assert!(!knows_no_condition(&reply(400, "InvalidArgument"), false));
        assert!(!knows_no_condition(&reply(400, "BadDigest"), true));
    }

    #[test]
    fn a_region_is_believed_only_if_it_can_be_part_of_a_name() {
        let of = |region: &str| super::region(&reply(400, &format!("<Region>{region}</Region>")));
        assert_eq!(of("eu-central-1").as_deref(), Some("eu-central-1"));
        for bad in ["", "evil.example.com/", "a@b", "-a", "EU", &"a".repeat(33)] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_judged(status in 300u16..600, body in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reply = reply(status, "");
            reply.body = body;
            let told = judged("h", &reply).to_string();
            prop_assert!(!told.chars().any(char::is_control) && told.len() < 300);
        }
    }
}
