//! The cluster as one host reaches it, through a balancer that takes any node.

use std::sync::Arc;
use std::time::Duration;

use kz_record_call::couch::{Answer, Branched, CouchError, Documents, IdPage, Row, ViewRow};
use serde_json::Value;

use super::cluster::QUORUM;
use super::tree::{Edit, Rev};
use super::views::{Query, keys, order};
use crate::faults::{Fault, is_back};
use crate::world::World;

/// A host's connection.
pub struct Client {
    pub world: Arc<World>,
    pub host: usize,
}

type Asked<T> = Result<T, CouchError>;

fn no_answer<T>(why: &str) -> Asked<T> {
    Err(CouchError::NoAnswer(why.to_owned()))
}

fn missing<T>(database: &str) -> Asked<T> {
    Err(CouchError::DatabaseMissing(database.to_owned()))
}

impl Client {
    /// A node that takes the request.
    async fn reach(&self) -> Asked<usize> {
        let world = &self.world;
        let slow = world.trouble().couch_slow;
        let pause = if slow && world.chance(300) {
            world.between(500, 6000)
        } else {
            world.between(1, 30)
        };
        tokio::time::sleep(pause).await;
        let side = world.side(self.host);
        let there: Vec<usize> = {
            let cluster = world.cluster();
            (0..cluster.nodes.len())
                .filter(|n| cluster.nodes[*n].up && cluster.nodes[*n].side == side)
                .collect()
        };
        let Some(node) = world.pick(&there) else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            return no_answer("no node is there");
        };
        if world.trouble().couch_fails && world.chance(400) {
            return Err(CouchError::Failed {
                status: 500,
                error: "internal_server_error".into(),
                reason: "a worker died".into(),
            });
        }
        Ok(node)
    }

    /// As `reach`, for a request about a database. Returns the copies too.
    async fn ask(&self, database: &str) -> Asked<(usize, Vec<usize>)> {
        let node = self.reach().await?;
        let cluster = self.world.cluster();
        if !cluster.nodes[node].knows || !cluster.nodes[node].databases.contains_key(database) {
            return missing(database);
        }
        let mut copies = cluster.copies(node);
        copies.retain(|n| cluster.nodes[*n].databases.contains_key(database));
        Ok((node, copies))
    }

    /// The answer is on its way, and may be lost.
    async fn answered<T>(&self, answer: T) -> Asked<T> {
        tokio::time::sleep(self.world.between(1, 10)).await;
        if self.world.trouble().couch_loses && self.world.chance(150) {
            tokio::time::sleep(Duration::from_secs(3)).await;
            return no_answer("the answer was lost");
        }
        Ok(answer)
    }

    fn fits(&self, documents: &[Option<Value>]) -> Asked<()> {
        let Some(limit) = self.world.trouble().answer_limit else {
            return Ok(());
        };
        let size: usize = documents
            .iter()
            .flatten()
            .map(|document| document.to_string().len())
            .sum();
        if size > limit {
            no_answer("the answer is too long")
        } else {
            Ok(())
        }
    }

    /// One document on each copy, one copy after the other.
    async fn write(&self, database: &str, edits: Vec<(String, Edit)>) -> Asked<Vec<Row>> {
        if self.world.fails_next.lock().unwrap().remove(&self.host) {
            tokio::time::sleep(self.world.between(20, 60)).await;
            return no_answer("the connection breaks");
        }
        let (_, copies) = self.ask(database).await?;
        let (world, name) = (Arc::clone(&self.world), database.to_owned());
        // The cluster carries it out whether the client lives or not.
        let written = tokio::spawn(async move {
            let mut all = vec![(0, 0, None); edits.len()];
            for copy in world.shuffled(copies) {
                tokio::time::sleep(world.between(0, 8)).await;
                let mut cluster = world.cluster();
                let Some(copy) = cluster.nodes[copy].databases.get_mut(&name) else {
                    continue;
                };
                for ((id, edit), (taken, refused, rev)) in edits.iter().zip(&mut all) {
                    match copy.documents.entry(id.clone()).or_default().edit(edit) {
                        Some(made) => {
                            (*taken, *rev) = (*taken + 1, Some(made));
                            copy.changed(id);
                        }
                        None => *refused += 1,
                    }
                }
            }
            if all.iter().any(|(taken, ..)| *taken < super::cluster::NODES) {
                world.cluster().dirty = true;
            }
            all
        });
        let Ok(all) = written.await else {
            return no_answer("cut");
        };
        let row = |(taken, refused, rev): (usize, usize, Option<Rev>)| match rev {
            Some(rev) if taken >= QUORUM || refused == 0 => Row::Saved {
                rev: rev.to_string(),
                below_quorum: taken < QUORUM,
            },
            // Two writers at once: a copy may have taken the revision of the one that is refused.
            _ => Row::Conflict,
        };
        self.answered(all.into_iter().map(row).collect()).await
    }

    async fn get(&self, database: &str, id: &str) -> Asked<Option<Value>> {
        let (_, copies) = self.ask(database).await?;
        let cluster = self.world.cluster();
        let asked = self.world.shuffled(copies).into_iter().take(QUORUM);
        let found = asked.filter_map(|copy| cluster.nodes[copy].databases.get(database)?.documents.get(id));
        Ok(found
            .max_by_key(|document| document.winner().map(|(rev, _)| rev))
            .and_then(super::tree::Document::read))
    }

    async fn create(&self, database: &str) -> Asked<bool> {
        let node = self.reach().await?;
        let trusting = is_back(Fault::MissingDatabaseTrusted);
        {
            let mut cluster = self.world.cluster();
            let exists = cluster.nodes[node].knows && cluster.nodes[node].databases.contains_key(database);
            if exists {
                return Ok(false);
            }
            let copies = cluster.copies(node);
            // As `may_create` does.
            if (!cluster.nodes[node].knows || copies.len() < QUORUM) && !trusting {
                return no_answer("too few nodes, or the node does not know the others yet");
            }
            let among = |name: &str| copies.iter().find_map(|copy| cluster.nodes[*copy].databases.get(name));
            if let Some(there) = among(database) {
                // The nodes that have it refuse a second one, and this node learns of it.
                let copy = there.clone();
                cluster.nodes[node].databases.insert(database.to_owned(), copy);
                return Ok(false);
            }
            cluster.births += 1;
            let birth = cluster.births;
            for copy in copies.into_iter().chain([node]) {
                let made = cluster.nodes[copy].databases.entry(database.to_owned()).or_default();
                if made.birth == 0 {
                    made.birth = birth;
                }
            }
            cluster.dirty = true;
        }
        self.world.note(self.host, || format!("created {database}"));
        self.answered(true).await
    }

    async fn rows(&self, database: &str, view: &str, query: &[(&str, &str)]) -> Asked<Vec<ViewRow>> {
        let (_, copies) = self.ask(database).await?;
        let query = Query::read(query);
        let Some(copy) = self.world.pick(&copies) else {
            return no_answer("no copy");
        };
        let mut rows = Vec::new();
        {
            let cluster = self.world.cluster();
            for (id, document) in &cluster.nodes[copy].databases[database].documents {
                let Some((_, body)) = document.winner() else { continue };
                let listed = keys(view, body).into_iter().filter(|key| query.has(key));
                rows.extend(listed.map(|key| (key, id.clone())));
            }
            rows.sort_by(|one, other| order(&one.0, &other.0).then(one.1.cmp(&other.1)));
            if query.descending {
                rows.reverse();
            }
        }
        let rows = rows.into_iter().skip(query.skip).take(query.limit);
        let rows: Vec<ViewRow> = {
            let cluster = self.world.cluster();
            let documents = &cluster.nodes[copy].databases[database].documents;
            rows.map(|(key, id)| ViewRow {
                doc: query.docs.then(|| documents[&id].read()).flatten(),
                value: Value::Null,
                key,
                id,
            })
            .collect()
        };
        let documents: Vec<Option<Value>> = rows.iter().map(|row| row.doc.clone()).collect();
        self.fits(&documents)?;
        self.answered(rows).await
    }
}

impl Documents for Client {
    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(async { self.reach().await.map(drop) })
    }

    fn knows_databases(&self) -> Answer<'_, ()> {
        Box::pin(async {
            let node = self.reach().await?;
            if self.world.cluster().nodes[node].knows || is_back(Fault::MissingDatabaseTrusted) {
                Ok(())
            } else {
                no_answer("the node has no database accounts")
            }
        })
    }

    fn databases<'a>(&'a self, start: &'a str) -> Answer<'a, Vec<String>> {
        Box::pin(async move {
            let node = self.reach().await?;
            let names: Vec<String> = {
                let cluster = self.world.cluster();
                let node = &cluster.nodes[node];
                let names = node
                    .databases
                    .keys()
                    .filter(|name| node.knows && name.starts_with(start));
                names.cloned().collect()
            };
            self.answered(names).await
        })
    }

    fn create_database<'a>(&'a self, database: &'a str) -> Answer<'a, bool> {
        Box::pin(self.create(database))
    }

    fn drop_database<'a>(&'a self, _: &'a str) -> Answer<'a, ()> {
        Box::pin(async { no_answer("no test drops a database") })
    }

    fn put_design<'a>(&'a self, database: &'a str, name: &'a str, design: &'a Value) -> Answer<'a, ()> {
        Box::pin(async move {
            let edit = (format!("_design/{name}"), Edit::of(design));
            match self.write(database, vec![edit]).await?[..] {
                [Row::Conflict] => Err(CouchError::Conflict),
                _ => Ok(()),
            }
        })
    }

    fn bulk_docs<'a>(&'a self, database: &'a str, documents: &'a [Value]) -> Answer<'a, Vec<Row>> {
        Box::pin(async move {
            let id = |document: &Value| document["_id"].as_str().unwrap().to_owned();
            let edits = documents
                .iter()
                .map(|document| (id(document), Edit::of(document)))
                .collect();
            self.write(database, edits).await
        })
    }

    fn get_many<'a>(&'a self, database: &'a str, ids: &'a [String]) -> Answer<'a, Vec<Option<Value>>> {
        Box::pin(async move {
            let mut found = Vec::new();
            for id in ids {
                self.world.looked_at(self.host, id);
                found.push(self.get(database, id).await?);
            }
            self.fits(&found)?;
            self.answered(found).await
        })
    }

    fn get_revision<'a>(&'a self, database: &'a str, id: &'a str, rev: &'a str) -> Answer<'a, Option<Value>> {
        Box::pin(async move {
            let (_, copies) = self.ask(database).await?;
            let found = {
                let cluster = self.world.cluster();
                // One copy answers, and may not have it yet.
                let copy = self.world.pick(&copies).filter(|_| !self.world.mishap(100));
                let copy = copy.and_then(|copy| cluster.nodes[copy].databases.get(database));
                copy.and_then(|copy| copy.documents.get(id)?.revision(Rev::read(rev)?))
            };
            self.answered(found).await
        })
    }

    fn delete<'a>(&'a self, database: &'a str, id: &'a str, rev: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let edit = (id.to_owned(), Edit::deletion(Rev::read(rev).unwrap()));
            match self.write(database, vec![edit]).await?[..] {
                [Row::Conflict] => Err(CouchError::Conflict),
                _ => Ok(()),
            }
        })
    }

    fn id_page<'a>(&'a self, database: &'a str, from: (&'a str, Option<&'a str>), to: &'a str) -> Answer<'a, IdPage> {
        Box::pin(async move {
            let (_, copies) = self.ask(database).await?;
            let Some(copy) = self.world.pick(&copies) else {
                return no_answer("no copy");
            };
            let page = {
                let cluster = self.world.cluster();
                let documents = cluster.nodes[copy].databases[database]
                    .documents
                    .range(from.0.to_owned()..=to.to_owned());
                documents.filter_map(|(_, document)| document.read()).collect()
            };
            self.answered((page, None)).await
        })
    }

    fn view<'a>(
        &'a self,
        database: &'a str,
        _: &'a str,
        view: &'a str,
        query: &'a [(&'a str, &'a str)],
    ) -> Answer<'a, Vec<ViewRow>> {
        Box::pin(self.rows(database, view, query))
    }

    fn reduced<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a str,
        _: &'a [(&'a str, &'a str)],
    ) -> Answer<'a, Vec<(Value, Value)>> {
        Box::pin(async { no_answer("no gauge is simulated") })
    }

    fn branched<'a>(&'a self, database: &'a str, since: &'a str, limit: usize) -> Answer<'a, Branched> {
        Box::pin(async move {
            let (_, copies) = self.ask(database).await?;
            let Some(copy) = self.world.pick(&copies) else {
                return no_answer("no copy");
            };
            let branched = {
                let cluster = self.world.cluster();
                let database = &cluster.nodes[copy].databases[database];
                // A sequence is worth something to the copy that gave it; another copy begins anew.
                let since = since.split_once('-').filter(|(of, _)| *of == copy.to_string());
                let since = since.and_then(|(_, at)| at.parse::<u64>().ok()).unwrap_or(0);
                let changes: Vec<(&u64, &String)> = database.changes.range(since + 1..).take(limit).collect();
                let last = changes.last().map_or(since, |(at, _)| **at);
                let of_several = |id: &&String| {
                    database
                        .documents
                        .get(*id)
                        .is_some_and(super::tree::Document::is_branched)
                };
                Branched {
                    since: format!("{copy}-{last}"),
                    is_all: changes.len() < limit,
                    ids: changes
                        .into_iter()
                        .map(|(_, id)| id)
                        .filter(of_several)
                        .cloned()
                        .collect(),
                }
            };
            self.answered(branched).await
        })
    }
}
