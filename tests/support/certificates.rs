//! Certificates for tests, made by openssl.

use std::path::Path;
use std::process::{Command, Stdio};

/// An authority, a certificate for `localhost` and 127.0.0.1, and one for a client. False: there is no openssl here.
pub fn certificates(dir: &Path) -> bool {
    let script = "set -e
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN=authority
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' > ext
        for name in server client; do
            openssl req -newkey rsa:2048 -nodes -keyout $name.key -out $name.csr -subj /CN=$name
            openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $name.pem
        done";
    let made = Command::new("sh").args(["-c", script]).current_dir(dir).stderr(Stdio::null()).status();
    made.is_ok_and(|status| status.success())
}
