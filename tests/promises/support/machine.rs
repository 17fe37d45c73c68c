//! How busy the machine is. A limit of time that a promise has is one for a machine that does nothing else: here it grows by as much as this
//! machine is slower than itself, as measured in the same run.

use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// Every so often a small piece of work is done.
const PAUSE: Duration = Duration::from_millis(40);
const ROUNDS: u64 = 150_000;

/// One piece of work: when it was done, and how long that and the pause before took.
struct Piece {
    at: Instant,
    took: Duration,
}

static PIECES: OnceLock<Mutex<Vec<Piece>>> = OnceLock::new();

/// Begins to measure, once in the program.
pub fn watch() {
    PIECES.get_or_init(|| {
        thread::spawn(|| {
            loop {
                let begun = Instant::now();
                thread::sleep(PAUSE);
                work();
                let piece = Piece {
                    at: Instant::now(),
                    took: begun.elapsed(),
                };
                if let Some(pieces) = PIECES.get() {
                    pieces.lock().unwrap().push(piece);
                }
            }
        });
        Mutex::default()
    });
}

fn work() {
    let mut number = std::hint::black_box(1_u64);
    for n in 0..ROUNDS {
        number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n));
    }
}

/// What becomes of `limit` on this machine, for something that began at `since` and ends now: the same, or longer by as much as the slowest
/// second of that time was slower than the fastest piece of the run.
pub fn allows(limit: Duration, since: Instant) -> Duration {
    let Some(pieces) = PIECES.get() else { return limit };
    let pieces = pieces.lock().unwrap();
    let Some(fastest) = pieces.iter().map(|piece| piece.took).min() else {
        return limit;
    };
    // About a second's worth of pieces.
    let window = 20;
    let meanwhile: Vec<f64> = pieces
        .iter()
        .filter(|piece| piece.at >= since)
        .map(|piece| piece.took.as_secs_f64() / fastest.as_secs_f64())
        .collect();
    let slowest = meanwhile
        .chunks(window)
        .map(|second| second.iter().sum::<f64>() / second.len() as f64)
        .fold(1.0, f64::max);
    limit.mul_f64(slowest)
}
