//! `vrouter web`: a page that explains the virtual network.

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::InstanceArgs;
use crate::{
    config, http,
    store::StoreArgs,
    web::{
        guard::{self, Guard},
        nodes::Nodes,
        pages::{self, App},
        sampler::Sampler,
        source::PinSource,
        trace::{Program, Tracer},
    },
};

/// A token takes no more.
const TOKEN_FILE_MAX: u64 = 4096;

/// Serve a page that explains the virtual network: topology, rates, drops, flows, traces
///
/// It reads what is pinned, as the other commands do, and changes nothing. On another address than this machine's
/// own it is open to those who show the token.
#[derive(clap::Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8480")]
    listen: SocketAddr,
    /// File that holds the token who asks must show; without it, on an address others can reach, one is made and
    /// printed once
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A name the page goes by, beside addresses and localhost; may be given more than once
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Clients at once; more are told to come back
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=16_384))]
    clients: u16,
    /// Look at the maps every so many seconds, or more rarely if a look takes long
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60))]
    every: u32,
    /// What traces compute nodes from that do not run on this machine
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// Run this for traces instead of this program
    #[arg(long, value_name = "FILE", hide = true)]
    trace_command: Option<PathBuf>,
    /// Node configuration file, whose table [etcd] says where the other nodes' states are
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    instance: InstanceArgs,
}

/// Serves until it is told to stop.
pub fn run(args: Args) -> Result<ExitCode> {
    let (token, is_new) = match &args.token_file {
        Some(file) => (Some(read_token(file)?), false),
        None if args.listen.ip().is_loopback() => (None, false),
        None => (Some(guard::random()?), true),
    };
    let guard = Guard::new(args.listen, token.clone(), args.hosts)?;
    let source = PinSource::new(args.instance.clone())?;
    let nodes = Nodes::follow(config::store_if_any(args.store, args.config.as_deref())?)?;
    let program = match args.trace_command {
        Some(program) => program,
        None => std::env::current_exe().context("cannot tell where this program is, to run it for traces")?,
    };
    let mut arguments = vec![
        format!("--instance={}", args.instance.instance),
        format!("--bpffs={}", args.instance.bpffs.display()),
    ];
    arguments.extend(args.topology.map(|file| format!("--topology={}", file.display())));
    let tracer = Tracer::new(Program(program), arguments);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(4)
        .enable_all()
        .build()
        .context("tokio")?;
    runtime.block_on(async {
        let listener =
            TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
        let at = listener.local_addr()?;
        let sampler = Sampler::start(source, Duration::from_secs(u64::from(args.every)))?;
        match token.filter(|_| is_new) {
            Some(token) => println!("open http://{at}/?token={token}"),
            None if args.token_file.is_some() => println!("open http://{at}/?token=TOKEN, with the token of the file"),
            None => println!("open http://{at}/"),
        }
        if !at.ip().is_loopback() {
            tracing::warn!("what is said on {at} is not encrypted: put a proxy with TLS before it, or use ssh -L");
        }
        let mut term = signal(SignalKind::terminate())?;
        tokio::select! {
            ended = http::serve(listener, pages::router(App::new(guard, sampler, nodes, tracer)), usize::from(args.clients)) => ended?,
            _ = tokio::signal::ctrl_c() => {}
            _ = term.recv() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn read_token(file: &Path) -> Result<String> {
    let about = std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
    if about.permissions().mode() & 0o077 != 0 {
        bail!("{0}: others can read the token in it: chmod 600 {0}", file.display());
    }
    if about.len() > TOKEN_FILE_MAX {
        bail!("{}: {} bytes are no token", file.display(), about.len());
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text.trim().to_owned())
}
