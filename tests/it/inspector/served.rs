//! Both listeners in this process, called as a browser and as Weni call them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep, timeout},
};
use weni_edge::{
    admin,
    config::{Config, Secret, Source},
    http::{self as edge_http, Phase},
    journal::{Checkpoint, Journal, Options, Position},
    metrics::Metrics,
};

pub(super) const SECRET: &str = "a secret of 25 characters";
pub(super) const TOKEN: &str = "a token of the administrator";
pub(super) const BODY: &str = r#"{"statuses":[{"id":"wamid.HBgNNTU4Mjk5OTk5MDAwMBUCABEYEjNB","status":"delivered","timestamp":"1763842385","recipient_id":"5582999990000"}]}"#;
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Both listeners over one journal, without Kafka.
pub(super) struct Served {
    pub(super) public: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) config: Arc<ArcSwap<Config>>,
    pub(super) journal: Journal,
    pub(super) metrics: Arc<Metrics>,
    _phase: watch::Sender<Phase>,
    _directory: TempDir,
}

/// An answer of the admin listener.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{}: {}", self.head, self.body))
    }

    pub(super) fn cookie(&self) -> Option<&str> {
        self.head.split("\r\n").find_map(|line| line.strip_prefix("set-cookie: "))
    }

    pub(super) fn session(&self) -> String {
        format!("Cookie: {}", self.cookie().unwrap().split(';').next().unwrap())
    }
}

impl Served {
    pub(super) async fn start() -> Self {
        Self::at("127.0.0.1:0", |_| {}).await
    }

    pub(super) async fn with_token() -> Self {
        Self::at("127.0.0.1:0", |config| config.admin.tokens = vec![Secret::new(TOKEN)]).await
    }

    pub(super) async fn at(admin: &str, configure: impl FnOnce(&mut Config)) -> Self {
        let directory = TempDir::new().unwrap();
        let metrics = Arc::<Metrics>::default();
        let options =
            Options { min_free_bytes: 0, allow_volatile: true, ..Options::new(directory.path()) };
        let journal = Journal::open(options, Arc::clone(&metrics)).unwrap();
        let mut config = Config::default();
        let (header, secrets) = ("X-Token".to_owned(), vec![Secret::new(SECRET)]);
        config.sources.insert("loja".into(), Source { header, secrets, ..Source::default() });
        configure(&mut config);
        let config = Arc::new(ArcSwap::from_pointee(config));
        let listeners = [TcpListener::bind("127.0.0.1:0").await, TcpListener::bind(admin).await];
        let [public, admin] = listeners.map(Result::unwrap);
        let addresses = [public.local_addr().unwrap(), admin.local_addr().unwrap()];
        let (sender, phase) = watch::channel(Phase::Serving);
        let state = edge_http::State {
            config: Arc::clone(&config),
            journal: journal.clone(),
            metrics: Arc::clone(&metrics),
            calls: Arc::default(),
            phase,
            public: addresses[0],
        };
        tokio::spawn(edge_http::serve(public, None, state.clone()));
        tokio::spawn(admin::serve(admin, state));
        Self {
            public: addresses[0],
            admin: addresses[1],
            config,
            journal,
            metrics,
            _phase: sender,
            _directory: directory,
        }
    }

    /// Calls the webhook, and returns the status.
    pub(super) async fn call(&self, path: &str, headers: &str, body: &str) -> u16 {
        let head = format!("POST {path} HTTP/1.1\r\nHost: edge.example.com\r\n{headers}");
        exchange(self.public, &head, body).await.status
    }

    pub(super) async fn deliver(&self) {
        assert_eq!(self.call("/hooks/loja", &format!("X-Token: {SECRET}\r\n"), BODY).await, 200);
    }

    pub(super) async fn get(&self, path: &str, headers: &[&str]) -> Answer {
        let head = format!("GET {path} HTTP/1.1\r\n{}", self.headers(headers));
        exchange(self.admin, &head, "").await
    }

    pub(super) async fn post(&self, path: &str, headers: &[&str], body: Json) -> Answer {
        let json = "Content-Type: application/json\r\n";
        let head = format!("POST {path} HTTP/1.1\r\n{json}{}", self.headers(headers));
        exchange(self.admin, &head, &body.to_string()).await
    }

    pub(super) fn headers(&self, headers: &[&str]) -> String {
        let own = headers.iter().map(|header| format!("{header}\r\n")).collect::<String>();
        let host = format!("Host: localhost:{}\r\n", self.admin.port());
        if headers.iter().any(|header| header.starts_with("Host:")) { own } else { own + &host }
    }

    pub(super) async fn log_in(&self) -> String {
        let answer = self.post("/inspector/login", &[], json!({"token": TOKEN})).await;
        assert_eq!(answer.status, 204, "{}", answer.head);
        answer.session()
    }

    pub(super) async fn follow(&self, headers: &[&str]) -> Events {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let head = format!("GET /inspector/events HTTP/1.1\r\n{}\r\n", self.headers(headers));
        stream.write_all(head.as_bytes()).await.unwrap();
        Events { stream, text: String::new() }
    }

    pub(super) fn commit(&self, position: Position) {
        self.journal.advance_committed(Checkpoint {
            position,
            run_id: self.journal.run_id(position.run()).unwrap(),
            receipt: uuid::Uuid::nil(),
            cluster_id: String::new(),
        });
    }

    pub(super) fn logins(&self, outcome: &str) -> u64 {
        self.metrics.admin_logins_total.with_label_values(&[outcome]).get()
    }
}

pub(super) async fn exchange(address: SocketAddr, head: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let len = body.len();
    let request = format!("{head}Content-Length: {len}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // Less than the listeners let a connection be idle.
    timeout(Duration::from_secs(25), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// An open stream of events.
pub(super) struct Events {
    pub(super) stream: TcpStream,
    pub(super) text: String,
}

impl Events {
    /// Reads until `found` finds something in all that came, or the end.
    pub(super) async fn until<T>(&mut self, what: &str, found: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = vec![0; 16384];
        loop {
            if let Some(found) = found(&self.text) {
                return found;
            }
            let read = tokio::time::timeout_at(deadline, self.stream.read(&mut buffer)).await;
            let read = read.unwrap_or_else(|_| panic!("no {what}: {}", self.text)).unwrap();
            assert!(read > 0, "the stream ended without {what}: {}", self.text);
            self.text += std::str::from_utf8(&buffer[..read]).unwrap();
        }
    }

    /// The data of the first event of this name that `wanted` accepts.
    pub(super) async fn event(&mut self, name: &str, wanted: impl Fn(&Json) -> bool) -> Json {
        let found = |text: &str| {
            let events = text.split("event: ").filter_map(|event| event.strip_prefix(name));
            let data = events.filter_map(|event| event.strip_prefix("\ndata: "));
            let whole = data.filter_map(|data| data.split_once("\n\n"));
            let parsed = whole.map(|(data, _)| serde_json::from_str::<Json>(data).unwrap());
            parsed.into_iter().find(&wanted)
        };
        self.until(name, found).await
    }
}

pub(super) async fn eventually_async(mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(50)).await;
    }
}
