//! An object store that speaks S3 and Azure Blob Storage. It verifies signatures and digests by code of its own, and misbehaves as a test
//! wants. It keeps digests of objects, not their bytes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac};
use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use kz_record_call::kazoo::time::Clock;
use kz_record_call::recording::digest::{Digests, Hasher};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

pub const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
pub const SECRET: &str = "s3cr3t/of+the+standin";
pub const BUCKET: &str = "recordings";
pub const AZURE_ACCOUNT: &str = "acc1";
/// `YXp1cmVrZXk=` in clear.
const AZURE_KEY: &[u8] = b"azurekey";

/// What it does with one PUT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    Stores,
    /// Refuses with this status and code, the body read.
    Refuses(u16, &'static str),
    /// As `Refuses`, with `Retry-After` in seconds.
    Later(u16, &'static str, u64),
    /// Refuses before it reads the body.
    RefusesEarly(u16, &'static str),
    /// Closes the connection after so many bytes.
    ClosesAt(u64),
    /// Stores, and closes the connection in place of an answer.
    LosesAnswer,
    /// Stores one byte less.
    StoresLess,
    /// Reads, and never answers.
    Silent,
    /// Reads at so many bytes a second.
    Slow(u64),
    /// Another recording's object appears under the name before the body is read.
    ComesSecond,
    /// As `ComesSecond`, and closes the connection in place of an answer. The other object has the same length.
    ComesSecondUnheard,
    /// Reads so many bytes, and the rest when the test says so (`held`, `go_on`).
    HoldsAt(u64),
    /// Answers with another `Location`.
    Redirects(u16, &'static str),
}

/// How it is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    pub region: &'static str,
    /// By how much its clock is ahead.
    pub ahead: Duration,
    /// A missing object cannot be told from one that may not be seen.
    pub denies_looks: bool,
    /// ETags are no MD5s, as with encryption by a key.
    pub odd_etags: bool,
    /// Checksums are shown to those who ask for them.
    pub shows_checksums: bool,
    /// Buckets with a lock demand Content-MD5.
    pub locked: bool,
    /// No object store: a page with 200 for each request.
    pub is_portal: bool,
    /// It knows no conditions for a PUT, and says so.
    pub refuses_conditions: bool,
    /// It stores whatever the condition is.
    pub ignores_conditions: bool,
    /// The ETag of a PUT's condition must have no quotes.
    pub matches_bare: bool,
    /// Its answers have neither an ETag nor a request's id.
    pub answers_bare: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            region: "us-east-1",
            ahead: Duration::ZERO,
            denies_looks: false,
            odd_etags: false,
            shows_checksums: false,
            locked: false,
            is_portal: false,
            refuses_conditions: false,
            ignores_conditions: false,
            matches_bare: false,
            answers_bare: false,
        }
    }
}

/// An object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub length: u64,
    pub digests: Digests,
    pub headers: BTreeMap<String, String>,
    /// How often it was written.
    pub writes: usize,
}

#[derive(Default)]
struct State {
    objects: HashMap<String, Stored>,
    does: VecDeque<Does>,
    always: Option<Does>,
    /// Methods, in order.
    asked: Vec<String>,
    /// What was wrong with requests.
    wrong: Vec<String>,
}

pub struct ObjectStore {
    pub address: SocketAddr,
    setup: Arc<Setup>,
    state: Arc<Mutex<State>>,
    gate: Arc<Gate>,
    serving: JoinHandle<()>,
}

/// Where a PUT waits within its body.
#[derive(Default)]
struct Gate {
    held: Notify,
    go_on: Notify,
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl ObjectStore {
    pub async fn start(setup: Setup) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (setup, state) = (Arc::new(setup), Arc::<Mutex<State>>::default());
        let gate = Arc::<Gate>::default();
        let (for_all, of_all, at_all) = (Arc::clone(&setup), Arc::clone(&state), Arc::clone(&gate));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(
                    stream,
                    Arc::clone(&for_all),
                    Arc::clone(&of_all),
                    Arc::clone(&at_all),
                ));
            }
        });
        Self {
            address,
            setup,
            state,
            gate,
            serving,
        }
    }

    /// Waits until a PUT is held within its body.
    pub async fn held(&self) {
        self.gate.held.notified().await;
    }

    /// Reads the rest of the PUT that is held.
    pub fn go_on(&self) {
        self.gate.go_on.notify_one();
    }

    /// The next PUTs are treated so, one after the other.
    pub fn next(&self, does: &[Does]) {
        self.state.lock().unwrap().does.extend(does);
    }

    /// All further PUTs are treated so.
    pub fn always(&self, does: Option<Does>) {
        self.state.lock().unwrap().always = does;
    }

    /// The objects by their names, decoded once.
    pub fn objects(&self) -> HashMap<String, Stored> {
        self.state.lock().unwrap().objects.clone()
    }

    /// Something else is under this name.
    pub fn put_other(&self, name: &str, bytes: &[u8]) {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        let stored = Stored {
            length: bytes.len() as u64,
            digests: hasher.finish(),
            headers: BTreeMap::new(),
            writes: 1,
        };
        self.state.lock().unwrap().objects.insert(name.to_owned(), stored);
    }

    pub fn asked(&self, method: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.asked.iter().filter(|asked| *asked == method).count()
    }

    /// What was wrong with the requests.
    pub fn wrong(&self) -> Vec<String> {
        self.state.lock().unwrap().wrong.clone()
    }

    /// The settings of a plan with S3 here.
    pub fn s3(&self) -> Value {
        json!({
            "bucket": BUCKET, "key": KEY, "secret": SECRET, "host": "127.0.0.1", "port": self.address.port(), "scheme": "http",
            "bucket_access_method": "path",
        })
    }

    /// The settings of a plan with Azure here, and the endpoint that they need.
    pub fn azure(&self) -> (Value, String) {
        let settings = json!({"account": AZURE_ACCOUNT, "container": BUCKET, "key": STANDARD.encode(AZURE_KEY)});
        (settings, format!("http://{}", self.address))
    }

    pub fn region(&self) -> &'static str {
        self.setup.region
    }
}

async fn serve(stream: TcpStream, setup: Arc<Setup>, state: Arc<Mutex<State>>, gate: Arc<Gate>) {
    let service = hyper::service::service_fn(move |request| {
        let (setup, state, gate) = (Arc::clone(&setup), Arc::clone(&state), Arc::clone(&gate));
        async move { answer(request, &setup, &state, &gate).await }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn refused(setup: &Setup, status: u16, code: &str) -> Response<Body> {
    let region = format!("<Region>{}</Region>", setup.region);
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{SECRET} is not for you</Message>{region}<RequestId>REQ1</RequestId></Error>"
    );
    Response::builder()
        .status(status)
        .header("x-ms-error-code", code)
        .header("date", httpdate::fmt_http_date(now(setup)))
        .body(Body::from(body))
        .unwrap()
}

fn now(setup: &Setup) -> std::time::SystemTime {
    let seconds = Clock::system().now().unix_seconds();
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap()) + setup.ahead
}

/// An error closes the connection without an answer.
async fn answer(
    request: Request<Incoming>,
    setup: &Setup,
    state: &Mutex<State>,
    gate: &Gate,
) -> Result<Response<Body>, std::io::Error> {
    let closed = || std::io::Error::other("closed");
    let (parts, body) = request.into_parts();
    let method = parts.method.as_str().to_owned();
    state.lock().unwrap().asked.push(method.clone());
    let wrong = |what: &str| state.lock().unwrap().wrong.push(what.to_owned());
    if setup.is_portal {
        let _ = axum::body::to_bytes(Body::new(body), usize::MAX).await;
        let page = futures_util::stream::iter([Ok::<_, std::io::Error>("<html>welcome</html>")]);
        return Ok(Response::new(Body::from_stream(page)));
    }
    let header = |name: &str| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let headers: Vec<(String, String)> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap().to_owned()))
        .collect();
    let path = parts.uri.path().to_owned();
    let is_azure = header("authorization").starts_with("SharedKey ");
    let judged = if is_azure {
        azure(&method, &path, &headers, setup)
    } else {
        aws(&method, &path, &headers, setup)
    };
    if let Err((status, code)) = judged {
        wrong(code);
        let is_region = code == "AuthorizationHeaderMalformed";
        let mut reply = refused(setup, status, code);
        if is_region {
            reply
                .headers_mut()
                .insert("x-amz-bucket-region", setup.region.parse().unwrap());
        }
        if method == "HEAD" && !is_azure {
            // As AWS: no body, and so no code.
            *reply.body_mut() = Body::empty();
            reply.headers_mut().remove("x-ms-error-code");
        }
        return Ok(reply);
    }
    let bucket = if is_azure {
        format!("/{AZURE_ACCOUNT}/{BUCKET}/")
    } else {
        format!("/{BUCKET}/")
    };
    let Some(name) = path.strip_prefix(&bucket) else {
        let code = if is_azure { "ContainerNotFound" } else { "NoSuchBucket" };
        return Ok(refused(setup, 404, code));
    };
    let name = percent_encoding::percent_decode_str(name)
        .decode_utf8()
        .unwrap()
        .into_owned();
    if method != "PUT" {
        let found = state.lock().unwrap().objects.get(&name).cloned();
        return Ok(match found {
            _ if setup.denies_looks => refused(
                setup,
                403,
                if is_azure {
                    "AuthorizationPermissionMismatch"
                } else {
                    "AccessDenied"
                },
            ),
            None => refused(setup, 404, if is_azure { "BlobNotFound" } else { "NoSuchKey" }),
            Some(found) => {
                let mut reply = described(setup, &found, header("x-amz-checksum-mode") == "ENABLED");
                reply
                    .headers_mut()
                    .insert("content-length", found.length.to_string().parse().unwrap());
                reply
            }
        });
    }
    let does = {
        let mut state = state.lock().unwrap();
        let always = state.always;
        state.does.pop_front().or(always).unwrap_or(Does::Stores)
    };
    match does {
        Does::RefusesEarly(status, code) => return Ok(refused(setup, status, code)),
        Does::Redirects(status, location) => {
            return Ok(Response::builder()
                .status(status)
                .header("location", location)
                .body(Body::empty())
                .unwrap());
        }
        Does::ClosesAt(0) => return Err(closed()),
        Does::ComesSecond | Does::ComesSecondUnheard => {
            let length = header("content-length").parse().unwrap_or_default();
            let mut hasher = Hasher::default();
            hasher.update(b"another recording");
            let other = Stored {
                length,
                digests: hasher.finish(),
                headers: BTreeMap::new(),
                writes: 1,
            };
            state.lock().unwrap().objects.insert(name.clone(), other);
            if does == Does::ComesSecondUnheard {
                return Err(closed());
            }
        }
        _ => {}
    }
    if (header("if-none-match") == "*" || !header("if-match").is_empty()) && setup.refuses_conditions {
        return Ok(refused(setup, 501, "NotImplemented"));
    }
    let (mut hasher, mut length) = (Hasher::default(), 0u64);
    let mut last = Vec::new();
    let mut is_held = false;
    let mut pieces = Body::new(body).into_data_stream();
    while let Some(piece) = pieces.next().await {
        let Ok(piece) = piece else { return Err(closed()) };
        length += piece.len() as u64;
        hasher.update(&last);
        last = piece.to_vec();
        match does {
            Does::ClosesAt(at) if length >= at => return Err(closed()),
            Does::HoldsAt(at) if length >= at && !is_held => {
                is_held = true;
                gate.held.notify_one();
                gate.go_on.notified().await;
            }
            Does::Slow(rate) => tokio::time::sleep(Duration::from_micros(piece.len() as u64 * 1_000_000 / rate)).await,
            _ => {}
        }
    }
    if does == Does::StoresLess {
        last.pop();
        length -= 1;
    }
    hasher.update(&last);
    let digests = hasher.finish();
    let is_conditional = header("if-none-match") == "*" && !setup.ignores_conditions;
    if is_conditional && state.lock().unwrap().objects.contains_key(&name) {
        let (status, code) = if is_azure {
            (409, "BlobAlreadyExists")
        } else {
            (412, "PreconditionFailed")
        };
        return Ok(refused(setup, status, code));
    }
    let expected = header("if-match");
    if !expected.is_empty() && !setup.ignores_conditions {
        let found = state.lock().unwrap().objects.get(&name).cloned();
        let is_it = |found: &Stored| {
            let etag = described(setup, found, false).headers()["etag"]
                .to_str()
                .unwrap()
                .to_owned();
            let etag = if setup.matches_bare {
                etag.trim_matches('"')
            } else {
                &etag
            };
            etag == expected
        };
        match found {
            Some(found) if is_it(&found) => {}
            None if !is_azure => return Ok(refused(setup, 404, "NoSuchKey")),
            _ => {
                return Ok(refused(
                    setup,
                    412,
                    if is_azure {
                        "ConditionNotMet"
                    } else {
                        "PreconditionFailed"
                    },
                ));
            }
        }
    }
    match does {
        Does::Silent => return std::future::pending().await,
        Does::Refuses(status, code) => return Ok(refused(setup, status, code)),
        Does::Later(status, code, seconds) => {
            let mut reply = refused(setup, status, code);
            reply
                .headers_mut()
                .insert("retry-after", seconds.to_string().parse().unwrap());
            return Ok(reply);
        }
        Does::StoresLess => {}
        _ => {
            if header("content-length") != length.to_string() {
                return Ok(refused(setup, 400, "IncompleteBody"));
            }
            let md5 = header("content-md5");
            if setup.locked && md5.is_empty() {
                return Ok(refused(setup, 400, "InvalidRequest"));
            }
            if !md5.is_empty() && md5 != base64(&digests.md5) {
                return Ok(refused(setup, 400, if is_azure { "Md5Mismatch" } else { "BadDigest" }));
            }
            if !is_azure && header("x-amz-content-sha256") != digests.sha256 {
                return Ok(refused(setup, 400, "XAmzContentSHA256Mismatch"));
            }
            let checksum = header("x-amz-checksum-sha256");
            if !checksum.is_empty() && checksum != base64(&digests.sha256) {
                return Ok(refused(setup, 400, "BadDigest"));
            }
        }
    }
    let stored = {
        let mut state = state.lock().unwrap();
        let writes = state.objects.get(&name).map_or(0, |before| before.writes) + 1;
        let stored = Stored {
            length,
            digests,
            headers: headers.into_iter().collect(),
            writes,
        };
        state.objects.insert(name, stored.clone());
        stored
    };
    if does == Does::LosesAnswer {
        return Err(closed());
    }
    let mut reply = described(setup, &stored, setup.shows_checksums);
    if setup.answers_bare {
        for name in ["etag", "content-md5", "x-amz-request-id"] {
            reply.headers_mut().remove(name);
        }
    }
    if is_azure {
        *reply.status_mut() = hyper::StatusCode::CREATED;
    }
    Ok(reply)
}

fn described(setup: &Setup, stored: &Stored, with_checksum: bool) -> Response<Body> {
    let etag = if setup.odd_etags {
        "0000111122223333444455556666777a".to_owned()
    } else {
        stored.digests.md5.clone()
    };
    let mut reply = Response::builder()
        .header("etag", format!("\"{etag}\""))
        .header("x-amz-request-id", "REQ1")
        .header("server", "stand-in");
    if !setup.odd_etags {
        reply = reply.header("content-md5", base64(&stored.digests.md5));
    }
    if with_checksum && setup.shows_checksums {
        reply = reply.header("x-amz-checksum-sha256", base64(&stored.digests.sha256));
    }
    reply.body(Body::empty()).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn base64(hex: &str) -> String {
    STANDARD.encode(unhex(hex))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
        .as_ref()
        .to_vec()
}

type Judged = Result<(), (u16, &'static str)>;

/// The header form of AWS Signature Version 4.
fn aws(method: &str, path: &str, headers: &[(String, String)], setup: &Setup) -> Judged {
    let malformed = (400, "AuthorizationHeaderMalformed");
    let get = |name: &str| {
        headers
            .iter()
            .find(|(header, _)| header == name)
            .map(|(_, value)| value.as_str())
    };
    let authorization = get("authorization").ok_or((403, "AccessDenied"))?;
    let fields = authorization.strip_prefix("AWS4-HMAC-SHA256 ").ok_or(malformed)?;
    let field = |name: &str| {
        let prefix = format!("{name}=");
        fields
            .split(", ")
            .find_map(|field| field.strip_prefix(&prefix).map(str::to_owned))
    };
    let credential = field("Credential").ok_or(malformed)?;
    let scope: Vec<&str> = credential.split('/').collect();
    let [id, day, region, "s3", "aws4_request"] = scope[..] else {
        return Err(malformed);
    };
    if id != KEY {
        return Err((403, "InvalidAccessKeyId"));
    }
    if region != setup.region {
        return Err(malformed);
    }
    let date = get("x-amz-date").ok_or((403, "AccessDenied"))?;
    let number = |from: usize, to: usize| date[from..to].parse::<i64>().unwrap();
    // Days since 1970, by the proleptic Gregorian calendar.
    let (year, month, of_month) = (number(0, 4), number(4, 6), number(6, 8));
    let shifted = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + of_month - 1;
    let days = shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + of_year - 719_468;
    let at = days * 86_400 + number(9, 11) * 3600 + number(11, 13) * 60 + number(13, 15);
    let here = i64::try_from(now(setup).duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    if (at - here).abs() > 900 {
        return Err((403, "RequestTimeTooSkewed"));
    }
    let names = field("SignedHeaders").ok_or(malformed)?;
    for (name, _) in headers {
        let must = name == "host" || name == "content-md5" || name.starts_with("x-amz-");
        if must && !names.split(';').any(|signed| signed == name) {
            return Err((403, "AccessDenied"));
        }
    }
    let mut lines = String::new();
    for name in names.split(';') {
        lines += &format!("{name}:{}\n", get(name).ok_or(malformed)?.trim());
    }
    let payload = get("x-amz-content-sha256").ok_or(malformed)?;
    let canonical = format!("{method}\n{path}\n\n{lines}\n{names}\n{payload}");
    let hashed = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{day}/{region}/s3/aws4_request\n{hashed}");
    let mut key = mac(format!("AWS4{SECRET}").as_bytes(), day);
    for part in [region, "s3", "aws4_request"] {
        key = mac(&key, part);
    }
    if field("Signature") != Some(hex(&mac(&key, &to_sign))) {
        return Err((403, "SignatureDoesNotMatch"));
    }
    Ok(())
}

/// SharedKey of Azure Blob Storage.
fn azure(method: &str, path: &str, headers: &[(String, String)], setup: &Setup) -> Judged {
    let get = |name: &str| {
        let found = headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_default()
    };
    let length = Some(get("content-length"))
        .filter(|length| *length != "0")
        .unwrap_or_default();
    let mut text = [
        method,
        "",
        "",
        length,
        get("content-md5"),
        get("content-type"),
        "",
        "",
        get("if-match"),
        get("if-none-match"),
        "",
        "",
    ]
    .join("\n");
    text.push('\n');
    let mut own: Vec<_> = headers.iter().filter(|(name, _)| name.starts_with("x-ms-")).collect();
    own.sort();
    for (name, value) in own {
        text += &format!("{name}:{value}\n");
    }
    text += &format!("/{AZURE_ACCOUNT}{path}");
    let expected = format!("SharedKey {AZURE_ACCOUNT}:{}", STANDARD.encode(mac(AZURE_KEY, &text)));
    let dated = httpdate::parse_http_date(get("x-ms-date")).ok();
    let differs = |dated: std::time::SystemTime| {
        now(setup)
            .duration_since(dated)
            .unwrap_or_else(|error| error.duration())
    };
    let is_in_time = dated.is_some_and(|dated| differs(dated) < Duration::from_secs(900));
    if get("authorization") == expected && is_in_time {
        Ok(())
    } else {
        Err((403, "AuthenticationFailed"))
    }
}
