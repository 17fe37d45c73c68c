//! Requests with small bodies.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::dns::Resolve;
use reqwest::{Certificate, Method, RequestBuilder, Response};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use url::Url;

use crate::config::{self, TlsFault};
use crate::telemetry::survive;

use super::databases::Known;
use super::login::{Login, Stand};
use super::peers::Verdict;
use super::{CouchError, Server};

/// Characters that stay unescaped in a path segment. `+` is escaped, because CouchDB decodes it as a blank in a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A database server. Cheap to clone.
#[derive(Clone)]
pub struct Couch {
    http: reqwest::Client,
    /// Lacks the time-out of `http`, which would cut long uploads; see `watch`.
    uploads: reqwest::Client,
    url: Url,
    username: String,
    password: SecretString,
    /// `None` without credentials.
    pub(super) login: Option<Arc<Login>>,
    prefix: String,
    /// The longest answer that is read, in bytes.
    pub(super) most: usize,
    /// The longest silence while a request or an answer is in flight.
    pub(super) silence: Duration,
    pub(super) told: Arc<Known>,
}

impl Couch {
    /// A client of the cluster's own database server.
    ///
    /// # Errors
    /// When the HTTP client cannot be built, for example without any root certificate.
    pub fn new(config: &config::Couchdb) -> Result<Self, CouchError> {
        Self::with(config, None)
    }

    /// As `new`. With `names` the server is one that a tenant names: its name is resolved by them, and its answers are short.
    fn with(config: &config::Couchdb, names: Option<Arc<dyn Resolve>>) -> Result<Self, CouchError> {
        let failed = |error: String| CouchError::NoAnswer(error);
        let authorities = match &config.ca {
            Some(ca) => Certificate::from_pem_bundle(ca.pem.as_bytes()).map_err(|error| failed(error.to_string()))?,
            None => Vec::new(),
        };
        let client = || {
            let mut builder = reqwest::Client::builder();
            if let Some(names) = &names {
                builder = builder.dns_resolver(Arc::clone(names));
            }
            builder
                .tls_certs_merge(authorities.clone())
                .connect_timeout(config.connect_timeout)
                // Shorter than the keep-alive of any server, so that an upload never starts on a connection that the server is closing.
                .pool_idle_timeout(Duration::from_secs(4))
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
        };
        let http = client().read_timeout(config.read_timeout).build();
        let http = http.map_err(|error| failed(error.to_string()))?;
        let uploads = client().build().map_err(|error| failed(error.to_string()))?;
        Ok(Self {
            http,
            uploads,
            url: config.url.clone(),
            username: config.username.clone(),
            password: config.password.clone(),
            login: Login::of(&config.url, &config.username, &config.password),
            prefix: config.database_prefix.clone(),
            most: if names.is_some() {
                MAX_ANSWER_OF_TENANT
            } else {
                MAX_ANSWER
            },
            silence: config.read_timeout,
            told: Arc::default(),
        })
    }

    /// Whether both clients use the same server.
    pub fn is_same_server(&self, other: &Self) -> bool {
        self.url == other.url
    }

    /// A client of another server, with the time-outs and the database prefix of the cluster's server.
    ///
    /// # Errors
    /// As `new`.
    pub fn elsewhere(server: &Server, config: &config::Couchdb) -> Result<Self, CouchError> {
        Self::new(&there(server, config))
    }

    /// As `elsewhere`, for a server that a tenant names. `names` resolve its name.
    ///
    /// # Errors
    /// As `new`.
    pub fn of_tenant(server: &Server, config: &config::Couchdb, names: Arc<dyn Resolve>) -> Result<Self, CouchError> {
        Self::with(&there(server, config), Some(names))
    }

    /// Whether the server answers and accepts our credentials.
    ///
    /// # Errors
    /// `NoAnswer`, or the error that the server answered.
    pub async fn ping(&self) -> Result<(), CouchError> {
        let (_, welcome) = self.ask(self.server(Method::GET, ""), "").await?;
        // BigCouch and CouchDB 1 answer "Welcome", and PouchDB's server answers another text. The page of an unrelated server is not JSON.
        if welcome.is_object() {
            Ok(())
        } else {
            Err(CouchError::NoAnswer("what answered is no CouchDB".into()))
        }
    }

    /// A document, or `None` when it is missing.
    ///
    /// # Errors
    /// Everything except a document or its absence. A missing database is an error. A server that has not yet received the list of
    /// databases from the other nodes reports all databases missing, which says nothing about any document.
    pub async fn get(&self, database: &str, id: &str) -> Result<Option<Value>, CouchError> {
        match self.ask(self.request(Method::GET, database, &[id]), database).await {
            Ok((_, document)) if document.is_object() => Ok(Some(document)),
            Ok(_) => Err(CouchError::NoAnswer("what answered is no document".into())),
            Err(CouchError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a request with a small answer. Sends nothing while the server refuses our credentials.
    pub(super) async fn ask(&self, request: RequestBuilder, database: &str) -> Result<(u16, Value), CouchError> {
        self.send_with(async { answer(request.send().await, database, self.most).await })
            .await
    }

    /// The same for any future that sends a request.
    pub(super) async fn send_with<T>(
        &self,
        sending: impl Future<Output = Result<T, CouchError>>,
    ) -> Result<T, CouchError> {
        self.let_in().await?;
        let result = sending.await;
        if let Some(login) = &self.login {
            login.learn(&result, false);
        }
        result
    }

    /// Waits until the credentials are verified.
    async fn let_in(&self) -> Result<(), CouchError> {
        let Some(login) = &self.login else { return Ok(()) };
        loop {
            match login.stand() {
                Stand::Open => return Ok(()),
                Stand::Shut(error) => return Err(error),
                Stand::Ask => {}
            }
            let (couch, login) = (self.clone(), Arc::clone(login));
            // Runs in a task of its own. A caller that gives up must not cancel a request that the server counts as a log-in.
            let asked = tokio::spawn(survive("credentials", async move {
                let _alone = login.asking.lock().await;
                let turn = login.turn().await;
                let noted = turn.as_ref().is_some_and(|turn| turn.is_refused());
                let result = couch.prove(&login, noted).await;
                if let Some(turn) = turn {
                    turn.end(result.as_ref().copied().unwrap_or_default()).await;
                }
                result.map(drop)
            }));
            let broken = || Err(CouchError::NoAnswer("the request ended early".into()));
            asked.await.ok().flatten().unwrap_or_else(broken)?;
        }
    }

    /// Verifies the credentials at the server, unless the result is known by now. Returns the verdict that the lock leaves for other
    /// workers.
    async fn prove(&self, login: &Login, refused_elsewhere: bool) -> Result<Verdict, CouchError> {
        if !matches!(login.stand(), Stand::Ask) {
            return Ok(Verdict::default());
        }
        if refused_elsewhere {
            login.heard(false);
            return Ok(Verdict::default());
        }
        let session = self.server(Method::GET, "_session").send().await;
        let session = session.map_err(|error| no_answer(&error))?;
        // The server did not refuse the credentials. Any other answer means no refusal, for example a proxy that lets only databases
        // through.
        let result = answer(Ok(session), "", self.most).await;
        if let Err(error @ CouchError::Failed { .. }) = result {
            // A balancer without a living server says that. Workers that took it for proof would all ask at once when CouchDB is back.
            return Err(error);
        }
        let refused = result.err().filter(CouchError::is_about_credentials);
        let is_taken = refused.is_none();
        login.learn(&refused.map_or(Ok(()), Err), true);
        Ok(if is_taken { Verdict::Taken } else { login.verdict() })
    }

    /// A request to `/<database>/<path segments…>`, with credentials.
    pub(super) fn request(&self, method: Method, database: &str, path: &[&str]) -> RequestBuilder {
        self.authorized(self.http.request(method, self.address(database, path)))
    }

    /// As `request`, for bodies that take long to send.
    pub(super) fn upload(&self, method: Method, database: &str, path: &[&str]) -> RequestBuilder {
        self.authorized(self.uploads.request(method, self.address(database, path)))
    }

    /// A request to `/<path>`, outside any database.
    pub(super) fn server(&self, method: Method, path: &str) -> RequestBuilder {
        let address = format!("{}/{path}", self.url.as_str().trim_end_matches('/'));
        self.authorized(self.http.request(method, address))
    }

    fn address(&self, database: &str, path: &[&str]) -> String {
        let mut address = format!("{}/", self.url.as_str().trim_end_matches('/'));
        address.push_str(&segment(&format!("{}{database}", self.prefix)));
        for part in path {
            address.push('/');
            address.push_str(&segment(part));
        }
        address
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        if self.username.is_empty() {
            request
        } else {
            request.basic_auth(&self.username, Some(self.password.expose_secret()))
        }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }
}

/// The settings of the cluster's server, with the address and the credentials of another one.
fn there(server: &Server, config: &config::Couchdb) -> config::Couchdb {
    config::Couchdb {
        url: server.url.clone(),
        username: server.username.clone(),
        password: server.password.clone(),
        ..config.clone()
    }
}

fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// The same for a server that a tenant names. It holds documents of recordings, and the worker reads them one by one.
const MAX_ANSWER_OF_TENANT: usize = 1 << 20;

/// A whole answer of at most `most` bytes.
pub(super) async fn bounded(mut response: Response, most: usize) -> Result<Vec<u8>, CouchError> {
    let too_long = || CouchError::NoAnswer(format!("the answer has more than {most} bytes"));
    if response.content_length().is_some_and(|length| length > most as u64) {
        return Err(too_long());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| no_answer(&error))? {
        if body.len() + chunk.len() > most {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The JSON of a successful answer, or the error of any other answer.
pub(super) async fn answer(
    response: Result<Response, reqwest::Error>,
    database: &str,
    most: usize,
) -> Result<(u16, Value), CouchError> {
    let response = response.map_err(|error| no_answer(&error))?;
    let status = response.status();
    let body = bounded(response, most).await?;
    let json: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    if status.is_success() {
        return Ok((status.as_u16(), json));
    }
    Err(CouchError::of_answer(status.as_u16(), &json, database))
}

/// A transport error as text, with its causes. The URL is left out, because it may hold credentials.
pub(super) fn no_answer(error: &reqwest::Error) -> CouchError {
    if let Some(fault) = TlsFault::of(error) {
        return CouchError::NoAnswer(fault.words("couchdb.ca_file"));
    }
    let mut words = String::new();
    let mut source = error.source();
    while let Some(cause) = source {
        words = cause.to_string();
        source = cause.source();
    }
    // The whole URL must not appear.
    let host = error
        .url()
        .and_then(|url| url.host_str().zip(url.port_or_known_default()));
    let server = host.map_or_else(|| "the server".to_owned(), |(host, port)| format!("{host}:{port}"));
    let kind = if error.is_timeout() {
        "timed out".to_owned()
    } else if error.is_connect() {
        format!("cannot connect to {server}")
    } else {
        "connection lost".to_owned()
    };
    CouchError::NoAnswer(if words.is_empty() {
        kind
    } else {
        format!("{kind}: {words}")
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// The response of a server that sends `answer` and closes the connection.
    async fn answered(answer: Vec<u8>) -> Response {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", server.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut socket, _) = server.accept().await.unwrap();
            let _ = socket.read(&mut [0; 4096]).await;
            // A client that has read enough closes the connection.
            let _ = socket.write_all(&answer).await;
        });
        reqwest::get(url).await.unwrap()
    }

    #[tokio::test]
    async fn an_answer_without_end_is_given_up_at_the_bound() {
        const MOST: usize = 100_000;
        for (length, good) in [(0, true), (MOST, true), (MOST + 1, false), (20 * MOST, false)] {
            for head in [
                "HTTP/1.0 200 OK\r\n\r\n".to_owned(),
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"),
            ] {
                let mut whole = head.into_bytes();
                whole.resize(whole.len() + length, b' ');
                let read = bounded(answered(whole).await, MOST).await;
                match read {
                    Ok(body) => assert!(good && body.len() == length),
                    Err(CouchError::NoAnswer(why)) => assert!(!good && why.contains("more than 100000 bytes"), "{why}"),
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
}
