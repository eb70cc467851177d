//! The TOML file, its defaults, its checks and its documentation.
