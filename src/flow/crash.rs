//! Crash points: steps at which tests kill the worker, or let it panic. Only the feature `faults` has them, which the package turns on for its
//! own tests. In every other build a step does what it does, and nothing else.

#[cfg(feature = "faults")]
pub use points::step;

/// Does one step.
#[cfg(not(feature = "faults"))]
pub fn step<S: Future>(step: S) -> S {
    step
}

#[cfg(feature = "faults")]
mod points {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// `before:<n>` or `after:<n>`: the process kills itself there, counted over all its steps. `panic:<n>`: that step panics.
    const VARIABLE: &str = "KZ_RECORD_CALL_TEST_CRASH";

    /// Where the process kills itself, if it does.
    #[derive(Debug)]
    struct Crash {
        at: Option<(Side, u32)>,
        begun: AtomicU32,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Side {
        Before,
        After,
        Panic,
    }

    static CRASH: LazyLock<Crash> = LazyLock::new(|| Crash {
        at: std::env::var(VARIABLE).ok().as_deref().and_then(parse),
        begun: AtomicU32::new(0),
    });

    /// Does one step.
    pub async fn step<T>(step: impl Future<Output = T>) -> T {
        let n = CRASH.begun.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        CRASH.die_at(Side::Before, n);
        if CRASH.at == Some((Side::Panic, n)) {
            #[expect(
                clippy::panic,
                reason = "a test asked for it, and only a build for tests has this step"
            )]
            std::panic::panic_any("as a test wants it");
        }
        let done = step.await;
        CRASH.die_at(Side::After, n);
        done
    }

    impl Crash {
        fn die_at(&self, side: Side, n: u32) {
            if self.at == Some((side, n)) {
                // As SIGKILL would: nothing is finished, nothing is returned to a queue.
                std::process::abort();
            }
        }
    }

    fn parse(text: &str) -> Option<(Side, u32)> {
        let (side, n) = text.split_once(':')?;
        let side = match side {
            "before" => Side::Before,
            "after" => Side::After,
            "panic" => Side::Panic,
            _ => return None,
        };
        Some((side, n.parse().ok()?))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_crash_has_a_side_and_a_number() {
            assert_eq!(parse("before:3"), Some((Side::Before, 3)));
            assert_eq!(parse("after:12"), Some((Side::After, 12)));
            assert_eq!(parse("panic:2"), Some((Side::Panic, 2)));
            for wrong in ["", "before", "after:", "during:1", "before:-1"] {
                assert_eq!(parse(wrong), None, "{wrong}");
            }
        }
    }
}
