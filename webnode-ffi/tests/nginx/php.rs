//! A PHP application of the usual kind, by fastcgi_pass: no extension, only request parameters and response
//! headers.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::web::{Web, until};

const SHOP: &str = r#"<?php
function session_put($name, $value) {
    header('Selvage-Set: ' . rawurlencode($name) . '=' . rawurlencode($value), false);
}
$user = isset($_SERVER['SESSION_USER']) ? rawurldecode($_SERVER['SESSION_USER']) : '';
$basket = rawurldecode($_SERVER['SESSION_BASKET'] ?? '');
switch ($_GET['do'] ?? 'show') {
case 'login':
    session_put('user', $_POST['user']);
    header('Selvage-Owner: ' . rawurlencode($_POST['user']));
    header('Selvage-Regenerate: 1');
    break;
case 'buy':
    session_put('basket', $basket . $_GET['what'] . "\n");
    header('Selvage-Incr: bought');
    break;
case 'logout':
    header('Selvage-Destroy: 1');
    break;
case 'exit':
    session_put('user', 'nobody');
    http_response_code(500);
    exit;
}
echo json_encode(['user' => $user, 'basket' => $basket]);
"#;

#[test]
fn an_application_in_php_keeps_its_session() {
    let mut web = Web::new();
    let dir = web.dir("n1");
    std::fs::create_dir_all(dir.join("php")).expect("a folder");
    std::fs::write(dir.join("php/shop.php"), SHOP).expect("the script");
    let php = Command::new("php-cgi")
        .arg("-b")
        .arg(dir.join("php.sock"))
        .env("PHP_FCGI_CHILDREN", "2")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("php-cgi: apt-get install php-cgi");
    web.cluster.keep(php);
    until("php-cgi listens", || std::os::unix::net::UnixStream::connect(dir.join("php.sock")).is_ok());

    let mut browser = web.serve(
        "n1",
        "selvage_session on_change;
        location /session { selvage_api; }
        location /shop { fastcgi_pass unix:{dir}/php.sock; fastcgi_param SCRIPT_FILENAME {dir}/php/shop.php;
            fastcgi_param REQUEST_METHOD $request_method; fastcgi_param QUERY_STRING $query_string;
            fastcgi_param CONTENT_TYPE $content_type; fastcgi_param CONTENT_LENGTH $content_length;
            fastcgi_param SESSION_USER $selvage_attr_user;
            fastcgi_param SESSION_BASKET $selvage_attr_basket; }",
    );
    let shown = |browser: &mut crate::support::http::Browser| -> serde_json::Value {
        serde_json::from_slice(&browser.get("/shop").body).expect("JSON")
    };
    let answer = browser.get("/shop");
    assert_eq!((answer.status, answer.header("set-cookie")), (200, None), "{answer:?}");
    assert_eq!(browser.get("/shop?do=buy&what=tea").status, 200);
    assert_eq!(browser.get("/shop?do=buy&what=caf%C3%A9").status, 200);
    let guest = browser.cookie.clone();
    let form = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 12\r\n";
    let head = browser.head("POST", "/shop?do=login", form);
    browser.write(format!("{head}user=M%C3%BC").as_bytes());
    let answer = browser.answer(false);
    assert_eq!((answer.status, answer.header("selvage-copies")), (200, Some("2")), "{answer:?}");
    assert_ne!(browser.cookie, guest, "a new id for a new privilege");
    let expected = serde_json::json!({ "user": "Mü", "basket": "tea\ncafé\n" });
    assert_eq!(shown(&mut browser), expected);
    assert_eq!(browser.get("/session/bought").text(), "2");
    // What an error page of the application says is done as well.
    assert_eq!(browser.get("/shop?do=exit").status, 500);
    assert_eq!(browser.get("/session/user").text(), "nobody");
    let answer = browser.get("/shop?do=logout");
    assert_eq!((answer.status, &browser.cookie), (200, &None), "{answer:?}");
    assert_eq!(shown(&mut browser), serde_json::json!({ "user": "", "basket": "" }));
}
