//! Whether enough nodes of a cluster confirm a read. A write reports that by 201 or 202. A read gets the same answer from one remaining
//! node as from all.

use std::cmp::Ordering;
use std::collections::HashSet;

use reqwest::Method;
use serde_json::Value;

use super::{Couch, CouchError};

impl Couch {
    /// Whether enough of the nodes that hold a document's shard are up. A server that does not list nodes counts as a single node: after a
    /// 202, `keeps` asks more.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn has_quorum(&self, database: &str, id: &str) -> Result<bool, CouchError> {
        Ok(self.are_enough_there(database, id).await?.unwrap_or(true))
    }

    /// Whether enough nodes have a document that may have been taken with a 202. A server that does not list its nodes must take the document
    /// once more, unchanged, with a 201: a read gets the same answer from the only node that is left. A node without the document's
    /// attachments does not take it.
    ///
    /// # Errors
    /// When the server does not answer, or the document is changed meanwhile.
    pub async fn keeps(&self, database: &str, id: &str) -> Result<bool, CouchError> {
        if let Some(are_enough) = self.are_enough_there(database, id).await? {
            return Ok(are_enough);
        }
        match self.get(database, id).await? {
            Some(document) => Ok(!self.put_document(database, id, &document).await?.below_quorum),
            None => Ok(false),
        }
    }

    /// As `has_quorum`. `None` when the server does not list nodes.
    async fn are_enough_there(&self, database: &str, id: &str) -> Result<Option<bool>, CouchError> {
        let Some(nodes) = self.membership().await? else {
            return Ok(None);
        };
        let there = names(&nodes, "all_nodes");
        let placed = self
            .ask(self.request(Method::GET, database, &["_shards", id]), database)
            .await;
        // BigCouch does not report where a document is stored. All its nodes must then be up.
        let (wanted, quorum) = match placed {
            Ok((_, placed)) if !names(&placed, "nodes").is_empty() => {
                let nodes = names(&placed, "nodes");
                let quorum = nodes.len() / 2 + 1;
                (nodes, quorum)
            }
            Ok(_) | Err(CouchError::NotFound | CouchError::Refused { .. }) => {
                let nodes = names(&nodes, "cluster_nodes");
                let quorum = nodes.len();
                (nodes, quorum)
            }
            Err(error) => return Err(error),
        };
        Ok(Some(wanted.intersection(&there).count() >= quorum))
    }

    /// A document as most of the nodes with its shard know it. A single node that lost its disk may report the document missing, while the
    /// nodes with the copies are down.
    ///
    /// # Errors
    /// As `get`. Also when the document is missing, and too few nodes are up to confirm that.
    pub async fn get_surely(&self, database: &str, id: &str) -> Result<Option<Value>, CouchError> {
        match self.get(database, id).await? {
            None if !self.are_most_there(database, id).await? => Err(CouchError::NoAnswer(format!(
                "{id} is missing in {database}, and too few of its nodes are there to say so"
            ))),
            document => Ok(document),
        }
    }

    /// As `has_quorum`, for reads where a wrong answer does no lasting harm. If the server does not report where a document is stored, most
    /// nodes are enough.
    async fn are_most_there(&self, database: &str, id: &str) -> Result<bool, CouchError> {
        Ok(self.has_quorum(database, id).await? || self.is_majority_without_shards(database, id).await?)
    }

    async fn is_majority_without_shards(&self, database: &str, id: &str) -> Result<bool, CouchError> {
        let placed = self
            .ask(self.request(Method::GET, database, &["_shards", id]), database)
            .await;
        match placed {
            Ok((_, placed)) if !names(&placed, "nodes").is_empty() => {
                let there = self.membership().await?.map(|nodes| names(&nodes, "all_nodes"));
                Ok(are_most(&names(&placed, "nodes"), &there.unwrap_or_default()))
            }
            Ok(_) | Err(CouchError::NotFound | CouchError::Refused { .. }) => {
                let nodes = self.membership().await?;
                Ok(nodes.is_none_or(|nodes| are_most(&names(&nodes, "cluster_nodes"), &names(&nodes, "all_nodes"))))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether most nodes of the server's cluster are up. A server that does not list nodes counts as a single node.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn has_majority(&self) -> Result<bool, CouchError> {
        let Some(nodes) = self.membership().await? else {
            return Ok(true);
        };
        let (cluster, there) = (names(&nodes, "cluster_nodes"), names(&nodes, "all_nodes"));
        Ok(is_larger_side(&cluster, &there))
    }

    /// Whether the server is one of several nodes.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn is_of_cluster(&self) -> Result<bool, CouchError> {
        let nodes = self.membership().await?;
        Ok(nodes.is_some_and(|nodes| names(&nodes, "cluster_nodes").len() > 1 || names(&nodes, "all_nodes").len() > 1))
    }

    /// The nodes that a server knows. `None` when the server does not list nodes.
    async fn membership(&self) -> Result<Option<Value>, CouchError> {
        match self.ask(self.server(Method::GET, "_membership"), "_membership").await {
            Ok((_, nodes)) => Ok(Some(nodes)),
            Err(CouchError::NotFound | CouchError::DatabaseMissing(_) | CouchError::Refused { .. }) => Ok(None),
            // CouchDB lists its nodes to admins alone. Whether most of them are up cannot be known by another user.
            Err(error @ CouchError::Unauthorized { .. }) if !error.is_about_credentials() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether most of these nodes are there; of exactly half of them the half with the first name counts, so that of two parted halves one goes on.
fn is_larger_side(all: &HashSet<String>, there: &HashSet<String>) -> bool {
    let first = all.iter().min();
    match (all.intersection(there).count() * 2).cmp(&all.len()) {
        Ordering::Greater => true,
        Ordering::Equal => first.is_none_or(|first| there.contains(first)),
        Ordering::Less => false,
    }
}

/// Whether more than half of these nodes are there.
fn are_most(all: &HashSet<String>, there: &HashSet<String>) -> bool {
    all.intersection(there).count() * 2 > all.len()
}

fn names(answer: &Value, key: &str) -> HashSet<String> {
    let names = answer.get(key).and_then(Value::as_array).into_iter().flatten();
    names.filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing;

    #[tokio::test]
    async fn a_read_counts_when_most_nodes_that_have_the_document_are_there() {
        for (there, placed, counts) in [
            (json!(["a", "b", "c"]), Some(json!(["a", "b", "c"])), true),
            (json!(["a", "b"]), Some(json!(["a", "b", "c"])), true),
            (json!(["a"]), Some(json!(["a", "b", "c"])), false),
            (json!(["a", "d", "e"]), Some(json!(["a", "b", "c"])), false),
            (json!(["a"]), Some(json!(["a"])), true),
            (json!(["a", "b"]), None, false),
            (json!(["a", "b", "c"]), None, true),
        ] {
            let case = format!("{there} {placed:?}");
            let (couch, _) = testing::couch(move |asked| {
                if asked.path.contains("_membership") {
                    (200, json!({"all_nodes": there, "cluster_nodes": ["a", "b", "c"]}))
                } else if let Some(nodes) = placed.as_ref().filter(|_| asked.path.contains("_shards")) {
                    (200, json!({"range": "00000000-ffffffff", "nodes": nodes}))
                } else {
                    (404, json!({"error": "not_found", "reason": "missing"}))
                }
            })
            .await;
            assert_eq!(couch.has_quorum("db", "id").await.unwrap(), counts, "{case}");
        }
        let (couch, _) = testing::couch(|_| (404, json!({"error": "not_found", "reason": "missing"}))).await;
        assert!(couch.has_quorum("db", "id").await.unwrap(), "one by itself");
        let (couch, _) = testing::couch(|_| (500, json!({"error": "unknown", "reason": "?"}))).await;
        assert!(couch.has_quorum("db", "id").await.is_err());
    }

    #[tokio::test]
    async fn one_node_that_misses_a_document_is_not_believed_and_makes_no_database() {
        for (there, nodes, believed) in [
            (json!(["a", "b", "c"]), json!(["a", "b", "c"]), true),
            (json!(["a"]), json!(["a", "b", "c"]), false),
            (json!(["a"]), json!(["a", "b"]), true),
            (json!(["b"]), json!(["a", "b"]), false),
            (json!(["a"]), json!(["a"]), true),
        ] {
            let case = format!("{there} of {nodes}");
            let (couch, log) = testing::couch(move |asked| {
                if asked.path.contains("_membership") {
                    (200, json!({"all_nodes": there, "cluster_nodes": nodes}))
                } else if asked.path.contains("_shards") {
                    (200, json!({"range": "00000000-ffffffff", "nodes": nodes}))
                } else if asked.path.contains("_all_dbs") {
                    (200, json!(["_users"]))
                } else if asked.path.contains("/media") {
                    (404, json!({"error": "not_found", "reason": "missing"}))
                } else if asked.method == "PUT" {
                    (201, json!({"ok": true}))
                } else {
                    testing::no_database()
                }
            })
            .await;
            // Of two halves one goes on; what one node of two misses may be on the other.
            let is_half = case == "[\"a\"] of [\"a\",\"b\"]";
            assert_eq!(
                couch.get_surely("db", "media").await.is_ok(),
                believed && !is_half,
                "{case}"
            );
            assert_eq!(couch.create_database("day").await.is_ok(), believed, "{case}");
            let put = log.lock().unwrap().iter().any(|asked| asked.method == "PUT");
            assert_eq!(put, believed, "{case}");
        }
        let (couch, _) = testing::couch(|asked| match asked.path.as_str() {
            path if path.contains("_membership") => (404, json!({"error": "not_found", "reason": "missing"})),
            path if path.contains("_all_dbs") => (200, json!(["_users"])),
            _ if asked.method == "PUT" => (202, json!({"ok": true})),
            _ => testing::no_database(),
        })
        .await;
        assert!(
            couch.create_database("day").await.is_err(),
            "too few nodes have taken it"
        );
    }

    #[tokio::test]
    async fn a_server_that_lists_its_nodes_to_admins_alone_is_believed() {
        for (reason, counts) in [
            ("You are not a server admin.", Ok(true)),
            ("Name or password is incorrect.", Err(())),
        ] {
            let (couch, _) = testing::couch(move |asked| {
                if asked.path.contains("_membership") {
                    (401, json!({"error": "unauthorized", "reason": reason}))
                } else {
                    (200, json!({"ok": true}))
                }
            })
            .await;
            assert_eq!(couch.has_quorum("db", "id").await.map_err(drop), counts, "{reason}");
        }
    }

    #[tokio::test]
    async fn a_node_of_several_that_lists_no_database_is_asked_to_create_none() {
        for (listed, nodes, may) in [
            (json!([]), json!(["a", "b", "c"]), false),
            (json!(["_users"]), json!(["a", "b", "c"]), true),
            (json!([]), json!(["a"]), true),
        ] {
            let case = format!("{listed} {nodes}");
            let (couch, _) = testing::couch(move |asked| {
                if asked.path.contains("_membership") {
                    (200, json!({"all_nodes": nodes, "cluster_nodes": nodes}))
                } else {
                    (200, listed.clone())
                }
            })
            .await;
            assert_eq!(couch.may_create().await.is_ok(), may, "{case}");
        }
    }
}
