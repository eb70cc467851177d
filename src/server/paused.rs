//! Whether a server is held by CLIENT PAUSE … WRITE, which nothing shows but a command that is held.

use super::Client;
use crate::error::Result;
use crate::resp::value::Value;
use crate::resp::write;

/// A command that a paused server keeps for later, as all that might be replicated (`processCommand` in `server.c`), and that does
/// nothing.
pub(crate) type Guard = &'static [&'static str];

/// The key is nobody's. PFCOUNT asks for the right to write that key, EVAL for the right to run scripts; a user may lack either.
pub(crate) const GUARDS: [Guard; 2] = [&["PFCOUNT", "crossfade:check"], &["EVAL", "return 0", "0"]];

/// A guard that this user may have in a transaction. While the server is paused, the answer takes until the pause is over.
///
/// # Errors
/// A passing one when the connection fails or no answer comes in time, a lasting one when the server refuses all of them.
pub(crate) async fn guard(client: &mut Client) -> Result<Guard> {
    let mut refusal = String::new();
    for guard in GUARDS {
        let transaction: [&[&str]; 3] = [&["MULTI"], guard, &["EXEC"]];
        let mut commands = Vec::new();
        transaction.iter().for_each(|command| write::command(&mut commands, command));
        match executed(client.pipeline(&commands, transaction.len()).await?) {
            Ok(_) => return Ok(guard),
            Err(why) => refusal = why,
        }
    }
    Err(super::client::refusal(client.side(), "a transaction with PFCOUNT, or with EVAL,", &refusal))
}

/// The results of a transaction, from all its replies, or why the server refused it.
pub(crate) fn executed(mut replies: Vec<Value>) -> std::result::Result<Vec<Value>, String> {
    match replies.pop() {
        Some(Value::Array(results)) => Ok(results),
        last => Err(replies.iter().chain(&last).find_map(Value::error).unwrap_or_default()),
    }
}
