//! The answers of the monitor: one function for each path. Decides nothing about connections.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, RawQuery, Request, State};
use axum::http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::access::{AccessRules, Refusal};
use super::metrics_text::metrics_text;
use super::monitor_view::{MonitorView, SharedFigures};
use super::page::page;
use super::token::Token;
use super::upload::{UploadError, UploadSpec, upload};
use crate::file_error::chain;
use crate::locks::LockExt;
use crate::names::NameProblem;
use crate::plain_text::shown;
use crate::settings::{Guards, Settings};
use crate::store::RootLayout;
use crate::submission::{SubmissionError, Submitted};

/// Data files that are received at once.
const MAX_UPLOADS: usize = 2;
/// What a page may load: nothing but its own style.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// The path that shows nothing but whether the daemon works, and is open to everybody.
const HEALTH_PATH: &str = "/healthz";

/// What the answers are made from. Clones share it.
#[derive(Clone)]
pub(super) struct MonitorApp {
    shared: Arc<SharedApp>,
}

struct SharedApp {
    layout: RootLayout,
    root_name: String,
    guards: Guards,
    connections: usize,
    upload_bytes: u64,
    access: AccessRules,
    view: Arc<Mutex<MonitorView>>,
    figures: Arc<SharedFigures>,
    uploads: Semaphore,
}

impl MonitorApp {
    pub(super) fn new(
        layout: &RootLayout,
        settings: &Settings,
        view: Arc<Mutex<MonitorView>>,
        figures: Arc<SharedFigures>,
    ) -> MonitorApp {
        let token = Token::read_or_make(&layout.monitor_token())
            .inspect_err(|error| {
                let path = layout.monitor_token();
                tracing::warn!("the monitor has no token, `{}`: {}", path.display(), chain(error));
            })
            .ok();
        let is_loopback = match settings.monitor.address {
            IpAddr::V4(address) => address.is_loopback(),
            IpAddr::V6(address) => address.is_loopback(),
        };
        let root = layout.root().canonicalize().unwrap_or_else(|_| layout.root().into());
        let shared = SharedApp {
            layout: layout.clone(),
            root_name: shown(&root.file_name().unwrap_or_default().to_string_lossy()),
            guards: settings.guards.clone(),
            connections: settings.monitor.connections,
            upload_bytes: settings.monitor.upload_bytes,
            access: AccessRules { is_loopback, token, needs_token: settings.guards.change_token },
            view,
            figures,
            uploads: Semaphore::new(MAX_UPLOADS),
        };
        MonitorApp { shared: Arc::new(shared) }
    }

    /// Connections at once.
    pub(super) fn connections(&self) -> usize {
        self.shared.connections
    }

    pub(super) fn guards(&self) -> &Guards {
        &self.shared.guards
    }

    pub(super) fn figures(&self) -> Arc<SharedFigures> {
        Arc::clone(&self.shared.figures)
    }

    /// All paths, behind the check of the request.
    pub(super) fn router(&self) -> Router {
        Router::new()
            .route("/", get(show_page))
            .route(HEALTH_PATH, get(show_health))
            .route("/metrics", get(show_metrics))
            .route("/jobs", post(add_job).get(only_post))
            .fallback(no_such_path)
            .layer(from_fn_with_state(self.clone(), check_request))
            .with_state(self.clone())
    }
}

/// Checks a request before anything of its body is read. Every answer gets the headers that protect browsers.
async fn check_request(State(app): State<MonitorApp>, request: Request, next: Next) -> Response {
    let request = match app.guards().request_limits {
        true => request,
        // The body as a whole in memory, before anybody has asked whose it is.
        false => {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            Request::from_parts(parts, Body::from(body))
        }
    };
    let is_open = request.uri().path() == HEALTH_PATH;
    let checked = app.shared.access.check(request.method(), request.headers());
    let mut response = match checked {
        Err(refusal) if !is_open => refused(refusal),
        _ => next.run(request).await,
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // What is left of the body of a refused request is not waited for.
    if response.status().is_client_error() || response.status().is_server_error() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn refused(refusal: Refusal) -> Response {
    let status = match refusal {
        Refusal::OtherHost => StatusCode::MISDIRECTED_REQUEST,
        Refusal::OtherSite => StatusCode::FORBIDDEN,
        Refusal::NoToken => StatusCode::UNAUTHORIZED,
        Refusal::TokenUnknown => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut response = error_answer(status, &refusal.to_string());
    if status == StatusCode::UNAUTHORIZED {
        let value = HeaderValue::from_static("Basic realm=\"trainer, any name, the token as password\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, value);
    }
    response
}

fn error_answer(status: StatusCode, error: &str) -> Response {
    json(status, &serde_json::json!({ "error": error }))
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], format!("{value}\n")).into_response()
}

async fn show_page(State(app): State<MonitorApp>) -> Response {
    let view = app.shared.view.locked().clone();
    let text = page(&app.shared.root_name, &view, app.shared.figures.daemon_hangs_for());
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()
}

async fn show_metrics(State(app): State<MonitorApp>) -> Response {
    let view = app.shared.view.locked().clone();
    let text = metrics_text(&view, &app.shared.figures);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn show_health(State(app): State<MonitorApp>) -> Response {
    match app.shared.figures.daemon_hangs_for() {
        None => json(StatusCode::OK, &serde_json::json!({ "status": "ok" })),
        Some(silent) => {
            let error = format!("the daemon has not looked at its work for {} s", silent.as_secs());
            error_answer(StatusCode::SERVICE_UNAVAILABLE, &error)
        }
    }
}

async fn no_such_path() -> Response {
    error_answer(StatusCode::NOT_FOUND, "there are `/`, `/healthz`, `/metrics`, and `POST /jobs?name=NAME`")
}

async fn only_post() -> Response {
    let mut response =
        error_answer(StatusCode::METHOD_NOT_ALLOWED, "send the data with `POST /jobs?name=NAME`");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    response
}

/// What a request to add a job says in its address.
#[derive(Deserialize)]
struct JobQuery {
    name: String,
}

async fn add_job(
    State(app): State<MonitorApp>,
    Query(query): Query<JobQuery>,
    RawQuery(raw_query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    // Decoded, bytes that are no text were replaced, and the file would get a name that nobody has sent.
    if percent_decode_str(&raw_query.unwrap_or_default()).decode_utf8().is_err() {
        let refused = SubmissionError::Name { name: query.name, problem: NameProblem::NotUtf8 };
        return upload_failed(&UploadError::Submission(refused));
    }
    let SharedApp { layout, guards, upload_bytes, uploads, .. } = &*app.shared;
    let max_bytes = guards.request_limits.then_some(*upload_bytes);
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let (Some(max_bytes), Some(_)) = (max_bytes, announced.filter(|bytes| *bytes > *upload_bytes)) {
        return upload_failed(&UploadError::TooLarge { max_bytes });
    }
    let Ok(_permit) = uploads.try_acquire() else {
        let mut response =
            error_answer(StatusCode::SERVICE_UNAVAILABLE, "other data is being received; try again later");
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
        return response;
    };
    let spec = UploadSpec { layout: layout.clone(), name: query.name, max_bytes, guards: guards.clone() };
    match upload(spec, body).await {
        Ok(Submitted { name, twins }) => {
            let mut answer = serde_json::json!({ "file": name.to_string_lossy() });
            if let Some(twins) = twins {
                answer["warning"] = twins.to_string().into();
            }
            json(StatusCode::CREATED, &answer)
        }
        Err(error) => upload_failed(&error),
    }
}

fn upload_failed(error: &UploadError) -> Response {
    let status = match error {
        UploadError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        UploadError::TooSlow => StatusCode::REQUEST_TIMEOUT,
        UploadError::Incomplete
        | UploadError::Submission(SubmissionError::Name { .. } | SubmissionError::Read(_)) => {
            StatusCode::BAD_REQUEST
        }
        UploadError::Submission(SubmissionError::Disk(_)) => StatusCode::INSUFFICIENT_STORAGE,
        UploadError::NoThread => StatusCode::SERVICE_UNAVAILABLE,
    };
    error_answer(status, &chain(error))
}
