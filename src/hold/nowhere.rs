//! A worker without a hold (`hold.kind = "none"`). Audio waits on its switch.

use futures_util::future::{BoxFuture, ready};

use crate::couch::ByteStream;
use crate::entry::fact::Holding;
use crate::kazoo::time::Moment;

use super::{HoldError, Item, Mark, Page, Store};

/// Stores nothing, and touches nothing.
pub struct Nowhere;

impl Store for Nowhere {
    fn is_there(&self) -> bool {
        false
    }

    fn put<'a>(&'a self, _: &'a Item<'a>) -> BoxFuture<'a, Result<Holding, HoldError>> {
        Box::pin(ready(Err(HoldError::None)))
    }

    fn open<'a>(&'a self, _: &'a Holding) -> BoxFuture<'a, Result<ByteStream, HoldError>> {
        Box::pin(ready(Err(HoldError::None)))
    }

    fn remove<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), HoldError>> {
        Box::pin(ready(Ok(())))
    }

    fn older(&self, _: Moment, _: Option<Mark>) -> BoxFuture<'_, Result<Page, HoldError>> {
        Box::pin(ready(Ok(Page::default())))
    }

    fn prepare(&self, _: Moment, _: Moment) -> BoxFuture<'_, Result<(), HoldError>> {
        Box::pin(ready(Ok(())))
    }

    fn tidy(&self, _: Moment) -> BoxFuture<'_, Result<(), HoldError>> {
        Box::pin(ready(Ok(())))
    }

    fn bytes(&self) -> BoxFuture<'_, Result<u64, HoldError>> {
        Box::pin(ready(Ok(0)))
    }
}
