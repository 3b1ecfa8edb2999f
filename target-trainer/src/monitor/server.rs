//! Accepts connections, a bounded number of them and each for a bounded time, on one thread. An idle one makes
//! room for a new one, so that nobody can keep others out by doing nothing. Knows nothing of the requests.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::monitor_view::SharedFigures;
use super::routes::MonitorApp;

/// Largest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// How long a client may take for the head of a request, also of the next one on the same connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Wait after a connection could not be accepted: no file can be opened at the moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long a new connection has to send its request before it may be closed for another one.
const SHORTEST_STAY: Duration = Duration::from_millis(50);
/// Wait for a connection that may be closed.
const ROOM_PAUSE: Duration = Duration::from_millis(5);
/// Threads that write what clients submit.
const MAX_WRITER_THREADS: usize = 2;

/// The bounds of connections.
#[derive(Debug, Clone, Copy)]
struct ClientLimits {
    connections: usize,
    /// The guard `client_limits`.
    is_on: bool,
}

/// A connection that is served.
struct Connection {
    task: JoinHandle<()>,
    accepted: Instant,
    /// A request of it is being answered.
    is_busy: Arc<AtomicBool>,
}

/// Starts the thread of the server. Returns the address that it listens at.
///
/// # Errors
/// If the thread can't be started.
pub(super) fn start(listener: TcpListener, app: MonitorApp) -> std::io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(MAX_WRITER_THREADS)
        .build()?;
    let limits = ClientLimits { connections: app.connections(), is_on: app.guards().client_limits };
    std::thread::Builder::new().name("monitor".into()).spawn(move || {
        let figures = app.figures();
        runtime.block_on(async {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => accept_all(&listener, &app.router(), limits, &figures).await,
                Err(error) => tracing::warn!("the monitor has ended: {error}"),
            }
        });
    })?;
    Ok(address)
}

async fn accept_all(
    listener: &tokio::net::TcpListener,
    router: &Router,
    limits: ClientLimits,
    figures: &SharedFigures,
) {
    // The oldest first.
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        figures.connections.fetch_add(1, Ordering::Relaxed);
        if limits.is_on {
            make_room(&mut connections, limits.connections, figures).await;
        }
        let is_busy = Arc::new(AtomicBool::new(false));
        let serving = serve(stream, router.clone(), Arc::clone(&is_busy), limits.is_on);
        let task = tokio::spawn(serving);
        connections.push(Connection { task, accepted: Instant::now(), is_busy });
    }
}

/// Waits until there are fewer than `max` connections: closes the oldest one that is idle, and has had the time
/// to send a request. Clients that come meanwhile wait in the kernel's queue.
async fn make_room(connections: &mut Vec<Connection>, max: usize, figures: &SharedFigures) {
    loop {
        connections.retain(|connection| !connection.task.is_finished());
        if connections.len() < max {
            return;
        }
        let may_go = |connection: &Connection| {
            !connection.is_busy.load(Ordering::Relaxed) && connection.accepted.elapsed() >= SHORTEST_STAY
        };
        match connections.iter().position(may_go) {
            Some(index) => {
                let task = connections.remove(index).task;
                task.abort();
                // Its socket is closed when the task has ended. The error says that it was aborted.
                let _ = task.await;
                figures.closed_connections.fetch_add(1, Ordering::Relaxed);
            }
            None => sleep(ROOM_PAUSE).await,
        }
    }
}

/// Answers the requests of one connection. What goes wrong concerns its client only.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    router: Router,
    is_busy: Arc<AtomicBool>,
    is_limited: bool,
) {
    let service = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        let (answer, is_busy) = (service.call(request), Arc::clone(&is_busy));
        is_busy.store(true, Ordering::Relaxed);
        async move {
            let answer = answer.await;
            is_busy.store(false, Ordering::Relaxed);
            answer
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).max_buf_size(MAX_HEAD_BYTES).max_headers(MAX_HEADERS);
    // A client may end its side of the connection as soon as it has sent its request.
    builder.half_close(true);
    builder.header_read_timeout(is_limited.then_some(HEAD_TIMEOUT));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let ended = match is_limited {
        true => timeout(CONNECTION_TIMEOUT, connection).await.unwrap_or(Ok(())),
        false => connection.await,
    };
    if let Err(error) = ended {
        tracing::debug!("a connection of the monitor has ended: {error}");
    }
}
