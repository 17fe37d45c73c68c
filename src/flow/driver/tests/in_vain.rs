//! Effects that change nothing.

use super::*;

/// Performs, and nothing comes of it.
#[derive(Default)]
struct InVain(std::sync::atomic::AtomicU32);

impl Effects for InVain {
    type Upload = ();

    async fn perform(&self, _: &Case, _: Effect, _: &mut Option<()>) -> Result<Input, Interrupted> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(Input::Due)
    }

    fn keep(&self, (): ()) {}

    fn panicked(&self, _: &Entry, why: &str) {
        panic!("{why}");
    }

    fn stepped(&self, _: &Entry, _: &Entry) {}

    fn receives_since(&self) -> Option<Moment> {
        None
    }
}

#[tokio::test(start_paused = true)]
async fn an_effect_that_changes_nothing_is_not_performed_again_without_a_pause() {
    let (in_vain, ledger) = (InVain::default(), Notes::default());
    let mailbox = InFlight::default().take(delivered().key).unwrap();
    let (policy, clock) = (policy(), Clock::fixed(order().asked_at.plus(Duration::from_secs(60))));
    let host = Host {
        policy: &policy,
        clock: &clock,
        stop: &CancellationToken::new(),
        lease: Duration::from_secs(300),
        linger: Duration::from_millis(50),
    };
    let driving = survive((&in_vain, &ledger, host), delivered(), Input::Due, mailbox);
    assert!(tokio::time::timeout(Duration::from_secs(60), driving).await.is_err());
    let performed = in_vain.0.load(Ordering::SeqCst);
    assert!((2..=61).contains(&performed), "{performed}");
}
