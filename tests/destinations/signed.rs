//! Signed URLs: what arrives at the store, and what its answers mean.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use kz_record_call::config::HostHeader;
use kz_record_call::destination::url::Target;
use kz_record_call::destination::url::http::{SendError, Sent, Upload};
use kz_record_call::kazoo::time::Moment;
use kz_record_call::recording::settings::Method;
use serde_json::{Map, json};

use crate::promises;
use crate::support::{Couchdb, Recording, Reply, Server, TestResult, http_here};

promises![
    a_signed_url_goes_out_as_it_was_given,
    a_signed_url_is_put_even_if_the_flow_says_post,
    the_store_gets_the_headers_that_its_scheme_demands,
    an_older_signature_is_tried_with_and_without_the_audios_type,
    a_signed_url_is_never_redirected,
    the_stores_own_md5_is_compared,
    a_url_whose_time_is_over_is_known_before_and_after_it_is_sent,
    a_host_gets_its_further_header_and_no_other_host_does,
];

/// One of each form, as the stores' own tools make them.
const SIGNED: [&str; 9] = [
    "/k.mp3?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK%2F20270101%2Feu-central-1%2Fs3%2Faws4_request&X-Amz-Date=20270101T000000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature=00ff",
    "/a//b/../c%2fd.mp3?X-Amz-Signature=00ff&x='~*",
    "/k?X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=a%40b.iam&X-Goog-Date=20270101T000000Z&X-Goog-Expires=60&X-Goog-SignedHeaders=host&X-Goog-Signature=aabb",
    "/k?sv=2024-11-04&sr=b&sig=a%2Bb%3D&se=2027-01-01T00%3A00%3A00Z",
    "/k?Expires=4000000000&Signature=a~b__&Key-Pair-Id=K1",
    "/k?Policy=e30_&Signature=a~b__&Key-Pair-Id=K1",
    "/k?AWSAccessKeyId=AK&Signature=a%2Fb%3D&Expires=4000000000",
    "/k?GoogleAccessId=a%40b.iam&Expires=4000000000&Signature=a%2Bb%3D%3D",
    "/k/?x-amz-signature=00ff&",
];

const AZURE: &str = "/c/k?sv=2024-11-04&sr=b&sig=a%2Bb%3D&se=2099-01-01T00%3A00%3A00Z";
const AMAZON: &str = "/k?X-Amz-Signature=00ff";
const AMAZON_OLDER: &str = "/k?AWSAccessKeyId=AK&Signature=a%2Fb%3D&Expires=4000000000";
const CLOUDFRONT: &str = "/k?Expires=4000000000&Signature=a~b__&Key-Pair-Id=K1";

fn document() -> Map<String, serde_json::Value> {
    let document = json!({"_id": "202611-7c9e", "call_id": "a84b@pc33"});
    document.as_object().cloned().unwrap_or_default()
}

/// Sends as the destination does.
async fn send(server: &Server, path: &str, recording: &Recording, asked: Method) -> Result<Sent, SendError> {
    let target = Target::parse(&server.url(path))
        .unwrap()
        .of_recording(&document(), "a", "mp3", None);
    let upload = Upload {
        source: &recording.source,
        length: recording.audio.size,
        content_type: "audio/mpeg",
        method: target.method(asked),
        key: "k",
    };
    http_here(&[]).send(&target, &upload).await
}

async fn a_signed_url_goes_out_as_it_was_given(_: Arc<Couchdb>) -> TestResult {
    let server = Server::always(Reply::Status(200)).await;
    let recording = Recording::of(10);
    for path in SIGNED {
        ensure!(Target::parse(&server.url(path))?.is_signed(), "{path}");
        send(&server, path, &recording, Method::Put).await?;
        let sent = server.received().last().context("nothing")?.clone();
        ensure!(sent.path == path, "{} instead of {path}", sent.path);
        ensure!(sent.digests == recording.audio.digests);
        ensure!(sent.header("host") == server.address.to_string());
    }
    // What only looks like one is extended as ever.
    for path in ["/k?signature=x", "/k?sig=", "/k?x=sig", "/k?policy=1&key-pair-id=2"] {
        let target = Target::parse(&server.url(path))?;
        ensure!(!target.is_signed(), "{path}");
        let sent = target.of_recording(&document(), "a", "mp3", None);
        ensure!(
            sent.expose().as_str().contains("call_recording_a84b%40pc33.mp3"),
            "{path}"
        );
    }
    Ok(())
}

async fn a_signed_url_is_put_even_if_the_flow_says_post(_: Arc<Couchdb>) -> TestResult {
    let server = Server::always(Reply::Status(200)).await;
    for path in SIGNED {
        send(&server, path, &Recording::of(10), Method::Post).await?;
        let method = server.received().last().context("nothing")?.method.to_string();
        // CloudFront signs no method, and may stand before any server.
        let expected = if path.contains("Key-Pair-Id") { "POST" } else { "PUT" };
        ensure!(method == expected, "{method} {path}");
    }
    Ok(())
}

async fn the_store_gets_the_headers_that_its_scheme_demands(_: Arc<Couchdb>) -> TestResult {
    let server = Server::always(Reply::Status(201)).await;
    for (path, blob) in [(AZURE, "BlockBlob"), (AMAZON, ""), (CLOUDFRONT, "")] {
        send(&server, path, &Recording::of(10), Method::Put).await?;
        let sent = server.received().last().context("nothing")?.clone();
        ensure!(sent.header("x-ms-blob-type") == blob, "{path}");
        ensure!(sent.header("content-type") == "audio/mpeg", "{path}");
    }
    Ok(())
}

async fn an_older_signature_is_tried_with_and_without_the_audios_type(_: Arc<Couchdb>) -> TestResult {
    // Most signers sign no type.
    let server = Server::always(Reply::Status(200)).await;
    send(&server, AMAZON_OLDER, &Recording::of(10), Method::Put).await?;
    ensure!(server.asked() == 1 && server.received()[0].header("content-type").is_empty());
    // This one did.
    let refused = "<Error><Code>SignatureDoesNotMatch</Code></Error>";
    let server = Server::with(move |_, _, before| match before {
        0 => Reply::Says(403, Vec::new(), refused),
        _ => Reply::Status(200),
    });
    let server = server.await;
    let recording = Recording::of(1000);
    send(&server, AMAZON_OLDER, &recording, Method::Put).await?;
    let received = server.received();
    ensure!(received.len() == 2 && received[1].header("content-type") == "audio/mpeg");
    ensure!(received[1].digests == recording.audio.digests);
    // A wrong signature is wrong either way.
    let server = Server::always(Reply::Says(403, Vec::new(), refused)).await;
    let error = send(&server, AMAZON_OLDER, &recording, Method::Put).await;
    let error = error.err().context("taken")?;
    ensure!(
        error.is_for_ever() && !error.is_expired() && server.asked() == 2,
        "{error:?}"
    );
    Ok(())
}

async fn a_signed_url_is_never_redirected(_: Arc<Couchdb>) -> TestResult {
    let server = Server::with(|_, path, _| match path {
        "/other" => Reply::Status(200),
        _ => Reply::Redirect(307, "/other".into()),
    })
    .await;
    let error = send(&server, AMAZON, &Recording::of(10), Method::Put).await;
    ensure!(error.err().context("redirected")?.status() == Some(307));
    ensure!(server.asked() == 1);
    Ok(())
}

async fn the_stores_own_md5_is_compared(_: Arc<Couchdb>) -> TestResult {
    let recording = Recording::of(1000);
    let tag = |md5: &str| vec![("etag", format!("\"{md5}\""))];
    let kms = vec![
        ("etag", format!("\"{}\"", "0".repeat(32))),
        ("x-amz-server-side-encryption", "aws:kms".to_owned()),
    ];
    let own = recording.audio.digests.md5.clone();
    for (path, headers, reported) in [
        (AMAZON, tag(&own), Some(own.clone())),
        (AMAZON, tag(&"0".repeat(32)), Some("0".repeat(32))),
        (AMAZON, tag("0x8DE"), None),
        (AMAZON, kms, None),
        // A server of the user's own may have any tag.
        ("/in", tag(&"0".repeat(32)), None),
    ] {
        let server = Server::always(Reply::Says(200, headers.clone(), "")).await;
        let sent = send(&server, path, &recording, Method::Put).await?;
        ensure!(sent.md5 == reported, "{path} {headers:?}: {:?}", sent.md5);
    }
    Ok(())
}

async fn a_url_whose_time_is_over_is_known_before_and_after_it_is_sent(_: Arc<Couchdb>) -> TestResult {
    let at = |seconds| Moment::from_unix_seconds(seconds);
    let target = Target::parse("https://h/k?AWSAccessKeyId=AK&Signature=x&Expires=1796040000")?;
    // The clocks of the worker and of the store differ a little.
    ensure!(!target.is_expired(at(1_796_040_899)) && target.is_expired(at(1_796_040_901)));
    ensure!(!Target::parse("https://h/k?expires=1&x=y")?.is_expired(at(1_796_040_000)));
    for (status, body, expired) in [
        (
            403,
            "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
            true,
        ),
        (400, "<Error><Code>ExpiredToken</Code></Error>", true),
        (403, "<Error><Code>SignatureDoesNotMatch</Code></Error>", false),
        (503, "expired", false),
    ] {
        let server = Server::always(Reply::Says(status, Vec::new(), body)).await;
        let error = send(&server, AMAZON, &Recording::of(10), Method::Put).await;
        let error = error.err().context("taken")?;
        ensure!(error.is_expired() == expired, "{error:?}");
        // `explain` prints this.
        ensure!(error.to_string().contains(&format!("answered {status}: ")), "{error}");
        ensure!(!error.to_string().contains("00ff"), "{error}");
    }
    Ok(())
}

async fn a_host_gets_its_further_header_and_no_other_host_does(_: Arc<Couchdb>) -> TestResult {
    let (server, other) = (
        Server::always(Reply::Status(200)).await,
        Server::always(Reply::Status(200)).await,
    );
    let header: HostHeader = format!("http://{} X-Api-Key: ab c", server.address).parse()?;
    ensure!(!format!("{header:?}").contains("ab c"));
    let http = http_here(&[("HEADERS", &format!("http://{} X-Api-Key: ab c", server.address))]);
    for (server, value) in [(&server, "ab c"), (&other, "")] {
        crate::support::send(&http, &server.url("/in"), &Recording::of(10)).await?;
        let sent = server.received().last().context("nothing")?.clone();
        ensure!(sent.header("x-api-key") == value, "{sent:?}");
    }
    // It may take the place of the URL's own credentials.
    let http = http_here(&[(
        "HEADERS",
        &format!("http://{} Authorization: Bearer abc", server.address),
    )]);
    let url = format!("http://u:p@{}/in", server.address);
    crate::support::send(&http, &url, &Recording::of(10)).await?;
    let sent = server.received().last().context("nothing")?.clone();
    ensure!(sent.headers.get_all("authorization").iter().count() == 1);
    ensure!(sent.header("authorization") == "Bearer abc", "{sent:?}");
    Ok(())
}
