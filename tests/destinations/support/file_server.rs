//! File servers: FTP, with TLS or without, and the file transfer of SSH. Both have one disk, and do to a transfer what a test wants.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

pub use ftp::Tls;
pub use ssh::{known_hosts_line, new_key};

// This file is a part of two test programs.
#[path = "file_server/ftp.rs"]
mod ftp;
#[path = "file_server/ssh.rs"]
mod ssh;

pub const USER: &str = "re c@example.com";
pub const PASSWORD: &str = "pa:ss/wo@rd";

/// The user and the password as a URL has them.
pub const LOGIN: &str = "re%20c%40example.com:pa%3Ass%2Fwo%40rd";

/// What is done to transfers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trouble {
    #[default]
    None,
    /// No file can be read.
    NoRead,
    /// The disk has no more room after so many bytes.
    Full(usize),
    /// The connection is lost after so many bytes.
    Cut(usize),
    /// Nothing moves any more after so many bytes.
    Silent(usize),
    /// The last byte of a file is lost.
    Short,
    /// The file is renamed, and the connection lost before the answer.
    LostAnswer,
    /// Another worker has stored the file before it is renamed.
    Raced,
}

#[derive(Default)]
pub struct Disk {
    files: Mutex<HashMap<String, Vec<u8>>>,
    trouble: Mutex<Trouble>,
    /// What was done, one word and a path.
    done: Mutex<Vec<String>>,
    /// Ends a connection of SSH.
    cut: Notify,
}

impl Disk {
    pub fn files(&self) -> HashMap<String, Vec<u8>> {
        self.files.lock().unwrap().clone()
    }

    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.files().into_keys().collect();
        names.sort();
        names
    }

    pub fn put(&self, path: &str, bytes: &[u8]) {
        self.files.lock().unwrap().insert(path.to_owned(), bytes.to_vec());
    }

    pub fn clear(&self) {
        self.files.lock().unwrap().clear();
    }

    pub fn make(&self, trouble: Trouble) {
        *self.trouble.lock().unwrap() = trouble;
    }

    /// How often a word was done.
    pub fn count(&self, word: &str) -> usize {
        let done = self.done.lock().unwrap();
        done.iter().filter(|done| done.split(' ').next() == Some(word)).count()
    }

    fn trouble(&self) -> Trouble {
        *self.trouble.lock().unwrap()
    }

    fn note(&self, word: &str, path: &str) {
        self.done.lock().unwrap().push(format!("{word} {path}"));
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.files.lock().unwrap().get(path).cloned()
    }

    /// There are these folders, and no others.
    fn is_folder(path: &str) -> bool {
        matches!(path, "/" | "/in" | "/home/rec" | "/a b")
    }

    /// Writes at a place of a file. `false`: there is no room.
    fn write(&self, path: &str, at: usize, bytes: &[u8]) -> bool {
        let mut files = self.files.lock().unwrap();
        let file = files.entry(path.to_owned()).or_default();
        if matches!(self.trouble(), Trouble::Full(room) if at + bytes.len() > room) {
            return false;
        }
        file.resize(file.len().max(at + bytes.len()), 0);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        true
    }

    /// A file is written to its end.
    fn closed(&self, path: &str) {
        if self.trouble() == Trouble::Short {
            self.files.lock().unwrap().entry(path.to_owned()).or_default().pop();
        }
    }

    fn rename(&self, from: &str, to: &str) {
        self.note("rename", to);
        let mut files = self.files.lock().unwrap();
        if let Some(bytes) = files.remove(from) {
            files.insert(to.to_owned(), bytes);
        }
    }

    /// What another worker does while this one sends.
    fn race(&self, path: &str) {
        if self.trouble() == Trouble::Raced && path.ends_with(".part") {
            let bytes = self.read(path).unwrap_or_default();
            let own = path.rsplitn(3, '.').nth(2).unwrap_or_default();
            self.put(own, &bytes);
        }
    }
}

/// A server.
pub struct FileServer {
    pub address: SocketAddr,
    pub disk: Arc<Disk>,
    /// Of SSH: its line of a known_hosts file.
    pub key: String,
    serving: JoinHandle<()>,
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl FileServer {
    pub async fn ftp(tls: Tls) -> Self {
        let (listener, address) = listen().await;
        let disk = Arc::<Disk>::default();
        let serving = tokio::spawn(ftp::serve(listener, Arc::clone(&disk), tls));
        Self {
            address,
            disk,
            key: String::new(),
            serving,
        }
    }

    pub async fn ssh() -> Self {
        let (listener, address) = listen().await;
        let disk = Arc::<Disk>::default();
        let key = ssh::new_key();
        let line = known_hosts_line(address, &key);
        let serving = tokio::spawn(ssh::serve(listener, Arc::clone(&disk), key));
        Self {
            address,
            disk,
            key: line,
            serving,
        }
    }

    /// A URL with this path.
    pub fn url(&self, scheme: &str, path: &str) -> String {
        format!("{scheme}://{LOGIN}@{}{path}", self.address)
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}
