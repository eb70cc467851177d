//! Which server of a source the stream is read from, when a replica is to be spared the source's work.
//!
//! A replica passes on its primary's stream byte by byte, under the same replication id and the same offsets, so a link to one can
//! go on at the other.

use std::time::Duration;

use crate::error::Result;
use crate::server::{Address, Client, Endpoint, Info};

/// A replica of `source` that is in step with it and has everything up to `offset`, if there is one: asked for more
/// than it has, it would send a whole snapshot.
///
/// # Errors
/// The source cannot be reached, or refuses.
pub(super) async fn choose(source: &Endpoint, offset: u64, timeout: Duration) -> Result<Option<Endpoint>> {
    let mut client = Client::open(source, timeout).await?;
    let info = client.info("replication").await?;
    for address in candidates(&info, offset) {
        let replica = Endpoint { address, ..source.clone() };
        // What it is known by may be an address that only its primary can reach.
        if let Ok(mut client) = Client::open(&replica, timeout).await
            && client.info("replication").await.is_ok_and(|info| info.get("master_link_status") == Some("up"))
        {
            return Ok(Some(replica));
        }
    }
    Ok(None)
}

/// The replicas that INFO names (`slave0:ip=10.0.0.7,port=6379,state=online,offset=123,lag=0`), the furthest first.
fn candidates(info: &Info, offset: u64) -> Vec<Address> {
    let mut found: Vec<(u64, Address)> = (0..)
        .map_while(|nth| info.get(&format!("slave{nth}")))
        .filter_map(|line| candidate(line, offset))
        .collect();
    found.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    found.into_iter().map(|(_, address)| address).collect()
}

fn candidate(line: &str, offset: u64) -> Option<(u64, Address)> {
    let field = |name: &str| line.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    let at = field("offset")?.parse::<u64>().ok()?;
    // Others who only read the stream give no port.
    let port = field("port")?.parse::<u16>().ok().filter(|port| *port != 0)?;
    let usable = field("state") == Some("online") && at >= offset;
    usable.then(|| Some((at, Address::Tcp { host: field("ip")?.to_owned(), port })))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_can_go_on_is_chosen_and_the_furthest_first() {
        let info = Info::parse(
            "role:master\r\nconnected_slaves:5\r\n\
             slave0:ip=10.0.0.1,port=6379,state=online,offset=100,lag=0\r\n\
             slave1:ip=10.0.0.2,port=6380,state=online,offset=120,lag=1\r\n\
             slave2:ip=10.0.0.3,port=6379,state=wait_bgsave,offset=200,lag=0\r\n\
             slave3:ip=127.0.0.1,port=0,state=online,offset=300,lag=0\r\n\
             slave4:ip=10.0.0.4,port=6379,state=online,offset=99,lag=0\r\n",
        );
        let names = |offset| candidates(&info, offset).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(100), ["10.0.0.2:6380", "10.0.0.1:6379"]);
        assert_eq!(names(121), Vec::<String>::new());
        assert_eq!(names(0).len(), 3);
    }
}
