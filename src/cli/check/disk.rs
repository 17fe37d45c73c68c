//! Where audio is kept on the way: the spool, and the hold for audio whose destination is
//! unavailable.

use std::path::Path;
use std::time::Duration;

use secrecy::ExposeSecret as _;

use crate::config::{Config, HoldKind};
use crate::couch::{Couch, Server};
use crate::hold::{MARKER, is_marked};
use crate::ingest::Spool;

use super::report::Rows;

const LIMIT: Duration = Duration::from_secs(5);

/// `runs`: whether a worker with this configuration runs on this host.
pub async fn look(config: &Config, runs: bool) -> Rows {
    let mut rows = Rows::of("disk");
    spool(&mut rows, config, runs);
    hold(&mut rows, config).await;
    rows
}

/// Whether the spool can keep uploads while they are checked and delivered.
fn spool(rows: &mut Rows, config: &Config, runs: bool) {
    let dir = &config.spool.dir;
    let shown = dir.display();
    let advice = format!("give the worker's user permission to write to {shown}, or set another spool.dir");
    if !dir.exists() {
        match nearest(dir) {
            Some(parent) if may_write(parent) => {
                rows.good("spool", format!("{shown}, created by the worker"));
                if let Ok(bytes) = Spool::free(parent) {
                    free(rows, config, bytes);
                }
            }
            _ => rows.fail(
                "spool",
                format!("{shown} does not exist, and cannot be created"),
                advice,
            ),
        }
        return;
    }
    match Spool::look(dir) {
        Err(error) => rows.fail("spool", format!("{shown} cannot be used: {error}"), advice),
        Ok(state) => {
            if state.in_use && !runs {
                rows.warn(
                    "spool",
                    format!("{shown} is used by a worker of another configuration"),
                    "set a spool.dir of its own for each worker on a host",
                );
            } else {
                let more = match (state.in_use, state.uploads) {
                    (true, _) => ", used by the running worker".to_owned(),
                    (false, 0) => String::new(),
                    (false, left) => {
                        format!("; {left} incomplete uploads are removed at start, their files are on the switches")
                    }
                };
                rows.good("spool", format!("{shown} is writable{more}"));
            }
            free(rows, config, state.free);
        }
    }
}

fn free(rows: &mut Rows, config: &Config, bytes: u64) {
    let (free, least) = (mebibytes(bytes), mebibytes(config.spool.min_free_bytes));
    if bytes < config.spool.min_free_bytes {
        rows.fail(
            "free space",
            format!("{free} MiB, less than spool.min_free_bytes ({least} MiB): the worker accepts no audio"),
            "free disk space, or move spool.dir to a larger disk",
        );
    } else {
        rows.good("free space", format!("{free} MiB, of which {least} MiB are kept free"));
    }
}

fn mebibytes(bytes: u64) -> u64 {
    bytes >> 20
}

/// The nearest parent folder that exists.
fn nearest(dir: &Path) -> Option<&Path> {
    dir.ancestors().skip(1).find(|path| path.exists())
}

fn may_write(dir: &Path) -> bool {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    dir.is_dir() && rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

/// The hold, where audio waits whose destination is unavailable.
async fn hold(rows: &mut Rows, config: &Config) {
    let most = mebibytes(config.hold.max_bytes);
    match (config.hold.kind, &config.hold.url) {
        (HoldKind::None, _) => rows.note("hold", "none: audio stays on its switch while the destination is down"),
        (HoldKind::Folder, _) => {
            let dir = &config.hold.folder;
            let shown = dir.display();
            if dir.is_dir() && config.hold.marked && !is_marked(dir) {
                rows.fail(
                    "hold",
                    format!("the folder {shown} has no file {MARKER}, and hold.marked is true: nothing is held"),
                    "mount the file system that all workers share, and create the file there once",
                );
            } else if dir.is_dir() && may_write(dir) {
                rows.good(
                    "hold",
                    format!("the folder {shown}, at most {most} MiB; all workers must share it"),
                );
                if !config.hold.marked {
                    rows.note(
                        "hold",
                        format!("on a network file system: create {MARKER} in {shown}, and set hold.marked = true, so that nothing is held where it is not mounted"),
                    );
                }
            } else {
                rows.fail(
                    "hold",
                    format!("the folder {shown} does not exist, or is not writable"),
                    "mount the folder and give the worker's user permission to write, or set another hold.kind",
                );
            }
        }
        (HoldKind::Couchdb, None) => rows.good("hold", format!("in the cluster's CouchDB, at most {most} MiB")),
        (HoldKind::Couchdb, Some(url)) => {
            let server = Server::parse(url.expose_secret(), 5984);
            let place = server
                .as_ref()
                .map_or_else(|_| "hold.url".to_owned(), ToString::to_string);
            let asked = async {
                let server = server.map_err(|error| error.to_string())?;
                let couch = Couch::elsewhere(&server, &config.couchdb).map_err(|error| error.to_string())?;
                couch.session().await.map_err(|error| error.to_string())
            };
            match tokio::time::timeout(LIMIT, asked).await {
                Ok(Ok(session)) if session.is_admin => {
                    rows.good("hold", format!("in the CouchDB {place}, at most {most} MiB"));
                }
                Ok(Ok(_)) => rows.fail(
                    "hold",
                    format!(
                        "{place} accepts the credentials, which are not of a server admin and cannot create databases"
                    ),
                    "set hold.url with the credentials of a server admin",
                ),
                Ok(Err(why)) => rows.fail("hold", format!("{place}: {why}"), "check hold.url"),
                Err(_) => rows.fail("hold", format!("{place} does not answer"), "check hold.url"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_is_judged_by_the_nearest_one_above() {
        let dir = std::env::temp_dir().join(uuid::Uuid::new_v4().simple().to_string());
        assert_eq!(nearest(&dir.join("a/b")), Some(std::env::temp_dir().as_path()));
        assert!(may_write(&std::env::temp_dir()));
        assert!(!may_write(Path::new("/proc/version")), "no folder");
        assert!(may_write(Path::new("")), "the one that we are in");
    }
}
