//! What users' servers do instead of taking audio, and whether it is of use to try again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kz_record_call::destination::DeliveryError;
use kz_record_call::destination::url::http::{Failure, Http};
use kz_record_call::kazoo::time::Clock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::promises;
use crate::support::{Couchdb, Recording, Reply, Server, TestResult, http, http_here, machine, send, settings};

promises![
    each_status_is_for_ever_or_for_now,
    a_server_that_asks_for_a_pause_gets_it,
    a_refusal_before_the_audio_is_read_is_heard,
    a_yes_before_the_audio_is_read_does_not_cut_it,
    a_slow_server_is_waited_for_and_a_silent_one_given_up,
    an_attempt_ends_in_its_time,
    servers_that_are_not_there_are_for_now,
    a_connection_that_breaks_is_for_now,
    a_certificate_that_nobody_vouches_for_gets_nothing,
    a_recording_that_is_too_large_is_not_sent,
    a_spool_that_is_gone_is_our_fault,
    a_spool_that_is_destroyed_while_we_send_cuts_nothing,
];

async fn each_status_is_for_ever_or_for_now(_: Arc<Couchdb>) -> TestResult {
    let http = http_here(&[]);
    for (status, for_ever) in [
        (400, true),
        (405, true),
        (410, true),
        (413, true),
        (414, true),
        (415, true),
        (422, true),
        (401, false),
        (403, false),
        (404, false),
        (408, false),
        (409, false),
        (429, false),
        (500, false),
        (502, false),
        (503, false),
        (507, false),
    ] {
        let (server, recording) = (Server::always(Reply::Status(status)).await, Recording::of(1000));
        let error = send(&http, &server.url("/in"), &recording)
            .await
            .err()
            .context("taken")?;
        ensure!(
            error.is_for_ever() == for_ever && error.status() == Some(status),
            "{error:?}"
        );
        ensure!(error.to_string().contains(&status.to_string()), "{error}");
    }
    Ok(())
}

async fn a_server_that_asks_for_a_pause_gets_it(_: Arc<Couchdb>) -> TestResult {
    for (when, pause) in [("120", Some(120)), ("99999999", Some(43_200)), ("soon", None)] {
        let server = Server::always(Reply::Later(503, when.into())).await;
        let error = send(&http_here(&[]), &server.url("/in"), &Recording::of(10)).await;
        let error = error.err().context("taken")?;
        ensure!(error.retry_after == pause.map(Duration::from_secs), "{error:?}");
        let told = DeliveryError::from(error).retry_after();
        ensure!(told == pause.map(Duration::from_secs), "{told:?}");
    }
    Ok(())
}

async fn a_refusal_before_the_audio_is_read_is_heard(_: Arc<Couchdb>) -> TestResult {
    // A server that says no, and leaves the connection open.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/in", listener.local_addr()?);
    let refusing = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let mut head = [0; 16];
        stream.read_exact(&mut head).await?;
        stream
            .write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            .await?;
        Ok::<_, std::io::Error>(stream)
    });
    let recording = Recording::of(30_000_000);
    let error = send(&http_here(&[]), &url, &recording).await.err().context("taken")?;
    ensure!(error.kind == Failure::Status(413) && error.is_for_ever(), "{error:?}");
    drop(refusing.await??);
    // One that closes while we are sending.
    for _ in 0..3 {
        let server = Server::always(Reply::Early(413)).await;
        let error = send(&http_here(&[]), &server.url("/in"), &recording).await;
        let kind = error.err().context("taken")?.kind;
        ensure!(kind == Failure::Status(413), "{kind:?}");
    }
    Ok(())
}

async fn a_yes_before_the_audio_is_read_does_not_cut_it(_: Arc<Couchdb>) -> TestResult {
    // Little room on the way: what the client took from us, and has not written yet, is still with it when the answer is there.
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(8 << 10)?;
    socket.bind("127.0.0.1:0".parse()?)?;
    let listener = socket.listen(1)?;
    let address = listener.local_addr()?;
    let size = 8_000_000;
    let reading = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let (mut head, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        let body = loop {
            let count = stream.read(&mut buffer).await?;
            head.extend_from_slice(&buffer[..count]);
            if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
                break head.split_off(end + 4);
            }
        };
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await?;
        let mut got = body.len();
        while got < size {
            tokio::time::sleep(Duration::from_millis(1)).await;
            match stream.read(&mut buffer).await? {
                0 => break,
                count => got += count,
            }
        }
        Ok::<_, std::io::Error>(got)
    });
    let url = format!("http://{address}/in");
    let outcome = send(&http_here(&[]), &url, &Recording::of(size)).await;
    let got = reading.await??;
    // Either it has everything, or we know that it has not.
    match outcome {
        Ok(_) => ensure!(got == size, "{got} of {size} arrived, and it counts as sent"),
        Err(error) => ensure!(!error.is_for_ever(), "{error:?}"),
    }
    Ok(())
}

async fn a_slow_server_is_waited_for_and_a_silent_one_given_up(_: Arc<Couchdb>) -> TestResult {
    // Buffers on the way hold some megabytes, which are silence at the end.
    let http = http_here(&[("SILENCE_TIMEOUT_MS", "3000")]);
    let (server, recording) = (Server::always(Reply::Slow(8_000_000)).await, Recording::of(36_000_000));
    let begun = Instant::now();
    send(&http, &server.url("/in"), &recording).await?;
    ensure!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
    ensure!(server.received()[0].digests == recording.audio.digests);
    for reply in [Reply::Never, Reply::Stall] {
        let server = Server::always(reply.clone()).await;
        let begun = Instant::now();
        let error = send(&http, &server.url("/in"), &recording)
            .await
            .err()
            .context("taken")?;
        ensure!(
            matches!(error.kind, Failure::Silent(_)) && !error.is_for_ever(),
            "{reply:?}: {error:?}"
        );
        let (took, limit) = (begun.elapsed(), machine::allows(Duration::from_secs(30), begun));
        ensure!(took < limit, "{reply:?}: {took:?}");
    }
    Ok(())
}

async fn an_attempt_ends_in_its_time(_: Arc<Couchdb>) -> TestResult {
    let http = http_here(&[("SILENCE_TIMEOUT_MS", "1000"), ("SEND_TIMEOUT_S", "1")]);
    let server = Server::always(Reply::Slow(10_000_000)).await;
    let begun = Instant::now();
    let error = send(&http, &server.url("/in"), &Recording::of(40_000_000)).await;
    let error = error.err().context("taken")?;
    ensure!(matches!(error.kind, Failure::TooSlow(_)), "{error:?}");
    let (took, limit) = (begun.elapsed(), machine::allows(Duration::from_secs(5), begun));
    ensure!(took < limit, "{took:?}");
    Ok(())
}

async fn servers_that_are_not_there_are_for_now(_: Arc<Couchdb>) -> TestResult {
    let changes = [("ALLOW", "127.0.0.1"), ("CONNECT_TIMEOUT_MS", "500")];
    let names: &[(&str, &[&str])] = &[("closed.test", &["127.0.0.1"])];
    let http = http(&changes, names);
    let recording = Recording::of(1000);
    for (url, expected) in [
        ("http://127.0.0.1:1/in", "cannot connect"),
        ("http://closed.test:1/in", "cannot connect"),
        ("http://nowhere.test/in", "resolved"),
    ] {
        let error = send(&http, url, &recording).await.err().context("taken")?;
        ensure!(!error.is_for_ever(), "{error:?}");
        ensure!(error.to_string().contains(expected), "{url}: {error}");
    }
    Ok(())
}

async fn a_connection_that_breaks_is_for_now(_: Arc<Couchdb>) -> TestResult {
    for read in [0, 100_000] {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/in", listener.local_addr()?);
        let breaking = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            let mut buffer = vec![0; read];
            stream.read_exact(&mut buffer).await?;
            Ok::<_, std::io::Error>(())
        });
        let error = send(&http_here(&[]), &url, &Recording::of(5_000_000)).await;
        let error = error.err().context("taken")?;
        ensure!(
            matches!(error.kind, Failure::Lost(_)) && !error.is_for_ever(),
            "{error:?}"
        );
        breaking.await??;
    }
    Ok(())
}

async fn a_certificate_that_nobody_vouches_for_gets_nothing(_: Arc<Couchdb>) -> TestResult {
    let made = rcgen::generate_simple_self_signed(vec!["rec.test".to_owned()])?;
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der())
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        let mut stream = acceptor.accept(stream).await?;
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await?;
        Ok::<_, std::io::Error>(got.len())
    });
    let http = http(&[("ALLOW", "127.0.0.1")], &[("rec.test", &["127.0.0.1"])]);
    let url = format!("https://rec.test:{port}/in");
    let error = send(&http, &url, &Recording::of(1000)).await.err().context("taken")?;
    ensure!(matches!(error.kind, Failure::Tls(_)), "{error:?}");
    ensure!(!error.is_for_ever(), "certificates are renewed");
    let got = serving.await?;
    ensure!(got.is_err() || matches!(got, Ok(0)), "{got:?}");
    Ok(())
}

async fn a_recording_that_is_too_large_is_not_sent(_: Arc<Couchdb>) -> TestResult {
    let http = http_here(&[("MAX_BYTES", "2000")]);
    let server = Server::always(Reply::Status(200)).await;
    send(&http, &server.url("/in"), &Recording::of(2000)).await?;
    let error = send(&http, &server.url("/in"), &Recording::of(2001)).await;
    let error = error.err().context("taken")?;
    ensure!(
        error.kind == Failure::TooLarge(2001) && error.is_for_ever(),
        "{error:?}"
    );
    ensure!(server.asked() == 1);
    Ok(())
}

async fn a_spool_that_is_gone_is_our_fault(_: Arc<Couchdb>) -> TestResult {
    let (server, recording) = (Server::always(Reply::Status(200)).await, Recording::of(1000));
    recording.lose_spool();
    let trusting = Http::trusting(&settings(&[]), Clock::system())?;
    for http in [http_here(&[]), trusting] {
        let error = send(&http, &server.url("/in"), &recording)
            .await
            .err()
            .context("taken")?;
        ensure!(
            matches!(error.kind, Failure::Source(_)) && !error.is_for_ever(),
            "{error:?}"
        );
        ensure!(matches!(DeliveryError::from(error), DeliveryError::Source(_)));
    }
    ensure!(server.asked() == 0);
    Ok(())
}

async fn a_spool_that_is_destroyed_while_we_send_cuts_nothing(_: Arc<Couchdb>) -> TestResult {
    let recording = Recording::of(20_000_000);
    let (begun, dir) = (Arc::new(tokio::sync::Notify::new()), recording.dir().to_owned());
    let told = Arc::clone(&begun);
    let server = Server::with(move |_, _, _| {
        told.notify_one();
        Reply::Slow(20_000_000)
    })
    .await;
    let destroying = tokio::spawn(async move {
        begun.notified().await;
        std::fs::remove_dir_all(dir)
    });
    send(&http_here(&[]), &server.url("/in"), &recording).await?;
    destroying.await??;
    ensure!(server.received()[0].digests == recording.audio.digests);
    let error = send(&http_here(&[]), &server.url("/in"), &recording).await;
    ensure!(matches!(error.err().context("sent")?.kind, Failure::Source(_)));
    Ok(())
}
