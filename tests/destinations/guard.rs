//! Users' URLs do not lead into the operator's network, whatever they are called and whoever sends us there.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use kz_record_call::destination::url::guard::{Kind, Refused};
use kz_record_call::destination::url::http::{Failure, Http};
use kz_record_call::kazoo::time::Clock;

use crate::promises;
use crate::support::{Couchdb, Recording, Reply, Server, TestResult, http, send, settings};

promises![
    this_host_is_not_reached_in_any_spelling,
    a_name_that_resolves_to_this_host_is_refused,
    a_name_with_a_good_and_a_bad_address_is_only_reached_at_the_good_one,
    a_redirect_to_this_host_is_refused,
    private_networks_are_denied_reported_or_allowed,
    the_allow_list_lets_through_what_operators_vouch_for,
    the_clusters_own_proxy_is_not_guarded,
];

fn refused(failure: &Failure) -> Option<Kind> {
    match failure {
        Failure::Address(Refused { kind, .. }) => Some(*kind),
        _ => None,
    }
}

async fn this_host_is_not_reached_in_any_spelling(_: Arc<Couchdb>) -> TestResult {
    let (server, recording) = (Server::always(Reply::Status(200)).await, Recording::of(100));
    let http = http(&[("PRIVATE_ADDRESSES", "allow")], &[]);
    let port = server.address.port();
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::127.0.0.1]",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "１２７.0.0.1",
    ] {
        let url = format!("http://{host}:{port}/in");
        let error = send(&http, &url, &recording).await.err().context("taken")?;
        ensure!(
            refused(&error.kind).is_some() && error.is_for_ever(),
            "{host}: {error:?}"
        );
    }
    ensure!(server.asked() == 0);
    Ok(())
}

async fn a_name_that_resolves_to_this_host_is_refused(_: Arc<Couchdb>) -> TestResult {
    let (server, recording) = (Server::always(Reply::Status(200)).await, Recording::of(100));
    let names: &[(&str, &[&str])] = &[
        ("evil.test", &["127.0.0.1"]),
        ("localhost", &["127.0.0.1", "::1"]),
        ("evil6.test", &["::ffff:127.0.0.1"]),
        ("meta.test", &["169.254.169.254"]),
        ("multi.test", &["224.0.0.1", "127.0.0.2"]),
    ];
    let http = http(&[("PRIVATE_ADDRESSES", "allow")], names);
    for (name, _) in names {
        let url = format!("http://{name}:{}/in", server.address.port());
        let error = send(&http, &url, &recording).await.err().context("taken")?;
        ensure!(
            refused(&error.kind).is_some() && error.is_for_ever(),
            "{name}: {error:?}"
        );
        ensure!(error.to_string().contains("not connected to"), "{error}");
    }
    ensure!(server.asked() == 0);
    // The host's own resolver is judged alike.
    let http = Http::for_users(&settings(&[]), Clock::system())?;
    let url = format!("http://localhost:{}/in", server.address.port());
    let error = send(&http, &url, &recording).await.err().context("taken")?;
    ensure!(refused(&error.kind) == Some(Kind::Loopback), "{error:?}");
    Ok(())
}

async fn a_name_with_a_good_and_a_bad_address_is_only_reached_at_the_good_one(_: Arc<Couchdb>) -> TestResult {
    let (server, recording) = (Server::always(Reply::Status(200)).await, Recording::of(100));
    let names: &[(&str, &[&str])] = &[("two.test", &["127.0.0.9", "127.0.0.1"])];
    let http = http(&[("ALLOW", "127.0.0.1")], names);
    let url = format!("http://two.test:{}/in", server.address.port());
    send(&http, &url, &recording).await?;
    ensure!(server.asked() == 1);
    Ok(())
}

async fn a_redirect_to_this_host_is_refused(_: Arc<Couchdb>) -> TestResult {
    let inside = Server::always(Reply::Status(200)).await;
    let port = inside.address.port();
    let names: &[(&str, &[&str])] = &[("good.test", &["127.0.0.1"]), ("evil.test", &["127.0.0.1"])];
    let http = http(&[("ALLOW", "good.test")], names);
    for location in [
        format!("http://127.0.0.1:{port}/in"),
        format!("http://evil.test:{port}/in"),
        format!("http://[::1]:{port}/in"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
    ] {
        let told = location.clone();
        let outside = Server::with(move |_, _, _| Reply::Redirect(307, told.clone())).await;
        let url = format!("http://good.test:{}/in", outside.address.port());
        let error = send(&http, &url, &Recording::of(100)).await.err().context("taken")?;
        ensure!(
            refused(&error.kind).is_some() && error.is_for_ever(),
            "{location}: {error:?}"
        );
        ensure!(outside.asked() == 1);
    }
    ensure!(inside.asked() == 0);
    Ok(())
}

async fn private_networks_are_denied_reported_or_allowed(_: Arc<Couchdb>) -> TestResult {
    let names: &[(&str, &[&str])] = &[("in.test", &["10.255.255.1", "fd00::1"])];
    for (policy, denied) in [("deny", true), ("report", false), ("allow", false)] {
        // Nobody is there; what matters is whether it was tried.
        let changes = [("PRIVATE_ADDRESSES", policy), ("CONNECT_TIMEOUT_MS", "50")];
        let http = http(&changes, names);
        for host in ["10.255.255.1", "192.168.255.255", "100.64.0.1", "[fc00::1]", "in.test"] {
            let sending = send(&http, &format!("http://{host}/in"), &Recording::of(10)).await;
            let error = sending.err().context("taken")?;
            ensure!(
                (refused(&error.kind) == Some(Kind::Private)) == denied,
                "{policy} {host}: {error:?}"
            );
            ensure!(error.is_for_ever() == denied, "{policy} {host}: {error:?}");
        }
    }
    Ok(())
}

async fn the_allow_list_lets_through_what_operators_vouch_for(_: Arc<Couchdb>) -> TestResult {
    let (server, recording) = (Server::always(Reply::Status(200)).await, Recording::of(100));
    let port = server.address.port();
    let names: &[(&str, &[&str])] = &[("rec.in.test", &["127.0.0.1"])];
    for (allow, host, passes) in [
        ("127.0.0.1", "127.0.0.1", true),
        ("127.0.0.0/8", "rec.in.test", true),
        ("rec.in.test", "rec.in.test", true),
        ("*.in.test", "rec.in.test", true),
        ("rec.in.test", "127.0.0.1", false),
        ("127.0.0.2", "127.0.0.1", false),
        ("in.test", "rec.in.test", false),
    ] {
        let http = http(&[("ALLOW", allow)], names);
        let outcome = send(&http, &format!("http://{host}:{port}/in"), &recording).await;
        ensure!(outcome.is_ok() == passes, "{allow} {host}: {outcome:?}");
    }
    Ok(())
}

async fn the_clusters_own_proxy_is_not_guarded(_: Arc<Couchdb>) -> TestResult {
    let server = Server::always(Reply::Status(200)).await;
    let http = Http::trusting(&settings(&[]), Clock::system())?;
    send(&http, &server.url("/store/x/y"), &Recording::of(100)).await?;
    Ok(())
}
