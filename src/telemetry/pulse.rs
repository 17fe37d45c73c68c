//! Liveness of the essential tasks. Each task sends a heartbeat for as long as it is polled. A task is silent when it blocks its thread,
//! has panicked, or is no longer polled.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

/// Interval between two heartbeats.
const BEAT: Duration = Duration::from_millis(500);

/// The heartbeats of all tasks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pulses {
    begun: Instant,
    all: Arc<Mutex<Vec<Arc<Pulse>>>>,
}

#[derive(Debug)]
struct Pulse {
    name: &'static str,
    /// Milliseconds since `begun`.
    last: AtomicU64,
    /// The task has ended regularly.
    over: AtomicBool,
}

impl Default for Pulses {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            all: Arc::default(),
        }
    }
}

impl Pulses {
    /// Wraps `work` with a heartbeat. The heartbeat counts from this call on.
    pub fn beat<F: Future>(&self, name: &'static str, work: F) -> impl Future<Output = F::Output> + use<F> {
        let pulse = Arc::new(Pulse {
            name,
            last: AtomicU64::new(self.now()),
            over: AtomicBool::new(false),
        });
        self.lock().push(Arc::clone(&pulse));
        let pulses = self.clone();
        async move {
            let mut work = std::pin::pin!(work);
            let mut beat = tokio::time::interval(BEAT);
            beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    done = &mut work => {
                        pulse.over.store(true, Ordering::Relaxed);
                        return done;
                    }
                    _ = beat.tick() => pulse.last.store(pulses.now(), Ordering::Relaxed),
                }
            }
        }
    }

    /// The task that has been silent for longest, and for how long, if that exceeds `limit`.
    pub fn silent(&self, limit: Duration) -> Option<(&'static str, Duration)> {
        let now = self.now();
        let all = self.lock();
        let silence = |pulse: &&Arc<Pulse>| now.saturating_sub(pulse.last.load(Ordering::Relaxed));
        let living = all.iter().filter(|pulse| !pulse.over.load(Ordering::Relaxed));
        let longest = living.max_by_key(silence)?;
        let silent = Duration::from_millis(silence(&longest));
        (silent > limit).then_some((longest.name, silent))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Pulse>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn a_task_that_waits_is_not_silent_and_one_that_is_over_is_not_missed() {
        let pulses = Pulses::default();
        let work = tokio::spawn(pulses.beat("waiting", tokio::time::sleep(Duration::from_secs(60))));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(pulses.silent(LIMIT), None);
        work.await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(pulses.silent(LIMIT), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panicked_and_one_that_nobody_polls_are_missed() {
        let pulses = Pulses::default();
        let unpolled = pulses.beat("unpolled", async {});
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(pulses.silent(LIMIT), None);
        let dies = async { panic!("of what it found") };
        assert!(tokio::spawn(pulses.beat("dead", dies)).await.is_err());
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(pulses.silent(LIMIT).unwrap().0, "unpolled");
        unpolled.await;
        assert_eq!(pulses.silent(LIMIT).unwrap().0, "dead");
    }

    #[test]
    fn a_task_that_blocks_its_thread_is_missed() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let pulses = Pulses::default();
        let task = runtime.spawn(pulses.beat("blocking", async move {
            tokio::task::yield_now().await;
            let _ = blocked.recv();
        }));
        // Waits outside the runtime, because the runtime's clock may depend on the blocked thread.
        while pulses.silent(Duration::from_millis(900)).is_none() {
            std::thread::park_timeout(Duration::from_millis(10));
        }
        assert_eq!(pulses.silent(Duration::from_millis(900)).unwrap().0, "blocking");
        release.send(()).unwrap();
        runtime.block_on(task).unwrap();
    }
}
