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
        let nodes = self.ask(self.server(Method::GET, "_membership"), "_membership").await;
        let nodes = match nodes {
            Ok((_, nodes)) => nodes,
            Err(CouchError::NotFound | CouchError::DatabaseMissing(_) | CouchError::Refused { .. }) => return Ok(true),
            Err(error) => return Err(error),
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
}
