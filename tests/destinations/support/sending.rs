//! Sending to users' URLs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use kz_record_call::destination::DeliveryError;
use kz_record_call::destination::url::Target;
use kz_record_call::destination::url::files::{self, Files, Stored};
use kz_record_call::destination::url::guard::Guard;
use kz_record_call::destination::url::guard::resolve::{Answer, Lookup};
use kz_record_call::destination::url::http::{Http, SendError, Sent, Upload};
use kz_record_call::kazoo::time::Clock;
use kz_record_call::recording::settings::Method;

use super::{Recording, settings};

/// Names that only a test knows.
#[derive(Default, Clone)]
pub struct Names(HashMap<String, Vec<IpAddr>>);

impl Names {
    pub fn of(names: &[(&str, &[&str])]) -> Self {
        let parsed = names.iter().map(|(name, addresses)| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap());
            ((*name).to_owned(), addresses.collect())
        });
        Self(parsed.collect())
    }
}

impl Lookup for Names {
    fn lookup(&self, name: String) -> Answer {
        let found = self.0.get(&name).cloned();
        Box::pin(async move { found.ok_or_else(|| std::io::Error::other("no such name")) })
    }
}

/// A guarded client that knows `names` and has these settings.
pub fn http(changes: &[(&str, &str)], names: &[(&str, &[&str])]) -> Http {
    let settings = settings(changes);
    let guard = Guard::new(&settings);
    Http::guarded(&settings, guard, Arc::new(Names::of(names)), Clock::system()).unwrap()
}

/// A guarded client that operators let reach this host.
pub fn http_here(changes: &[(&str, &str)]) -> Http {
    let mut all = vec![("ALLOW", "127.0.0.1")];
    all.extend_from_slice(changes);
    http(&all, &[])
}

/// Sends a recording to a URL as it stands, with the method.
pub async fn send_by(http: &Http, url: &str, recording: &Recording, method: Method) -> Result<Sent, SendError> {
    let upload = Upload {
        source: &recording.source,
        length: recording.audio.size,
        content_type: recording.order.format.content_type(),
        method,
        key: recording.id().as_str(),
    };
    http.send(&Target::parse(url).unwrap(), &upload).await
}

pub async fn send(http: &Http, url: &str, recording: &Recording) -> Result<Sent, SendError> {
    send_by(http, url, recording, Method::Put).await
}

/// A guarded client for file servers that operators let reach this host.
pub fn files_here(changes: &[(&str, &str)]) -> Files {
    let mut all = vec![("ALLOW", "127.0.0.1")];
    all.extend_from_slice(changes);
    let settings = settings(&all);
    Files::guarded(&settings, Guard::new(&settings), Arc::new(Names::default())).unwrap()
}

/// Stores a recording at a URL of a file server, under `name`.
pub async fn store(files: &Files, folder: &str, name: &str, recording: &Recording) -> Result<Stored, DeliveryError> {
    let target = Target::parse(&format!("{folder}/{name}")).unwrap();
    let upload = files::Upload {
        source: &recording.source,
        length: recording.audio.size,
        digests: &recording.audio.digests,
        writer: "worker 1",
    };
    files.send(&target, target.protocol().unwrap(), &upload).await
}
