//! The literals of Kazoo's topology: exchanges, categories, event names. One thing, one name.

use std::fmt;

/// The recorder name that our recordings carry. Never `kz_media_recording`: media_mgr stores those itself
/// (`media_recording:handle_record_stop`).
pub const RECORDER: &str = "kz_record_call";

/// `App-Name` of everything that we publish.
pub const APP_NAME: &str = "kz_record_call";

/// `App-Version`; only its presence counts (`kz_api:validate`).
pub const APP_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The only content type that Kazoo's listeners take (`gen_listener:decode`); a parameter such as a charset kills them.
pub const CONTENT_TYPE: &str = "application/json";

/// The AMQP header that carries an Erlang pid to the process behind a shared queue (`kz_amqp_util:basic_publish`).
pub const DELIVER_TO_PID: &str = "Deliver-To-PID";

/// The AMQP headers of W3C's trace context. Kazoo's listeners look for `Deliver-To-PID` among a message's headers and leave the others alone
/// (`gen_listener:distribute_event`).
pub const TRACE_PARENT: &str = "traceparent";
pub const TRACE_STATE: &str = "tracestate";

/// Routing key of the action that we run (`kapi_callflow:action_routing_key`); the action's name is not encoded there.
pub const ACTION_KEY: &str = "callflow.action.record_call";

/// Kazoo's exchanges that we use. Declared as Kazoo does: not durable, not auto-deleted, no arguments
/// (`kz_amqp_util:new_exchange`); any other form makes the broker close the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exchange {
    Kapps,
    Targeted,
    Callctl,
    Callevt,
    Switch,
    Configuration,
    Notifications,
    /// Our own, durable and durably bound to the actions' queue: with a policy that makes it the alternate exchange of `kapps`, an action
    /// that comes before anybody has bound again after a broker restart is queued all the same.
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

    /// Kazoo's exchanges are gone with the broker; ours is not.
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
