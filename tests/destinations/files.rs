//! Users' URLs that lead to file servers: FTP, FTP over TLS, and the file transfer of SSH. Each promise is kept for all of them.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use kz_record_call::destination::url::files::{Files, Stored};
use kz_record_call::destination::{DeliveryError, Fault};

use crate::promises;
use crate::support::file_server::{Disk, FileServer, LOGIN, PASSWORD, Tls, Trouble, known_hosts_line, new_key};
use crate::support::tls::Authority;
use crate::support::{Couchdb, Recording, TestResult, files_here, store};

promises![
    a_file_server_gets_audio_whole_under_kazoos_name,
    a_repeat_sends_nothing_again,
    a_lost_answer_is_no_lost_file,
    a_file_of_somebody_else_is_never_replaced,
    another_worker_may_be_quicker,
    a_servers_reason_is_told_without_secrets,
    a_broken_transfer_leaves_nothing_under_the_name,
    a_file_server_that_lost_a_byte_has_no_recording,
    a_server_that_stands_still_is_given_up,
    the_filter_is_asked_for_file_servers_too,
    a_server_with_another_key_or_certificate_gets_no_password,
];

const NAME: &str = "call_recording_a84b%40pc33.mp3";

/// A server, a client that trusts it, and the URL's beginning.
struct Way {
    scheme: &'static str,
    server: FileServer,
    files: Files,
    dir: PathBuf,
}

impl Drop for Way {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Way {
    async fn of(scheme: &'static str, changes: &[(&str, &str)]) -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("kz-record-call-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&dir)?;
        let (mut changes, mut trust) = (changes.to_vec(), String::new());
        let server = match scheme {
            "ftp" => FileServer::ftp(Tls::None).await,
            "ftps" => {
                let authority = Authority::new("Somebody")?;
                authority.file(&dir, "ca.pem")?.clone_into(&mut trust);
                FileServer::ftp(Tls::Explicit(authority.issue(&["127.0.0.1"])?.acceptor()?)).await
            }
            _ => {
                let server = FileServer::ssh().await;
                write!(trust, "{}", dir.join("known_hosts").display())?;
                std::fs::write(&trust, &server.key)?;
                server
            }
        };
        match scheme {
            "ftps" => changes.push(("CA_FILE", &trust)),
            "sftp" => changes.push(("KNOWN_HOSTS_FILE", &trust)),
            _ => {}
        }
        Ok(Self {
            scheme,
            server,
            files: files_here(&changes),
            dir,
        })
    }

    async fn all(changes: &[(&str, &str)]) -> anyhow::Result<Vec<Self>> {
        let mut all = Vec::new();
        for scheme in ["ftp", "ftps", "sftp"] {
            all.push(Self::of(scheme, changes).await?);
        }
        Ok(all)
    }

    async fn send(&self, path: &str, recording: &Recording) -> Result<Stored, DeliveryError> {
        store(&self.files, &self.server.url(self.scheme, path), NAME, recording).await
    }

    fn disk(&self) -> &Disk {
        &self.server.disk
    }
}

/// The failure of a delivery.
async fn failed(way: &Way, recording: &Recording) -> anyhow::Result<DeliveryError> {
    let sent = way.send("/in", recording).await;
    sent.err().with_context(|| format!("{}: stored", way.scheme))
}

/// What is told of a failure that may pass.
async fn told(way: &Way, folder: &str, recording: &Recording) -> anyhow::Result<String> {
    let sent = store(&way.files, folder, NAME, recording).await;
    let error = sent.err().with_context(|| format!("{folder}: stored"))?;
    ensure!(error.fault() == Fault::Target, "{error}");
    let (told, debug) = (error.to_string(), format!("{error:?}"));
    for secret in [PASSWORD, LOGIN, "wr0ng", "re c@"] {
        ensure!(!told.contains(secret) && !debug.contains(secret), "{told}");
    }
    Ok(told)
}

/// What comes of a known_hosts file with these lines.
async fn trusting(way: &Way, hosts: &str, unknown: &str) -> anyhow::Result<Result<Stored, DeliveryError>> {
    let own = way.dir.join("other");
    std::fs::write(&own, hosts)?;
    let own = own.display().to_string();
    let files = files_here(&[("KNOWN_HOSTS_FILE", &own), ("UNKNOWN_HOSTS", unknown)]);
    Ok(store(&files, &way.server.url("sftp", "/in"), NAME, &Recording::of(10)).await)
}

fn second(recording: &Recording) -> String {
    format!(
        "/in/call_recording_a84b%40pc33-{}.mp3",
        &recording.audio.digests.sha256[..8]
    )
}

async fn a_file_server_gets_audio_whole_under_kazoos_name(_: Arc<Couchdb>) -> TestResult {
    for way in Way::all(&[]).await? {
        for (size, path, folder) in [(0, "/in", "/in"), (1, "/a%20b", "/a b"), (3_000_000, "/~", "/home/rec")] {
            let recording = Recording::of(size);
            let stored = way.send(path, &recording).await?;
            let file = format!("{folder}/{NAME}");
            ensure!(way.disk().names() == [file.clone()], "{:?}", way.disk().names());
            ensure!(way.disk().files()[&file] == recording.bytes, "{} {size}", way.scheme);
            ensure!(stored.has_its_name && !stored.was_there);
            let url = way.server.url(way.scheme, path);
            ensure!(
                stored.to.expose().as_str() == format!("{url}/{NAME}"),
                "{}",
                stored.to.expose()
            );
            ensure!(!stored.to.without_credentials().expose().as_str().contains("re%20c"));
            way.disk().clear();
        }
    }
    Ok(())
}

async fn a_repeat_sends_nothing_again(_: Arc<Couchdb>) -> TestResult {
    for way in Way::all(&[]).await? {
        let recording = Recording::of(100_000);
        way.send("/in", &recording).await?;
        let again = way.send("/in", &recording).await?;
        ensure!(again.was_there && again.has_its_name && way.disk().count("store") == 1);
        ensure!(way.disk().names() == [format!("/in/{NAME}")]);
    }
    Ok(())
}

async fn a_lost_answer_is_no_lost_file(_: Arc<Couchdb>) -> TestResult {
    for way in Way::all(&[]).await? {
        let recording = Recording::of(100_000);
        way.disk().make(Trouble::LostAnswer);
        let error = failed(&way, &recording).await?;
        ensure!(error.fault() == Fault::Target, "{error}");
        way.disk().make(Trouble::None);
        let stored = way.send("/in", &recording).await?;
        ensure!(stored.was_there && way.disk().count("store") == 1);
        ensure!(way.disk().files()[&format!("/in/{NAME}")] == recording.bytes);
    }
    Ok(())
}

async fn a_file_of_somebody_else_is_never_replaced(_: Arc<Couchdb>) -> TestResult {
    for way in Way::all(&[]).await? {
        let recording = Recording::of(1000);
        let mut alike = recording.bytes.clone();
        alike[500] ^= 1;
        // Of another size; of the same size.
        for other in [&b"notes"[..], &alike] {
            way.disk().put(&format!("/in/{NAME}"), other);
            for was_there in [false, true] {
                let stored = way.send("/in", &recording).await?;
                ensure!(!stored.has_its_name && stored.was_there == was_there, "{stored:?}");
                ensure!(way.disk().files()[&format!("/in/{NAME}")] == other);
                ensure!(way.disk().files()[&second(&recording)] == recording.bytes);
                ensure!(way.disk().names().len() == 2);
            }
            way.disk().clear();
        }
        // A user that may not read: what has the name may be another's.
        way.disk().put(&format!("/in/{NAME}"), &recording.bytes);
        way.disk().make(Trouble::NoRead);
        for was_there in [false, true] {
            let stored = way.send("/in", &recording).await?;
            ensure!(!stored.has_its_name && stored.was_there == was_there);
        }
        way.disk().make(Trouble::None);
        // Both names are taken.
        way.disk().put(&format!("/in/{NAME}"), b"notes");
        way.disk().put(&second(&recording), b"more");
        let error = failed(&way, &recording).await?;
        ensure!(
            error.to_string().contains("both names") && error.fault() == Fault::Target,
            "{error}"
        );
        ensure!(way.disk().files()[&second(&recording)] == b"more" && way.disk().names().len() == 2);
    }
    Ok(())
}

async fn another_worker_may_be_quicker(_: Arc<Couchdb>) -> TestResult {
    for way in Way::all(&[]).await? {
        let recording = Recording::of(1000);
        way.disk().make(Trouble::Raced);
        let stored = way.send("/in", &recording).await?;
        ensure!(stored.was_there && stored.has_its_name && way.disk().count("rename") == 0);
        ensure!(
            way.disk().names() == [format!("/in/{NAME}")],
            "{:?}",
            way.disk().names()
        );
    }
    Ok(())
}

async fn a_servers_reason_is_told_without_secrets(_: Arc<Couchdb>) -> TestResult {
    for way in Way::all(&[]).await? {
        let recording = Recording::of(1_000_000);
        let address = way.server.address;
        let login = told(
            &way,
            &format!("{}://re%20c%40example.com:wr0ng@{address}/in", way.scheme),
            &recording,
        )
        .await?;
        ensure!(login.contains("refuses the login"), "{login}");
        let folder = told(&way, &way.server.url(way.scheme, "/other"), &recording).await?;
        ensure!(
            folder.contains("refuses the folder: ") && folder.to_lowercase().contains("no such"),
            "{folder}"
        );
        way.disk().make(Trouble::Full(500_000));
        let full = told(&way, &way.server.url(way.scheme, "/in"), &recording).await?;
        let reason = if way.scheme == "sftp" {
            "Failure"
        } else {
            "552 No space left on device."
        };
        ensure!(full.contains("refuses the file: ") && full.contains(reason), "{full}");
        ensure!(way.disk().names().is_empty(), "{:?}", way.disk().names());
    }
    Ok(())
}

async fn a_broken_transfer_leaves_nothing_under_the_name(_: Arc<Couchdb>) -> TestResult {
    // The lost connection is noticed, and not only that nothing moves any more.
    for way in Way::all(&[("SILENCE_TIMEOUT_MS", "600000")]).await? {
        let recording = Recording::of(2_000_000);
        way.disk().make(Trouble::Cut(1_000_000));
        let error = failed(&way, &recording).await?;
        ensure!(
            error.to_string().contains("lost") && error.fault() == Fault::Target,
            "{error}"
        );
        let names = way.disk().names();
        ensure!(names.len() == 1 && names[0].ends_with(".part"), "{names:?}");
        // The same worker uses it again, and another worker has a name of its own.
        way.disk().make(Trouble::None);
        let stored = way.send("/in", &recording).await?;
        ensure!(!stored.was_there && way.disk().names() == [format!("/in/{NAME}")]);
        ensure!(way.disk().files()[&format!("/in/{NAME}")] == recording.bytes);
    }
    Ok(())
}

async fn a_file_server_that_lost_a_byte_has_no_recording(_: Arc<Couchdb>) -> TestResult {
    for way in Way::all(&[]).await? {
        let recording = Recording::of(1000);
        way.disk().make(Trouble::Short);
        let error = failed(&way, &recording).await?;
        ensure!(
            matches!(&error, DeliveryError::Corrupt(why) if why.contains("999 bytes of 1000")),
            "{error}"
        );
        ensure!(way.disk().names().is_empty(), "{:?}", way.disk().names());
    }
    Ok(())
}

async fn a_server_that_stands_still_is_given_up(_: Arc<Couchdb>) -> TestResult {
    for way in Way::all(&[("SILENCE_TIMEOUT_MS", "500")]).await? {
        let recording = Recording::of(20_000_000);
        way.disk().make(Trouble::Silent(1_000_000));
        let error = failed(&way, &recording).await?;
        ensure!(error.to_string().contains("nothing moved for 500ms"), "{error}");
        ensure!(error.fault() == Fault::Target);
    }
    Ok(())
}

async fn the_filter_is_asked_for_file_servers_too(_: Arc<Couchdb>) -> TestResult {
    for way in Way::all(&[]).await? {
        let recording = Recording::of(10);
        let port = way.server.address.port();
        for host in [
            "127.0.0.2",
            "0x7f.2",
            "2130706434",
            "[::ffff:127.0.0.2]",
            "169.254.169.254",
            "[::1]",
        ] {
            let folder = format!("{}://{LOGIN}@{host}:{port}/in", way.scheme);
            let error = store(&way.files, &folder, NAME, &recording)
                .await
                .err()
                .context("stored")?;
            ensure!(
                error.fault() == Fault::Recording && error.to_string().contains("not connected to"),
                "{error}"
            );
        }
        ensure!(way.disk().names().is_empty() && way.disk().count("store") == 0);
    }
    Ok(())
}

async fn a_server_with_another_key_or_certificate_gets_no_password(_: Arc<Couchdb>) -> TestResult {
    let recording = Recording::of(10);
    let way = Way::of("ftps", &[]).await?;
    // The host's own authorities have not issued the certificate.
    let sent = store(&files_here(&[]), &way.server.url("ftps", "/in"), NAME, &recording).await;
    let error = sent.err().context("stored")?;
    ensure!(
        error.to_string().contains("its certificate or its TLS is not good") && error.fault() == Fault::Target,
        "{error}"
    );
    // No TLS there at all: it is not done without.
    let plain = FileServer::ftp(Tls::None).await;
    let error = store(&way.files, &plain.url("ftps", "/in"), NAME, &recording)
        .await
        .err()
        .context("stored")?;
    ensure!(error.to_string().contains("refuses TLS"), "{error}");
    let way = Way::of("sftp", &[]).await?;
    for unknown in ["refuse", "accept"] {
        let line = known_hosts_line(way.server.address, &new_key());
        let error = trusting(&way, &line, unknown).await?.err().context("stored")?;
        ensure!(
            error
                .to_string()
                .contains("has another key for this host than ssh-ed25519 SHA256:"),
            "{error}"
        );
    }
    let error = trusting(&way, "", "refuse").await?.err().context("stored")?;
    ensure!(
        error
            .to_string()
            .contains("does not name this host, whose key is ssh-ed25519 SHA256:"),
        "{error}"
    );
    ensure!(error.fault() == Fault::Target && way.disk().count("store") == 0);
    trusting(&way, "", "accept").await??;
    ensure!(way.disk().count("store") == 1);
    Ok(())
}
