//! Actions whose URL leads to a file server, the whole way.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::places::{HERE, document, marked, record};
use crate::promises;
use crate::support::file_server::{FileServer, LOGIN, PASSWORD, Tls, Trouble};
use crate::support::{SOON, Services, TestResult, World};

promises![
    a_file_server_gets_the_audio_and_no_text_has_its_password,
    a_file_server_that_is_full_parks_the_recording_and_gets_it_after_a_retry,
];

async fn a_file_server_gets_the_audio_and_no_text_has_its_password(services: Arc<Services>) -> TestResult {
    for scheme in ["ftp", "sftp"] {
        let world = World::new(&services).await?;
        let server = match scheme {
            "ftp" => FileServer::ftp(Tls::None).await,
            _ => FileServer::ssh().await,
        };
        std::fs::create_dir_all(world.dir())?;
        let hosts = world.dir().join("known_hosts");
        std::fs::write(&hosts, &server.key)?;
        let hosts = hosts.display().to_string();
        let worker = world
            .worker_with(&[HERE, ("DESTINATION__KNOWN_HOSTS_FILE", &hosts)])
            .await?;
        let recording = record(&world, json!({"url": server.url(scheme, "/in")})).await?;
        let outcome = world.outcome(&recording.id).await?;
        ensure!(
            outcome["Outcome"] == "delivered" && outcome["Destination"] == "url",
            "{outcome:#} {}",
            worker.tail()
        );
        world.released(&recording).await?;
        world.state(&recording.call_id, "delivered", SOON).await?;
        let files: Vec<_> = server.disk.files().into_iter().collect();
        let [(path, audio)] = &files[..] else {
            anyhow::bail!("{:?}", server.disk.names())
        };
        ensure!(
            path.starts_with("/in/call_recording_") && audio.len() as u64 == recording.audio.len(),
            "{path}"
        );
        let document = document(&world, &recording.id).await?;
        let name = document["name"].as_str().context("name")?;
        let entry = &document["pvt_attachments"][name];
        let file = path.rsplit('/').next().unwrap_or_default();
        ensure!(
            entry["handler"] == json!({"kz_att_ftp": {"url": format!("{scheme}://{}/in/{file}", server.address)}}),
            "{document:#}"
        );
        ensure!(entry["length"] == recording.audio.len() && document["pvt_recording"]["state"] == "complete");
        // The ledger has the action's URL, which any worker may need, and the password nowhere else.
        let entry = world.entry(&recording.call_id).await?.context("no entry")?;
        let facts = entry["facts"].as_array().context("no facts")?;
        let uploaded: Vec<_> = facts.iter().filter(|fact| fact["fact"] == "uploaded").collect();
        ensure!(
            !uploaded.is_empty() && !json!(uploaded).to_string().contains(LOGIN),
            "{entry:#}"
        );
        let (_, story) = world.command(&["explain", &recording.id]).await?;
        ensure!(story.contains("audio delivered to"), "{story}");
        for text in [
            document.to_string(),
            outcome.to_string(),
            story,
            worker.log(),
            worker.metrics().await?,
        ] {
            ensure!(!text.contains(LOGIN) && !text.contains(PASSWORD), "{text}");
        }
        world.finish().await?;
    }
    Ok(())
}

async fn a_file_server_that_is_full_parks_the_recording_and_gets_it_after_a_retry(
    services: Arc<Services>,
) -> TestResult {
    let world = World::new(&services).await?;
    let server = FileServer::ftp(Tls::None).await;
    server.disk.make(Trouble::Full(100));
    let _worker = world.worker_with(&[HERE, ("FLOW__MAX_ATTEMPTS", "2")]).await?;
    let recording = record(&world, json!({"url": server.url("ftp", "/in")})).await?;
    let outcome = world.outcome(&recording.id).await?;
    ensure!(
        outcome["Outcome"] == "parked" && outcome["Cause"] == "unreachable",
        "{outcome:#}"
    );
    marked(&world, &recording.id).await?;
    let (_, story) = world.command(&["explain", &recording.id]).await?;
    ensure!(
        story.contains("refuses the file: 552 No space left on device."),
        "{story}"
    );
    ensure!(server.disk.names().is_empty(), "{:?}", server.disk.names());
    server.disk.make(Trouble::None);
    let (good, said) = world.command(&["retry", &recording.id]).await?;
    ensure!(good, "{said}");
    world.state(&recording.call_id, "delivered", SOON).await?;
    ensure!(server.disk.names().len() == 1);
    world.finish().await
}
