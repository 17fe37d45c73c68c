//! Traces. The W3C context (`traceparent`, `tracestate`) of an action's message stays attached to its handling. Each message published
//! meanwhile contains it, and each log line has its id. With the feature `otlp` and a collector, our own spans join the trace.
//!
//! No function depends on traces. The later stages of a recording find the context in the order that the ledger stores.

use std::future::Future;

use tracing::{Instrument as _, Span, error_span};

#[cfg(feature = "otlp")]
/// Target of exported spans. All other spans only add `trace_id` to the log.
pub(super) const EXPORTED: &str = "kz_record_call::span";

/// Longest `tracestate` that is passed on, in bytes. The standard requires at least this much.
const MAX_STATE: usize = 512;

/// The context of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    parent: String,
    state: Option<String>,
}

/// A stage in the life of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// An action is handled. This stage and the next three are exported.
    Action,
    /// A command is published to a call.
    Command,
    /// A switch is asked for its file, and uploads it.
    Collect,
    /// Audio is sent to its destination.
    Delivery,
    /// A recording is processed. This stage exists only in the log.
    Recording,
}

tokio::task_local! {
    static CURRENT: Trace;
}

impl Trace {
    /// Reads the two headers. An invalid `traceparent` counts as missing. An invalid `tracestate` is dropped.
    pub fn read(parent: &str, state: Option<&str>) -> Option<Self> {
        let parent = parent.trim();
        let fits =
            |text: &str| !text.is_empty() && text.len() <= MAX_STATE && text.bytes().all(|b| (0x20..0x7f).contains(&b));
        is_parent(parent).then(|| Self {
            parent: parent.to_owned(),
            state: state.map(str::trim).filter(|state| fits(state)).map(str::to_owned),
        })
    }

    /// 32 hex digits.
    pub fn id(&self) -> &str {
        &self.parent[3..35]
    }

    /// `traceparent`.
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// `tracestate`.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }
}

/// Version, trace, parent and flags in the standard's form. A later version may append more parts.
fn is_parent(text: &str) -> bool {
    let mut parts = text.splitn(5, '-');
    let mut hex = |length: usize| {
        let digits = |part: &&str| {
            part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        parts.next().filter(digits)
    };
    let zero = |part: &str| part.bytes().all(|b| b == b'0');
    let (Some(version), Some(trace), Some(span), Some(_flags)) = (hex(2), hex(32), hex(16), hex(2)) else {
        return false;
    };
    let more = parts.next();
    version != "ff" && !zero(trace) && !zero(span) && (version != "00" || more.is_none()) && text.len() <= MAX_STATE
}

/// The context of the present task.
pub fn current() -> Option<Trace> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Does `work` as a stage of `trace`. Without a trace and without a collector, only the work is done.
pub async fn within<F: Future>(stage: Stage, trace: Option<Trace>, work: F) -> F::Output {
    match open(stage, trace) {
        Some((span, trace)) => CURRENT.scope(trace, work.instrument(span)).await,
        None => work.await,
    }
}

/// Wraps `work` for a task of its own, with the context of the task that calls this function.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let (trace, span) = (current(), Span::current());
    async move {
        match trace {
            Some(trace) => CURRENT.scope(trace, work.instrument(span)).await,
            None => work.await,
        }
    }
}

fn open(stage: Stage, trace: Option<Trace>) -> Option<(Span, Trace)> {
    #[cfg(feature = "otlp")]
    if super::otlp::is_active() && stage != Stage::Recording {
        return super::otlp::open(stage, trace.as_ref());
    }
    let trace = trace?;
    // An outer span of the same trace has the id in its log lines already.
    if current().is_some_and(|outer| outer.id() == trace.id()) {
        return None;
    }
    Some((log_span(stage, trace.id()), trace))
}

/// The span has the highest level, so that each logged line contains it under any filter. In JSON:
/// `"span":{"name":"action","trace_id":"…"}`.
fn log_span(stage: Stage, trace_id: &str) -> Span {
    match stage {
        Stage::Action => error_span!("action", trace_id),
        Stage::Command => error_span!("command", trace_id),
        Stage::Collect => error_span!("collect", trace_id),
        Stage::Delivery => error_span!("delivery", trace_id),
        Stage::Recording => error_span!("recording", trace_id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_is_read_and_what_is_none_is_as_good_as_absent() {
        let trace = Trace::read(PARENT, Some(" vendor=1 ")).unwrap();
        assert_eq!(trace.id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((trace.parent(), trace.state()), (PARENT, Some("vendor=1")));
        let later = format!("cc{}-what-the-future-brings", &PARENT[2..]);
        assert!(Trace::read(&later, None).is_some());
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e47361-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ä0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Trace::read(bad, None), None, "{bad}");
        }
        for bad in ["", "a\nb", "ü"] {
            assert_eq!(Trace::read(PARENT, Some(bad)).unwrap().state(), None, "{bad}");
        }
        assert_eq!(Trace::read(PARENT, Some(&"x".repeat(513))).unwrap().state(), None);
    }

    #[tokio::test]
    async fn what_is_done_within_a_trace_knows_it_and_what_goes_on_elsewhere_too() {
        let trace = Trace::read(PARENT, None);
        assert_eq!(current(), None);
        let seen = within(Stage::Action, trace.clone(), async {
            let elsewhere = tokio::spawn(carried(async { current() })).await.unwrap();
            let inner = within(Stage::Command, current(), async { current() }).await;
            (elsewhere, inner, tokio::spawn(async { current() }).await.unwrap())
        });
        assert_eq!(seen.await, (trace.clone(), trace, None));
        assert_eq!(within(Stage::Action, None, async { current() }).await, None);
        assert_eq!(current(), None);
    }
}
