//! Where the metadata server is, and what proves to it who asks: the table `[metadata]` of `node.toml`, and flags.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use hyper::{Uri, http::uri::Authority, http::uri::Scheme};
use serde::Deserialize;

/// Bytes of a secret's file.
const SECRET_MAX: usize = 4096;

/// Flags; each overrides the table `[metadata]` of the node's configuration.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Metadata")]
pub struct MetadataArgs {
    /// Server that answers workloads' requests to 169.254.169.254 and fe80::a9fe:a9fe, like http://192.0.2.10:8775
    #[arg(long = "metadata-server", value_name = "URL")]
    pub server: Option<String>,
    /// File with the secret that signs instances' numbers: Nova's metadata_proxy_shared_secret
    #[arg(long = "metadata-secret-file", value_name = "FILE")]
    pub shared_secret_file: Option<PathBuf>,
}

/// The table `[metadata]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadataTable {
    server: Option<String>,
    shared_secret_file: Option<PathBuf>,
}

/// The metadata server.
#[derive(Clone, PartialEq, Eq)]
pub struct MetadataConfig {
    pub scheme: Scheme,
    pub authority: Authority,
    /// `None`: nothing is signed.
    pub secret: Option<Vec<u8>>,
}

impl MetadataConfig {
    /// Flags over table. `None`: neither names a server, and no metadata is served.
    pub fn new(args: MetadataArgs, table: MetadataTable) -> Result<Option<Self>> {
        let secret_file = args.shared_secret_file.or(table.shared_secret_file);
        let Some(server) = args.server.or(table.server) else {
            if let Some(file) = secret_file {
                bail!(
                    "the metadata secret {} is of no use without a server: give --metadata-server http://HOST:8775, or leave \
                     both out",
                    file.display()
                );
            }
            return Ok(None);
        };
        let (scheme, authority) = read_server(&server)?;
        let secret = secret_file.map(|file| read_secret(&file)).transpose()?;
        Ok(Some(Self { scheme, authority, secret }))
    }

    /// In words.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }
}

/// Without the secret.
impl fmt::Debug for MetadataConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signed = if self.secret.is_some() { "signed" } else { "not signed" };
        write!(f, "{} ({signed})", self.url())
    }
}

fn read_server(text: &str) -> Result<(Scheme, Authority)> {
    let uri: Uri = text
        .parse()
        .with_context(|| format!("metadata server {text:?}: write it like http://192.0.2.10:8775"))?;
    let parts = uri.into_parts();
    let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
        bail!("metadata server {text:?} is not a URL: write it like http://192.0.2.10:8775");
    };
    if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
        bail!(
            "metadata server {text:?}: {scheme} is not spoken here, write http://{authority} or https://{authority}"
        );
    }
    if authority.as_str().contains('@') {
        bail!("metadata server {text:?}: users and passwords are not sent to it, leave them out");
    }
    if parts.path_and_query.is_some_and(|path| path != "/") {
        bail!(
            "metadata server {text:?}: what a workload asks for is appended, so write no path: {scheme}://{authority}"
        );
    }
    Ok((scheme, authority))
}

/// The file's content without the line's end, as Nova has it in its configuration.
fn read_secret(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let mut secret = fs::read(path).with_context(|| format!("cannot read the metadata secret {name}"))?;
    while secret.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        secret.pop();
    }
    if secret.is_empty() || secret.len() > SECRET_MAX {
        bail!(
            "the metadata secret {name} has {} bytes: write Nova's metadata_proxy_shared_secret into it, or leave it out",
            secret.len()
        );
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(server: &str) -> Result<Option<MetadataConfig>> {
        let args = MetadataArgs { server: Some(server.to_owned()), shared_secret_file: None };
        MetadataConfig::new(args, MetadataTable::default())
    }

    #[test]
    fn a_server_is_a_url_without_a_path() {
        for server in ["http://127.0.0.1:8775", "https://nova.example", "http://[2001:db8::1]:8775/"] {
            let config = config(server).expect("in order").expect("a server");
            assert_eq!(config.url(), server.trim_end_matches('/'));
        }
        for (server, words) in [
            ("127.0.0.1:8775", "like http://192.0.2.10:8775"),
            ("nova", "like http://192.0.2.10:8775"),
            ("ftp://nova", "ftp is not spoken here"),
            ("http://nova/latest", "write no path: http://nova"),
            ("http://user:word@nova", "leave them out"),
        ] {
            let error = format!("{:#}", config(server).expect_err(server));
            assert!(error.contains(words), "{server}: {error}");
        }
    }

    #[test]
    fn a_secret_is_a_file_without_its_last_line_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("secret");
        let read = |content: &str| {
            fs::write(&file, content).expect("written");
            let table =
                MetadataTable { server: Some("http://a".to_owned()), shared_secret_file: Some(file.clone()) };
            MetadataConfig::new(MetadataArgs::default(), table)
        };
        let config = read("open sesame \n").expect("in order").expect("a server");
        assert_eq!(config.secret.as_deref(), Some(&b"open sesame "[..]));
        assert!(!format!("{config:?}").contains("sesame"));
        assert!(format!("{:#}", read("\n").expect_err("empty")).contains("has 0 bytes"));
        let args = MetadataArgs { server: None, shared_secret_file: Some(file.clone()) };
        let error = MetadataConfig::new(args, MetadataTable::default()).expect_err("no server");
        assert!(error.to_string().contains("no use without a server"), "{error}");
        assert_eq!(
            MetadataConfig::new(MetadataArgs::default(), MetadataTable::default()).expect("off"),
            None
        );
    }
}
