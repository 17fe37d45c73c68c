//! A proxy before a broker that counts looks at queues (passive declarations), and refuses them if it is told to, as RabbitMQ 4.2.6 and later do to
//! a user without permission.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

const CHANNEL_CLOSE: [u8; 4] = [0, 20, 0, 40];
const CHANNEL_CLOSE_OK: [u8; 4] = [0, 20, 0, 41];
const QUEUE_DECLARE: [u8; 4] = [0, 50, 0, 10];

pub struct Looks {
    pub port: u16,
    looks: Arc<AtomicU32>,
}

impl Looks {
    pub async fn start(target: &str, refuse: bool) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let looks = Arc::new(AtomicU32::new(0));
        let (target, counted) = (target.to_owned(), Arc::clone(&looks));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, target.clone(), refuse, Arc::clone(&counted)));
            }
        });
        Ok(Self { port, looks })
    }

    /// Looks at queues that are not the worker's own, so far.
    pub fn count(&self) -> u32 {
        self.looks.load(Ordering::SeqCst)
    }
}

/// Channels that are closed for the client, and not yet for the broker.
type Closing = Arc<Mutex<HashSet<[u8; 2]>>>;

async fn serve(client: TcpStream, target: String, refuse: bool, looks: Arc<AtomicU32>) {
    let Ok(broker) = TcpStream::connect(&target).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_broker, to_broker) = broker.into_split();
    let to_client = Arc::new(Mutex::new(to_client));
    let closing = Closing::default();
    tokio::select! {
        _ = up(from_client, to_broker, &to_client, &closing, refuse, &looks) => {}
        _ = down(from_broker, &to_client, &closing) => {}
    }
}

/// One frame, whole: kind, channel, length, content, end.
async fn frame(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; 7];
    from.read_exact(&mut frame).await?;
    let length = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]) as usize;
    frame.resize(7 + length + 1, 0);
    from.read_exact(&mut frame[7..]).await?;
    Ok(frame)
}

fn method(channel: [u8; 2], content: &[u8]) -> Vec<u8> {
    let mut frame = vec![1, channel[0], channel[1]];
    frame.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
    frame.extend(content);
    frame.push(0xCE);
    frame
}

fn close(code: u16, text: &str) -> Vec<u8> {
    let mut content = CHANNEL_CLOSE.to_vec();
    content.extend(code.to_be_bytes());
    content.push(u8::try_from(text.len()).unwrap());
    content.extend(text.as_bytes());
    content.extend(QUEUE_DECLARE);
    content
}

/// Whether a frame looks at a queue of somebody else's.
fn is_look(frame: &[u8]) -> bool {
    if frame[0] != 1 || frame[7..11] != QUEUE_DECLARE {
        return false;
    }
    let length = usize::from(frame[13]);
    let (name, bits) = (&frame[14..14 + length], frame[14 + length]);
    bits & 1 == 1 && !name.starts_with(b"kz_record_call")
}

async fn up(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    back: &Mutex<OwnedWriteHalf>,
    closing: &Closing,
    refuse: bool,
    looks: &AtomicU32,
) -> std::io::Result<()> {
    let mut header = [0; 8];
    from.read_exact(&mut header).await?;
    to.write_all(&header).await?;
    loop {
        let frame = frame(&mut from).await?;
        let channel = [frame[1], frame[2]];
        let look = is_look(&frame);
        looks.fetch_add(u32::from(look), Ordering::SeqCst);
        if look && refuse {
            closing.lock().await.insert(channel);
            let refusal = close(403, "ACCESS_REFUSED - configure access to queue refused");
            back.lock().await.write_all(&method(channel, &refusal)).await?;
        } else if frame[0] == 1 && frame[7..11] == CHANNEL_CLOSE_OK && closing.lock().await.contains(&channel) {
            to.write_all(&method(channel, &close(200, "refused"))).await?;
        } else {
            to.write_all(&frame).await?;
        }
    }
}

async fn down(mut from: OwnedReadHalf, to: &Mutex<OwnedWriteHalf>, closing: &Closing) -> std::io::Result<()> {
    loop {
        let frame = frame(&mut from).await?;
        let is_ok = frame[0] == 1 && frame[7..11] == CHANNEL_CLOSE_OK;
        // The client has not asked for it.
        if is_ok && closing.lock().await.remove(&[frame[1], frame[2]]) {
            continue;
        }
        to.lock().await.write_all(&frame).await?;
    }
}
