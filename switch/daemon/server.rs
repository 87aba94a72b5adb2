//! The API's server: HTTP/1.1 and JSON on a unix socket.
//!
//! One thread runs all connections and never waits for the kernel's network configuration: whatever
//! may take time goes to a thread made for blocking. Only the daemon's own user, and root, is answered.
//! A request that is given up halfway is carried out all the same, so nothing is left half-done.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::geteuid;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::api;
use crate::config::Config;
use crate::error::Error;
use crate::lifetime::{self, Activity};
use crate::log::log;
use crate::socket;
use crate::state::Daemon;

/// Most octets of a request's body.
const MAX_BODY: usize = 256 * 1024;

/// Most connections at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 256;

/// How long a connection may keep us waiting for a request.
const REQUEST_WITHIN: Duration = Duration::from_secs(15);

/// How the daemon is run.
#[derive(Debug)]
pub struct Options {
    /// Where to listen.
    pub socket: PathBuf,
    /// The switch's threads and tables.
    pub workers: worker::Config,
    /// The default network.
    pub config: Config,
    /// Ends after this long without endpoints, user networks or connections; `None` stays.
    pub idle_exit: Option<Duration>,
}

#[derive(Debug)]
struct Shared {
    daemon: Arc<Daemon>,
    activity: Arc<Activity>,
    stop: Notify,
}

/// Runs the daemon until it is stopped by request, signal or idleness, and takes everything down.
///
/// `ready` is called when requests are answered, with notes for whoever started the daemon. Call this
/// from a process of one thread.
///
/// # Errors
///
/// It could not be started, or the switch failed.
pub fn run(options: Options, ready: impl FnOnce(&[String])) -> Result<(), Error> {
    let system = |what| move |source| Error::System { what, source };
    // Dropped last: the socket's file goes when everything is down.
    let (_claim, listener) = socket::listen(&options.socket)?;
    // As the workers' own: a wish.
    let _ = netns::priority::set_session_nice(options.workers.nice);
    let (daemon, events, notes) = Daemon::start(options.workers, &options.config)?;
    let daemon = Arc::new(daemon);
    let served = Arc::downgrade(&daemon);
    let (failed, failure) = oneshot::channel();
    std::thread::Builder::new()
        .name("events".to_owned())
        .spawn(move || {
            // Ends when the switch has: it holds the other end.
            while let Ok(event) = events.recv() {
                let Some(daemon) = served.upgrade() else { return };
                if let Err(error) = daemon.serve_event(event) {
                    // Nobody waits for it any more only when the daemon is ending anyway.
                    let _ = failed.send(error);
                    return;
                }
            }
        })
        .map_err(system("start a thread"))?;
    follow_links(Arc::downgrade(&daemon))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(64)
        .build()
        .map_err(system("start the runtime"))?;
    let activity = Activity::new();
    let shared = Arc::new(Shared { daemon, activity, stop: Notify::new() });
    runtime.block_on(async {
        listener.set_nonblocking(true).map_err(system("prepare the socket"))?;
        let listener = UnixListener::from_std(listener).map_err(system("prepare the socket"))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(system("catch SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system("catch SIGINT"))?;
        let mut hangup = signal(SignalKind::hangup()).map_err(system("catch SIGHUP"))?;
        let idle = async {
            match options.idle_exit {
                Some(limit) => shared.activity.idle_for(limit, || shared.daemon.is_used()).await,
                None => std::future::pending().await,
            }
        };
        let failure = async {
            match failure.await {
                Ok(error) => error,
                Err(_) => std::future::pending().await,
            }
        };
        ready(&notes);
        let mut outcome = Ok(());
        tokio::select! {
            error = failure => outcome = Err(error),
            () = accept(&listener, &shared) => {}
            () = shared.stop.notified() => log!("stopped by request"),
            _ = terminate.recv() => log!("stopped by SIGTERM"),
            _ = interrupt.recv() => log!("stopped by SIGINT"),
            _ = hangup.recv() => log!("stopped by SIGHUP"),
            () = idle => log!("stopped: nobody needs it"),
        }
        let daemon = Arc::clone(&shared.daemon);
        tokio::select! {
            _ = tokio::task::spawn_blocking(move || daemon.detach_all()) => {}
            _ = terminate.recv() => std::process::exit(1),
            _ = interrupt.recv() => std::process::exit(1),
        }
        outcome
    })
}

/// Has the stations follow what becomes of their interfaces, on a thread of its own.
fn follow_links(daemon: Weak<Daemon>) -> Result<(), Error> {
    let mut links = match netns::LinkWatch::open() {
        Ok(links) => links,
        Err(error) => {
            log!("interfaces are not watched: {error:#}");
            return Ok(());
        }
    };
    let follow = move || {
        loop {
            let mut readable = [PollFd::new(links.as_fd(), PollFlags::POLLIN)];
            match poll(&mut readable, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return log!("interfaces are watched no more: {error}"),
            }
            // What is so now matters, and not all that has happened.
            while links.next_event().is_some() {}
            // The thread is the process' own: it ends with that, if nothing happens any more.
            let Some(daemon) = daemon.upgrade() else { return };
            daemon.look_at_links();
        }
    };
    std::thread::Builder::new()
        .name("links".to_owned())
        .spawn(follow)
        .map(drop)
        .map_err(|source| Error::System { what: "start a thread", source })
}

/// Serves connections; never returns.
async fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (ours, others) = (router(Arc::clone(shared)), forbidden());
    loop {
        // Never closed, so this cannot fail.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log!("accept a connection: {error}");
                // Out of descriptors: trying again at once would only burn the processor.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = if is_allowed(&stream) { ours.clone() } else { others.clone() };
        let busy = shared.activity.connection();
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_WITHIN)
                // A client that has said all it has to say still listens: `nc -N`, a shell's pipe.
                .half_close(true)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
            // A client that went away is its own business.
            let _ = connection.await;
            drop((busy, place));
        });
    }
}

/// Whether the peer is our own user or root (`SO_PEERCRED`, `unix(7)`).
fn is_allowed(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}

fn forbidden() -> Router {
    Router::new().fallback(|| async {
        let message = "this daemon belongs to another user; `pontoon daemon` starts your own";
        Refusal(StatusCode::FORBIDDEN, message.to_owned())
    })
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/version", get(|at: At| at.look(|daemon| Ok(daemon.version()))))
        .route(
            "/v1/networks",
            get(|at: At| at.look(|daemon| Ok(daemon.networks()))).post(create_network),
        )
        .route(
            "/v1/networks/{name}",
            get(|at: At, Path(name): Name| at.look(move |daemon| daemon.network(&name)))
                .patch(change_network)
                .delete(|at: At, Path(name): Name| {
                    at.done(move |daemon| daemon.remove_network(&name))
                }),
        )
        .route("/v1/endpoints", get(|at: At| at.look(|daemon| Ok(daemon.endpoints()))).post(attach))
        .route(
            "/v1/endpoints/{name}",
            get(|at: At, Path(name): Name| at.look(move |daemon| daemon.endpoint(&name)))
                .delete(|at: At, Path(name): Name| at.done(move |daemon| daemon.detach(&name))),
        )
        .route(
            "/v1/endpoints/{name}/ports",
            get(|at: At, Path(name): Name| {
                at.look(move |daemon| daemon.endpoint(&name).map(|endpoint| endpoint.ports))
            })
            .post(publish)
            .delete(unpublish),
        )
        .route(
            "/v1/fdb",
            get(|at: At, Query(of): Of| at.look(move |daemon| daemon.fdb(of.network()))),
        )
        .route(
            "/v1/neighbours",
            get(|at: At, Query(of): Of| at.look(move |daemon| daemon.neighbours(of.network()))),
        )
        .route(
            "/v1/conntrack",
            get(|at: At, Query(of): Of, Query(flows): Query<Flows>| {
                at.look(move |daemon| daemon.conntrack(of.network(), flows.why))
            }),
        )
        .route(
            "/v1/nat",
            get(|at: At, Query(of): Of| at.look(move |daemon| daemon.nat(of.network()))),
        )
        .route(
            "/v1/stats",
            get(|at: At, Query(of): Of| at.look(move |daemon| daemon.stats(of.network()))),
        )
        .route("/v1/stop", post(stop))
        .fallback(|request: Request| async move {
            let message = format!("no {}; the API begins at /v1/version", request.uri().path());
            Refusal(StatusCode::NOT_FOUND, message)
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let message = format!("{} is not for {}", request.method(), request.uri().path());
            Refusal(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

type Name = Path<String>;
type Of = Query<OfNetwork>;

#[derive(Debug, Deserialize)]
struct OfNetwork {
    network: Option<String>,
}

impl OfNetwork {
    fn network(&self) -> Option<&str> {
        self.network.as_deref().filter(|name| !name.is_empty())
    }
}

#[derive(Debug, Deserialize)]
struct Flows {
    #[serde(default)]
    why: bool,
}

/// What handlers are given.
struct At(Arc<Shared>);

impl axum::extract::FromRequestParts<Arc<Shared>> for At {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        state: &Arc<Shared>,
    ) -> Result<Self, Self::Rejection> {
        let State(shared) = State::from_request_parts(parts, state).await?;
        Ok(Self(shared))
    }
}

impl At {
    /// Answers with what `work` finds, on a thread made for blocking.
    async fn look<T, W>(self, work: W) -> Result<Json<T>, Refusal>
    where
        T: Send + 'static,
        W: FnOnce(&Daemon) -> Result<T, Error> + Send + 'static,
    {
        let daemon = Arc::clone(&self.0.daemon);
        blocking(move || work(&daemon)).await.map(Json)
    }

    /// Answers that `work` was done.
    async fn done<W>(self, work: W) -> Result<StatusCode, Refusal>
    where
        W: FnOnce(&Daemon) -> Result<(), Error> + Send + 'static,
    {
        self.look(work).await.map(|_| StatusCode::NO_CONTENT)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Refusal::from),
        Err(error) => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

type Created<T> = Result<(StatusCode, Json<T>), Refusal>;

fn created<T>(Json(value): Json<T>) -> (StatusCode, Json<T>) {
    (StatusCode::CREATED, Json(value))
}

async fn create_network(at: At, Body(request): Body<api::NetworkCreate>) -> Created<api::Network> {
    at.look(move |daemon| daemon.create_network(request)).await.map(created)
}

async fn change_network(
    at: At,
    Path(name): Name,
    Body(change): Body<api::NetworkChange>,
) -> Result<Json<api::Network>, Refusal> {
    at.look(move |daemon| daemon.change_network(&name, &change)).await
}

async fn attach(
    At(shared): At,
    Body(request): Body<api::EndpointCreate>,
) -> Created<api::Endpoint> {
    let on = Handle::current();
    let attached = blocking(move || {
        let attached = shared.daemon.attach(&request)?;
        let endpoint = attached.endpoint.clone();
        // Here, not after the answer: nobody may be left to answer.
        lifetime::watch(&shared.daemon, &shared.activity, attached, &on);
        Ok(endpoint)
    });
    attached.await.map(|endpoint| created(Json(endpoint)))
}

async fn publish(
    at: At,
    Path(name): Name,
    Body(ports): Body<api::Ports>,
) -> Created<Vec<api::PublishedPort>> {
    at.look(move |daemon| daemon.publish(&name, &ports.specs)).await.map(created)
}

async fn unpublish(
    at: At,
    Path(name): Name,
    Body(ports): Body<api::Ports>,
) -> Result<StatusCode, Refusal> {
    at.done(move |daemon| daemon.unpublish(&name, &ports.specs)).await
}

async fn stop(At(shared): At) -> Json<api::Version> {
    shared.stop.notify_one();
    Json(shared.daemon.version())
}

/// A request's body, whatever its content type says: `curl -d` says none of ours.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let octets = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| Refusal(rejection.status(), rejection.body_text()))?;
        serde_json::from_slice(&octets).map(Self).map_err(|error| {
            Refusal(StatusCode::BAD_REQUEST, format!("the request's body: {error}"))
        })
    }
}

/// A failure: status and message.
struct Refusal(StatusCode, String);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status =
            StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self(status, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(api::Failure { message: self.1 })).into_response()
    }
}
