//! The views of a month's database, and which of two forms of them is asked.
//!
//! CouchDB computes an index over fields (Mango) itself. A view in JavaScript sends each document to another process, at three to four times
//! the cost. BigCouch has only those. Both forms exist where the server has both, so that workers of every version find theirs. A view
//! that is not queried costs nothing.

use serde_json::{Value, json};

/// The design document that workers read continuously. It is small, because each write updates its index.
pub(super) const DESIGN: &str = "kz_record_call";
/// The design document that only commands read, and gauges once a minute.
pub(super) const LOOKUP: &str = "kz_record_call_lookup";
/// A design document of its own. Workers of another version know only the other two, and would otherwise overwrite this one back and forth.
const LEGS: &str = "kz_record_call_legs";
/// The index over fields with all views of `DESIGN` and `LEGS`.
pub(super) const NATIVE: &str = "kz_record_call_fields";

/// The view of the counts. Its design document is the one of the lookups.
pub(super) const COUNTS: &str = "counts";
/// The key is zone and state. The value is the time of the request in Unix seconds, so that CouchDB computes count and minimum.
const COUNTS_MAP: &str = "function(doc) { if (doc.state) { var at = doc.asked_at; \
     if (typeof at !== 'number') { at = doc.facts && doc.facts.length ? doc.facts[0].at : 0; } \
     emit([doc.zone || '', doc.state], Math.floor(at / 1000000)); } }";
const COUNTS_REDUCE: &str = "_stats";

/// A view that workers read continuously, and its design document in JavaScript.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub name: &'static str,
    design: &'static str,
}

pub(super) const DUE: View = View {
    name: "due",
    design: DESIGN,
};
pub(super) const OPEN: View = View {
    name: "open",
    design: DESIGN,
};
pub(super) const FETCH: View = View {
    name: "fetch",
    design: DESIGN,
};
pub(super) const INTERACTION: View = View {
    name: "interaction",
    design: LEGS,
};

impl View {
    /// The design document to ask.
    pub const fn design(self, native: bool) -> &'static str {
        if native { NATIVE } else { self.design }
    }

    /// The key of one field. An index over fields has a list of them.
    pub fn key(native: bool, field: &str) -> Value {
        if native { json!([field]) } else { json!(field) }
    }
}

/// The design documents in JavaScript.
pub(super) fn designs() -> [(&'static str, Value); 3] {
    let due = "function(doc) { if (typeof doc.due === 'number') { emit([doc.zone, doc.due], null); } }";
    let open = "function(doc) { if (doc.open) { emit(doc.zone, null); } }";
    let fetch = "function(doc) { if (doc.open && doc.fetch_id) { emit(doc.fetch_id, null); } }";
    let media = "function(doc) { if (doc.media_id) { emit(doc.media_id, null); } \
                 if (doc.document_id && doc.document_id !== doc.media_id) { emit(doc.document_id, null); } }";
    let state = "function(doc) { if (doc.state) { emit([doc.state, doc.asked_at], null); } }";
    let interaction = "function(doc) { if (doc.open && doc.interaction) { emit(doc.interaction, null); } }";
    [
        (
            DESIGN,
            json!({"due": {"map": due}, "open": {"map": open}, "fetch": {"map": fetch}}),
        ),
        (
            LOOKUP,
            json!({
                "media": {"map": media},
                "state": {"map": state},
                COUNTS: {"map": COUNTS_MAP, "reduce": COUNTS_REDUCE},
            }),
        ),
        (LEGS, json!({"interaction": {"map": interaction}})),
    ]
}

/// The design document `NATIVE`, as text: the order of an index's fields counts. An index has the documents that have all its fields and
/// match its selector. A changed index needs another name, because workers of two versions would replace each other's.
pub(super) const FIELDS: &str = r#"{"language": "query", "autoupdate": false, "views": {
    "due": {"map": {"fields": {"zone": "asc", "due": "asc"}, "partial_filter_selector": {}},
        "options": {"def": {"fields": ["zone", "due"]}}},
    "open": {"map": {"fields": {"zone": "asc"}, "partial_filter_selector": {"open": {"$eq": true}}},
        "options": {"def": {"fields": ["zone"]}}},
    "fetch": {"map": {"fields": {"fetch_id": "asc"}, "partial_filter_selector": {"open": {"$eq": true}}},
        "options": {"def": {"fields": ["fetch_id"]}}},
    "interaction": {"map": {"fields": {"interaction": "asc"}, "partial_filter_selector": {"open": {"$eq": true}}},
        "options": {"def": {"fields": ["interaction"]}}}
}}"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_over_fields_has_every_view_that_workers_read_continuously() {
        let fields: Value = serde_json::from_str(FIELDS).unwrap();
        for view in [DUE, OPEN, FETCH, INTERACTION] {
            let pointer = format!("/views/{}/map/fields", view.name);
            assert!(fields.pointer(&pointer).is_some_and(Value::is_object), "{}", view.name);
            let designs = designs();
            let (_, views) = designs.iter().find(|(name, _)| *name == view.design(false)).unwrap();
            assert!(views.get(view.name).is_some(), "{}", view.name);
        }
    }
}
