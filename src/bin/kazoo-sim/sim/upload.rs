//! `kz_http_put`: the switch uploads a file, and deletes it when the answer is 200, 201, 202 or 204.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    ecallmgr,
    http_put::{self, Failure, Put},
    options::UploadFault,
    record::{Role, brief},
    state::Upload,
    wire::Object,
    world::World,
};

/// What the switch prints when it does not get exactly two words, as a success.
const USAGE: &str = "USAGE: localfile url";

/// Runs one `send_http` to its reply.
pub async fn send_http(world: Arc<World>, ecallmgr: usize, request: Arc<Object>, url: String, file: PathBuf) {
    let argument = format!("{url} {}", file.display());
    let outcome = match argument.split(' ').filter(|w| !w.is_empty()).count() {
        2 if !argument.contains(['\'', '"', '\\']) => put(&world, &url, &file).await,
        _ => Ok(json!({"API-Output": USAGE})),
    };
    let (lost, delay) = world.with(|s| {
        let lost = s.faults.lose_send_http_replies > 0;
        s.faults.lose_send_http_replies = s.faults.lose_send_http_replies.saturating_sub(1);
        (lost, s.faults.delay_send_http_replies)
    });
    if let Some(delay) = delay {
        tokio::time::sleep(delay).await;
    }
    if lost {
        return world.note(Role::Switch, None, "fault: the reply to send_http is lost");
    }
    match outcome {
        Ok(response) => ecallmgr::reply_success(&world, ecallmgr, &request, response),
        Err((error, data)) => ecallmgr::reply_error(&world, ecallmgr, &request, &error, data),
    }
}

async fn put(world: &Arc<World>, url: &str, file: &PathBuf) -> Result<Value, (String, Option<Value>)> {
    // The call whose audio it is, for the timeline.
    let leg = world.look(|s| s.at(file).map(|r| r.call_id.clone()));
    let leg = leg.as_deref();
    let Ok(metadata) = tokio::fs::metadata(file).await else {
        world.note(Role::Switch, leg, format!("error opening file {}", file.display()));
        let error = "-ERR error opening file\n";
        return Err((error.into(), Some(json!({"API-Error": error}))));
    };
    let total = metadata.len();
    let (index, fault, bandwidth) = world.with(|s| {
        s.uploads.push(Upload {
            file: file.clone(),
            url: url.to_owned(),
            total,
            sent: 0,
            started_at: Instant::now(),
            finished: false,
            status: 0,
        });
        let fault = if s.faults.uploads.is_empty() {
            UploadFault::None
        } else {
            s.faults.uploads.remove(0)
        };
        (s.uploads.len() - 1, fault, s.faults.bandwidth)
    });
    let name = brief(&file.file_name().unwrap_or_default().to_string_lossy());
    world.note(Role::Switch, leg, format!("upload of {name} begins, {total} bytes"));
    let began = Instant::now();
    let content_type = match file.extension().and_then(|e| e.to_str()) {
        Some("mp3") => "audio/mpeg",
        Some("wav") => "audio/wav",
        Some("mp4") => "video/mp4",
        _ => "application/octet-stream",
    };
    let put = Put {
        url,
        file,
        total,
        content_type,
        bandwidth,
        fault,
    };
    let progress = |sent| world.with(|s| s.uploads[index].sent = sent);
    let answer = http_put::put(&put, progress).await;
    let status = answer.as_ref().map_or(0, |a| a.status);
    let took = began.elapsed();
    let saved = [200, 201, 202, 204].contains(&status);
    let deletes = saved && !world.look(|s| s.faults.keep_files);
    if deletes {
        let _ = tokio::fs::remove_file(file).await;
    }
    world.note(
        Role::Switch,
        leg,
        format!("upload of {name}: {}{}", outcome(&answer, took), said(saved, deletes)),
    );
    world.with(|s| {
        (s.uploads[index].finished, s.uploads[index].status) = (true, status);
        if deletes {
            s.recordings.iter_mut().filter(|r| r.path == *file).for_each(|r| {
                // What it records from now on goes into a file that has no name any more.
                (r.unlinked, r.deleted) = (r.unlinked || !r.deleted && !r.ended(), true);
            });
        }
    });
    let headers = answer.map(|a| a.headers).unwrap_or_default();
    let headers = (!headers.is_empty()).then_some(headers);
    if saved {
        // Not unpacked on success: an array in the switch's own spelling.
        let headers = headers.map(|h| format!("ARRAY::{}", h.join("|:")));
        return Ok(json!({"API-Output": format!("{} saved to {url}", file.display()), "Reply-Headers": headers}));
    }
    let error = format!(
        "Received HTTP error {status} trying to save {} to {url}",
        file.display()
    );
    // One alone is no list.
    let headers = headers.map(|h| if let [one] = h.as_slice() { json!(one) } else { json!(h) });
    let data = json!({"API-Error": error, "API-HTTP-Error": status.to_string(), "Reply-Headers": headers});
    Err((format!("-ERR {error}"), Some(data)))
}

fn outcome(answer: &Result<http_put::Answer, Failure>, took: Duration) -> String {
    match answer {
        Ok(answer) => format!("{} in {took:.1?}", answer.status),
        Err(failure) => format!("{failure} after {took:.1?}"),
    }
}

fn said(saved: bool, deleted: bool) -> &'static str {
    match (saved, deleted) {
        (_, true) => ", file deleted",
        (true, false) => ", file kept all the same",
        (false, false) => ", file kept",
    }
}
