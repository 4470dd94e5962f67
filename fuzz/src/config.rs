//! A configuration file. All programs read the same one:
//!
//! - what is refused names the file and a line of it;
//! - what is taken is within its bounds, and the names, paths and sums that are made of it are valid;
//! - what is taken and written down with every value means the same when it is read again: no default and no
//!   check depends on how it was written.

use selvage_fabric::config::{Config, TransportKind};
use selvage_fabric::limits;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

const FILE: &str = "selvage.toml";

pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Config::parse(Path::new(FILE), text) {
        Ok(config) => {
            bounds(&config);
            let written = written(&config);
            let again = Config::parse(Path::new(FILE), &written)
                .unwrap_or_else(|error| panic!("{error}, in what was taken:\n{written}"));
            assert_eq!(said(&again), said(&config));
        }
        Err(error) => {
            let said = error.to_string();
            let rest = said.strip_prefix(FILE).and_then(|rest| rest.strip_prefix(':'));
            let line = rest.and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
            let lines = text.matches('\n').count() + 1;
            assert!(line.is_some_and(|line| (1..=lines).contains(&line)), "{said} of {lines} lines");
        }
    }
}

/// All of it; keys are not shown by themselves.
fn said(config: &Config) -> String {
    let keys: Vec<&[u8]> = config.cluster.cookie_keys.iter().map(|key| &*key.0).collect();
    format!("{config:?} {keys:?}")
}

fn bounds(config: &Config) {
    let cluster = &config.cluster;
    assert!(!cluster.cookie_keys.is_empty(), "nothing is signed without a key");
    assert!(cluster.cookie_keys.iter().all(|key| key.0.len() == 32));
    assert!((1..=limits::COPIES_MAX as u32).contains(&cluster.copies));
    assert_ne!(cluster.transport, Some(TransportKind::Sim));
    // Times that a clock can be moved on by, and slots that a lease can have.
    assert!(config.director.hold_ms <= 3_600_000 && config.director.requests_max <= limits::REQUESTS_MAX);
    assert!(config.memory.sessions_max <= limits::SLOTS_MAX);
    let timing = &config.timing;
    assert!(timing.heartbeat_ms * 3 <= timing.mandate_ms && timing.mandate_ms < timing.silence_ms, "R8");
    assert!(config.session.idle_s <= config.session.absolute_s);
    assert!(config.session.archive_bytes_max <= limits::ARCHIVE_BYTES_MAX);
    for bytes in [config.memory.cache_bytes, config.memory.lease_bytes] {
        assert!(bytes >= 4 * config.session.archive_bytes_max as u64, "one session does not fill it");
    }
    let names = |names: Vec<&str>| {
        assert!(names.is_sorted_by(|a, b| a < b), "sorted, each once: {names:?}");
        for name in names.iter().chain([&&*cluster.name]) {
            let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            assert!((1..=limits::NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good), "{name}");
            // What the kernel takes: 107 bytes of a socket's path, 255 of a file's name.
            assert!(config.server_socket(name).as_os_str().len() <= 107, "{name}");
            let segment = format!("{}{name}-{:016x}", config.segment_prefix(), u64::MAX);
            assert!(segment.len() <= 255 && !segment.contains('/'), "{segment}");
        }
    };
    names(config.servers.iter().map(|server| &*server.name).collect());
    names(config.nodes.iter().map(|node| &*node.name).collect());
    assert!(config.director_socket().is_absolute() && config.director_socket().as_os_str().len() <= 107);
    let addresses: BTreeSet<_> = config.nodes.iter().map(|node| node.address).collect();
    assert_eq!(addresses.len(), config.nodes.len());
    let controls: Vec<_> =
        config.servers.iter().filter_map(|server| server.control).chain(config.director.control).collect();
    assert!(controls.is_empty() || config.tls.is_some(), "other hosts need certificates");
    assert_eq!(controls.iter().collect::<BTreeSet<_>>().len(), controls.len());
}

/// The same configuration with every value written down.
fn written(config: &Config) -> String {
    let mut text = members(config);
    sessions(config, &mut text);
    rdma(config, &mut text);
    for server in &config.servers {
        let (name, weight) = (quoted(&server.name), server.weight);
        // Writing to a string cannot fail, here and below.
        let _ = write!(text, "[[server]]\nname = {name}\nweight = {weight}\n{}", control(server.control));
    }
    for node in &config.nodes {
        let (name, address, uids) = (quoted(&node.name), node.address, &node.uids);
        let _ = write!(text, "[[node]]\nname = {name}\naddress = \"{address}\"\nuids = {uids:?}\n");
    }
    text
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn path(path: &Path) -> String {
    quoted(path.to_str().expect("it came from text"))
}

fn control(control: Option<SocketAddr>) -> String {
    control.map_or(String::new(), |control| format!("control = \"{control}\"\n"))
}

fn members(config: &Config) -> String {
    let mut text = String::new();
    let cluster = &config.cluster;
    let keys: Vec<String> = cluster
        .cookie_keys
        .iter()
        .map(|key| quoted(&key.0.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))))
        .collect();
    let transport = match cluster.transport {
        Some(TransportKind::Shm) => "transport = \"shm\"\n",
        Some(TransportKind::Verbs) => "transport = \"verbs\"\n",
        _ => "",
    };
    let _ = write!(
        text,
        "[cluster]\nname = {}\nrun_dir = {}\ncopies = {}\ncookie_keys = [{}]\n\
         operator_uids = {:?}\n{transport}",
        quoted(&cluster.name),
        path(&cluster.run_dir),
        cluster.copies,
        keys.join(", "),
        cluster.operator_uids,
    );
    let director = &config.director;
    let _ = write!(
        text,
        "[director]\nlisten = \"{}\"\nadmin_listen = \"{}\"\nhold_ms = {}\nrequests_max = {}\n\
         resend_body_bytes = {}\n{}",
        director.listen,
        director.admin_listen,
        director.hold_ms,
        director.requests_max,
        director.resend_body_bytes,
        control(director.control),
    );
    if let Some(tls) = &config.tls {
        let _ = writeln!(text, "[tls]\ndir = {}", path(&tls.dir));
    }
    text
}

fn sessions(config: &Config, text: &mut String) {
    let session = &config.session;
    let _ = write!(
        text,
        "[session]\ncookie_name = {}\ncookie_secure = {}\nidle_s = {}\nabsolute_s = {}\ntouch_share = {:?}\n\
         archive_bytes_max = {}\nwaiters_max = {}\nwait_ms = {}\nlock_hold_ms = {}\nclock_skew_ms = {}\n\
         regenerate_grace_ms = {}\n",
        quoted(&session.cookie_name),
        session.cookie_secure,
        session.idle_s,
        session.absolute_s,
        session.touch_share,
        session.archive_bytes_max,
        session.waiters_max,
        session.wait_ms,
        session.lock_hold_ms,
        session.clock_skew_ms,
        session.regenerate_grace_ms,
    );
    let (timing, memory) = (&config.timing, &config.memory);
    let _ = write!(
        text,
        "[timing]\nheartbeat_ms = {}\nmandate_ms = {}\nsilence_ms = {}\nrecopy_per_s = {}\n\
         [memory]\nsessions_max = {}\ncache_bytes = {}\nlease_bytes = {}\nserver_bytes_max = {}\n\
         huge_pages = {}\nnuma = {}\n",
        timing.heartbeat_ms,
        timing.mandate_ms,
        timing.silence_ms,
        timing.recopy_per_s,
        memory.sessions_max,
        memory.cache_bytes,
        memory.lease_bytes,
        memory.server_bytes_max,
        memory.huge_pages,
        memory.numa,
    );
}

fn rdma(config: &Config, text: &mut String) {
    let rdma = &config.rdma;
    let _ = write!(
        text,
        "[rdma]\nenabled = {}\ntraffic_class = {}\nservice_level = {}\nack_timeout = {}\nretry_count = {}\n\
         queue_depth = {}\n",
        rdma.enabled,
        rdma.traffic_class,
        rdma.service_level,
        rdma.ack_timeout,
        rdma.retry_count,
        rdma.queue_depth,
    );
    let device = rdma.device.as_ref().map(|device| format!("device = {}\n", quoted(device)));
    let port = rdma.port.map(|port| format!("port = {port}\n"));
    let gid_index = rdma.gid_index.map(|index| format!("gid_index = {index}\n"));
    text.extend([device, port, gid_index].into_iter().flatten());
}

pub fn seeds() -> Vec<Vec<u8>> {
    let key = "0123456789abcdef".repeat(4);
    let least = format!(
        "[cluster]\nname = \"demo\"\nrun_dir = \"/run/selvage\"\ncookie_keys = [\"{key}\"]\n[director]\n\
         [[server]]\nname = \"s1\"\n[[node]]\nname = \"n1\"\naddress = \"127.0.0.1:9001\"\n"
    );
    let hosts = least
        .replace(
            "[director]\n",
            "[director]\ncontrol = \"10.0.0.1:7410\"\n[tls]\ndir = \"/etc/selvage/tls\"\n",
        )
        .replace("name = \"s1\"\n", "name = \"s1\"\ncontrol = \"10.0.0.2:7420\"\n");
    let good = |text: &str| Config::parse(Path::new(FILE), text).expect("a good configuration");
    let mut texts = vec![written(&good(&least)), written(&good(&hosts))];
    for bad in [
        least.replace("s1", "S 1"),
        least.replace("[director]", "[director]\n[session]\nidle_s = 0"),
        least.replace("[director]", "[director]\n[timing]\nheartbeat_ms = 18446744073709551615"),
        least.replace("[director]", "[director]\n[session]\ntouch_share = nan"),
        least.replace("/run/selvage", "run"),
        least.replace("demo\"", "demo"),
        format!("{least}[[node]]\nname = \"n1\"\naddress = \"[::1]:9002\"\n"),
        hosts.replace("10.0.0.2:7420", "0.0.0.0:0"),
        String::new(),
    ] {
        texts.push(bad);
    }
    texts.push(least);
    texts.push(hosts);
    texts.into_iter().map(String::into_bytes).collect()
}
