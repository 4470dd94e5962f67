//! What passes and what does not.

use super::*;
use crate::limits;
use crate::proxy::headers;
use tokio::net::TcpStream;

/// Sends bytes as they are and reads until the other side closes.
async fn raw(bench: &Bench, bytes: &str) -> String {
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer));
    read.await.expect("closed in time").unwrap();
    String::from_utf8(answer).unwrap()
}

#[test]
fn headers_of_one_hop_stay_there() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let one = FakeNode::start(1, |_| async {
            let mut answer = text("1");
            let headers = answer.headers_mut();
            headers.insert("connection", "x-hop".parse().unwrap());
            headers.insert("x-hop", "1".parse().unwrap());
            headers.insert("keep-alive", "timeout=5".parse().unwrap());
            headers.insert("selvage-elsewhere", "me".parse().unwrap());
            headers.insert("x-stays", "1".parse().unwrap());
            answer
        })
        .await;
        bench.publish(view(1, &[&one]));
        let mut request = bench.request(Method::GET, "/a%20b?c=d&e", "", "");
        let headers = request.headers_mut();
        for (name, value) in [
            ("connection", "close, x-mine, host, cookie, upgrade, http2-settings"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"),
            ("via", "1.0 old"),
            ("forwarded", "for=10.0.0.1"),
            ("x-forwarded-port", "1"),
            ("proxy-authorization", "Basic x"),
            ("selvage-elsewhere", "forged"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "forged"),
            ("host", "shop.example"),
            ("x-kept", "yes"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let answer = bench.send(request).await;
        assert_eq!(answer.status, StatusCode::OK);
        for gone in ["x-hop", "keep-alive", "selvage-elsewhere"] {
            assert!(!answer.headers.contains_key(gone), "{gone}");
        }
        assert_eq!(answer.headers["x-stays"], "1");
        let got = &one.got()[0];
        assert_eq!(got.path, "/a%20b?c=d&e");
        for gone in ["x-mine", "upgrade", "http2-settings", "proxy-authorization", "selvage-elsewhere"] {
            assert!(!got.headers.contains_key(gone), "{gone}");
        }
        // For the next hop, as for the last one.
        assert_eq!(
            (&got.headers["te"], &got.headers["connection"]),
            (&"trailers".parse().unwrap(), &"te".parse().unwrap())
        );
        assert_eq!(got.headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(got.headers["x-forwarded-proto"], "http");
        assert_eq!(got.headers["x-forwarded-host"], "shop.example");
        assert_eq!(got.headers["x-forwarded-port"], "80");
        assert_eq!(got.headers["forwarded"], "for=127.0.0.1;proto=http;host=\"shop.example\"");
        assert_eq!(
            (&got.headers["via"], &answer.headers["via"]),
            (&"1.0 old, 1.1 selvage".parse().unwrap(), &"1.1 selvage".parse().unwrap())
        );
        assert_eq!(got.headers["host"], "shop.example");
        assert_eq!(got.headers["x-kept"], "yes");
    });
}

#[test]
fn no_request_hides_in_another() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let one = FakeNode::plain(1).await;
        bench.publish(view(1, &[&one]));
        let good = "GET /good HTTP/1.1\r\nhost: a\r\n\r\n";
        let hidden = "GET /hidden HTTP/1.1\r\nhost: a\r\n\r\n";
        for (bad, why) in [
            (
                "POST /bad HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\
                 transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
                "400",
            ),
            ("POST /bad HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\nbody", "400"),
            ("POST /bad HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody0\r\n\r\n", "400"),
            ("POST /bad HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n0\r\n\r\n", "501"),
            ("GET /bad HTTP/1.1\r\nhost: a\nx: y\r\n\r\n", "400"),
            ("GET /bad HTTP/2.0\r\nhost: a\r\n\r\n", "505"),
        ] {
            let answers = raw(&bench, &format!("{good}{bad}{hidden}")).await;
            let mut statuses = answers
                .split("HTTP/1.1 ")
                .skip(1)
                .map(|answer| &answer[..3])
                .filter(|status| status.parse::<u16>().is_ok());
            // The good one is answered first, the bad one after it, and then the connection ends.
            assert_eq!((statuses.next(), statuses.next(), statuses.next()), (Some("200"), Some(why), None));
            assert!(answers.contains("connection: close"), "{answers}");
            let mut got = one.got();
            assert_eq!(got.pop().unwrap().path, "/good", "{bad:?}");
            assert!(got.iter().all(|got| got.path == "/good"), "{bad:?}");
        }
        assert_eq!(one.got().len(), 6);
    });
}

#[test]
fn a_body_of_unknown_length_passes_with_any_method() {
    run(async {
        let bench = Bench::start(2000, "resend_body_bytes = 2").await;
        let one = FakeNode::plain(1).await;
        bench.publish(view(1, &[&one]));
        for method in ["GET", "POST"] {
            let head = format!("{method} / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n");
            raw(&bench, &format!("{head}connection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n")).await;
            let got = one.got();
            let got = got.last().unwrap();
            assert_eq!((got.method.as_str(), &*got.body), (method, &b"hello"[..]));
        }
    });
}

#[test]
fn absolute_form_names_the_host() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let one = FakeNode::plain(1).await;
        bench.publish(view(1, &[&one]));
        let answer =
            raw(&bench, "GET http://real.example/p?q HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n")
                .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(
            (&*one.got()[0].path, &one.got()[0].headers["host"]),
            ("/p?q", &"real.example".parse().unwrap())
        );
        let answer =
            raw(&bench, "CONNECT real.example:443 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        let answer = raw(&bench, "GET /old HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with('1'), "{answer}");
        assert_eq!(one.got().len(), 2);
    });
}

#[test]
fn a_request_names_one_host() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let one = FakeNode::plain(1).await;
        bench.publish(view(1, &[&one]));
        for head in [
            "GET / HTTP/1.1\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n",
            "GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n",
            "GET / HTTP/1.1\r\nhost:\r\n",
            "GET / HTTP/1.1\r\nhost: a/b\r\n",
            "GET / HTTP/1.1\r\nhost: me@a\r\n",
            "GET http://me@a/ HTTP/1.1\r\nhost: a\r\n",
            "GET http://a/ HTTP/1.1\r\nhost: a\r\nhost: b\r\n",
        ] {
            let answer = raw(&bench, &format!("{head}connection: close\r\n\r\n")).await;
            assert!(answer.contains(" 400 "), "{head}: {answer}");
        }
        assert_eq!(one.got().len(), 0);
        for host in ["a", "a:80", "127.0.0.1:80", "[::1]", "[::1]:80"] {
            raw(&bench, &format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await;
            assert_eq!(one.got().last().unwrap().headers["host"], host);
        }
    });
}

#[test]
fn a_node_cannot_take_the_connection_for_another_protocol() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_buf(&mut Vec::new()).await.unwrap();
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\nraw";
            stream.write_all(answer.as_bytes()).await.unwrap();
            pause(1000).await;
        });
        let nodes = vec![entry(Incarnation(1), address)];
        let epoch = Epoch { term: 1, number: 1 };
        bench.publish(View { epoch, copies: 1, nodes, ..View::default() });
        let answer = bench.post("", "").await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{answer:?}");
    });
}

#[test]
fn an_answer_has_one_length() {
    let good = |values: &[&str]| {
        let each = values.iter().map(|value| (hyper::header::CONTENT_LENGTH, value.parse().unwrap()));
        headers::names_one_length(&each.collect())
    };
    assert!(good(&[]) && good(&["0"]) && good(&["5"]) && good(&["5", "5"]));
    assert!(!good(&["5", "6"]) && !good(&["+5"]) && !good(&["5, 5"]) && !good(&[""]) && !good(&["5", "x"]));
    run(async {
        let bench = Bench::start(200, "").await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nodes = vec![entry(Incarnation(1), listener.local_addr().unwrap())];
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.read_buf(&mut Vec::new()).await.unwrap();
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
        });
        let epoch = Epoch { term: 1, number: 1 };
        bench.publish(View { epoch, copies: 1, nodes, ..View::default() });
        let answer = bench.send(bench.request(Method::HEAD, "/", "", "")).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{answer:?}");
    });
}

#[test]
fn over_the_limit_is_a_503_at_once() {
    run(async {
        let bench = Arc::new(Bench::start(5000, "requests_max = 2").await);
        let one = FakeNode::hanging(1).await;
        bench.publish(view(1, &[&one]));
        let waiting = [(); 2].map(|()| bench.begin(Method::POST, ""));
        one.has_got(2).await;
        let answer = bench.get("").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers["retry-after"], "1");
        assert!(answer.body.contains("too many"), "{}", answer.body);
        // Their places become free with their ends.
        bench.publish(view(2, &[]));
        for request in waiting {
            assert_eq!(request.await.unwrap().status, StatusCode::BAD_GATEWAY);
        }
        let two = FakeNode::plain(2).await;
        bench.publish(view(3, &[&two]));
        assert_eq!(bench.get("").await.status, StatusCode::OK);
    });
}

#[test]
fn head_and_statuses_pass() {
    run(async {
        let bench = Bench::start(2000, "").await;
        let one = FakeNode::start(1, |got| async move {
            let mut answer = text("body");
            *answer.status_mut() = got.path[1..].parse().unwrap();
            answer
        })
        .await;
        bench.publish(view(1, &[&one]));
        for status in [200, 204, 304, 404, 421, 500, 503] {
            let answer = bench.send(bench.request(Method::GET, &format!("/{status}"), "", "")).await;
            assert_eq!(answer.status.as_u16(), status);
        }
        let answer = bench.send(bench.request(Method::HEAD, "/200", "", "")).await;
        assert_eq!((&*answer.body, &answer.headers["content-length"]), ("", &"4".parse().unwrap()));
    });
}

#[test]
fn a_stop_lets_requests_end() {
    run(async {
        let bench = Arc::new(Bench::start(5000, "").await);
        let one = FakeNode::start(1, |_| async {
            pause(300).await;
            text("late")
        })
        .await;
        bench.publish(view(1, &[&one]));
        let waiting = bench.begin(Method::POST, "");
        one.has_got(1).await;
        // This one waits for a node that is not there.
        let mut only = view(2, &[&one]);
        only.dead.push(dead(5, false));
        bench.publish(only);
        let held = bench.begin(Method::POST, &bench.cookie(1, 5));
        pause(50).await;
        bench.stop.cancel();
        pause(50).await;
        // The view goes on changing: who waits for it gets its answer.
        bench.publish(view(3, &[&one]));
        for answer in [waiting, held] {
            let answer =
                tokio::time::timeout(Duration::from_secs(3), answer).await.expect("in time").unwrap();
            assert_eq!((answer.status, &*answer.body), (StatusCode::OK, "late"));
            assert_eq!(answer.headers["connection"], "close");
        }
        pause(50).await;
        assert!(TcpStream::connect(bench.address).await.is_err(), "nobody listens any more");
    });
}

#[test]
fn after_a_stop_idle_connections_are_used_up_or_closed() {
    run(async {
        let bench = Bench::start(5000, "").await;
        let one = FakeNode::plain(1).await;
        bench.publish(view(1, &[&one]));
        let ask = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let mut used = TcpStream::connect(bench.address).await.unwrap();
        let mut idle = TcpStream::connect(bench.address).await.unwrap();
        for stream in [&mut used, &mut idle] {
            stream.write_all(ask.as_bytes()).await.unwrap();
            let mut some = [0; 4096];
            let bytes = stream.read(&mut some).await.unwrap();
            let answer = String::from_utf8_lossy(&some[..bytes]).to_lowercase();
            assert!(answer.contains("200 ok") && !answer.contains("connection: close"), "{answer}");
        }
        bench.stop.cancel();
        pause(50).await;
        used.write_all(ask.as_bytes()).await.unwrap();
        for (stream, wanted) in [(&mut used, "connection: close"), (&mut idle, "")] {
            let mut all = String::new();
            let read = tokio::time::timeout(Duration::from_secs(2), stream.read_to_string(&mut all)).await;
            read.expect("it is closed").unwrap();
            let all = all.to_lowercase();
            assert!(all.contains(wanted) && all.is_empty() == wanted.is_empty(), "{all}");
        }
    });
}

#[test]
fn who_comes_before_the_first_view_waits_and_has_all_its_time_then() {
    run(async {
        let bench = Arc::new(Bench::start(300, "").await);
        let one = FakeNode::plain(1).await;
        let early = bench.begin(Method::POST, "");
        // Longer than a request may be held.
        pause(600).await;
        bench.publish(view(1, &[&one]));
        assert_eq!(early.await.unwrap().status, StatusCode::OK);
    });
}

#[test]
fn a_stop_ends_also_with_requests_that_wait_for_ever() {
    run(async {
        let bench = Arc::new(Bench::start(60_000, "").await);
        let one = FakeNode::hanging(1).await;
        let mut only = view(1, &[&one]);
        only.dead.push(dead(5, false));
        bench.publish(only);
        let held = bench.begin(Method::POST, &bench.cookie(1, 5));
        pause(50).await;
        bench.stop.cancel();
        let most = limits::IDLE_WAIT + limits::STOP_WAIT + limits::LAST_WAIT;
        let held = tokio::time::timeout(most + Duration::from_secs(2), held).await.expect("bounded").unwrap();
        assert_eq!(held.status, StatusCode::SERVICE_UNAVAILABLE);
    });
}
