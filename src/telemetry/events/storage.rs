//! Events of object stores that storage plans name. No event contains a value of a plan's settings but the bucket and the host.

use std::time::Duration;

use metrics::{counter, histogram};
use tracing::{error, info, warn};

/// One attempt to put audio into an object store ended.
pub struct StoragePut {
    pub handler: &'static str,
    /// `stored`, `found`, `failed` or `plan_refused`.
    pub result: &'static str,
    pub bytes: u64,
    pub took: Duration,
}

impl StoragePut {
    pub const HANDLERS: [&str; 2] = ["s3", "azure"];
    pub const RESULTS: [&str; 4] = ["stored", "found", "failed", "plan_refused"];

    pub fn emit(self) {
        counter!("kz_record_call_storage_puts_total", "handler" => self.handler, "result" => self.result).increment(1);
        if self.result == "stored" {
            histogram!("kz_record_call_storage_put_seconds", "handler" => self.handler).record(self.took);
            counter!("kz_record_call_storage_bytes_total", "handler" => self.handler).increment(self.bytes);
        }
    }
}

/// An object store refuses what a storage plan says. Only the plan's owner can mend that.
pub struct StoragePlanRefused<'a> {
    pub account_id: &'a str,
    pub handler_id: &'a str,
    pub host: &'a str,
    pub code: &'a str,
    pub status: Option<u16>,
    pub request_id: Option<&'a str>,
}

impl StoragePlanRefused<'_> {
    pub fn emit(self) {
        error!(
            event = "storage_plan_refused",
            account_id = self.account_id,
            handler_id = self.handler_id,
            host = self.host,
            code = self.code,
            status = self.status,
            request_id = self.request_id,
            "storage plan refused by the object store"
        );
    }
}

/// Kazoo's store proxy serves a handler, though the worker has drivers.
pub struct StoragePlanByProxy<'a> {
    pub handler_id: &'a str,
    pub kind: &'a str,
    pub why: &'a str,
}

impl StoragePlanByProxy<'_> {
    pub fn emit(self) {
        info!(
            event = "storage_plan_by_proxy",
            handler_id = self.handler_id,
            kind = self.kind,
            why = self.why,
            "storage plan served by the store proxy"
        );
    }
}

/// A bucket is in another region than its plan says.
pub struct StorageRegionCorrected<'a> {
    pub host: &'a str,
    pub bucket: &'a str,
    pub region: &'a str,
    /// Kazoo signs for this region as well.
    pub kazoo_reads: bool,
}

impl StorageRegionCorrected<'_> {
    pub fn emit(self) {
        warn!(
            event = "storage_region_corrected",
            host = self.host,
            bucket = self.bucket,
            region = self.region,
            kazoo_reads = self.kazoo_reads,
            "region of a bucket corrected"
        );
    }
}

/// Other content was under the name of a recording's object. It was replaced.
pub struct StorageOverwritten<'a> {
    pub host: &'a str,
}

impl StorageOverwritten<'_> {
    pub fn emit(self) {
        warn!(
            event = "storage_object_replaced",
            host = self.host,
            "other content under the name of an object replaced"
        );
    }
}

/// An object store took audio, and gives no digest that can be compared.
pub struct StorageUnproved<'a> {
    pub host: &'a str,
    /// What there is in place of the digest: `length`, or `answer` when nothing could be compared.
    pub proof: &'a str,
}

impl StorageUnproved<'_> {
    pub fn emit(self) {
        warn!(
            event = "storage_object_unproved",
            host = self.host,
            proof = self.proof,
            "object stored, and its digest unknown"
        );
        counter!("kz_record_call_storage_unproved_total").increment(1);
    }
}
