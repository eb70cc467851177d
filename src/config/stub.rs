//! Stands in until `server` has these types.
#![allow(missing_docs)]
use crate::{Result, Side};
#[derive(Clone)]
pub struct Secret(String);
impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }
    pub fn reveal(&self) -> &str {
        &self.0
    }
}
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub side: Side,
    pub address: String,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub db: u32,
}
impl Endpoint {
    pub fn parse(side: Side, url: &str) -> Result<Self> {
        Ok(Self {
            side,
            address: url.trim_start_matches("redis://").into(),
            user: None,
            password: None,
            db: 0,
        })
    }
}
