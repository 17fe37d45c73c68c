//! Answers that come in the middle of an upload, and what servers say of a refusal; URLs that carry a signature or credentials.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kz_record_call::destination::url::http::Failure;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::promises;
use crate::support::{Couchdb, Recording, Reply, Server, TestResult, http_here, send};

promises![
    a_refusal_in_the_middle_of_an_upload_is_heard_though_the_connection_is_reset,
    a_yes_in_the_middle_of_an_upload_that_is_cut_off_is_none,
    a_refusals_reason_is_told,
    a_transfer_that_an_object_store_found_broken_is_tried_again,
    a_signature_that_is_not_taken_is_told_at_once,
    credentials_are_decoded_once_byte_by_byte,
    a_redirect_may_have_bytes_that_are_not_ascii,
];

/// A server that reads so much, answers, and closes with the rest unread, which resets the connection.
async fn answering(read: usize, answer: &'static [u8], pause: Duration) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/in", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = vec![0; read];
            let _ = stream.read_exact(&mut buffer).await;
            let _ = stream.write_all(answer).await;
            tokio::time::sleep(pause).await;
        }
    });
    Ok(url)
}

async fn a_refusal_in_the_middle_of_an_upload_is_heard_though_the_connection_is_reset(_: Arc<Couchdb>) -> TestResult {
    let answers: [(u16, &[u8]); 4] = [
        (
            413,
            b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ),
        (
            401,
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\nConnection: close\r\n\r\nwho?",
        ),
        (507, b"HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 0\r\n\r\n"),
        (
            413,
            b"HTTP/1.1 413 Payload Too Large\r\nConnection: close\r\n\r\ntoo much",
        ),
    ];
    let http = http_here(&[]);
    for size in [2_000_000, 50_000_000] {
        let recording = Recording::of(size);
        for (status, answer) in answers {
            for (read, pause) in [(200, 0), (200 + 1024, 0), (200, 1000), (1_000_000, 0)] {
                // What is luck shows in numbers.
                for n in 0..if size > 2_000_000 { 1 } else { 10 } {
                    let url = answering(read, answer, Duration::from_millis(pause)).await?;
                    let error = send(&http, &url, &recording).await.err().context("taken")?;
                    ensure!(
                        error.kind == Failure::Status(status),
                        "{size} {status} {read} {pause} {n}: {error:?}"
                    );
                    ensure!(error.is_for_ever() == (status == 413), "{error:?}");
                    if pause > 0 {
                        break;
                    }
                }
            }
        }
    }
    Ok(())
}

async fn a_yes_in_the_middle_of_an_upload_that_is_cut_off_is_none(_: Arc<Couchdb>) -> TestResult {
    let recording = Recording::of(20_000_000);
    for _ in 0..5 {
        let yes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
        let url = answering(2000, yes, Duration::ZERO).await?;
        let error = send(&http_here(&[]), &url, &recording).await;
        let error = error.err().context("it counts as sent")?;
        ensure!(!error.is_for_ever(), "{error:?}");
    }
    Ok(())
}

async fn a_refusals_reason_is_told(_: Arc<Couchdb>) -> TestResult {
    let answers: [(&[u8], &str); 4] = [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 12\r\n\r\nquota is out", "quota is out"),
        (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 78\r\n\r\n<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>No</Message></Error",
            "AccessDenied",
        ),
        (
            b"HTTP/1.1 400 Bad\r\nContent-Length: 25\r\n\r\n{\"error\":\"no such folder\"}",
            "no such folder",
        ),
        (
            b"HTTP/1.1 403 Forbidden\r\nx-ms-error-code: AuthenticationFailed\r\nContent-Length: 0\r\n\r\n",
            "AuthenticationFailed",
        ),
    ];
    for (answer, said) in answers {
        let url = answering(400, answer, Duration::from_millis(500)).await?;
        let error = send(&http_here(&[]), &url, &Recording::of(300)).await;
        let error = error.err().context("taken")?;
        ensure!(error.to_string().contains(said), "{error}");
    }
    Ok(())
}

/// Object stores answer 400 to a transfer that broke as well, and take the same recording a moment later.
async fn a_transfer_that_an_object_store_found_broken_is_tried_again(_: Arc<Couchdb>) -> TestResult {
    for (code, is_for_ever) in [
        ("RequestTimeout", false),
        ("BadDigest", false),
        ("InvalidArgument", true),
    ] {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
        let answer = format!(
            "HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer: &'static [u8] = answer.into_bytes().leak();
        let url = answering(400, answer, Duration::from_millis(500)).await?;
        let error = send(&http_here(&[]), &url, &Recording::of(300)).await;
        let error = error.err().context("taken")?;
        ensure!(error.is_for_ever() == is_for_ever, "{error}");
    }
    Ok(())
}

async fn a_signature_that_is_not_taken_is_told_at_once(_: Arc<Couchdb>) -> TestResult {
    for (status, body, for_ever) in [
        (403, "<Error><Code>SignatureDoesNotMatch</Code></Error>", true),
        (
            403,
            "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
            true,
        ),
        (403, "<Error><Code>AuthenticationFailed</Code></Error>", true),
        (403, "<Error><Code>SlowDown</Code></Error>", false),
        (503, "<Error><Code>SignatureDoesNotMatch</Code></Error>", false),
    ] {
        let answer = format!("HTTP/1.1 {status} No\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let url = answering(
            400,
            Box::leak(answer.into_bytes().into_boxed_slice()),
            Duration::from_millis(500),
        )
        .await?;
        let url = format!("{url}?X-Amz-Signature=00ff00ff");
        let error = send(&http_here(&[]), &url, &Recording::of(300)).await;
        let error = error.err().context("taken")?;
        ensure!(error.is_for_ever() == for_ever, "{error:?}");
        ensure!(!error.to_string().contains("00ff00ff"), "{error}");
        // Without a signature of its own it may be a matter of the moment.
        let plain = url.split('?').next().context("a url")?;
        let error = send(&http_here(&[]), plain, &Recording::of(300)).await;
        ensure!(!error.err().context("taken")?.is_for_ever());
    }
    Ok(())
}

async fn credentials_are_decoded_once_byte_by_byte(_: Arc<Couchdb>) -> TestResult {
    use base64::Engine as _;
    let server = Server::always(Reply::Status(200)).await;
    for (userinfo, plain) in [
        ("u%40x:p%2Bq%25BC%3Az", b"u@x:p+q%BC:z".as_slice()),
        ("u:p+q", b"u:p+q"),
        ("u:%25%32%35", b"u:%25"),
        ("%e9:%fc%00", b"\xe9:\xfc\x00"),
        ("é:ü", "é:ü".as_bytes()),
        ("u", b"u:"),
        (":p", b":p"),
    ] {
        let url = format!("http://{userinfo}@{}/in?a=1", server.address);
        send(&http_here(&[]), &url, &Recording::of(10)).await?;
        let request = server.received().last().context("nothing")?.clone();
        let expected = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(plain));
        ensure!(request.header("authorization") == expected, "{userinfo}: {request:?}");
        ensure!(request.path == "/in?a=1" && request.header("host") == server.address.to_string());
    }
    Ok(())
}

async fn a_redirect_may_have_bytes_that_are_not_ascii(_: Arc<Couchdb>) -> TestResult {
    for (location, expected) in [
        (b"/gr\xfc\xdfe?x=\xe9".as_slice(), "/gr%FC%DFe?x=%E9"),
        ("/grüße".as_bytes(), "/gr%C3%BC%C3%9Fe"),
        (b"/a%20b c", "/a%20b%20c"),
    ] {
        let paths = Arc::new(Mutex::new(Vec::new()));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/in", listener.local_addr()?);
        let (seen, location) = (Arc::clone(&paths), location.to_vec());
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                let mut buffer = [0; 4096];
                while !head.ends_with(b"\r\n\r\n0123456789") {
                    match stream.read(&mut buffer).await {
                        Ok(count @ 1..) => head.extend_from_slice(&buffer[..count]),
                        _ => break,
                    }
                }
                let path = String::from_utf8_lossy(&head)
                    .split(' ')
                    .nth(1)
                    .unwrap_or_default()
                    .to_owned();
                let first = path == "/in";
                seen.lock().unwrap().push(path);
                let mut answer = Vec::new();
                if first {
                    answer.extend_from_slice(b"HTTP/1.1 307 There\r\nLocation: ");
                    answer.extend_from_slice(&location);
                    answer.extend_from_slice(b"\r\nContent-Length: 0\r\n\r\n");
                } else {
                    answer.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                }
                let _ = stream.write_all(&answer).await;
            }
        });
        let recording = Recording::of_bytes(b"0123456789");
        send(&http_here(&[]), &url, &recording).await?;
        serving.abort();
        let paths = paths.lock().unwrap().clone();
        ensure!(paths == ["/in", expected], "{paths:?}");
    }
    Ok(())
}
