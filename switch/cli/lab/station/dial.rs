//! TCP clients: a bare connection, and one that gets a page.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::ExitCode;
use std::str::FromStr;

use super::patience::{PATIENCE, failure};
use crate::failure::{Failure, Outcome};
use crate::output::print;

/// Most octets of a page that are read.
const MAX_PAGE: u64 = 64 * 1024;

/// What to get, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    at: SocketAddrV4,
    path: String,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let (at, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let address = |_| "write http://ADDR[:PORT][/PATH], with an IPv4 address".to_owned();
        let at = match at.contains(':') {
            true => at.parse().map_err(address)?,
            false => SocketAddrV4::new(at.parse::<Ipv4Addr>().map_err(address)?, 80),
        };
        Ok(Self { at, path: if path.is_empty() { "/".to_owned() } else { path.to_owned() } })
    }
}

/// Connects and tells from where to where.
pub(super) fn dial(to: SocketAddrV4) -> Outcome {
    let stream = connect(to)?;
    let from = stream.local_addr().map_err(|error| failure("ask for our address", &error))?;
    print(&format!("Connected to {to} from {from}"))
}

/// Gets a page and prints it.
pub(super) fn get(url: &Url) -> Outcome {
    let mut stream = connect(url.at)?;
    let lost = |what: &'static str| {
        let at = url.at;
        move |error: std::io::Error| failure(format_args!("{what} {at}"), &error)
    };
    stream.set_read_timeout(Some(PATIENCE)).map_err(lost("prepare"))?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(lost("prepare"))?;
    let request =
        format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", url.path, url.at);
    stream.write_all(request.as_bytes()).map_err(lost("ask"))?;
    let mut answer = Vec::new();
    stream.take(MAX_PAGE).read_to_end(&mut answer).map_err(lost("hear from"))?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_once("\r\n\r\n") {
        Some((head, page)) if head.starts_with("HTTP/1.1 200 ") => {
            print(page.trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
        Some((head, _)) => {
            Err(Failure::new(format!("{}: {}", url.at, head.lines().next().unwrap_or_default())))
        }
        None => Err(Failure::new(format!("{}: Empty reply from server", url.at))),
    }
}

fn connect(to: SocketAddrV4) -> Result<TcpStream, Failure> {
    TcpStream::connect_timeout(&SocketAddr::V4(to), PATIENCE).map_err(|error| {
        failure(format_args!("Failed to connect to {} port {}", to.ip(), to.port()), &error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().expect(text)
    }

    #[test]
    fn a_url_has_an_address_and_perhaps_more() {
        let whole = url("http://10.0.2.15:5000/a/b");
        assert_eq!(whole.at, "10.0.2.15:5000".parse().expect("an address"));
        assert_eq!(whole.path, "/a/b");
        assert_eq!(url("http://10.0.2.15"), url("10.0.2.15:80/"));
        for bad in ["", "http://", "http://host:80/", "http://[::1]/", "http://1.2.3.4:x"] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }
}
