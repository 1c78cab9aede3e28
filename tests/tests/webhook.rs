//! Webhooks over TLS, with tokens, at servers that do not take everything at once.
#![allow(clippy::unwrap_used)]

use nasd_tests::events::Webhook;
use nasd_tests::{Node, Pair, Setup, eventually, nasd, put};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An authority of the server's own, and the certificate of a server on this machine.
fn authority(dir: &Path, name: &str) -> PathBuf {
    let pki = dir.join(name);
    let at = pki.to_str().unwrap();
    for args in [
        &["cert", "ca", "--dir", at][..],
        &["cert", "node", "--dir", at, "--name", "server", "--host", "127.0.0.1"],
        &["cert", "node", "--dir", at, "--name", "elsewhere", "--host", "192.0.2.1"],
    ] {
        let made = nasd(args);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    pki
}

fn rule(url: &str) -> String {
    format!(
        "[[notify]]\npaths = [\"**\"]\nwebhook = \"{url}\"\nca = \"{{base}}/ca.pem\"\ntoken_file = \"{{base}}/token\"\n"
    )
}

/// What `nasd events test-webhook` says, and whether it is content.
fn test_webhook(node: &Node) -> (bool, String) {
    let out = node.try_cli(&["events", "test-webhook"]);
    (out.status.success(), String::from_utf8_lossy(&out.stdout).trim_end().to_owned())
}

#[test]
fn over_tls_with_an_authority_of_its_own_a_token_and_a_server_that_fails_at_first() {
    let dir = tempfile::tempdir().unwrap();
    let pki = authority(dir.path(), "pki");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let hook = Webhook::with_tls(&pki, "server", move |n| {
        count.fetch_add(1, Ordering::SeqCst);
        if n < 3 { 500 } else { 204 }
    });
    let mut pair = Pair::new(&Setup { more: rule(&hook.url), ..Setup::default() });
    for node in [&pair.a, &pair.b] {
        let base = node.mount.parent().unwrap();
        fs::copy(pki.join("ca.pem"), base.join("ca.pem")).unwrap();
        fs::write(base.join("token"), "s3cret\n").unwrap();
    }
    pair.b.start();
    pair.a.start();
    pair.b.wait_for("secondary", "in-sync");
    put(pair.a.path("x"), "x");
    let seq = pair.a.status()["seq"].clone();
    let mut told = Vec::new();
    eventually("the server has it", || {
        told.extend(hook.events());
        told.iter().any(|e| e["kind"] == "data" && e["seq"] == seq).then_some(())
    });
    assert!(asked.load(Ordering::SeqCst) > 3, "it is asked again until it answers 2xx");
    assert!(hook.headers().iter().all(|h| h.to_lowercase().contains("authorization: bearer s3cret")));
    // Numbers never go back: what it did not take came again, in its order.
    let order: Vec<u64> =
        told.iter().filter(|e| e["kind"] == "data").map(|e| e["seq"].as_u64().unwrap()).collect();
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(test_webhook(&pair.b), (true, format!("{}: 204", hook.url)));
    let base = pair.b.mount.parent().unwrap();
    let tested = hook.events();
    assert!(tested.iter().any(|e| e["kind"] == "demand"), "{tested:?}");

    // Another token counts at once.
    fs::write(base.join("token"), "an0ther").unwrap();
    assert!(test_webhook(&pair.b).0);
    hook.events();
    assert!(hook.headers().last().unwrap().to_lowercase().contains("bearer an0ther"));
}

#[test]
fn what_is_wrong_is_named_and_once_it_is_mended_everything_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (pki, other) = (authority(dir.path(), "pki"), authority(dir.path(), "other"));
    let hook = Webhook::with_tls(&pki, "server", |_| 200);
    let mut pair = Pair::new(&Setup { more: rule(&hook.url), ..Setup::default() });
    let base = pair.b.mount.parent().unwrap().to_owned();
    let (ca, token) = (base.join("ca.pem"), base.join("token"));
    fs::copy(other.join("ca.pem"), &ca).unwrap();
    fs::write(&token, "s3cret").unwrap();
    pair.b.start();
    pair.a.start();
    pair.b.wait_for("secondary", "in-sync");
    put(pair.a.path("x"), "x");
    let seq = pair.a.status()["seq"].clone();
    let url = &hook.url;
    let says = |what: &str, wanted: String| {
        let (well, said) = test_webhook(&pair.b);
        assert!(!well && said.contains(&wanted), "{what}: {said}");
    };
    says("a wrong authority", format!("{url}: invalid peer certificate: "));
    says(
        "a wrong authority",
        "is the certificate in ca of its [[notify]] that of the server's authority".to_owned(),
    );
    fs::write(&ca, "no certificate").unwrap();
    says("no authority", format!("{}: no certificate is in it; put the certificate", ca.display()));
    fs::remove_file(&ca).unwrap();
    says("no file", format!("{}: io: No such file or directory", ca.display()));
    let doctor = pair.b.try_cli(&["doctor"]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(
        said.contains(&format!("{} can't be read", ca.display())) && said.contains("correct `ca`"),
        "{said}"
    );
    fs::copy(pki.join("ca.pem"), &ca).unwrap();
    for wrong in ["", "\n", "two words", "zwölf"] {
        fs::write(&token, wrong).unwrap();
        says(
            "no token",
            format!("{}: this is no token; put one on a line of its own there", token.display()),
        );
    }
    fs::remove_file(&token).unwrap();
    says(
        "no file",
        format!(
            "{}: No such file or directory (os error 2); put the token of the webhook there",
            token.display()
        ),
    );
    assert!(
        hook.events().is_empty(),
        "nobody is told without the token, or when it is not certain who that is"
    );
    // No restart: it is tried again.
    fs::write(&token, "s3cret").unwrap();
    put(pair.a.path("x"), "y");
    let mut told = Vec::new();
    eventually("everything is told", || {
        told.extend(hook.events());
        told.iter().any(|e| e["seq"] == seq).then_some(())
    });

    // The right authority, and another host's certificate.
    let imposter = Webhook::with_tls(&pki, "elsewhere", |_| 200);
    pair.b.edit_config(url, &imposter.url);
    let (well, said) = test_webhook(&pair.b);
    assert!(!well && said.contains("is the host a name in the server's certificate?"), "{said}");
    // The authorities of this machine do not know it.
    pair.b.edit_config(&format!("ca = \"{}\"", ca.display()), "");
    let (well, said) = test_webhook(&pair.b);
    assert!(!well && said.contains("name the server's authority with ca in its [[notify]]"), "{said}");
}
