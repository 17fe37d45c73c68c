//! One simulated zone, started.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use lapin::BasicProperties;
use tokio::task::JoinHandle;

use super::{
    amqp::{Link, Out, QueueSpec, Received, Runner},
    call::Call,
    callflow, control, ecallmgr,
    options::{CallOptions, Faults, KazooOptions},
    record::{Entry, Role, Violation},
    state::{Recording, State, Upload},
    switch,
    tap::{self, Tap},
    wire::{Object, encode, hex, pid, uuid},
    world::World,
};

/// Five control listeners per ecallmgr node, as Kazoo has by default.
const CONTROL_QUEUES: usize = 5;

/// A callflow node, ecallmgrs and a switch, in one process. Stops when dropped.
pub struct Kazoo {
    world: Arc<World>,
    tasks: Vec<JoinHandle<()>>,
    /// Where the switch's queue is bound while it is served.
    switch_queue: String,
    own_folder: Option<PathBuf>,
}

impl Kazoo {
    /// Connects every role and returns when all of them consume.
    pub async fn start(options: KazooOptions) -> anyhow::Result<Self> {
        let (folder, own_folder) = folder(&options)?;
        let flow_queue = format!("callflow_route_{}", hex(32));
        let control_queues: Vec<Vec<String>> = options
            .ecallmgr_nodes
            .iter()
            .map(|node| {
                (0..CONTROL_QUEUES)
                    .map(|_| format!("{node}-{}-{}", pid(), hex(8)))
                    .collect()
            })
            .collect();
        let link = |name: &str| {
            Link::new(
                name.to_owned(),
                options.uri.clone(),
                options.declare_exchanges,
                options.queues,
                options.reconnect,
            )
        };
        let (flow_link, flow_runner) = link(&options.callflow_node);
        let (ecall_links, ecall_runners): (Vec<Link>, Vec<Runner>) =
            options.ecallmgr_nodes.iter().map(|node| link(node)).unzip();
        let (tap_link, tap_runner) = options.observe.then(|| link("kazoo-sim-observer")).unzip();
        let switch_queue = format!("{}-ecallmgr_fs_node", options.switch_node);
        let links = (flow_link, ecall_links, tap_link);
        let world = World::new(options, folder, flow_queue.clone(), control_queues.clone(), links);

        let mut tasks = vec![tokio::spawn(world.clone().ring())];
        let flow_spec = QueueSpec {
            binds: vec![("targeted", flow_queue.clone())],
            name: flow_queue.clone(),
            private: false,
            shared: true,
        };
        tasks.push(spawn(
            &world,
            flow_runner,
            vec![flow_spec],
            Role::Callflow,
            callflow::on_message,
        ));
        for (i, runner) in ecall_runners.into_iter().enumerate() {
            let specs = ecallmgr_queues(&world, i, &switch_queue);
            let switch_queue = switch_queue.clone();
            let on = move |world: &Arc<World>, message: &Received| {
                let queue: &str = &message.queue;
                if queue == switch_queue {
                    ecallmgr::on_switch_command(world, i, message);
                } else if world.control_queues[i].iter().any(|q| q == queue) {
                    control::on_message(world, message);
                } else {
                    ecallmgr::on_status_request(world, i, message);
                }
            };
            tasks.push(spawn(&world, runner, specs, Role::Ecallmgr, on));
        }
        if let Some(runner) = tap_runner {
            let spec = tap::queue(&world, format!("kazoo-sim-observer-{}", hex(8)));
            tasks.push(spawn(&world, runner, vec![spec], Role::Cluster, tap::on_message));
        }
        let kazoo = Self {
            world,
            tasks,
            switch_queue,
            own_folder,
        };
        if let Err(e) = kazoo.ready(Duration::from_secs(15)).await {
            // The timeline knows what the broker said.
            let why = kazoo.timeline().pop().map(|entry| entry.summary).unwrap_or_default();
            return Err(e.context(why));
        }
        Ok(kazoo)
    }

    /// Waits until every role has a session, as after a broker's restart.
    pub async fn ready(&self, patience: Duration) -> anyhow::Result<()> {
        self.world.callflow.ready(patience).await.context("callflow")?;
        for link in &self.world.ecallmgrs {
            link.ready(patience).await.context("ecallmgr")?;
        }
        if let Some(link) = &self.world.observer {
            link.ready(patience).await.context("observer")?;
        }
        Ok(())
    }

    /// Closes all connections and returns when they are closed; dropping does the same without waiting.
    pub async fn stop(self) {
        self.world.callflow.pause().await;
        for link in self.world.ecallmgrs.iter().chain(&self.world.observer) {
            link.pause().await;
        }
    }

    /// The callflow node loses its connection to the broker, and its queue with it; or comes back, with a queue of the same name.
    pub async fn serve_callflow(&self, on: bool) -> anyhow::Result<()> {
        let queue = &self.world.flow_queue;
        // The observer's own queue must not count as a route while callflow's queue is away.
        if on {
            self.world.callflow.resume().await?;
        }
        if let Some(observer) = &self.world.observer {
            let name = self.world.look(|s| s.observer_queue.clone());
            observer.bind(on, &name, "targeted", queue).await?;
        }
        if !on {
            self.world.callflow.pause().await;
        }
        Ok(())
    }

    pub fn new_call(&self, options: CallOptions) -> Call {
        Call::new(&self.world, options)
    }

    pub fn options(&self) -> &KazooOptions {
        &self.world.options
    }

    /// The switch's folder for recordings.
    pub fn folder(&self) -> &Path {
        &self.world.folder
    }

    /// Changes what is broken, at any time.
    pub fn faults<T>(&self, change: impl FnOnce(&mut Faults) -> T) -> T {
        self.world.with(|s| change(&mut s.faults))
    }

    /// Whether an ecallmgr serves commands to the switch; when not, `send_http` is unroutable.
    pub async fn serve_switch(&self, on: bool) -> anyhow::Result<()> {
        let key = format!("switch.command.{}", encode(&self.world.options.switch_node));
        for link in &self.world.ecallmgrs {
            link.bind(on, &self.switch_queue, "switch", &key).await?;
        }
        Ok(())
    }

    /// An ecallmgr node dies: its queues go, and its calls' control processes with them.
    pub async fn stop_ecallmgr(&self, i: usize) -> anyhow::Result<()> {
        self.observe_control(false, i).await?;
        self.world.ecallmgrs[i].pause().await;
        self.world.with(|s| {
            let now = std::time::Instant::now();
            let lost = s.calls.values_mut().filter(|c| c.control.ecallmgr == i);
            lost.for_each(|c| c.control.dead_from = Some(now));
        });
        self.world.note(
            Role::Ecallmgr,
            None,
            format!("{} is gone", self.world.options.ecallmgr_nodes[i]),
        );
        Ok(())
    }

    /// It comes back; the control processes of old calls do not.
    pub async fn start_ecallmgr(&self, i: usize) -> anyhow::Result<()> {
        self.world.ecallmgrs[i].resume().await?;
        self.observe_control(true, i).await
    }

    async fn observe_control(&self, on: bool, i: usize) -> anyhow::Result<()> {
        let Some(observer) = &self.world.observer else {
            return Ok(());
        };
        let name = self.world.look(|s| s.observer_queue.clone());
        for queue in &self.world.control_queues[i] {
            observer.bind(on, &name, "callctl", queue).await?;
        }
        Ok(())
    }

    /// Publishes anything as some other node of the cluster would: a notice about a configuration document, say.
    pub fn publish(&self, exchange: &'static str, key: &str, body: Object) {
        self.world
            .publish(Role::Cluster, &self.world.callflow, exchange, key, body);
    }

    /// Publishes what no node of a cluster would.
    pub fn publish_raw(&self, exchange: &'static str, key: &str, body: Vec<u8>, properties: BasicProperties) {
        self.world.note(
            Role::Cluster,
            None,
            format!("{} raw bytes to {exchange} {key}", body.len()),
        );
        self.world.callflow.send(Out {
            exchange,
            key: key.to_owned(),
            body,
            properties,
        });
    }

    /// The switch ends what it records of a call, as at the end of a bridge; the call goes on.
    pub async fn end_recordings(&self, call: &Call) {
        let running = self.world.with(|s| {
            let legs = s.legs.values_mut().filter(|l| l.call == call.key);
            legs.for_each(|l| l.bridges += 1);
            let running = s.recordings_of(call.key).filter(|r| !r.ended());
            running.map(|r| r.path.clone()).collect::<Vec<_>>()
        });
        for path in running {
            switch::finish(&self.world, &path, "success-silence", None).await;
        }
    }

    /// SIGKILL of the switch: no event, and of files what had been written; uploads break. Nothing reaches it until it is started.
    pub async fn kill_switch(&self) -> anyhow::Result<()> {
        self.serve_switch(false).await?;
        switch::die(&self.world);
        Ok(())
    }

    /// The switch shuts down in good order: recordings end, files are whole, calls are hung up.
    pub async fn shut_switch_down(&self) -> anyhow::Result<()> {
        let legs: Vec<String> = self.world.look(|s| {
            let legs = s.legs.values().filter(|l| l.alive);
            legs.map(|l| l.id.clone()).collect()
        });
        for leg in legs {
            switch::hangup(&self.world, &leg, "SYSTEM_SHUTDOWN").await;
        }
        self.kill_switch().await
    }

    /// The switch is there again, as another process: its `Core-UUID` is new.
    pub async fn start_switch(&self) -> anyhow::Result<()> {
        self.world.with(|s| s.core_uuid = uuid());
        self.serve_switch(true).await
    }

    pub fn tap(&self) -> Tap {
        Tap {
            world: self.world.clone(),
        }
    }

    pub fn recordings(&self) -> Vec<Recording> {
        self.world.look(|s| s.recordings().to_vec())
    }

    /// Every upload that the switch was asked for.
    pub fn uploads(&self) -> Vec<Upload> {
        self.world.look(|s| s.uploads().to_vec())
    }

    pub fn timeline(&self) -> Vec<Entry> {
        self.world.look(|s| s.timeline().cloned().collect())
    }

    pub fn violations(&self) -> Vec<Violation> {
        self.world.look(|s| s.violations().to_vec())
    }

    /// Takes the violations so far away, as a hostile test does that expected them.
    pub fn take_violations(&self) -> Vec<Violation> {
        self.world.with(|s| std::mem::take(&mut s.violations))
    }

    /// A rule that is not applied from now on.
    pub fn tolerate(&self, rule: &str) {
        self.world.with(|s| s.tolerated.push(rule.to_owned()));
    }

    /// Fails with all violations in its text, if there are any.
    pub fn check(&self) -> anyhow::Result<()> {
        let all = self.violations();
        let text: Vec<String> = all.iter().map(ToString::to_string).collect();
        anyhow::ensure!(
            all.is_empty(),
            "{} violation(s) of the contract:\n{}",
            all.len(),
            text.join("\n")
        );
        Ok(())
    }

    /// Waits for anything: `see` is asked again at every change of the simulated cluster.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        patience: Duration,
        see: impl Fn(&State) -> Option<T>,
    ) -> anyhow::Result<T> {
        self.world.wait_for(what, patience, see).await
    }

    /// Waits until the running upload number `n` (counted from 0 over all) has sent so many bytes.
    pub async fn wait_upload(&self, n: usize, sent: u64, patience: Duration) -> anyhow::Result<()> {
        self.wait_for("an upload's progress", patience, |s| {
            s.uploads().get(n).filter(|u| u.sent >= sent && u.total > 0).map(drop)
        })
        .await
    }
}

impl Drop for Kazoo {
    fn drop(&mut self) {
        if let Some(path) = std::env::var_os("KAZOO_SIM_TIMELINE") {
            let lines: String = self
                .timeline()
                .iter()
                .map(|e| {
                    let (at, who) = (e.at.elapsed(), e.call_id.as_deref().unwrap_or_default());
                    format!(
                        "{at:>12.3?} {} {:?} {} {who} {}\n",
                        e.role, e.direction, e.name, e.summary
                    )
                })
                .collect();
            let _ = std::fs::write(path, lines);
        }
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Some(folder) = &self.own_folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

fn folder(options: &KazooOptions) -> anyhow::Result<(PathBuf, Option<PathBuf>)> {
    let (folder, own) = match &options.recordings {
        Some(folder) => (folder.clone(), None),
        None => {
            let folder = std::env::temp_dir().join(format!("kazoo-sim-{}", hex(12)));
            (folder.clone(), Some(folder))
        }
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("the recordings' folder {}", folder.display()))?;
    Ok((folder, own))
}

fn ecallmgr_queues(world: &World, i: usize, switch_queue: &str) -> Vec<QueueSpec> {
    let node = &world.options.ecallmgr_nodes[i];
    let mut specs: Vec<QueueSpec> = world.control_queues[i]
        .iter()
        .map(|queue| QueueSpec {
            name: queue.clone(),
            private: false,
            shared: false,
            binds: vec![("callctl", queue.clone()), ("targeted", queue.clone())],
        })
        .collect();
    specs.push(QueueSpec {
        name: format!("{node}-{}-{}", pid(), hex(8)),
        private: false,
        shared: false,
        binds: vec![("callevt", "call.status_req.*".into())],
    });
    specs.push(QueueSpec {
        name: switch_queue.to_owned(),
        private: false,
        shared: true,
        binds: vec![(
            "switch",
            format!("switch.command.{}", encode(&world.options.switch_node)),
        )],
    });
    specs
}

fn spawn(
    world: &Arc<World>,
    runner: Runner,
    specs: Vec<QueueSpec>,
    role: Role,
    on: impl Fn(&Arc<World>, &Received) + Send + Sync + 'static,
) -> JoinHandle<()> {
    let (hears, notes) = (world.clone(), world.clone());
    if role == Role::Cluster {
        world.with(|s| s.observer_queue.clone_from(&specs[0].name));
    }
    let run = async move {
        let on = move |message: Received| on(&hears, &message);
        runner
            .run(specs, on, move |why| {
                notes.with(|s| s.broker_lost = true);
                notes.note(role, None, why);
            })
            .await;
    };
    tokio::spawn(run)
}
