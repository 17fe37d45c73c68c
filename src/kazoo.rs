//! Kazoo's messages on RabbitMQ, as types. Pure functions.
//!
//! This module does no I/O, reads no clock and draws no random number. It reads each message leniently, because Kazoo's validators check
//! presence and not content. It writes strictly: one of Kazoo's listeners crashes on a missing header, so no message is sent that its
//! validator would refuse. Each file names the Kazoo module that defines its messages.

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
