//! Makes the plan's troubles happen, each for its time, and puts right again what it broke.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::cluster::Cluster;
use crate::plan::{StoreMood, Trouble, What};
use crate::simulator::sim::UploadFault;
use crate::support::object_store::{Does, SECRET};

/// Bytes a second of slow uploads.
const SLOW: u64 = 200_000;

/// A trouble that was.
#[derive(Debug, Clone, Copy)]
pub struct Struck {
    pub what: What,
    pub from: Instant,
    pub until: Instant,
    /// Of a change of the configuration: between these two it was surely made, and surely not taken back.
    pub set: Option<(Instant, Instant)>,
}

/// What happened when, for the oracle: it must know what the simulated world did.
#[derive(Default)]
pub struct Chronicle(Mutex<Vec<Struck>>);

impl Chronicle {
    pub fn all(&self) -> Vec<Struck> {
        self.0.lock().unwrap().clone()
    }
}

pub async fn strike(cluster: &Cluster, chronicle: &Chronicle, begin: Instant, trouble: &Trouble) -> anyhow::Result<()> {
    tokio::time::sleep_until((begin + trouble.at).into()).await;
    let (from, mut set) = (Instant::now(), None);
    let done = happen(cluster, trouble.what, trouble.length, &mut set).await;
    chronicle.0.lock().unwrap().push(Struck {
        what: trouble.what,
        from,
        until: Instant::now(),
        set,
    });
    done.with_context(|| format!("{trouble:?}"))
}

async fn happen(
    cluster: &Cluster,
    what: What,
    length: Duration,
    set: &mut Option<(Instant, Instant)>,
) -> anyhow::Result<()> {
    let wait = || tokio::time::sleep(length);
    let (kazoo, servers) = (&cluster.kazoo, &cluster.servers);
    match what {
        What::Kill(place) => {
            if let Some(mut worker) = cluster.workers[place].lock().await.take() {
                worker.kill().await?;
            }
            wait().await;
            cluster.start_worker(place).await?;
        }
        What::Renew(place) => {
            if let Some(mut worker) = cluster.workers[place].lock().await.take() {
                worker.terminate(Duration::from_secs(20)).await?;
            }
            cluster.start_worker(place).await?;
        }
        What::Upgrade(place) => {
            if let Some(mut worker) = cluster.workers[place].lock().await.take() {
                worker.terminate(Duration::from_secs(20)).await?;
            }
            cluster.upgrade_worker(place).await?;
        }
        What::Freeze(place) => {
            let worker = cluster.workers[place].lock().await;
            let Some(worker) = worker.as_ref() else { return Ok(()) };
            worker.freeze()?;
            wait().await;
            worker.thaw()?;
        }
        What::LoseSpool(place) => {
            if let Some(worker) = cluster.workers[place].lock().await.as_ref() {
                // One that was started just now has none yet.
                let _ = worker.lose_spool();
            }
        }
        What::RestartBroker { killed } => {
            servers.restart_broker(killed, length).await?;
            kazoo.ready(Duration::from_secs(30)).await?;
        }
        What::CutBroker => {
            servers.cut_broker(true);
            wait().await;
            servers.cut_broker(false);
        }
        What::StopDatabase { killed } => servers.stop_database(killed, length).await?,
        What::Database(cut) => {
            servers.cut_database(Some(cut));
            wait().await;
            servers.cut_database(None);
        }
        What::OddDatabase(odd) => {
            servers.odd_database(Some(odd)).await?;
            wait().await;
            servers.odd_database(None).await?;
        }
        What::OddThirdParty(odd) => {
            servers.odd_third_party(Some(odd)).await?;
            wait().await;
            servers.odd_third_party(None).await?;
        }
        What::ThirdParty(cut) => {
            servers.cut_third_party(Some(cut));
            wait().await;
            servers.cut_third_party(None);
        }
        What::UseThirdParty => {
            configure(cluster, true).await;
            let since = Instant::now();
            wait().await;
            *set = Some((since, Instant::now()));
            configure(cluster, false).await;
        }
        What::Server(n, mood) => {
            cluster.targets[n].set(Some(mood));
            wait().await;
            cluster.targets[n].set(None);
        }
        What::StoreProxy(mood) => {
            cluster.store_proxy.set(Some(mood));
            wait().await;
            cluster.store_proxy.set(None);
        }
        What::ObjectStore(mood) => {
            cluster.objects.always(Some(does(mood)));
            wait().await;
            cluster.objects.always(None);
        }
        What::WrongPlan => {
            set_plan(cluster, "a wrong secret").await;
            wait().await;
            set_plan(cluster, SECRET).await;
        }
        What::Endpoint(mood) => {
            cluster.endpoint.set(Some(mood));
            wait().await;
            cluster.endpoint.set(None);
        }
        What::NoEcallmgr => {
            // The broker may be away: then nobody serves the switch anyway.
            let _ = kazoo.serve_switch(false).await;
            wait().await;
            serve_again(cluster).await;
        }
        What::Uploads(count) => kazoo.faults(|faults| faults.uploads.extend((0..count).map(broken))),
        What::SlowUploads => {
            kazoo.faults(|faults| faults.bandwidth = Some(SLOW));
            wait().await;
            kazoo.faults(|faults| faults.bandwidth = None);
        }
        What::LoseReplies(count) => kazoo.faults(|faults| faults.lose_send_http_replies += count),
        What::TwoZones => {
            kazoo.faults(|faults| (faults.send_http_twice, faults.everybody_publishes) = (true, true));
            wait().await;
            kazoo.faults(|faults| (faults.send_http_twice, faults.everybody_publishes) = (false, false));
        }
        What::IgnoreStarts(count) => kazoo.faults(|faults| faults.ignore_starts += count),
        What::Refuse(count) => kazoo.faults(|faults| {
            faults
                .dialplan_errors
                .extend((0..count).map(|_| "something is wrong".to_owned()));
        }),
    }
    Ok(())
}

fn does(mood: StoreMood) -> Does {
    match mood {
        StoreMood::Refuses(status, code) => Does::Refuses(status, code),
        StoreMood::RefusesEarly(status, code) => Does::RefusesEarly(status, code),
        StoreMood::ClosesAt(bytes) => Does::ClosesAt(bytes),
        StoreMood::LosesAnswer => Does::LosesAnswer,
        StoreMood::StoresLess => Does::StoresLess,
        StoreMood::Silent => Does::Silent,
    }
}

async fn set_plan(cluster: &Cluster, secret: &str) {
    while cluster.set_secret(secret).await.is_err() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn broken(n: u32) -> UploadFault {
    match n % 4 {
        0 => UploadFault::CutAfter(10_000),
        1 => UploadFault::StallAfter(20_000, Duration::from_secs(2)),
        2 => UploadFault::PromiseMore(1_000),
        _ => UploadFault::CutAfter(0),
    }
}

/// An operator goes on trying while the database is away.
async fn configure(cluster: &Cluster, third_party: bool) {
    while cluster.use_third_party(third_party).await.is_err() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn serve_again(cluster: &Cluster) {
    while cluster.kazoo.serve_switch(true).await.is_err() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
