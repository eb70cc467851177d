use std::path::Path;

use super::*;

fn read(text: &str) -> Result<File, ConfigError> {
    let environment = |name: &str| match name {
        "PASSWORD" => Some("hunter2".to_owned()),
        _ => None,
    };
    load::read(text, Path::new("orders.toml"), &environment)
}

fn config(text: &str) -> Result<Config, ConfigError> {
    check::check(read(text)?)
}

const PAIR: &str = "source.url = 'redis://a:1'\ndestination.url = 'redis://b:2'\n";

fn refusal(text: &str) -> String {
    config(text).expect_err(text).to_string()
}

#[test]
fn the_shipped_files_can_be_used() {
    config(MINIMAL).unwrap();
    config(FULL).unwrap();
}

#[test]
fn the_full_file_equals_the_defaults() {
    let mut file = read(FULL).unwrap();
    file.source.url = None;
    file.destination.url = None;
    assert_eq!(file, File::default());
}

/// Asks the types themselves for their keys: an unknown key makes serde name the known ones.
#[test]
fn the_full_file_names_every_key() {
    fn known(table: &str) -> Vec<String> {
        let text = if table.is_empty() { "zz = 1".to_owned() } else { format!("[{table}]\nzz = 1") };
        let error = toml::from_str::<File>(&text).unwrap_err();
        error.message().split('`').skip(3).step_by(2).map(str::to_owned).collect()
    }
    let mut stated = std::collections::BTreeSet::new();
    let mut table = String::new();
    for line in FULL.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            table = format!("{name}.");
            stated.insert(name.to_owned());
        } else if let Some((key, _)) = line.split_once(" = ") {
            stated.insert(format!("{table}{key}"));
        }
    }
    let mut tables = vec![String::new()];
    while let Some(table) = tables.pop() {
        for key in known(&table) {
            let path = if table.is_empty() { key } else { format!("{table}.{key}") };
            assert!(stated.contains(&path), "configs/full.toml does not name {path}");
            if FULL.contains(&format!("[{path}]")) {
                tables.push(path);
            }
        }
    }
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = config(PAIR).unwrap();
    assert_eq!(config.listen.address, "127.0.0.1:6400");
    assert_eq!(config.admin.address, "127.0.0.1:6401");
    assert_eq!(config.state_dir, Path::new("crossfade-state"));
    assert_eq!(config.cutover.max_pause, Duration::from_millis(500));
    assert_eq!(config.retry.connection, Duration::from_secs(12 * 3600));
    assert_eq!(config.retry.other, Duration::from_secs(600));
    assert!(config.listen.workers >= 1);
    assert_eq!(config.listen.idle_timeout, None);
    assert_eq!(config.verify.sample, None);
}

#[test]
fn an_unknown_key_names_its_line_and_the_nearest_one() {
    assert_eq!(
        refusal("name = 'x'\n\n[listen]\nadress = '127.0.0.1:1'\n"),
        "orders.toml:4: unknown key 'adress' in [listen] (did you mean 'address'?)"
    );
    assert_eq!(
        refusal("[cutover]\nmaxpause = '1s'\n"),
        "orders.toml:2: unknown key 'maxpause' in [cutover] (did you mean 'max_pause'?)"
    );
    assert_eq!(
        refusal("[surce]\nurl = 'redis://a'\n"),
        "orders.toml:1: unknown key 'surce' in the top level (did you mean 'source'?)"
    );
    assert_eq!(
        refusal("[source]\nmax_pause = '1s'\n"),
        "orders.toml:2: unknown key 'max_pause' in [source] ('max_pause' belongs into [cutover])"
    );
    let error = refusal("[retry]\nzzzz = 1\n");
    assert!(error.ends_with("(known here: connection, other)"), "{error}");
}

#[test]
fn a_wrong_value_names_its_line_and_what_is_expected() {
    assert_eq!(
        refusal("[cutover]\nmax_pause = 500\n"),
        "orders.toml:2: 'cutover.max_pause': '500' is no duration; write the unit too, as in \"500ms\", \"10s\" or \"12h\""
    );
    let error = refusal("[snapshot]\non_unsupported = 'ignore'\n");
    assert!(
        error.starts_with("orders.toml:2: 'snapshot.on_unsupported': unknown variant `ignore`"),
        "{error}"
    );
    let error = refusal("[snapshot]\non_existing_key = 'overwrite'\n");
    assert!(
        error.starts_with("orders.toml:2: 'snapshot.on_existing_key': unknown variant `overwrite`"),
        "{error}"
    );
    let error = refusal("[listen]\naddress = 'x\n");
    assert!(error.starts_with("orders.toml:2: "), "{error}");
}

#[test]
fn secrets_are_never_shown() {
    let file = read(
        "source.url = 'redis://u:hunter2@a:1'\nsource.password = '${PASSWORD}'\nadmin.token = 'hunter2'",
    )
    .unwrap();
    assert_eq!(file.source.password.as_ref().map(|p| p.0.as_str()), Some("hunter2"));
    assert!(!format!("{file:?}").contains("hunter2"));
    assert!(!serde_json::to_string(&file).unwrap().contains("hunter2"));
    let error = refusal("[source]\npassword = 7734\n");
    assert_eq!(error, "orders.toml:2: 'source.password' has the wrong type; text is expected");
    let config = config("source.url = 'redis://a:1'\nsource.password = '${PASSWORD}'").unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn variables_of_the_environment() {
    let one = |name: &str| (name == "A").then(|| "1".to_owned());
    assert_eq!(load::expand("x${A}y${B:-2}", &one), Ok("x1y2".into()));
    assert_eq!(load::expand("$${A} $5", &one), Ok("${A} $5".into()));
    assert!(load::expand("${B}", &one).unwrap_err().contains("no variable B"));
    assert!(load::expand("${A", &one).is_err());
    assert!(
        refusal("name = 'a'\nenvironment = '${NOPE}'")
            .starts_with("orders.toml:2: the environment has no variable")
    );
}

#[test]
fn what_does_nothing_yet_is_refused() {
    for text in ["[shadow]\nsample = 0.1", "[alerts]\ncommand = 'page'", "[mirror]\nfeed = 'tap'"] {
        let error = refusal(&format!("{PAIR}{text}"));
        assert!(error.contains("not in this version"), "{error}");
    }
    for url in ["redis+sentinel://a:1/master", "redis+cluster://a:1,b:2"] {
        assert!(refusal(&format!("source.url = '{url}'")).contains("not in this version"));
    }
}

#[test]
fn refusals_say_what_to_write() {
    for (text, part) in [
        ("", "no source is given"),
        ("source.url = 'http://a:1'", "'http://' is no known kind of URL"),
        ("source.url = 'a:6379'", "a URL is expected"),
        ("source.url = 'redis://a:1'\ndestination.url = 'redis://a:1'", "the same server"),
        ("source.user = 'x'", "[source] has no url"),
        ("source.url = 'redis://a:1'\nretry.other = '0s'", "not between 1 s and 30 days"),
        ("source.url = 'redis://a:1'\nretry.connection = '31days'", "retry.connection"),
        ("source.url = 'redis://a:1'\nfilter.include_keys = ['regex:(']", "no pattern of keys"),
        ("source.url = 'redis://a:1'\nfilter.exclude_commands = ['selekt']", "no command is called"),
        (
            "source.url = 'redis://a:1'\nfilter.types = ['strings']",
            "`string`, `list`, `set`, `zset`, `hash`, `stream`, `module`",
        ),
        ("source.url = 'redis://a:1'\nfilter.exclude_commands = ['multi']", "changes no data"),
        ("source.url = 'redis://a:1'\nmap.databases = { x = 1 }", "no number of a database"),
        ("source.url = 'redis://a:1'\nmap.databases = { 0 = 1, 00 = 2 }", "database 0 twice"),
        ("source.url = 'redis://a:1'\nmap.databases = { 0 = 1, 2 = 1 }", "two databases to number 1"),
        ("source.url = 'redis://a:1'\nmap.prefixes = { 'a:' = 'c:', 'b:' = 'c:' }", "two prefixes the name"),
        ("source.url = 'redis://a:1'\nmap.prefixes = { 'a:' = 'crossfade:' }", "its own keys"),
        ("source.url = 'redis://a:1'\nmap.prefixes = { a = 'b' }\nmap.key_case = 'lower'", "one of the two"),
        ("source.url = 'redis://a:1'\nmap.key_case = 'title'", "expected one of `as-is`"),
        ("source.url = 'redis://127.0.0.1:6400'", "own address"),
        ("source.url = 'redis://a:1'\nlisten.address = '127.0.0.1'", "the port is missing"),
        ("source.url = 'redis://a:1'\nlisten.address = '127.0.0.1:99999'", "no number up to 65535"),
        ("source.url = 'redis://a:1'\nadmin.address = '127.0.0.1:6400'", "both 127.0.0.1:6400"),
        ("source.url = 'redis://a:1'\nadmin.address = '0.0.0.0:6401'", "has no token"),
        ("source.url = 'redis://a:1'\nname = 'a b'", "cannot be used"),
        ("source.url = 'redis://a:1'\nlisten.workers = 0", "listen.workers = 0 is not between"),
        ("source.url = 'redis://a:1'\ncutover.max_pause = '0'", "more than 0"),
        ("source.url = 'redis://a:1'\nsource.password = 'x'\nsource.password_file = '/x'", "keep one"),
        ("source.url = 'redis://a:1'\nsource.password_file = '/does/not/exist'", "cannot be read"),
        ("source.url = 'redis://a:1'\nsource.tls.ca = '/x'", "does not ask for TLS"),
        ("source.url = 'redis://a:1'\nlisten.tls.cert = '/x'", "cannot be read"),
        ("source.url = 'redis://a:1'\nheartbeat.interval = '1ms'", "between 100ms and 1h"),
    ] {
        let error = refusal(text);
        assert!(error.contains(part), "{text}: {error}");
    }
    config("source.url = 'redis://a:1'\nadmin.address = '0.0.0.0:6401'\nadmin.token = 'x'").unwrap();
    config("source.url = 'redis://a:1'\nadmin.address = '[::1]:6401'").unwrap();
}

#[test]
fn loopback() {
    for yes in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "[::ffff:127.0.0.1]:1"] {
        assert!(is_loopback(yes), "{yes}");
    }
    for no in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.com:1", "localhost.example.com:1"] {
        assert!(!is_loopback(no), "{no}");
    }
}

#[test]
fn fields_of_the_command_line_win_over_the_file() {
    let mut file = read("name = 'x'\nsource.url = 'redis://a:1'\n").unwrap();
    file.overlay(&Sources {
        source: Some("redis://c:3".into()),
        name: Some("y".into()),
        ..Sources::default()
    });
    file.overlay(&Sources {
        name: Some(String::new()),
        destination: Some(String::new()),
        ..Sources::default()
    });
    let config = check::check(file).unwrap();
    assert!(config.destination.is_none());
    assert_eq!(config.name, "y");
    assert_eq!(config.source.address.to_string(), "c:3");
}

#[test]
fn a_token_of_the_environment_takes_the_place_of_a_token_file() {
    let mut file = read("source.url = 'redis://a:1'\nadmin.token_file = '/does/not/exist'\n").unwrap();
    file.overlay(&Sources { token: Some("x".into()), ..Sources::default() });
    assert_eq!(check::check(file).unwrap().admin.token.unwrap().reveal(), "x");
}
