//! The API's client, for commands: one request on one connection, and wait for its answer.
//!
//! A path in a directory that everybody may write to is whoever's came first: who answers there is known
//! before anything is said.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use nix::unistd::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::api;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody answers on the socket.
    #[error("connect to the daemon on {}: {source}; `pontoon daemon` starts it", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another user answers, who shall learn nothing and be believed nothing.
    #[error(
        "{} is served by uid {theirs}, and we are uid {ours}: nothing was sent; set PONTOON_SOCKET to a path in a directory of your own, or be that user", .path.display()
    )]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// Who answers, as our user namespace numbers it.
        theirs: u32,
        /// Who we are.
        ours: u32,
    },
    /// The daemon went away, or what answers is none.
    #[error("talk to the daemon on {}: {why}", .path.display())]
    Talk {
        /// The socket.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// The daemon said no.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The daemon's words.
        message: String,
    },
}

impl ClientError {
    /// Whether nobody is there: no daemon runs.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Connect { source, .. } if matches!(source.kind(), NotFound | ConnectionRefused))
    }

    /// Whether the daemon knows no such thing.
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

/// A way to the daemon.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// A client of the daemon on `socket`; nothing is sent yet. Its calls block, and are for threads
    /// that run no async code of their own.
    ///
    /// # Errors
    ///
    /// The system refuses what waiting needs.
    pub fn new(socket: &Path) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        Ok(Self { socket: socket.to_owned(), runtime })
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Who is asked.
    ///
    /// # Errors
    ///
    /// As every call here: nobody answers, or the daemon says no.
    pub fn version(&self) -> Result<api::Version, ClientError> {
        self.get("/v1/version")
    }

    /// Has the daemon take everything down and end; the answer is its last.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn stop(&self) -> Result<api::Version, ClientError> {
        self.send(&Method::POST, "/v1/stop", &())
    }

    /// All networks.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn networks(&self) -> Result<Vec<api::Network>, ClientError> {
        self.get("/v1/networks")
    }

    /// One network.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn network(&self, name: &str) -> Result<api::Network, ClientError> {
        self.get(&format!("/v1/networks/{}", encoded(name)))
    }

    /// Makes a network.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn create_network(
        &self,
        request: &api::NetworkCreate,
    ) -> Result<api::Network, ClientError> {
        self.send(&Method::POST, "/v1/networks", request)
    }

    /// Changes a network.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn change_network(
        &self,
        name: &str,
        change: &api::NetworkChange,
    ) -> Result<api::Network, ClientError> {
        self.send(&Method::PATCH, &format!("/v1/networks/{}", encoded(name)), change)
    }

    /// Removes a network.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn remove_network(&self, name: &str) -> Result<(), ClientError> {
        self.send(&Method::DELETE, &format!("/v1/networks/{}", encoded(name)), &())
    }

    /// All endpoints.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn endpoints(&self) -> Result<Vec<api::Endpoint>, ClientError> {
        self.get("/v1/endpoints")
    }

    /// One endpoint.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn endpoint(&self, name: &str) -> Result<api::Endpoint, ClientError> {
        self.get(&format!("/v1/endpoints/{}", encoded(name)))
    }

    /// Attaches a namespace.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn attach(&self, request: &api::EndpointCreate) -> Result<api::Endpoint, ClientError> {
        self.send(&Method::POST, "/v1/endpoints", request)
    }

    /// Detaches an endpoint.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn detach(&self, name: &str) -> Result<(), ClientError> {
        self.send(&Method::DELETE, &format!("/v1/endpoints/{}", encoded(name)), &())
    }

    /// Publishes ports of an endpoint.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn publish(
        &self,
        name: &str,
        specs: Vec<String>,
    ) -> Result<Vec<api::PublishedPort>, ClientError> {
        self.send(
            &Method::POST,
            &format!("/v1/endpoints/{}/ports", encoded(name)),
            &api::Ports { specs },
        )
    }

    /// Takes published ports back.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn unpublish(&self, name: &str, specs: Vec<String>) -> Result<(), ClientError> {
        self.send(
            &Method::DELETE,
            &format!("/v1/endpoints/{}/ports", encoded(name)),
            &api::Ports { specs },
        )
    }

    /// The stations of a network, or of all.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn fdb(&self, network: Option<&str>) -> Result<Vec<api::FdbRow>, ClientError> {
        self.get(&of("/v1/fdb", network))
    }

    /// The gateway's neighbours on a network, or on all.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn neighbours(&self, network: Option<&str>) -> Result<Vec<api::NeighbourRow>, ClientError> {
        self.get(&of("/v1/neighbours", network))
    }

    /// The flows of a network, or of all; and `why` they are translated as they are, if that is asked.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn conntrack(
        &self,
        network: Option<&str>,
        why: bool,
    ) -> Result<Vec<api::Flow>, ClientError> {
        let path = of("/v1/conntrack", network);
        let more = if network.is_some() { '&' } else { '?' };
        self.get(&if why { format!("{path}{more}why=true") } else { path })
    }

    /// What is translated for a network, or on a segment named by its interface, or on all.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn nat(&self, network: Option<&str>) -> Result<Vec<api::Nat>, ClientError> {
        self.get(&of("/v1/nat", network))
    }

    /// The counts of a network's ports, or of all, and of the workers.
    ///
    /// # Errors
    ///
    /// As [`Client::version`].
    pub fn stats(&self, network: Option<&str>) -> Result<api::Stats, ClientError> {
        self.get(&of("/v1/stats", network))
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(&Method::GET, path, &())
    }

    /// Sends a request; an answer without a body reads as `null`.
    fn send<T: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let talk = |why: String| ClientError::Talk { path: self.socket.clone(), why };
        let body = serde_json::to_vec(body).map_err(|error| talk(error.to_string()))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "pontoon")
            .header("Content-Type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| talk(error.to_string()))?;
        let (status, octets) = self.runtime.block_on(self.exchange(request))?;
        if !status.is_success() {
            let message = serde_json::from_slice::<api::Failure>(&octets)
                .map_or_else(|_| format!("the daemon answers {status}"), |failure| failure.message);
            return Err(ClientError::Refused { status: status.as_u16(), message });
        }
        let octets = if octets.is_empty() { Bytes::from_static(b"null") } else { octets };
        serde_json::from_slice(&octets).map_err(|error| talk(error.to_string()))
    }

    /// Refuses to talk to anybody but ourselves and root (`SO_PEERCRED`, unix(7): whoever began to listen).
    fn check(&self, stream: &UnixStream) -> Result<(), ClientError> {
        let path = || self.socket.clone();
        let peer =
            stream.peer_cred().map_err(|source| ClientError::Connect { path: path(), source })?;
        match (peer.uid(), geteuid().as_raw()) {
            (theirs, ours) if theirs == ours || theirs == 0 => Ok(()),
            (theirs, ours) => Err(ClientError::Stranger { path: path(), theirs, ours }),
        }
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let talk = |error: hyper::Error| ClientError::Talk {
            path: self.socket.clone(),
            why: error.to_string(),
        };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Connect { path: self.socket.clone(), source })?;
        self.check(&stream)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(talk)?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(talk)?;
            let status = answer.status();
            let octets = answer.into_body().collect().await.map_err(talk)?.to_bytes();
            Ok((status, octets))
        };
        let mut exchange = std::pin::pin!(exchange);
        // With this scope the connection is closed: an open one would keep the daemon from ending.
        tokio::select! {
            answer = &mut exchange => answer,
            // The answer may have come all the same.
            _ = connection => exchange.await,
        }
    }
}

fn of(path: &str, network: Option<&str>) -> String {
    match network {
        Some(network) => format!("{path}?network={}", encoded(network)),
        None => path.to_owned(),
    }
}

/// `text` as one piece of a URI (RFC 3986 §2.3): what a user typed for a name may be anything.
fn encoded(text: &str) -> String {
    let keep =
        |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_' | b'~');
    let dots = matches!(text, "." | "..");
    text.bytes()
        .map(|octet| {
            if keep(octet) && !dots {
                char::from(octet).to_string()
            } else {
                format!("%{octet:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_typed_stays_one_piece_of_the_path() {
        assert_eq!(encoded("c1.a_b-c"), "c1.a_b-c");
        assert_eq!(encoded("../a b?é"), "..%2Fa%20b%3F%C3%A9");
        assert_eq!(encoded(".."), "%2E%2E");
        assert_eq!(of("/v1/fdb", Some("a&b")), "/v1/fdb?network=a%26b");
    }

    #[test]
    fn that_nobody_is_there_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let client = Client::new(&directory.path().join("none.sock")).unwrap();
        assert!(client.version().unwrap_err().is_absent());
    }
}
