//! The page at `/` in a real browser: Chromium, driven by WebDriver.

use fantoccini::{Client, ClientBuilder, Locator};
use selvage_tests::cluster::Port;
use selvage_tests::product::find_program;
use selvage_tests::stage::{SOON, Stage};
use serde_json::json;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A browser that is not there after this time does not come.
const BROWSER_WAIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// ChromeDriver, which starts and ends the browser, with everything that they write in a folder of their own.
struct Driver {
    child: Child,
    home: tempfile::TempDir,
    port: Port,
}

impl Driver {
    fn start() -> Self {
        let program = find_program("chromedriver").expect("chromedriver is installed by `cargo x setup`");
        let home = tempfile::tempdir().unwrap();
        let port = Port::free().unwrap();
        let mut command = Command::new(program);
        command.arg(format!("--port={}", port.address.port())).env("HOME", home.path());
        command.env("TMPDIR", home.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.process_group(0).spawn().unwrap();
        Self { child, home, port }
    }

    /// A new window of a new browser.
    async fn browser(&self) -> Client {
        let folder = format!("--user-data-dir={}", self.home.path().join("profile").display());
        // As root Chromium starts only without its sandbox; the other switches keep it from the network.
        let mut switches = vec!["--headless", "--disable-gpu", "--disable-quic", "--no-first-run", &folder];
        switches.extend(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        switches.extend(["--no-sandbox", "--disable-dev-shm-usage"]);
        let options = json!({ "goog:chromeOptions": { "args": switches } });
        let capabilities = options.as_object().unwrap().clone();
        let address = format!("http://{}", self.port.address);
        let deadline = Instant::now() + BROWSER_WAIT;
        loop {
            // The driver listens a moment after it has started.
            match ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
                .capabilities(capabilities.clone())
                .connect(&address)
                .await
            {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < deadline, "no browser: {error}"),
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The browser's processes are in the driver's group, or end with it.
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// What the page shows at an element.
async fn text(page: &Client, id: &str) -> String {
    page.find(Locator::Id(id)).await.unwrap().text().await.unwrap()
}

/// Waits until the page shows something at an element.
async fn until(page: &Client, id: &str, good: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + SOON;
    loop {
        let shown = text(page, id).await;
        if good(&shown) {
            return shown;
        }
        assert!(Instant::now() < deadline, "{id} shows {shown:?}; the note: {:?}", text(page, "note").await);
        tokio::time::sleep(POLL).await;
    }
}

async fn click(page: &Client, id: &str) {
    page.wait().for_element(Locator::Css(&format!("#{id}:enabled"))).await.unwrap().click().await.unwrap();
}

/// A person counts, the host of the session is killed, and the person counts on; then takes a new session.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_counts_on_when_its_web_node_is_killed() {
    let mut stage = Stage::new(2, 2, 2).await;
    let driver = Driver::start();
    let page = driver.browser().await;
    page.goto(&format!("http://{}/", stage.address())).await.unwrap();
    until(&page, "number", |shown| shown == "0").await;
    for count in 1..=3 {
        click(&page, "count").await;
        until(&page, "number", |shown| shown == count.to_string()).await;
    }
    let (host, id) = (text(&page, "node").await, text(&page, "id").await);
    assert!(stage.nodes().contains(&host), "hosted by {host:?}");
    until(&page, "copies", |shown| shown == "2").await;
    let cookies = page.get_all_cookies().await.unwrap();
    let cookie = cookies.iter().find(|cookie| cookie.value().starts_with(&id)).expect("a session cookie");
    assert_eq!(cookie.http_only(), Some(true), "no script reads it");

    stage.kill(&host).unwrap();
    click(&page, "count").await;
    until(&page, "number", |shown| shown == "4").await;
    let moved = text(&page, "node").await;
    assert!(moved != host && stage.nodes().contains(&moved), "moved from {host} to {moved:?}");
    assert_eq!(text(&page, "id").await, id, "the same session");
    let note = text(&page, "note").await;
    assert!(note.contains(&moved) && note.contains("Nothing was lost"), "the page says: {note}");

    click(&page, "destroy").await;
    until(&page, "number", |shown| shown == "0").await;
    assert_ne!(text(&page, "id").await, id, "a new session");
    page.close().await.unwrap();
    drop(driver);
    stage.restart(&[&host]).await;
    stage.end();
}
