//! Credentials that a CouchDB server rejected. This worker notifies the other workers, before the server
//! rejects theirs as well.

use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::couch::{self, News};
use crate::kazoo::envelope::Envelope;

use super::super::perform::Parts;
use super::send;

/// Identifies the process that sent a notice. Workers of one host have the same node name.
static INSTANCE: LazyLock<String> = LazyLock::new(|| uuid::Uuid::new_v4().simple().to_string());

/// Publishes notices about credentials, until the worker ends.
pub async fn share(parts: Arc<Parts>, mut news: mpsc::Receiver<News>) {
    loop {
        let news = tokio::select! {
            news = news.recv() => news,
            () = parts.common.stop.cancelled() => None,
        };
        let Some(news) = news else { return };
        let body = json!({"Mark": news.mark, "Accepted": news.accepted, "Instance": *INSTANCE});
        send(&parts, "credentials", body).await;
    }
}

/// Handles the notice of another worker.
pub(super) fn heard(envelope: &Envelope) {
    let text = |key: &str| envelope.body.get(key).and_then(Value::as_str);
    let accepted = envelope.body.get("Accepted").and_then(Value::as_bool);
    if let (Some(mark), Some(accepted), Some(instance)) = (text("Mark"), accepted, text("Instance"))
        && instance != *INSTANCE
    {
        couch::heard(&News {
            mark: mark.to_owned(),
            accepted,
        });
    }
}
