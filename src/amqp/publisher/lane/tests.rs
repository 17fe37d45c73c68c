use std::borrow::Cow;
use std::sync::Mutex;

use lapin::BasicProperties;
use lapin::message::Delivery;

use super::*;

/// The broker's side of a lane: confirms messages, with the returned message that lapin attaches to a confirmation.
#[derive(Clone, Default)]
struct Broker(Arc<Mutex<Vec<Awaited>>>);

/// A message that waits for its confirmation.
type Awaited = (String, oneshot::Sender<Confirmation>);

impl Broker {
    fn take(&self, messages: &Messages, nth: usize) -> Publishing {
        let (sender, confirmed) = oneshot::channel();
        self.0.lock().unwrap().push((messages[nth].id.clone(), sender));
        Box::pin(async move { Ok(confirmed.await.expect("a confirmation")) })
    }

    /// Confirms a message. A returned message comes with it.
    fn confirm(&self, id: &str, returned: Option<&str>) {
        let mut awaited = self.0.lock().unwrap();
        let nth = awaited.iter().position(|(one, _)| one == id).expect("in flight");
        let (_, confirmation) = awaited.remove(nth);
        let message = returned.map(|id| {
            let mut delivery = Delivery::mock(0, "".into(), "key".into(), false, Vec::new());
            delivery.properties = BasicProperties::default().with_message_id(id.into());
            BasicReturnMessage {
                delivery,
                reply_code: 312,
                reply_text: "NO_ROUTE".into(),
            }
        });
        assert!(confirmation.send(Confirmation::Ack(message)).is_ok());
    }
}

type Answer = oneshot::Receiver<Result<Results, NotHere>>;

fn bundle(id: &str) -> (Bundle, Answer) {
    let message = Encoded {
        exchange: "",
        key: "key".into(),
        mandatory: true,
        body: Cow::Borrowed(b"{}"),
        id: id.into(),
        properties: BasicProperties::default(),
    };
    let (done, answer) = oneshot::channel();
    let messages = Arc::new([message]);
    (Bundle { messages, done }, answer)
}

/// Bundles in flight, by one message each.
fn in_flight<const N: usize>(ids: [&str; N]) -> (Flight, Broker, [Answer; N]) {
    let (mut flight, broker) = (Flight::default(), Broker::default());
    let answers = ids.map(|id| {
        let (bundle, answer) = bundle(id);
        flight.begin(bundle, |messages, nth| broker.take(messages, nth));
        answer
    });
    look(&mut flight).unwrap();
    (flight, broker, answers)
}

fn look(flight: &mut Flight) -> Result<(), AmqpError> {
    flight.look(&mut Context::from_waker(std::task::Waker::noop()))
}

/// What the caller of one message got: `None` while it waits, then whether a queue took it.
fn got(answer: &mut Answer) -> Option<bool> {
    let results = answer.try_recv().ok()?.expect("the lane is there");
    match &results[..] {
        [Ok(())] => Some(true),
        [Err(error)] => {
            assert!(error.is_unroutable(), "{error}");
            Some(false)
        }
        more => panic!("{} results of one message", more.len()),
    }
}

#[test]
fn a_message_that_came_back_with_an_earlier_confirmation_is_told_as_returned() {
    let (mut flight, broker, [mut a, mut b]) = in_flight(["a", "b"]);
    broker.confirm("a", Some("b"));
    look(&mut flight).unwrap();
    assert_eq!((got(&mut a), got(&mut b)), (Some(true), None));
    broker.confirm("b", None);
    look(&mut flight).unwrap();
    assert_eq!(got(&mut b), Some(false));
}

/// One answer of the broker confirmed all three, and two were returned. lapin completed the last one first.
#[test]
fn a_message_with_the_returned_message_of_another_waits_for_the_earlier_confirmations() {
    let (mut flight, broker, [mut a, mut b, mut c]) = in_flight(["a", "b", "c"]);
    broker.confirm("c", Some("b"));
    broker.confirm("a", None);
    look(&mut flight).unwrap();
    assert_eq!(got(&mut a), Some(true), "nothing of another came with it");
    assert_eq!(got(&mut c), None, "its own may come with an earlier confirmation");
    broker.confirm("b", Some("c"));
    look(&mut flight).unwrap();
    assert_eq!((got(&mut b), got(&mut c)), (Some(false), Some(false)));
    assert!(flight.0.is_empty());
}

#[test]
fn a_message_whose_id_and_key_are_in_flight_is_not_taken_a_second_time() {
    let (mut flight, broker, [mut first]) = in_flight(["a"]);
    let (again, mut second) = bundle("a");
    flight.begin(again, |messages, nth| broker.take(messages, nth));
    assert!(matches!(second.try_recv(), Ok(Err(NotHere::Untaken))));
    broker.confirm("a", None);
    look(&mut flight).unwrap();
    assert_eq!(got(&mut first), Some(true));
}

#[test]
fn a_returned_message_of_another_channel_breaks_the_lane() {
    let (mut flight, broker, [_waits]) = in_flight(["a"]);
    broker.confirm("a", Some("unknown"));
    assert!(look(&mut flight).is_err());
}

/// The broker confirms nothing any more.
#[tokio::test]
async fn a_lane_ends_when_no_publisher_is_left_and_its_callers_have_given_up() {
    let broker = Broker::default();
    let (sender, bundles) = mpsc::channel(WAITING);
    let (bundle, answer) = bundle("a");
    sender.send(bundle).await.expect("the lane is there");
    let taking = broker.clone();
    let mut lane = tokio::spawn(publish_all(bundles, move |messages, nth| taking.take(messages, nth)));
    while broker.0.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(sender);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!lane.is_finished(), "its caller waits for the result");
    drop(answer);
    (&mut lane).await.expect("it ended by itself");
}
