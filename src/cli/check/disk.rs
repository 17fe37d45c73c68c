//! Where audio is kept on the way: the spool, and the hold for audio whose destination is
//! unavailable.

use std::path::Path;
use std::time::Duration;

use secrecy::ExposeSecret as _;

use crate::config::{Config, HoldKind};
use crate::couch::{Couch, Server};
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
    let advice = format!("let the worker's user write to {shown}, or choose another spool.dir");
    if !dir.exists() {
        match nearest(dir) {
            Some(parent) if may_write(parent) => {
                rows.good("spool", format!("{shown} is made by the worker"));
                if let Ok(bytes) = Spool::free(parent) {
                    free(rows, config, bytes);
                }
            }
            _ => rows.fail("spool", format!("{shown} is not there, and cannot be made"), advice),
        }
        return;
    }
    match Spool::look(dir) {
        Err(error) => rows.fail("spool", format!("{shown} cannot be used: {error}"), advice),
        Ok(state) => {
            if state.in_use && !runs {
                rows.warn(
                    "spool",
                    format!("{shown} is used by another worker, which is not this configuration's"),
                    "each worker on a host needs a spool.dir of its own",
                );
            } else {
                let more = match (state.in_use, state.uploads) {
                    (true, _) => ", used by the worker that runs".to_owned(),
                    (false, 0) => String::new(),
                    (false, left) => {
                        format!(
                            "; {left} broken-off uploads in it are removed at start, their files are on the switches"
                        )
                    }
                };
                rows.good("spool", format!("{shown} can be written{more}"));
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
            format!("{free} MiB, less than spool.min_free_bytes ({least} MiB): no audio is asked for"),
            "free some space, or move spool.dir to a larger disk",
        );
    } else {
        rows.good(
            "free space",
            format!("{free} MiB; {least} MiB of it are always left free"),
        );
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
        (HoldKind::None, _) => rows.note("hold", "none: audio whose destination is down stays on its switch"),
        (HoldKind::Folder, _) => {
            let dir = &config.hold.folder;
            let shown = dir.display();
            if dir.is_dir() && may_write(dir) {
                rows.good(
                    "hold",
                    format!("the folder {shown}, at most {most} MiB; all workers must see the same"),
                );
            } else {
                rows.fail(
                    "hold",
                    format!("the folder {shown} is not there, or cannot be written"),
                    "mount it, and let the worker's user write to it; or choose another hold.kind",
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
                    format!("{place} lets us in, and not as a server admin: no databases can be made there"),
                    "hold.url: credentials of a server admin",
                ),
                Ok(Err(why)) => rows.fail("hold", format!("{place}: {why}"), "see hold.url"),
                Err(_) => rows.fail("hold", format!("{place} does not answer"), "see hold.url"),
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
