//! Notifies the service manager (systemd, `Type=notify`) that the worker is bound and consuming, what it is doing, and that it stops. As
//! long as the runtime and the supervisors run, this also feeds the watchdog. Without a service manager it does nothing.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

use crate::admin::Check;
use crate::admin::watch::Checks;
use crate::amqp::SessionState;
use crate::flow::in_flight::InFlight;
use crate::telemetry::{Pulses, survive};

/// A task may be silent for this long, however short the watchdog's period is: the machine may be busy.
const STILL: Duration = Duration::from_secs(2);

/// Added to the grace time: the connections close, and the last log lines are written.
const CLOSING: Duration = Duration::from_secs(10);

/// The service manager, if there is one. Cheap to clone.
#[derive(Clone, Default)]
pub struct Service(Option<Arc<Manager>>);

struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    failed: AtomicBool,
}

impl Service {
    /// The service manager that `NOTIFY_SOCKET` names.
    pub fn of_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
            return Self::default();
        };
        let name = name.to_string_lossy().into_owned();
        match Manager::connect(&name) {
            Ok(manager) => Self(Some(Arc::new(manager))),
            Err(error) => {
                warn!(event = "service_manager_unreachable", socket = name, %error, "service manager unreachable");
                Self::default()
            }
        }
    }

    /// Starts the notifications: readiness at the first session, then each change of the status, and the watchdog.
    pub fn start(
        &self,
        checks: Checks,
        sessions: watch::Receiver<SessionState>,
        in_flight: InFlight,
        pulses: Pulses,
        tasks: &TaskTracker,
        close: CancellationToken,
    ) {
        let Some(manager) = self.0.clone() else { return };
        if let Some(period) = watchdog() {
            // Until the process ends: the watchdog must also catch a drain that hangs.
            tokio::spawn(survive("watchdog", watch(Arc::clone(&manager), pulses, period)));
        }
        let telling = async move {
            tokio::select! {
                () = tell(&manager, checks, sessions, &in_flight) => {}
                () = close.cancelled() => {}
            }
        };
        tasks.spawn(survive("service", telling));
    }

    /// The worker stops, and takes up to `grace` for the recordings in flight.
    pub fn stopping(&self, grace: Duration) {
        if let Some(manager) = &self.0 {
            let limit = (grace + CLOSING).as_micros();
            let grace = grace.as_secs();
            manager.tell(&format!(
                "STOPPING=1\nSTATUS=draining: finishing what is in flight within {grace} s\nEXTEND_TIMEOUT_USEC={limit}"
            ));
        }
    }
}

impl Manager {
    fn connect(name: &str) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', rest @ ..] if !rest.is_empty() => SocketAddr::from_abstract_name(rest)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "neither a path nor an abstract name",
                ));
            }
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not block a thread.
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            address,
            failed: AtomicBool::new(false),
        })
    }

    fn tell(&self, state: &str) {
        debug!(event = "service_manager_state", state, "service manager notified");
        let sent = self.socket.send_to_addr(state.as_bytes(), &self.address);
        let failed = sent.is_err();
        if let Err(error) = sent
            && !self.failed.load(Ordering::Relaxed)
        {
            warn!(event = "service_manager_unreachable", %error, "service manager does not listen");
        }
        self.failed.store(failed, Ordering::Relaxed);
    }
}

async fn tell(
    manager: &Manager,
    mut checks: Checks,
    mut sessions: watch::Receiver<SessionState>,
    in_flight: &InFlight,
) {
    let (mut is_ready, mut told) = (false, String::new());
    loop {
        let consuming = sessions.borrow_and_update().consuming;
        let status = status(&checks.borrow_and_update(), consuming, in_flight.count());
        if consuming && !is_ready {
            is_ready = true;
            debug!(event = "service_manager_ready", "service manager notified of readiness");
            manager.tell(&format!("READY=1\nSTATUS={status}"));
        } else if status != told {
            manager.tell(&format!("STATUS={status}"));
        }
        told = status;
        let changed = tokio::select! {
            changed = checks.changed() => changed,
            changed = sessions.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// The status in one line, for people.
fn status(checks: &[Check], consuming: bool, in_hand: usize) -> String {
    let faults: Vec<String> = checks
        .iter()
        // The session state reports this sooner than the check does.
        .filter(|check| check.name != "consuming")
        .filter_map(|check| Some(format!("{}: {}", check.name, check.fault.as_ref()?)))
        .collect();
    let line = match (consuming, &faults[..]) {
        (true, []) => format!("at work, {in_hand} recordings in flight"),
        (true, faults) => format!("at work, {in_hand} recordings in flight; faults: {}", faults.join("; ")),
        (false, []) => "waiting for the broker: the queues are not bound and consumed".into(),
        (false, faults) => format!(
            "waiting for the broker: the queues are not bound and consumed; {}",
            faults.join("; ")
        ),
    };
    line.replace(['\n', '\r'], " ")
}

/// The watchdog period of the service manager; `None` without a watchdog.
fn watchdog() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.trim().parse::<u64>().ok();
    let mine = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC")
        .filter(|usec| mine && *usec > 0)
        .map(Duration::from_micros)
}

/// Feeds the watchdog twice in each period, as long as no task is silent. This task needs the runtime too, so a runtime that is stuck does
/// not feed it.
async fn watch(manager: Arc<Manager>, pulses: Pulses, period: Duration) {
    let every = period / 2;
    let mut told = false;
    loop {
        match pulses.silent(every.max(STILL)) {
            None => {
                told = false;
                manager.tell("WATCHDOG=1");
            }
            Some((task, silent)) if !told => {
                told = true;
                error!(
                    event = "watchdog_silent",
                    task,
                    silent_s = silent.as_secs(),
                    "task silent, watchdog not fed"
                );
            }
            Some(_) => {}
        }
        tokio::time::sleep(every).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_one_line_that_says_what_is_missing() {
        let check = |name, fault: Option<&str>| Check {
            name,
            fault: fault.map(str::to_owned),
        };
        let checks = [
            check("consuming", Some("the queues are not bound and consumed")),
            check("publishing", None),
            check("database", Some("no answer:\nrefused")),
        ];
        assert_eq!(status(&checks[1..2], true, 3), "at work, 3 recordings in flight");
        assert_eq!(
            status(&checks, true, 0),
            "at work, 0 recordings in flight; faults: database: no answer: refused"
        );
        assert_eq!(
            status(&checks, false, 0),
            "waiting for the broker: the queues are not bound and consumed; database: no answer: refused"
        );
        assert!(status(&[], false, 0).starts_with("waiting for the broker"));
    }

    #[test]
    fn paths_and_abstract_names_are_reached_and_other_names_are_refused() {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let path = std::env::temp_dir().join(format!("kz-record-call-notify-{unique}"));
        let by_path = UnixDatagram::bind(&path).unwrap();
        let abstract_name = SocketAddr::from_abstract_name(format!("kz-record-call-{unique}")).unwrap();
        let by_name = UnixDatagram::bind_addr(&abstract_name).unwrap();
        for (name, receiver) in [
            (path.display().to_string(), &by_path),
            (format!("@kz-record-call-{unique}"), &by_name),
        ] {
            Manager::connect(&name).unwrap().tell("WATCHDOG=1");
            let mut bytes = [0; 64];
            receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let length = receiver.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], b"WATCHDOG=1");
        }
        std::fs::remove_file(&path).unwrap();
        for name in ["", "@", "vsock:2:9999", "relative"] {
            assert!(Manager::connect(name).is_err(), "{name}");
        }
        // A socket that is gone is logged, and is no error.
        Manager::connect(&path.display().to_string()).unwrap().tell("READY=1");
    }
}
