//! The metadata server: a request is put to it with the headers that say which port it comes from.

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::http::uri::Scheme;
use hyper::{
    Request, Response, Uri,
    body::Incoming,
    header::{HeaderName, HeaderValue},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HttpClient, Error, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

use super::{
    client::{Client, signature},
    config::MetadataConfig,
    head::Head,
    refusal::Refusal,
};

/// Until the server must have taken a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Until it must have begun to answer: Neutron's agents wait as long.
const ANSWER: Duration = Duration::from_secs(60);
/// Connections to it that are kept.
const KEPT: usize = 16;
const KEPT_FOR: Duration = Duration::from_secs(30);
/// How often it is said that something is wrong with it.
const SAY_AGAIN: Duration = Duration::from_secs(30);

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const INSTANCE: HeaderName = HeaderName::from_static("x-instance-id");
const SIGNATURE: HeaderName = HeaderName::from_static("x-instance-id-signature");
const TENANT: HeaderName = HeaderName::from_static("x-tenant-id");
const NETWORK: HeaderName = HeaderName::from_static("x-neutron-network-id");

/// The way to it.
pub struct Forward {
    config: MetadataConfig,
    http: Http,
    said: Mutex<Option<Instant>>,
}

enum Http {
    Plain(HttpClient<HttpConnector, Full<Bytes>>),
    Secured(HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl Forward {
    pub fn new(config: MetadataConfig) -> Result<Self> {
        let mut builder = HttpClient::builder(TokioExecutor::new());
        builder.pool_max_idle_per_host(KEPT).pool_idle_timeout(KEPT_FOR).pool_timer(TokioTimer::new());
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let http = if config.scheme == Scheme::HTTPS {
            connector.enforce_http(false);
            let https = HttpsConnectorBuilder::new().with_native_roots().context(
                "cannot read certificates of authorities for the metadata server: install ca-certificates, or name a file \
                 with SSL_CERT_FILE",
            )?;
            Http::Secured(builder.build(https.https_only().enable_http1().wrap_connector(connector)))
        } else {
            Http::Plain(builder.build(connector))
        };
        Ok(Self { config, http, said: Mutex::default() })
    }

    /// Has a request answered.
    pub async fn ask(
        &self,
        head: Head,
        body: Bytes,
        client: &Client,
        from: IpAddr,
    ) -> Result<Response<Incoming>, Refusal> {
        let request = self.request(head, body, client, from)?;
        let answer = async {
            match &self.http {
                Http::Plain(http) => http.request(request).await,
                Http::Secured(http) => http.request(request).await,
            }
        };
        match tokio::time::timeout(ANSWER, answer).await {
            Ok(Ok(response)) => {
                if response.status() == hyper::StatusCode::FORBIDDEN {
                    self.say(
                        "it answers 403: is the shared secret its metadata_proxy_shared_secret?",
                        client,
                    );
                }
                Ok(response)
            }
            Ok(Err(error)) => {
                self.say(&chain(&error), client);
                Err(if error.is_connect() { Refusal::Unreachable } else { Refusal::NoAnswer })
            }
            Err(_) => {
                self.say("it does not answer", client);
                Err(Refusal::Late)
            }
        }
    }

    fn request(
        &self,
        head: Head,
        body: Bytes,
        client: &Client,
        from: IpAddr,
    ) -> Result<Request<Full<Bytes>>, Refusal> {
        let mut uri = hyper::http::uri::Parts::default();
        uri.scheme = Some(self.config.scheme.clone());
        uri.authority = Some(self.config.authority.clone());
        uri.path_and_query = Some(head.target);
        let uri = Uri::from_parts(uri).map_err(|_| Refusal::Malformed("what it asks for is no path"))?;
        // Its length and Host are written by the client.
        let mut request = Request::new(Full::new(body));
        (*request.method_mut(), *request.uri_mut()) = (head.method, uri);
        let headers = request.headers_mut();
        *headers = head.headers;
        let mut say = |name: HeaderName, value: &str| {
            let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| Refusal::Nameless)?;
            headers.insert(name, value);
            Ok(())
        };
        say(FORWARDED_FOR, &from.to_string())?;
        say(INSTANCE, &client.instance)?;
        if let Some(secret) = &self.config.secret {
            say(SIGNATURE, &signature(secret, &client.instance))?;
        }
        if let Some(project) = &client.project {
            say(TENANT, project)?;
        }
        say(NETWORK, &client.network)?;
        Ok(request)
    }

    /// Tells the operator, now and then.
    fn say(&self, what: &str, client: &Client) {
        let (mut said, now) = (self.said.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        if said.is_none_or(|said| now.saturating_duration_since(said) >= SAY_AGAIN) {
            *said = Some(now);
            tracing::warn!(port = client.port, "metadata server {}: {what}", self.config.url());
        }
    }
}

/// An error with what caused it.
fn chain(error: &Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
