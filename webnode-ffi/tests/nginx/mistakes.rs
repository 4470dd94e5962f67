//! What `nginx -t` says of mistakes in a configuration.

use crate::support::{Tool, repo};
use crate::web::{Web, module, nginx};

#[test]
fn nginx_says_what_is_wrong_with_a_configuration() {
    let web = Web::new();
    let good = "selvage_session create;\nlocation /a {\nselvage_api; }\nlocation /b { selvage_set n v; }\n";
    let path = web.configure("n1", good);
    let text = std::fs::read_to_string(&path).expect("the configuration");
    let bad_toml = web.cluster.dir().join("bad.toml");
    let toml = std::fs::read_to_string(web.cluster.config_path()).expect("the configuration");
    std::fs::write(&bad_toml, toml.replace("archive_bytes_max", "archive_byte_max")).expect("written");
    let config = web.cluster.config_path().display().to_string();
    let line = text[..text.find("location /b").expect("it is there")].lines().count() + 1;
    let own = |of: &str| format!("{of} in {}:{line}", path.display());
    for (from, to, said) in [
        (
            config.as_str(),
            bad_toml.to_str().expect("UTF-8"),
            "bad.toml:9: unknown field `archive_byte_max`".into(),
        ),
        (config.as_str(), "/nonexistent.toml", "cannot read the configuration /nonexistent.toml".into()),
        (" n1;", " n9;", "no node is named \"n9\"".into()),
        ("selvage_session create;", "selvage_session maybe;", "invalid value \"maybe\"".into()),
        ("location /a", "location ~ /a", "needs a location with a plain prefix".into()),
        ("selvage_api;", "selvage_api; selvage_api;", "is duplicate".into()),
        ("selvage_set n v;", "selvage_lock maybe;", own("invalid value \"maybe\"")),
        (
            "selvage_set n v;",
            "selvage_set n;",
            own("invalid number of arguments in \"selvage_set\" directive"),
        ),
        ("selvage_set n v;", "selvage_set n if=$arg_a;", own("\"selvage_set\" directive needs a value")),
        ("selvage_set n v;", "selvage_set $n v;", own("\"selvage_set\" directive has a \"$\"")),
        ("selvage_set n v;", "selvage_set '' v;", own("\"selvage_set\" directive needs an attribute's name")),
        ("selvage_set n v;", "selvage_set n v w;", own("\"selvage_set\" directive has an argument too many")),
        ("selvage_set n v;", "selvage_set n v if=;", own("\"selvage_set\" directive has an empty condition")),
        ("selvage_set n v;", "selvage_set n $nothing;", "unknown \"nothing\" variable".into()),
        ("selvage_set n v;", "selvage_incr n 1x;", own("adds something that is not a whole number")),
        ("selvage_set n v;", "selvage_incr n 9223372036854775808;", own("not a whole number")),
        (
            "selvage_set n v;",
            "selvage_destroy now;",
            own("\"selvage_destroy\" directive has an argument too many"),
        ),
        ("selvage_set n v;", "selvage_set n v; selvage_lock read_only;", own("is \"read_only\"")),
        ("selvage_set n v;", "selvage_exclude static;", own("needs a URI that begins with \"/\"")),
        ("selvage_set n v;", "selvage_exclude ~ (;", own("pcre")),
        ("selvage_set n v;", "selvage_exclude ^~ /a;", own("knows only \"=\", \"~\" and \"~*\"")),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replace(from, to)).expect("written");
        let refusal = web.refusal(&path);
        // Some of nginx's own sentences have words of their own before the place.
        let (what, place) = said.split_once(" in /").map_or((said.as_str(), ""), |parts| parts);
        assert!(refusal.contains(what) && refusal.contains(place), "{from} -> {to}: {refusal}\nnot: {said}");
    }
    std::fs::write(&path, text.replace("selvage_set n v;", &format!("selvage_unset {};", "n".repeat(129))))
        .expect("written");
    assert!(web.refusal(&path).contains("an attribute's name of more than 128 bytes"));
    std::fs::write(&path, text.replace(&format!("selvage {config} n1;"), "")).expect("written");
    assert!(web.refusal(&path).contains("the http block has no \"selvage <configuration file>\""));
}

#[test]
fn the_examples_of_the_documentation_are_good_configurations() {
    let web = Web::new();
    let text = std::fs::read_to_string(repo().join("docs/nginx.md")).expect("the documentation");
    let examples: Vec<&str> =
        text.split("```nginx\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 5, "{}", examples.len());
    for example in examples {
        let path = if example.starts_with("load_module") {
            let path = web.configure("n1", "");
            let own = std::fs::read_to_string(&path).expect("the configuration");
            let temp = own.split("access_log off;").nth(1).and_then(|rest| rest.split("types").next());
            let dir = web.dir("n1").display().to_string();
            let config = web.cluster.config_path().display().to_string();
            let example = example
                .replace("modules/ngx_http_selvage_module.so", &module().display().to_string())
                .replace("/etc/selvage/selvage.toml", &config)
                .replace("/var/log/nginx", &dir)
                .replace("127.0.0.1:8000", &format!("unix:{dir}/shop.sock"))
                .replace("http {", &format!("pid {dir}/pid; http {{ {}", temp.expect("the folders")));
            std::fs::write(&path, example).expect("written");
            path
        } else if example.contains("location") {
            web.configure("n1", example)
        } else {
            web.configure("n1", &format!("location /example {{ selvage_session on;\n{example} }}"))
        };
        Tool::at(nginx()).arg("-t").arg("-c").arg(&path).succeed();
    }
}
