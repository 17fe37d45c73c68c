//! The literals of Kazoo's topology: exchanges, categories, event names. Each has one name here.

use std::fmt;

/// The recorder name of our recordings. It must not be `kz_media_recording`, because media_mgr stores those recordings itself
/// (`media_recording:handle_record_stop`).
pub const RECORDER: &str = "kz_record_call";

/// The recorder name of the recordings that Kazoo's own recorder stores (`media_recording`, in media_mgr).
pub const KAZOO_RECORDER: &str = "kz_media_recording";

/// The queue of Kazoo's own recorder. It exists only while media_mgr consumes it, because it is auto-deleted (`media_recording`).
pub const KAZOO_RECORDER_QUEUE: &str = "recordings";

/// The queue of Kazoo 4's recorder of endpoints, consumed by each node that runs endpoints (`kz_endpoint_recording`). Kazoo 4 has no queue
/// `recordings`.
pub const KAZOO_4_RECORDER_QUEUE: &str = "endpoint_recordings";

/// `App-Name` of each message that we publish.
pub const APP_NAME: &str = "kz_record_call";

/// `App-Version`. Kazoo checks only its presence (`kz_api:validate`).
pub const APP_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The only content type that Kazoo's listeners accept (`gen_listener:decode`). A parameter such as a charset crashes them.
pub const CONTENT_TYPE: &str = "application/json";

/// The AMQP header that holds an Erlang pid, for the process behind a shared queue (`kz_amqp_util:basic_publish`).
pub const DELIVER_TO_PID: &str = "Deliver-To-PID";

/// The AMQP headers of W3C's trace context. Kazoo's listeners look only for `Deliver-To-PID` among a message's headers
/// (`gen_listener:distribute_event`).
pub const TRACE_PARENT: &str = "traceparent";
pub const TRACE_STATE: &str = "tracestate";

/// Routing key of the action that we run (`kapi_callflow:action_routing_key`). Kazoo does not encode the action's name in it.
pub const ACTION_KEY: &str = "callflow.action.record_call";

/// Kazoo's exchanges that we use. They are declared as Kazoo declares them: not durable, not auto-deleted, no arguments
/// (`kz_amqp_util:new_exchange`). With any other arguments the broker closes the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exchange {
    Kapps,
    Targeted,
    Callctl,
    Callevt,
    Switch,
    Configuration,
    Notifications,
    /// Our own exchange, durable and durably bound to the actions' queue. An operator's policy can make it the alternate exchange of
    /// `kapps`. An action that arrives after a broker restart, before any worker has bound its queue again, is then queued all the same.
    Unrouted,
}

/// An exchange's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeKind {
    Topic,
    Direct,
}

impl Exchange {
    pub const ALL: [Self; 8] = [
        Self::Kapps,
        Self::Targeted,
        Self::Callctl,
        Self::Callevt,
        Self::Switch,
        Self::Configuration,
        Self::Notifications,
        Self::Unrouted,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Kapps => "kapps",
            Self::Targeted => "targeted",
            Self::Callctl => "callctl",
            Self::Callevt => "callevt",
            Self::Switch => "switch",
            Self::Configuration => "configuration",
            Self::Notifications => "notifications",
            Self::Unrouted => "kz_record_call.unrouted",
        }
    }

    /// Kazoo's exchanges do not survive a broker restart. Ours does.
    pub const fn is_durable(self) -> bool {
        matches!(self, Self::Unrouted)
    }

    pub const fn kind(self) -> ExchangeKind {
        match self {
            Self::Targeted | Self::Callctl => ExchangeKind::Direct,
            _ => ExchangeKind::Topic,
        }
    }
}

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
