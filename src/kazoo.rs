//! Kazoo's wire forms: what crosses RabbitMQ, typed and pure.
//!
//! Nothing here does I/O, reads a clock or draws a random number. Every form is read leniently (Kazoo's validators look
//! at presence, not content) and written strictly (a listener of Kazoo's crashes on a missing header, so nothing is sent
//! that its validator would refuse). Each file names the Kazoo module that defines its form.

pub mod action;
pub mod address;
pub mod alert;
pub mod call;
pub mod change;
pub mod channel;
pub mod dialplan;
pub mod envelope;
pub mod event;
pub mod json;
pub mod leg;
pub mod names;
pub mod outgoing;
pub mod routing_key;
pub mod switch;
pub mod term;
pub mod time;
