//! Audio that is sent to users' URLs: what arrives there.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use kz_record_call::destination::url::http::Failure;
use kz_record_call::recording::settings::Method;

use crate::promises;
use crate::support::{Couchdb, Recording, Reply, Server, TestResult, http_here, send, send_by};

promises![
    put_and_post_bring_the_whole_audio,
    every_2xx_is_success,
    credentials_of_the_url_are_sent_and_never_told,
    a_redirect_is_followed_with_the_same_verb_and_the_whole_audio,
    ten_redirects_are_followed_and_no_more,
    a_redirect_to_another_place_takes_no_credentials_along,
    a_redirect_that_leads_nowhere_is_a_failure,
    a_hundred_recordings_at_once_all_arrive_whole,
];

async fn put_and_post_bring_the_whole_audio(_: Arc<Couchdb>) -> TestResult {
    for (method, verb) in [(Method::Put, "PUT"), (Method::Post, "POST")] {
        for size in [0, 1, 3_000_000] {
            let (server, recording) = (Server::always(Reply::Status(200)).await, Recording::of(size));
            let url = server.url("/in/call_recording_a%2Fb%40c.mp3?from=1%402&x=%20");
            let sent = send_by(&http_here(&[]), &url, &recording, method).await?;
            ensure!(
                sent.to.expose().as_str() == url && (sent.status, sent.redirects) == (200, 0),
                "{sent:?}"
            );
            let received = server.received();
            ensure!(received.len() == 1, "{received:?}");
            let request = &received[0];
            ensure!(request.method.as_str() == verb, "{request:?}");
            ensure!(
                request.path == "/in/call_recording_a%2Fb%40c.mp3?from=1%402&x=%20",
                "{request:?}"
            );
            ensure!(request.digests == recording.audio.digests && request.length == size as u64);
            ensure!(request.header("content-type") == "audio/mpeg", "{request:?}");
            ensure!(request.header("content-length") == size.to_string(), "{request:?}");
            ensure!(
                request.header("idempotency-key") == recording.id().as_str(),
                "{request:?}"
            );
            ensure!(
                request.header("user-agent").starts_with("kz-record-call/"),
                "{request:?}"
            );
            ensure!(request.header("transfer-encoding").is_empty() && request.header("authorization").is_empty());
        }
    }
    Ok(())
}

async fn every_2xx_is_success(_: Arc<Couchdb>) -> TestResult {
    for status in [200, 201, 202, 203, 204, 206, 226] {
        let (server, recording) = (Server::always(Reply::Status(status)).await, Recording::of(1000));
        let sent = send(&http_here(&[]), &server.url("/in"), &recording).await?;
        ensure!(sent.status == status && server.received().len() == 1, "{sent:?}");
    }
    Ok(())
}

async fn credentials_of_the_url_are_sent_and_never_told(_: Arc<Couchdb>) -> TestResult {
    let (server, recording) = (Server::always(Reply::Status(401)).await, Recording::of(10));
    let url = format!("http://us%40er:hunt%2Fer2@{}/in?token=hunter2", server.address);
    let error = send(&http_here(&[]), &url, &recording).await.err().context("taken")?;
    // base64 of us@er:hunt/er2
    ensure!(server.received()[0].header("authorization") == "Basic dXNAZXI6aHVudC9lcjI=");
    for text in [error.to_string(), format!("{error:?}")] {
        ensure!(text.contains(&server.address.to_string()), "{text}");
        for secret in ["us@er", "us%40er", "hunt", "token"] {
            ensure!(!text.contains(secret), "{text}");
        }
    }
    ensure!(!error.is_for_ever() && error.status() == Some(401));
    let closed = "http://user:hunter2@127.0.0.1:1/in?token=hunter2";
    let error = send(&http_here(&[]), closed, &recording).await.err().context("taken")?;
    ensure!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    Ok(())
}

async fn a_redirect_is_followed_with_the_same_verb_and_the_whole_audio(_: Arc<Couchdb>) -> TestResult {
    for status in [301, 302, 307, 308] {
        for (method, verb) in [(Method::Put, "PUT"), (Method::Post, "POST")] {
            let server = Server::with(move |_, path, _| {
                if path == "/there?x=1" {
                    Reply::Status(201)
                } else {
                    Reply::Redirect(status, "/there?x=1".into())
                }
            })
            .await;
            let recording = Recording::of(2_000_000);
            let url = format!("http://u:p@{}/in?y=2", server.address);
            let sent = send_by(&http_here(&[]), &url, &recording, method).await?;
            ensure!(sent.redirects == 1 && sent.status == 201, "{sent:?}");
            let there = format!("http://u:p@{}/there?x=1", server.address);
            ensure!(sent.to.expose().as_str() == there, "{}", sent.to.expose());
            let received = server.received();
            ensure!(received.len() == 2, "{received:?}");
            for request in &received {
                ensure!(
                    request.method.as_str() == verb && request.digests == recording.audio.digests,
                    "{status}: {request:?}"
                );
                ensure!(request.header("idempotency-key") == recording.id().as_str());
                ensure!(
                    request.header("authorization") == "Basic dTpw",
                    "the same server still knows us"
                );
            }
        }
    }
    Ok(())
}

async fn ten_redirects_are_followed_and_no_more(_: Arc<Couchdb>) -> TestResult {
    for (redirects, arrives) in [(10, true), (11, false)] {
        let server = Server::with(move |_, _, before| {
            if before < redirects {
                Reply::Redirect(302, format!("/{before}"))
            } else {
                Reply::Status(200)
            }
        })
        .await;
        let outcome = send(&http_here(&[]), &server.url("/in"), &Recording::of(5000)).await;
        match outcome {
            Ok(sent) => ensure!(arrives && sent.redirects == 10, "{sent:?}"),
            Err(error) => {
                ensure!(!arrives && error.kind == Failure::TooManyRedirects, "{error:?}");
                ensure!(!error.is_for_ever() && server.asked() == 11, "{}", server.asked());
            }
        }
    }
    Ok(())
}

async fn a_redirect_to_another_place_takes_no_credentials_along(_: Arc<Couchdb>) -> TestResult {
    let other = Server::always(Reply::Status(200)).await;
    let there = other.url("/there");
    let server = Server::with(move |_, _, _| Reply::Redirect(307, there.clone())).await;
    let url = format!("http://user:hunter2@{}/in", server.address);
    let sent = send(&http_here(&[]), &url, &Recording::of(1000)).await?;
    ensure!(server.received()[0].header("authorization") != "");
    ensure!(
        other.received()[0].header("authorization").is_empty(),
        "told to a stranger"
    );
    ensure!(sent.to.expose().as_str() == other.url("/there"), "{}", sent.to.expose());
    Ok(())
}

async fn a_redirect_that_leads_nowhere_is_a_failure(_: Arc<Couchdb>) -> TestResult {
    // 303 says that the upload is done and its result elsewhere; Kazoo takes it for a failure too.
    for (status, location, failure) in [
        (303, "/there", Failure::Status(303)),
        (304, "/there", Failure::Status(304)),
        (302, "ftp://h/", Failure::Redirect(302)),
        (302, "http://", Failure::Redirect(302)),
    ] {
        let server = Server::with(move |_, _, _| Reply::Redirect(status, location.into())).await;
        let error = send(&http_here(&[]), &server.url("/in"), &Recording::of(10)).await;
        let error = error.err().context("taken")?;
        ensure!(error.kind == failure && !error.is_for_ever(), "{error:?}");
        ensure!(server.asked() == 1);
    }
    let server = Server::always(Reply::Status(302)).await;
    let error = send(&http_here(&[]), &server.url("/in"), &Recording::of(10)).await;
    ensure!(error.err().context("taken")?.kind == Failure::Redirect(302));
    Ok(())
}

async fn a_hundred_recordings_at_once_all_arrive_whole(_: Arc<Couchdb>) -> TestResult {
    let (server, http) = (Server::always(Reply::Status(200)).await, http_here(&[]));
    let recordings: Vec<Recording> = (0..100).map(|n| Recording::of(200_000 + n * 1000)).collect();
    let sending = recordings.iter().enumerate().map(|(n, recording)| {
        let url = server.url(&format!("/in/{n}"));
        let http = http.clone();
        async move { send(&http, &url, recording).await }
    });
    for sent in futures_util::future::join_all(sending).await {
        sent?;
    }
    let received = server.received();
    ensure!(received.len() == 100, "{}", received.len());
    for request in received {
        let n: usize = request.path.trim_start_matches("/in/").parse()?;
        ensure!(request.digests == recordings[n].audio.digests, "{n} arrived otherwise");
    }
    Ok(())
}
