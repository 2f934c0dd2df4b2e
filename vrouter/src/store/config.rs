//! How etcd is reached: the table `[etcd]` of `node.toml`, flags and environment on top of it.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Args;
use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use serde::Deserialize;

use super::keys::Keys;

const DEFAULT_PREFIX: &str = "/vrouter";
/// How long a request may take before the next member is asked.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that says nothing for so long is asked whether it still is one.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Flags of everything that speaks to etcd; each overrides the table `[etcd]` of the node's configuration.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "etcd")]
pub struct StoreArgs {
    /// An etcd member, like https://192.0.2.10:2379; may be given more than once, or separated by commas
    #[arg(long = "etcd", value_name = "URL", value_delimiter = ',', env = "VROUTER_ETCD")]
    pub endpoints: Vec<String>,
    /// What all keys begin with [default: /vrouter]
    #[arg(long = "etcd-prefix", value_name = "PREFIX", env = "VROUTER_ETCD_PREFIX")]
    pub prefix: Option<String>,
    /// Certificates of the authorities that members' certificates must come from
    #[arg(long = "etcd-ca", value_name = "FILE", env = "VROUTER_ETCD_CA")]
    pub ca: Option<PathBuf>,
    /// This client's certificate
    #[arg(long = "etcd-cert", value_name = "FILE", env = "VROUTER_ETCD_CERT", requires = "key")]
    pub cert: Option<PathBuf>,
    /// The key of this client's certificate
    #[arg(long = "etcd-key", value_name = "FILE", env = "VROUTER_ETCD_KEY", requires = "cert")]
    pub key: Option<PathBuf>,
    /// etcd user
    #[arg(long = "etcd-user", value_name = "NAME", env = "VROUTER_ETCD_USER", requires = "password_file")]
    pub user: Option<String>,
    /// File that holds the user's password
    #[arg(long = "etcd-password-file", value_name = "FILE", env = "VROUTER_ETCD_PASSWORD_FILE")]
    pub password_file: Option<PathBuf>,
}

/// The table `[etcd]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreTable {
    endpoints: Option<Vec<String>>,
    prefix: Option<String>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    user: Option<String>,
    password_file: Option<PathBuf>,
}

/// Where etcd is and who we are to it. Secrets are read from their files at each connection, and kept nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// URLs of members; at least one.
    pub endpoints: Vec<String>,
    /// The keys' layout.
    pub keys: Keys,
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    user: Option<(String, PathBuf)>,
}

impl StoreConfig {
    /// Flags over table. `None`: neither names a member.
    pub fn new(args: StoreArgs, table: StoreTable) -> Result<Option<Self>> {
        let endpoints =
            if args.endpoints.is_empty() { table.endpoints.unwrap_or_default() } else { args.endpoints };
        if endpoints.is_empty() {
            return Ok(None);
        }
        let endpoints = endpoints.into_iter().map(endpoint).collect::<Result<Vec<_>>>()?;
        let prefix = args.prefix.or(table.prefix).unwrap_or_else(|| DEFAULT_PREFIX.to_owned());
        if !prefix.starts_with('/') || prefix.chars().any(|c| c.is_whitespace() || c.is_control()) {
            bail!("etcd prefix {prefix:?}: write one that starts with `/` and has no spaces, like /vrouter");
        }
        let identity = match (args.cert.or(table.cert), args.key.or(table.key)) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => bail!("etcd: cert is given without key; name the file that holds its key"),
            (None, Some(_)) => {
                bail!("etcd: key is given without cert; name the file that holds the certificate")
            }
        };
        let user = match (args.user.or(table.user), args.password_file.or(table.password_file)) {
            (Some(user), Some(file)) => Some((user, file)),
            (None, _) => None,
            (Some(user), None) => {
                bail!(
                    "etcd: user {user} is given without password_file; name the file that holds the password"
                )
            }
        };
        let ca = args.ca.or(table.ca);
        if (ca.is_some() || identity.is_some())
            && let Some(plain) = endpoints.iter().find(|endpoint| endpoint.starts_with("http://"))
        {
            bail!("etcd endpoint {plain} is not encrypted, but certificates are given: write https://");
        }
        Ok(Some(Self { endpoints, keys: Keys::new(&prefix), ca, identity, user }))
    }

    /// What a connection needs, with the secrets read now.
    pub fn options(&self) -> Result<ConnectOptions> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some((user, file)) = &self.user {
            let password = fs::read_to_string(file)
                .with_context(|| format!("cannot read the etcd password file {}", file.display()))?;
            options = options.with_user(user.clone(), password.trim_end_matches(['\r', '\n']));
        }
        if self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
            let mut tls = TlsOptions::new();
            if let Some(file) = &self.ca {
                tls = tls.ca_certificate(Certificate::from_pem(pem(file)?));
            }
            if let Some((cert, key)) = &self.identity {
                tls = tls.identity(Identity::from_pem(pem(cert)?, pem(key)?));
            }
            options = options.with_tls(tls);
        }
        Ok(options)
    }
}

fn pem(file: &PathBuf) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {} for the connection to etcd", file.display()))
}

fn endpoint(text: String) -> Result<String> {
    let with_scheme = if text.contains("://") { text.clone() } else { format!("http://{text}") };
    let rest = with_scheme.strip_prefix("http://").or_else(|| with_scheme.strip_prefix("https://"));
    let valid = rest.is_some_and(|rest| {
        !rest.is_empty()
            && !rest.contains(['@', '/', ' '])
            && rest
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    });
    if !valid {
        // A password in it must not be repeated.
        let shown = if text.contains('@') { "with a user in it" } else { text.as_str() };
        bail!("etcd endpoint {shown}: write it as https://HOST:PORT, and the user as --etcd-user");
    }
    Ok(with_scheme)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(endpoints: &[&str]) -> Result<Option<StoreConfig>> {
        let args = StoreArgs {
            endpoints: endpoints.iter().map(|it| (*it).to_owned()).collect(),
            ..StoreArgs::default()
        };
        StoreConfig::new(args, StoreTable::default())
    }

    #[test]
    fn endpoints_are_checked_and_secrets_in_them_not_repeated() {
        assert_eq!(new(&[]).unwrap(), None);
        let config = new(&["192.0.2.1:2379", "https://[2001:db8::1]:2379"]).unwrap().unwrap();
        assert_eq!(config.endpoints, ["http://192.0.2.1:2379", "https://[2001:db8::1]:2379"]);
        for wrong in ["ftp://x:1", "http://", "http://host", "http://host:70000", "http://host:1/path"] {
            assert!(new(&[wrong]).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
        let error = new(&["http://root:secret@host:1"]).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn half_an_identity_is_refused() {
        for (cert, key, user, wrong) in [
            (Some("c"), None, None, "cert is given without key"),
            (None, Some("k"), None, "key is given without cert"),
            (None, None, Some("u"), "user u is given without password_file"),
            (Some("c"), Some("k"), None, "not encrypted"),
        ] {
            let table = StoreTable {
                endpoints: Some(vec!["http://host:1".to_owned()]),
                cert: cert.map(Into::into),
                key: key.map(Into::into),
                user: user.map(Into::into),
                ..StoreTable::default()
            };
            let error = StoreConfig::new(StoreArgs::default(), table).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
