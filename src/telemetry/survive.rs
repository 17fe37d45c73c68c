//! Wrappers for spawned tasks. A panic is caught, logged and counted. A task that must run for ever is started again.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::events::TaskPanicked;

/// Delay before such a task is started again.
const AGAIN: Duration = Duration::from_secs(1);

/// Does work in the background. `None` when it panicked.
pub async fn survive<T>(name: &'static str, work: impl Future<Output = T>) -> Option<T> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(done) => Some(done),
        Err(panic) => {
            TaskPanicked {
                task: "background",
                name,
                call_id: "",
                media_id: "",
                why: words(&*panic),
            }
            .emit();
            None
        }
    }
}

/// Does work that ends only with the program, and starts it again after a panic.
pub async fn survive_for_ever<F: Future<Output = ()>>(name: &'static str, mut work: impl FnMut() -> F) {
    while survive(name, work()).await.is_none() {
        tokio::time::sleep(AGAIN).await;
    }
}

/// The message of a panic, as a text for the log.
pub fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("of something that is no text");
    let end = text.char_indices().nth(512).map(|(end, _)| end);
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn what_a_task_died_of_is_told_in_words() {
        let died = |panic: fn()| std::panic::catch_unwind(panic).unwrap_err();
        assert_eq!(words(&*died(|| panic!("plain"))), "plain");
        assert_eq!(
            words(&*died(|| panic!("number {}", std::hint::black_box(7)))),
            "number 7"
        );
        assert_eq!(
            words(&*died(|| std::panic::panic_any(7))),
            "of something that is no text"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_runs_for_ever_begins_anew_when_it_panicked() {
        static TURNS: AtomicU32 = AtomicU32::new(0);
        survive_for_ever("turning", || async {
            assert!(TURNS.fetch_add(1, Ordering::SeqCst) >= 2, "not yet");
        })
        .await;
        assert_eq!(TURNS.load(Ordering::SeqCst), 3);
        assert_eq!(survive("done", async { 7 }).await, Some(7));
    }
}
