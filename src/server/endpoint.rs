//! What a URL of the configuration becomes, and how it is connected to.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};

use super::{Address, Secret, Stream, TlsClient, TlsOptions, socket};
use crate::error::{Error, Result, Side};

/// One server, and how to log in there.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Which side its faults are on.
    pub side: Side,
    /// Where it listens.
    pub address: Address,
    /// Set when the connection is to be encrypted.
    pub tls: Option<Arc<TlsClient>>,
    /// The ACL user; without it the default user.
    pub user: Option<String>,
    /// The password, if one is needed.
    pub password: Option<Secret>,
    /// The db that connections begin with.
    pub db: u32,
}

impl Endpoint {
    /// Reads a URL: `redis://[user[:password]@]host[:port][/db]`, `rediss://` for TLS, or
    /// `unix://[user[:password]@]/path[?db=N]`. Parts may be percent-encoded, and a password may hold `/`, `:`
    /// and `@` as they are: the last `@` ends it.
    ///
    /// # Errors
    /// What is wrong with the URL, without repeating it, since there may be a password in it.
    pub fn parse(side: Side, url: &str) -> Result<Self> {
        Self::parse_with(side, url, None)
    }

    /// As [`Self::parse`], with TLS as configured beside the URL. Options for a URL that is not `rediss://`
    /// are an error: somebody believes that this connection is encrypted.
    ///
    /// # Errors
    /// As [`Self::parse`], and as [`TlsClient::new`].
    pub fn parse_with(side: Side, url: &str, tls: Option<&TlsOptions>) -> Result<Self> {
        let wrong = |message: String| {
            Error::new(Side::Gateway, format!("the {side}'s URL {message}"))
                .remedy("write it as redis://[user[:password]@]host[:port][/db]")
        };
        let Some((scheme, rest)) = url.trim().split_once("://") else {
            return Err(wrong("has no scheme".into()));
        };
        let scheme = scheme.to_ascii_lowercase();
        match scheme.as_str() {
            "redis" | "rediss" | "unix" | "redis+unix" | "valkey" | "valkeys" => {}
            "redis+sentinel" | "rediss+sentinel" => {
                return Err(wrong("asks for Sentinel, which is not in this version".into())
                    .remedy("name the primary itself: redis://host:port"));
            }
            "redis+cluster" | "rediss+cluster" => {
                return Err(wrong("asks for a cluster, which is not in this version".into())
                    .remedy("only single servers can be migrated so far"));
            }
            // Not repeated: a URL whose scheme was forgotten may begin with a password.
            _ => return Err(wrong("has a scheme that is not known".into())),
        }
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, rest),
        };
        let (user, password) = match login {
            None => (None, None),
            Some(login) => {
                let (user, password) = match login.split_once(':') {
                    Some((user, password)) => (user, Some(password)),
                    None => (login, None),
                };
                let user = decoded(user).map_err(|what| wrong(format!("has a user that {what}")))?;
                let password = password
                    .map(|text| decoded(text).map_err(|what| wrong(format!("has a password that {what}"))))
                    .transpose()?;
                (Some(user).filter(|u| !u.is_empty()), password.filter(|p| !p.is_empty()).map(Secret::new))
            }
        };
        let unix = scheme.ends_with("unix");
        let (place, query) = match place.split_once('?') {
            Some((place, query)) => (place, Some(query)),
            None => (place, None),
        };
        let (address, path_db) = if unix {
            if !place.starts_with('/') {
                return Err(wrong("needs an absolute path: unix:///run/redis.sock".into()));
            }
            let path = decoded(place).map_err(|what| wrong(format!("has a path that {what}")))?;
            (Address::Unix(path.into()), None)
        } else {
            let (authority, db) = match place.split_once('/') {
                Some((authority, db)) => (authority, Some(db).filter(|db| !db.is_empty())),
                None => (place, None),
            };
            let (host, port) = host_and_port(authority).map_err(&wrong)?;
            (Address::Tcp { host, port }, db)
        };
        let mut db = path_db;
        for (name, value) in query.into_iter().flat_map(|q| q.split('&')).filter_map(|p| p.split_once('=')) {
            match name {
                "db" if db.is_none() => db = Some(value),
                _ => return Err(wrong(format!("has a parameter \"{name}\" that is not known"))),
            }
        }
        let db = match db {
            None => 0,
            Some(text) => {
                text.parse().map_err(|_| wrong(format!("names a db \"{text}\" that is no number")))?
            }
        };
        let encrypted = scheme.starts_with("rediss") || scheme == "valkeys";
        let tls = match (encrypted, tls) {
            (true, options) => Some(Arc::new(TlsClient::new(options.unwrap_or(&TlsOptions::default()))?)),
            (false, Some(options)) if *options != TlsOptions::default() => {
                return Err(wrong("is not encrypted, but there are settings for TLS".into())
                    .remedy("begin the URL with rediss://, or remove the tls table"));
            }
            (false, _) => None,
        };
        Ok(Self { side, address, tls, user, password, db })
    }

    /// Connects, within `timeout` altogether: every address of the name in turn, then the TLS handshake. Does not
    /// log in.
    ///
    /// # Errors
    /// A passing error, except for a certificate that is not accepted and a unix socket without permission.
    pub async fn connect(&self, timeout: Duration) -> Result<Stream> {
        match tokio::time::timeout(timeout, self.dial()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::passing(
                self.side,
                format!("no connection to {} within {timeout:?}", self.address),
            )),
        }
    }

    async fn dial(&self) -> Result<Stream> {
        let refused = |cause: io::Error| {
            let error = if cause.kind() == io::ErrorKind::PermissionDenied {
                Error::new(self.side, format!("cannot connect to {}", self.address))
            } else {
                Error::passing(self.side, format!("cannot connect to {}", self.address))
            };
            error.because(cause)
        };
        match &self.address {
            Address::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await.map_err(refused)?)),
            Address::Tcp { host, port } => {
                let tcp = TcpStream::connect((host.as_str(), *port)).await.map_err(refused)?;
                socket::tune(&tcp).map_err(refused)?;
                match &self.tls {
                    None => Ok(Stream::Tcp(tcp)),
                    Some(tls) => Ok(Stream::Tls(Box::new(tls.handshake(host, tcp, self.side).await?))),
                }
            }
        }
    }
}

fn host_and_port(authority: &str) -> Result<(String, u16), String> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("has a '[' without its ']'")?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err("has something between ']' and the port".into()),
        }
    } else {
        match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("has a host with several ':'; an IPv6 address stands in brackets".into());
            }
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err("names no host".into());
    }
    let host = decoded(host).map_err(|what| format!("has a host that {what}"))?;
    if host.chars().any(|c| c.is_whitespace() || c.is_control() || c == ',') {
        return Err("has a host with characters that no host name has".into());
    }
    let port = match port {
        None | Some("") => 6379,
        Some(text) => text
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("has a port \"{text}\" that is not between 1 and 65535"))?,
    };
    Ok((host, port))
}

fn decoded(text: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digit = |at: usize| tail.get(at).and_then(|byte| (*byte as char).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err("has a '%' that is not followed by two hex digits (write %25 for '%')");
        };
        bytes.push((high * 16 + low) as u8);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(url: &str) -> (String, Option<String>, Option<String>, u32) {
        let endpoint = Endpoint::parse(Side::Source, url).unwrap();
        let password = endpoint.password.as_ref().map(|p| p.reveal().to_owned());
        (endpoint.address.to_string(), endpoint.user, password, endpoint.db)
    }

    fn bad(url: &str) -> String {
        let message = Endpoint::parse(Side::Source, url).unwrap_err().to_string();
        assert!(!message.contains("s3cret"), "{message}");
        message
    }

    #[test]
    fn urls_that_people_write() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(good("redis://127.0.0.1:6379"), ("127.0.0.1:6379".into(), None, None, 0));
        assert_eq!(good("redis://db"), ("db:6379".into(), None, None, 0));
        assert_eq!(good("redis://db/"), ("db:6379".into(), None, None, 0));
        assert_eq!(good("REDIS://db:7000/3"), ("db:7000".into(), None, None, 3));
        assert_eq!(good("redis://:pw@db"), ("db:6379".into(), None, some("pw"), 0));
        assert_eq!(good("redis://app@db"), ("db:6379".into(), some("app"), None, 0));
        assert_eq!(good("redis://app:p%40%3A%25w@db:1/2"), ("db:1".into(), some("app"), some("p@:%w"), 2));
        assert_eq!(good("redis://app:a/b@c:d?@db:1/2"), ("db:1".into(), some("app"), some("a/b@c:d?"), 2));
        assert_eq!(good("redis://[::1]:7/1"), ("[::1]:7".into(), None, None, 1));
        assert_eq!(good("redis://[fe80::1]"), ("[fe80::1]:6379".into(), None, None, 0));
        assert_eq!(good("unix:///run/r.sock"), ("/run/r.sock".into(), None, None, 0));
        assert_eq!(good("unix://u:p@/run/r%20.sock?db=4"), ("/run/r .sock".into(), some("u"), some("p"), 4));
        assert_eq!(good("redis://db?db=5"), ("db:6379".into(), None, None, 5));
    }

    #[test]
    fn urls_that_are_wrong_say_why_and_keep_the_secret() {
        for (url, says) in [
            ("127.0.0.1:6379", "no scheme"),
            ("http://:s3cret@db", "not known"),
            ("s3cret://db", "not known"),
            ("redis://", "no host"),
            ("redis://:s3cret@:6379", "no host"),
            ("redis://db:0", "port \"0\""),
            ("redis://db:70000", "port \"70000\""),
            ("redis://db:63x", "port \"63x\""),
            ("redis://db/x", "db \"x\""),
            ("redis://db/-1", "db \"-1\""),
            ("redis://db/1?ttl=3", "parameter \"ttl\""),
            ("redis://:s3cret%@db", "two hex digits"),
            ("redis://:s3cret%ff@db", "not UTF-8"),
            ("redis://::1:6379", "brackets"),
            ("redis://[::1:6379", "without its ']'"),
            ("redis://[::1]6379", "between ']'"),
            ("redis://a b", "characters"),
            ("unix://run/r.sock", "absolute path"),
            ("redis+sentinel://a:1,b:2/master", "not in this version"),
            ("redis+cluster://a:1,b:2", "not in this version"),
        ] {
            let message = bad(url);
            assert!(message.contains(says), "{url}: {message}");
        }
    }

    #[test]
    fn tls_settings_need_an_encrypted_url() {
        let options = TlsOptions { server_name: Some("db".into()), ..Default::default() };
        let error = Endpoint::parse_with(Side::Source, "redis://db", Some(&options)).unwrap_err();
        assert!(error.to_string().contains("rediss://"), "{error}");
        assert!(Endpoint::parse_with(Side::Source, "redis://db", Some(&TlsOptions::default())).is_ok());
    }
}
