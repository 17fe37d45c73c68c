//! Whether what a cluster answers to a read is told by enough of its nodes. A write says so (201, or 202); to a read one node that is left answers like all.

use std::collections::HashSet;

use reqwest::Method;
use serde_json::Value;

use super::{Couch, CouchError};

impl Couch {
    /// Whether enough of the nodes that have a document's shard are there. A server that does not tell of nodes is one by itself.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn has_quorum(&self, database: &str, id: &str) -> Result<bool, CouchError> {
        let Some(nodes) = self.membership().await? else {
            return Ok(true);
        };
        let there = names(&nodes, "all_nodes");
        let placed = self
            .ask(self.request(Method::GET, database, &["_shards", id]), database)
            .await;
        // BigCouch does not tell where a document is: there all nodes are needed.
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
        Ok(wanted.intersection(&there).count() >= quorum)
    }

    /// Whether the server is a node of several.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn is_of_cluster(&self) -> Result<bool, CouchError> {
        let nodes = self.membership().await?;
        Ok(nodes.is_some_and(|nodes| names(&nodes, "cluster_nodes").len() > 1 || names(&nodes, "all_nodes").len() > 1))
    }

    /// The nodes that a server knows of; `None` where it does not tell of nodes.
    async fn membership(&self) -> Result<Option<Value>, CouchError> {
        match self.ask(self.server(Method::GET, "_membership"), "_membership").await {
            Ok((_, nodes)) => Ok(Some(nodes)),
            Err(CouchError::NotFound | CouchError::DatabaseMissing(_) | CouchError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
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
