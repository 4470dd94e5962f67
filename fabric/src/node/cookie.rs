//! The session cookie in HTTP headers.

use crate::config::Config;
use crate::ident::Cookie;

/// The first cookie of the configured name in a `Cookie` header that one of the keys has signed.
pub(super) fn decode_header(header: &str, config: &Config) -> Option<Cookie> {
    Cookie::in_header(header.as_bytes(), &config.session.cookie_name, &config.cluster.cookie_keys)
}

/// The value of a `Set-Cookie` header. The cookie ends with the browser's session; lifetimes are kept by the
/// nodes.
pub(super) fn set(cookie: &Cookie, config: &Config) -> String {
    with_attributes(&cookie.encode(&config.cluster.cookie_keys), "", config)
}

/// The value of the `Set-Cookie` header that removes the cookie.
pub(super) fn clear(config: &Config) -> String {
    with_attributes("", "; Max-Age=0", config)
}

fn with_attributes(value: &str, more: &str, config: &Config) -> String {
    let secure = if config.session.cookie_secure { "; Secure" } else { "" };
    format!("{}={value}; Path=/; HttpOnly; SameSite=Lax{secure}{more}", config.session.cookie_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::{Incarnation, SessionId};
    use std::path::Path;

    fn config(more: &str) -> Config {
        let text = format!(
            "[cluster]\nname = \"t\"\nrun_dir = \"/run/t\"\ncookie_keys = [\"{}\"]\n[director]\n\
             [session]\n{more}\n[[server]]\nname = \"s1\"\n\
             [[node]]\nname = \"n1\"\naddress = \"127.0.0.1:1\"\n",
            "ab".repeat(32)
        );
        Config::parse(Path::new("t.toml"), &text).unwrap()
    }

    #[test]
    fn the_valid_one_among_many_is_found() {
        let config = config("");
        let cookie = Cookie { id: SessionId([5; 16]), host: Incarnation(77) };
        let value = cookie.encode(&config.cluster.cookie_keys);
        let header = format!("a=b; selvage=wrong; xselvage={value}; selvage={value}; selvage=x");
        assert_eq!(decode_header(&header, &config), Some(cookie));
        assert_eq!(decode_header(&format!("selvage=\"{value}\""), &config), Some(cookie));
        for bad in ["", ";", "=", "selvage", "selvage=", "selvage;selvage", "other=1"] {
            assert_eq!(decode_header(bad, &config), None, "{bad}");
        }
    }

    #[test]
    fn attributes_are_as_documented() {
        let cookie = Cookie { id: SessionId([5; 16]), host: Incarnation(77) };
        let plain = set(&cookie, &config(""));
        assert!(
            plain.starts_with("selvage=") && plain.ends_with("; Path=/; HttpOnly; SameSite=Lax"),
            "{plain}"
        );
        let config = config("cookie_secure = true\ncookie_name = \"__Host-sid\"");
        assert!(set(&cookie, &config).ends_with("; Secure"));
        let cleared = "__Host-sid=; Path=/; HttpOnly; SameSite=Lax; Secure; Max-Age=0";
        assert_eq!(clear(&config), cleared);
    }
}
