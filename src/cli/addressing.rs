//! Where the configuration of `run` and `check` comes from.

use std::path::PathBuf;

use crate::config::Sources;

/// A file, or flags, or both: flags win over `CROSSFADE_…` variables, which win over the file.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Configuration")]
pub(super) struct Addressing {
    /// The configuration file (TOML)
    #[arg(long, env = "CROSSFADE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where applications connect [default: 127.0.0.1:6400]
    #[arg(long, env = "CROSSFADE_LISTEN", value_name = "ADDR")]
    listen: Option<String>,
    /// The server that the data comes from: redis://[user[:password]@]host[:port][/db], rediss://, unix:///path
    #[arg(long, env = "CROSSFADE_SOURCE", value_name = "URL", hide_env_values = true)]
    source: Option<String>,
    /// The server that the data goes to; without it the gateway only forwards
    #[arg(long, env = "CROSSFADE_DESTINATION", value_name = "URL", hide_env_values = true)]
    destination: Option<String>,
    /// Control API, metrics and dashboard [default: 127.0.0.1:6401]
    #[arg(long, env = "CROSSFADE_ADMIN", value_name = "ADDR")]
    admin: Option<String>,
    /// Token that the control API asks for; required when it is not on a loopback address
    #[arg(long, env = "CROSSFADE_ADMIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The durable record and the journal [default: ./crossfade-state]
    #[arg(long, env = "CROSSFADE_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The migration's name
    #[arg(long, env = "CROSSFADE_NAME", value_name = "NAME")]
    name: Option<String>,
}

impl Addressing {
    pub(super) fn sources(&self) -> Sources {
        Sources {
            file: self.config.clone(),
            listen: self.listen.clone(),
            source: self.source.clone(),
            destination: self.destination.clone(),
            admin: self.admin.clone(),
            token: self.token.clone(),
            state_dir: self.state_dir.clone(),
            name: self.name.clone(),
        }
    }
}
