//! The inspector, as a browser gets it and as others do not.

mod limits;
mod served;

use std::{sync::Arc, time::Duration};

use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use weni_edge::{config::Secret, journal::Position};

use self::served::*;
use crate::harness::{self, SOURCE, Settings, eventually};

#[tokio::test]
async fn without_a_token_an_open_listener_has_only_probes_metrics_and_schemas() {
    let served = Served::at("0.0.0.0:0", |_| {}).await;
    served.deliver().await;
    for path in [
        "/",
        "/inspector",
        "/inspector/page.js",
        "/inspector/sources",
        "/inspector/events",
        "/inspector/calls/loja/0",
    ] {
        let answer = served.get(path, &[]).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.body.contains("admin.token_file"), "{path}: {}", answer.body);
    }
    for path in ["/livez", "/readyz", "/metrics", "/asyncapi.json", "/schemas/dead-letter.v1.json"]
    {
        assert_eq!(served.get(path, &[]).await.status, 200, "{path}");
    }
    let login = served.post("/inspector/login", &[], json!({"token": ""})).await;
    assert_eq!(login.status, 404);
}

#[tokio::test]
async fn a_page_of_another_site_reads_nothing_through_a_name_that_points_here() {
    let served = Served::start().await;
    for host in
        ["Host: evil.example.com", "Host: 127.0.0.1.evil.example.com:9090", "Host: 10.0.0.1"]
    {
        for path in ["/inspector", "/inspector/sources", "/inspector/events"] {
            assert_eq!(served.get(path, &[host]).await.status, 403, "{host} {path}");
        }
    }
    // A proxy on this machine may send the listener's own address as `Host`.
    for proxy in ["Via: 1.1 proxy", "X-Forwarded-For: 10.0.0.1", "X-Real-IP: 10.0.0.1"] {
        assert_eq!(served.get("/inspector/sources", &[proxy]).await.status, 403, "{proxy}");
    }
    assert_eq!(served.get("/inspector/sources", &["Host: 127.0.0.1:9090"]).await.status, 200);
    // Nor does it take up a stream, or call the webhook.
    for site in [
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
        "Origin: http://evil.example.com",
    ] {
        assert_eq!(served.get("/inspector/events", &[site]).await.status, 403, "{site}");
        let test = served.post("/inspector/test", &[site], json!({"source": "loja"})).await;
        assert_eq!(test.status, 403, "{site}");
    }
    let head = format!(
        "POST /inspector/test HTTP/1.1\r\nContent-Type: text/plain\r\n{}",
        served.headers(&[])
    );
    assert_eq!(exchange(served.admin, &head, r#"{"source":"loja"}"#).await.status, 400);
    for path in ["/inspector/test", "/inspector/logout", "/inspector/login"] {
        assert_eq!(served.get(path, &[]).await.status, 404, "nothing is changed by GET");
    }
    assert_eq!(served.journal.pending(), 0);
}

#[tokio::test]
async fn without_a_login_there_is_the_empty_page_and_no_secret_call_or_body() {
    let served = Served::with_token().await;
    served.deliver().await;
    for path in ["/inspector", "/inspector/page.css", "/inspector/page.js", "/inspector/texts.js"] {
        let answer = served.get(path, &[]).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(!answer.body.contains("loja\"") && !answer.body.contains(SECRET), "{path}");
        let policy = "\r\ncontent-security-policy: default-src 'none'; script-src 'self'; ";
        assert!(answer.head.contains(policy) && !answer.head.contains("unsafe"), "{}", answer.head);
        assert!(answer.head.contains("frame-ancestors 'none'"), "{}", answer.head);
        assert!(answer.head.contains("\r\nx-content-type-options: nosniff"), "{}", answer.head);
        assert!(answer.head.contains("\r\nreferrer-policy: no-referrer"), "{}", answer.head);
    }
    let made_up = "Cookie: weni_edge_00000000=0123456789abcdef0123456789abcdef";
    for path in ["/inspector/sources", "/inspector/events", "/inspector/calls/loja/0"] {
        for headers in [&[][..], &[made_up]] {
            let answer = served.get(path, headers).await;
            assert_eq!((answer.status, answer.body.trim()), (401, "A login is needed."), "{path}");
        }
    }
    for path in ["/inspector/test", "/inspector/logout"] {
        let answer = served.post(path, &[], json!({})).await;
        assert_eq!(answer.status, 401, "{path}");
    }
    let session = served.log_in().await;
    let sources = served.get("/inspector/sources", &[&session]).await;
    assert_eq!(sources.json()["sources"][0]["secrets"], json!([SECRET]));
}

#[tokio::test]
async fn a_login_gives_a_cookie_for_this_site_alone_and_ends_with_its_token() {
    let served = Served::with_token().await;
    let answer =
        served.post("/inspector/login", &[], json!({"token": format!(" {TOKEN}\n")})).await;
    let cookie = answer.cookie().unwrap();
    let (pair, attributes) = cookie.split_once("; ").unwrap();
    let id = pair.split_once('=').unwrap().1;
    assert!(id.len() == 64 && !cookie.contains(TOKEN), "{cookie}");
    assert_eq!(attributes, "Max-Age=43200; Path=/inspector; HttpOnly; SameSite=Strict");
    let proxied = ["Origin: https://edge-admin.example.com", "Sec-Fetch-Site: same-origin"];
    let over_tls = served.post("/inspector/login", &proxied, json!({"token": TOKEN})).await;
    assert!(over_tls.cookie().unwrap().ends_with("; SameSite=Strict; Secure"));

    let session = answer.session();
    let status = async |session: &str| served.get("/inspector/sources", &[session]).await.status;
    assert_eq!(status(&session).await, 200);
    assert_eq!(status(&session[..session.len() - 1]).await, 401);
    let out = served.post("/inspector/logout", &[&session], json!({})).await;
    assert!(out.status == 204 && out.cookie().unwrap().contains("=; Max-Age=0; "), "{}", out.head);
    assert_eq!(status(&session).await, 401);

    let session = served.log_in().await;
    let mut events = served.follow(&[&session]).await;
    events.event("hello", |_| true).await;
    let mut config = (**served.config.load()).clone();
    config.admin.tokens = vec![Secret::new("another token of the administrator")];
    served.config.store(Arc::new(config));
    assert_eq!(status(&session).await, 401, "its token is no longer valid");
    let ends = |text: &str| text.ends_with("\r\n0\r\n\r\n").then_some(());
    events.until("its end", ends).await;
    assert_eq!(served.logins("accepted"), 3);
}

#[tokio::test]
async fn wrong_tokens_are_slow_counted_and_never_many_at_once() {
    let served = Arc::new(Served::with_token().await);
    let began = Instant::now();
    let attempts: Vec<_> = (0..20)
        .map(|_| {
            let served = Arc::clone(&served);
            let token = json!({"token": "a token that somebody guessed"});
            tokio::spawn(async move { served.post("/inspector/login", &[], token).await.status })
        })
        .collect();
    let mut statuses = Vec::new();
    for attempt in attempts {
        statuses.push(attempt.await.unwrap());
    }
    let count = |status| statuses.iter().filter(|known| **known == status).count() as u64;
    assert_eq!(count(401) + count(429), 20, "{statuses:?}");
    assert!(count(429) > 0 && count(401) >= 4, "{statuses:?}");
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!((served.logins("wrong"), served.logins("throttled")), (count(401), count(429)));
    // Slow bodies take the places of logins, and none of a probe's.
    let mut slow = Vec::new();
    for _ in 0..60 {
        let mut stream = TcpStream::connect(served.admin).await.unwrap();
        let head = format!(
            "POST /inspector/login HTTP/1.1\r\nContent-Type: application/json\r\n{}Content-Length: 9\r\n\r\n{{",
            served.headers(&[])
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    assert_eq!(served.get("/livez", &[]).await.status, 200);
    drop(slow);
    eventually_async(async || {
        let answer = served.post("/inspector/login", &[], json!({"token": TOKEN})).await;
        answer.status == 204
    })
    .await;
}

#[tokio::test]
async fn a_call_shows_what_it_was_masked_and_when_kafka_has_it_and_its_body_on_demand() {
    let served = Served::start().await;
    let mut events = served.follow(&[]).await;
    events.event("hello", |hello| hello["build"].is_string()).await;
    served.deliver().await;
    let shown = events.event("calls", |calls| calls["source"] == "loja").await;
    let call = &shown["calls"][0];
    assert_eq!(
        (&call["number"], &call["method"], &call["status"]),
        (&json!(0), &json!("POST"), &json!(200))
    );
    assert_eq!(call["accepted"]["kafka"], "pending");
    let event = &call["accepted"]["what"]["events"][0];
    assert_eq!((&event["kind"], &event["state"]), (&json!("message_status"), &json!("delivered")));
    assert_eq!(event["topic"], "weni.message-status.v1");
    assert!(event["ce_id"].as_str().unwrap().len() == 32);
    assert!(event["key"].as_str().unwrap().starts_with('…'), "{event}");
    for personal in ["5582999990000", "wamid.", SECRET] {
        assert!(!events.text.contains(personal), "{personal}: {}", events.text);
    }
    served.commit(served.journal.first_from(Position::MAX));
    let settled = events.event("settled", |_| true).await;
    assert_eq!(settled["sources"], json!({"loja": {"committed": [0], "aside": []}}));

    let details = served.get("/inspector/calls/loja/0", &[]).await.json();
    assert_eq!((&details["body"], &details["body_is_changed"]), (&json!(BODY), &json!(false)));
    let key = "wamid.HBgNNTU4Mjk5OTk5MDAwMBUCABEYEjNB";
    assert_eq!(details["what"]["events"][0]["key"], key);
    for path in ["loja/1", "loja/x", "filial/0", "loja", "unknown/0"] {
        assert_eq!(
            served.get(&format!("/inspector/calls/{path}"), &[]).await.status,
            404,
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_page_that_was_open_before_the_first_calls_has_missed_none() {
    let served = Served::start().await;
    let mut events = served.follow(&[]).await;
    events.event("hello", |_| true).await;
    for (path, source) in [("/hooks/loja", "loja"), ("/hooks/loga", "unknown")] {
        served.call(path, "", BODY).await;
        let calls = events.event("calls", |calls| calls["source"] == source).await;
        assert_eq!(calls["skipped"], 0, "{calls}");
    }
}

#[tokio::test]
async fn refused_calls_are_explained_without_what_the_caller_wrote() {
    let served = Served::start().await;
    let wrong = "X-Token: a wrong secret, which has 36 letters\r\n";
    assert_eq!(served.call("/hooks/loja", wrong, BODY).await, 401);
    assert_eq!(served.call("/hooks/loja", "Authorization: Bearer 1234567\r\n", BODY).await, 401);
    assert_eq!(served.call("/hooks/loga", "", BODY).await, 404);
    let mut events = served.follow(&[]).await;
    let shown = events.event("calls", |calls| calls["source"] == "loja").await;
    let why = |at: usize, language: &str| shown["calls"][at]["why"][language].as_str().unwrap();
    let chars = wrong.trim().len() - "X-Token: ".len();
    let said = format!("X-Token came with {chars} characters; the secret has 25.");
    assert!(why(0, "en").starts_with(&said), "{}", why(0, "en"));
    assert!(
        why(0, "pt")
            .starts_with(&format!("X-Token veio com {chars} caracteres; o segredo tem 25."))
    );
    assert_eq!(why(1, "en"), "X-Token is missing. The call had authorization.");
    let strange = events.event("calls", |calls| calls["source"] == "unknown").await;
    let why = &strange["calls"][0]["why"]["en"];
    assert_eq!(why, "The path is /hooks/loga. Did you mean /hooks/loja?");
    for written in ["a wrong secret", "1234567", "wamid."] {
        assert!(!events.text.contains(written), "{written}: {}", events.text);
    }
}

#[tokio::test]
async fn the_url_to_paste_is_configured_or_seen_and_never_a_guess() {
    let served = Served::start().await;
    let url =
        async || served.get("/inspector/sources", &[]).await.json()["sources"][0]["url"].clone();
    let local = url().await;
    assert_eq!(local["basis"], "local");
    assert_eq!(local["url"], format!("http://{}/hooks/loja", served.public));
    // A refused caller may claim any name.
    served.call("/hooks/loja", "", BODY).await;
    assert_eq!(url().await["basis"], "local");
    // Anyone may call a source without a secret, by any name.
    let (config, mut open) = (served.config.load_full(), (**served.config.load()).clone());
    open.sources.get_mut("loja").unwrap().allow_unauthenticated = true;
    served.config.store(Arc::new(open));
    assert_eq!(served.call("/hooks/loja", "", BODY).await, 200);
    assert_eq!(url().await["basis"], "local");
    served.config.store(config);
    served.deliver().await;
    let seen = url().await;
    assert_eq!((&seen["basis"], &seen["url"]), (&json!("seen"), &Json::Null));
    assert_eq!(seen["host"], "edge.example.com");
    let headers = format!("X-Token: {SECRET}\r\nX-Forwarded-Proto: https\r\n");
    // Hosts are looked at once a second.
    let seen = async {
        while url().await["url"] != "https://edge.example.com/hooks/loja" {
            tokio::time::sleep(Duration::from_millis(50)).await;
            served.call("/hooks/loja", &headers, BODY).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), seen).await.unwrap();
    let mut config = (**served.config.load()).clone();
    config.http.public_url = Some("https://webhooks.example.com".to_owned());
    served.config.store(Arc::new(config));
    let configured = url().await;
    assert_eq!(configured["basis"], "configured");
    assert_eq!(configured["url"], "https://webhooks.example.com/hooks/loja");
}

#[tokio::test]
async fn a_test_callback_goes_through_the_public_door_and_is_no_status() {
    let served = Served::start().await;
    let results = served.post("/inspector/test", &[], json!({"source": "loja"})).await.json();
    assert_eq!(results[0]["way"], "listener");
    assert_eq!((&results[0]["status"], results.as_array().unwrap().len()), (&json!(200), 1));
    let mut events = served.follow(&[]).await;
    let shown = events.event("calls", |calls| calls["source"] == "loja").await;
    let accepted = &shown["calls"][0]["accepted"];
    assert_eq!(accepted["own"], true);
    let event = &accepted["what"]["events"][0];
    assert_eq!((&event["kind"], &event["state"]), (&json!("channel_event"), &json!("edge_test")));
    assert_eq!(accepted["what"]["total"], 1);
    let sources = served.get("/inspector/sources", &[]).await.json();
    assert_eq!(sources["sources"][0]["last_ms"], Json::Null, "it is no call of Weni's");
    let nothing = served.post("/inspector/test", &[], json!({"source": "filial"})).await;
    assert_eq!(nothing.status, 404);

    // A public URL at which nothing listens.
    let mut config = (**served.config.load()).clone();
    config.http.public_url = Some("https://127.0.0.1:1".to_owned());
    served.config.store(Arc::new(config));
    let results = served.post("/inspector/test", &[], json!({"source": "loja"})).await.json();
    assert_eq!(
        (&results[0]["way"], &results[0]["failure"]),
        (&json!("public"), &json!("no connection"))
    );
    assert_eq!((&results[1]["way"], &results[1]["status"]), (&json!("listener"), &json!(200)));
}

#[tokio::test]
async fn eight_pages_follow_the_calls_and_a_ninth_has_to_wait() {
    let served = Served::start().await;
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut events = served.follow(&[]).await;
        events.event("hello", |_| true).await;
        open.push(events);
    }
    let ninth = served.get("/inspector/events", &[]).await;
    assert_eq!(ninth.status, 503);
    assert!(ninth.head.contains("\r\nretry-after: 1"), "{}", ninth.head);
    assert_eq!(served.get("/livez", &[]).await.status, 200);
    drop(open.pop());
    let places = async || served.get("/inspector/sources", &[]).await.json()["places"] == 1;
    eventually_async(places).await;
    served.follow(&[]).await.event("hello", |_| true).await;
}

#[tokio::test]
async fn a_page_that_is_shown_nothing_new_hears_that_the_edge_is_there() {
    let served = Served::start().await;
    let mut events = served.follow(&[]).await;
    events.until("a heartbeat", |text| text.contains("\n:\n\n").then_some(())).await;
}

#[tokio::test]
async fn a_browser_that_stands_still_is_cut_off_and_costs_no_place() {
    let served = Served::at("127.0.0.1:0", |config| {
        let source = config.sources["loja"].clone();
        let name = |number| format!("loja-{number:03}");
        config.sources.extend((0..300).map(|number| (name(number), source.clone())));
    })
    .await;
    // More to show than the sockets' buffers take.
    for number in 0..300 {
        let request = format!("GET /hooks/loja-{number:03} HTTP/1.1\r\nHost: e\r\n\r\n");
        let mut caller = TcpStream::connect(served.public).await.unwrap();
        caller.write_all(request.repeat(100).as_bytes()).await.unwrap();
        caller.shutdown().await.unwrap();
        let mut answers = Vec::new();
        timeout(PATIENCE, caller.read_to_end(&mut answers)).await.unwrap().unwrap();
    }
    let still = served.follow(&[]).await;
    let places =
        async |wanted: u64| served.get("/inspector/sources", &[]).await.json()["places"] == wanted;
    eventually_async(async || places(7).await).await;
    eventually_async(async || places(8).await).await;
    drop(still);
}

#[test]
fn the_last_arrival_of_each_source_survives_a_restart() {
    let settings = Settings { bootstrap: "127.0.0.1:1".to_owned(), ..Settings::default() };
    let mut edge = harness::Edge::start(&settings);
    let last = |edge: &harness::Edge| {
        let sources: Json = serde_json::from_str(&edge.probe("/inspector/sources").1).unwrap();
        assert_eq!(sources["sources"][0]["name"], SOURCE);
        sources["sources"][0]["last_ms"].as_u64()
    };
    assert_eq!(last(&edge), None);
    edge.accept(BODY);
    let arrived = last(&edge).unwrap();
    edge.terminate();
    edge.start_again();
    assert_eq!(last(&edge), Some(arrived));
    edge.accept(BODY);
    let newer = last(&edge).unwrap();
    assert!(newer > arrived);
    let file = edge.journal().join("arrivals");
    eventually("it is on disk", || {
        std::fs::read_to_string(&file).ok().filter(|text| text.contains(&newer.to_string()))
    });
    edge.kill();
    std::fs::write(&file, "half a fi").unwrap();
    edge.start_again();
    assert_eq!(last(&edge), None, "a file that cannot be read is none");
}
