//! What this worker remembers. Nothing is promised that depends on it alone: it is limited, and another worker's memory differs.

pub mod alerts;
mod bounded;
pub mod call_ids;
pub mod open;
pub mod open_recordings;
pub mod peers;
pub mod rate_limit;

pub use alerts::Alerts;
pub use call_ids::CallIds;
pub use open::Open;
pub use open_recordings::OpenRecordings;
pub use peers::Peers;
pub use rate_limit::{Pass, RateLimit};
