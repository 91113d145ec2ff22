#![allow(clippy::unwrap_used)]

use super::*;

#[derive(Debug, PartialEq)]
struct Config {
    listen: SocketAddr,
    name: String,
    verbose: bool,
    cache_bytes: u64,
    workers: u64,
    timeout: Duration,
    seeds: Vec<String>,
    tags: Vec<String>,
    key: PathBuf,
    disks: Vec<(PathBuf, u64)>,
    extra: Option<String>,
}

fn build(reader: &Reader<'_>) -> Config {
    Config {
        listen: reader.socket_addr("listen"),
        name: reader.string_or("name", "anonymous"),
        verbose: reader.bool_or("verbose", false),
        cache_bytes: reader.bytes_size("cache_bytes", 1 << 20..=1 << 40, 64 << 20),
        workers: reader.u64_in("workers", 1..=64, 4),
        timeout: reader.duration_ms("timeout_ms", 10..=60_000, 1000),
        seeds: reader.list_of_host_ports("seeds"),
        tags: reader.list_of_strings("tags"),
        key: reader.table("tls", |tls| tls.path("key")),
        disks: reader.table_list("disks", |disk| {
            (disk.path("path"), disk.required_u64_in("weight", 1..=100))
        }),
        extra: reader.optional_table("extra", |extra| extra.required_string("text")),
    }
}

fn check(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    parse(text, variables, "T", build).map_err(|error| error.to_string())
}

const GOOD: &str = r#"
listen = "127.0.0.1:7443"
name = "one"
verbose = true
cache_bytes = "256MiB"
workers = 8
timeout_ms = "30s"
seeds = ["a.example:1", "[::1]:2"]
tags = ["x", "y"]
[tls]
key = "/etc/key.pem"
[[disks]]
path = "/a"
weight = 1
[[disks]]
path = "/b"
weight = 2
[extra]
text = "more"
"#;

const LEAST: &str = "listen = '[::]:1'\ntls.key = 'k'";

#[test]
fn everything_is_read() {
    let config = check(GOOD, &[]).unwrap();
    assert_eq!(
        config,
        Config {
            listen: "127.0.0.1:7443".parse().unwrap(),
            name: "one".into(),
            verbose: true,
            cache_bytes: 256 << 20,
            workers: 8,
            timeout: Duration::from_secs(30),
            seeds: vec!["a.example:1".into(), "[::1]:2".into()],
            tags: vec!["x".into(), "y".into()],
            key: "/etc/key.pem".into(),
            disks: vec![("/a".into(), 1), ("/b".into(), 2)],
            extra: Some("more".into()),
        }
    );
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = check(LEAST, &[]).unwrap();
    assert_eq!(
        (config.name.as_str(), config.workers, config.cache_bytes),
        ("anonymous", 4, 64 << 20)
    );
    assert_eq!(config.timeout, Duration::from_secs(1));
    assert!(
        !config.verbose
            && config.seeds.is_empty()
            && config.disks.is_empty()
            && config.extra.is_none()
    );
}

#[test]
fn variables_win_over_the_file() {
    let variables = [
        ("T__WORKERS", "9"),
        ("T__VERBOSE", "false"),
        ("T__CACHE_BYTES", "2097152"),
        ("T__TIMEOUT_MS", "250"),
        ("T__TLS__KEY", "/other.pem"),
        ("T__TAGS", "a, b,c"),
        ("T__SEEDS", ""),
        ("T__EXTRA__TEXT", "5"),
        // Not ours: what Kubernetes makes of a service, and somebody else's prefix.
        ("T_PORT", "tcp://10.0.0.1:7443"),
        ("TT__WORKERS", "1"),
    ];
    let config = check(GOOD, &variables).unwrap();
    assert_eq!((config.workers, config.verbose, config.cache_bytes), (9, false, 2 << 20));
    assert_eq!((config.timeout, config.key), (Duration::from_millis(250), "/other.pem".into()));
    assert_eq!((config.tags, config.seeds), (vec!["a".into(), "b".into(), "c".into()], vec![]));
    assert_eq!(config.extra.as_deref(), Some("5"));
    // Without a file at all.
    check("", &[("T__LISTEN", "0.0.0.0:1"), ("T__TLS__KEY", "k")]).unwrap();
}

#[test]
fn three_faults_are_reported_together() {
    let text = "listen = 'localhost'\nworkes = 3\n[tls]\n";
    assert_eq!(
        check(text, &[]).unwrap_err(),
        "listen: is \"localhost\", expected an IP address with a port, such as \"0.0.0.0:7443\"\n\
         tls.key: is missing, expected a path\n\
         workes: is not a known key, did you mean workers?"
    );
}

#[test]
fn each_fault_says_where_what_and_what_instead() {
    let size = "expected a size from 1MiB to 1TiB, such as \"256MiB\"";
    let time = "expected a time from 10ms to 1m, such as 1500 (milliseconds), \"30s\" or \"12h\"";
    let long = "x".repeat(100);
    for (line, expected) in [
        ("workers = 65", "workers: is 65, expected a whole number from 1 to 64".to_owned()),
        ("workers = '8'", "workers: is \"8\", expected a whole number from 1 to 64".to_owned()),
        ("workers = -1", "workers: is -1, expected a whole number from 1 to 64".to_owned()),
        ("workers = 1.5", "workers: is 1.5, expected a whole number from 1 to 64".to_owned()),
        ("cache_bytes = '1KiB'", format!("cache_bytes: is \"1KiB\", {size}")),
        ("cache_bytes = '5MB'", format!("cache_bytes: is \"5MB\", {size}")),
        ("cache_bytes = '+5MiB'", format!("cache_bytes: is \"+5MiB\", {size}")),
        ("cache_bytes = 'MiB'", format!("cache_bytes: is \"MiB\", {size}")),
        ("cache_bytes = '99999999999999TiB'", format!("cache_bytes: is \"99999999999999TiB\", {size}")),
        ("timeout_ms = '2h'", format!("timeout_ms: is \"2h\", {time}")),
        ("timeout_ms = 9", format!("timeout_ms: is 9, {time}")),
        ("verbose = 1", "verbose: is 1, expected true or false".to_owned()),
        ("name = ''", "name: is \"\", expected a text".to_owned()),
        (
            "seeds = ['a:1', 'b']",
            "seeds: is [\"a:1\", \"b\"], expected a list of addresses such as [\"node-0.example:7443\"]".to_owned(),
        ),
        ("tags = 'a,b'", "tags: is \"a,b\", expected a list of texts".to_owned()),
        ("disks = 3", "disks: is 3, expected a list of at most 1024 tables, [[disks]]".to_owned()),
        (
            "disks = [{ path = 'a', weight = 1 }, { path = 'b', wieght = 1 }]",
            "disks[1].weight: is missing, expected a whole number from 1 to 100\n\
             disks[1].wieght: is not a known key, did you mean disks[1].weight?"
                .to_owned(),
        ),
        ("extra = {}", "extra.text: is missing, expected a text".to_owned()),
        ("zzz = {}", "zzz: is not a known key".to_owned()),
        (
            &format!("workers = '{long}'"),
            format!("workers: is \"{}..., expected a whole number from 1 to 64", &long[..SHOWN_CHARS_MAX - 1]),
        ),
    ] {
        assert_eq!(check(&format!("{line}\n{LEAST}"), &[]).unwrap_err(), expected, "{line}");
    }
}

#[test]
fn faults_of_variables_name_the_variable() {
    for (variable, expected) in [
        (
            ("T__WORKERS", "many"),
            "workers: is \"many\", expected a whole number from 1 to 64 (set by T__WORKERS)",
        ),
        (
            ("T__WORKRES", "2"),
            "workres: is not a known key, did you mean workers? (set by T__WORKRES)",
        ),
        (("T__TSL__KEY", "k"), "tsl.key: is not a known key (set by T__TSL__KEY)"),
        (
            ("T__LISTEN__PORT", "2"),
            "listen.port: is \"2\", expected listen to be a table; it is set otherwise in the file \
             (set by T__LISTEN__PORT)",
        ),
    ] {
        assert_eq!(check(LEAST, &[variable]).unwrap_err(), expected);
    }
}

#[test]
fn a_file_that_is_not_toml_is_named_as_such() {
    let error = check("listen", &[]).unwrap_err();
    assert!(
        error.starts_with("the configuration is not TOML: ") && error.contains("line 1"),
        "{error}"
    );
    let absent = read(Some(Path::new("/nonexistent/coffer.toml")), "T", build).unwrap_err();
    assert!(
        matches!(absent, ConfigError::Read { .. }) && absent.to_string().contains("coffer.toml")
    );
}

#[test]
fn a_caller_can_add_what_only_it_can_see() {
    let error = parse("a = 1\nb = 2", [], "T", |reader| {
        let (a, b) = (reader.u64_in("a", 0..=9, 0), reader.u64_in("b", 0..=9, 0));
        if a < b {
            reader.fault("a", "not less than b");
        }
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "a: is 1, expected not less than b");
}

/// Goal: a folder with a configuration can be put anywhere. Method: a relative and an absolute path in a file,
/// and a relative one in a variable.
#[test]
fn relative_paths_in_a_file_begin_at_its_folder() {
    let text = "relative = \"tls/key\"\nabsolute = \"/tls/key\"\nvariable = \"tls/key\"\n";
    let variables = [("T__VARIABLE".to_owned(), "other/key".to_owned())];
    let read = |reader: &Reader<'_>| {
        ["relative", "absolute", "variable"].map(|key| reader.path(key).display().to_string())
    };
    let found = parse_in(Some(Path::new("/etc/coffer")), text, variables, "T", read).unwrap();
    assert_eq!(found, ["/etc/coffer/tls/key", "/tls/key", "other/key"]);
}
