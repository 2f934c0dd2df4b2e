//! A real etcd cluster on a lab's underlay: three members, with TLS and users if that is wanted.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use nix::sys::signal::Signal;

use crate::{AgentOptions, Host, Lab, LabBuilder, Process, wait};

/// The members, and the last number of their addresses on the underlay.
pub const MEMBERS: [(&str, u8); 3] = [("etcd1", 101), ("etcd2", 102), ("etcd3", 103)];
/// Who may do everything.
const ROOT: (&str, &str) = ("root", "root-password");
/// Who may change the topology.
pub const WRITER: &str = "operator";
const WRITER_PASSWORD: &str = "operator-password";
/// Members find a leader, after whatever happened to them.
const HEALTHY: Duration = Duration::from_secs(60);

/// A cluster. Its processes end with the lab.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
    directory: PathBuf,
    /// TLS for all, users for clients.
    secured: bool,
    prefix: String,
}

#[derive(Debug)]
struct Member {
    host: Host,
    name: &'static str,
    address: String,
    process: Option<Process>,
}

/// Adds the hosts of a cluster to a lab.
pub fn hosts(builder: LabBuilder) -> LabBuilder {
    MEMBERS.iter().fold(builder, |builder, (name, number)| builder.foreign(name, *number))
}

impl Cluster {
    /// Starts one on the hosts of a lab. `secured`: with TLS between all and users that have what
    /// `packaging/etcd/roles.sh` gives them: [`WRITER`], and one for each of `nodes`.
    pub fn start(lab: &Lab, nodes: &[&str], secured: bool) -> Result<Self> {
        let directory = lab.directory().join("etcd");
        std::fs::create_dir_all(&directory)?;
        let members = MEMBERS.iter().map(|&(name, number)| Member {
            host: lab.foreign(name).clone(),
            name,
            address: format!("192.0.2.{number}"),
            process: None,
        });
        let prefix = format!("/{}", lab.prefix());
        let mut cluster = Self { members: members.collect(), directory, secured, prefix };
        if secured {
            cluster.make_certificates()?;
        }
        (0..MEMBERS.len()).try_for_each(|index| cluster.start_member(index, "new"))?;
        cluster.wait_healthy()?;
        if secured {
            cluster.make_users(nodes)?;
        }
        Ok(cluster)
    }

    fn scheme(&self) -> &'static str {
        if self.secured { "https" } else { "http" }
    }

    /// All members, as clients name them.
    pub fn endpoints(&self) -> String {
        let endpoints =
            self.members.iter().map(|member| format!("{}://{}:2379", self.scheme(), member.address));
        endpoints.collect::<Vec<_>>().join(",")
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// An authority, and a certificate for each member.
    fn make_certificates(&self) -> Result<()> {
        let run = |line: String| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let output = Command::new(words[0])
                .args(&words[1..])
                .output()
                .context("cannot run openssl; is it installed?")?;
            if !output.status.success() {
                bail!("`{line}`: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            Ok(())
        };
        let file = |name: &str| self.file(name);
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        run(format!(
            "openssl req -x509 {key} -days 2 -subj /CN=lab-ca -keyout {} -out {}",
            file("ca.key"),
            file("ca.pem")
        ))?;
        for Member { name, address, .. } in &self.members {
            std::fs::write(
                file("san"),
                format!("subjectAltName=IP:{address},IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"),
            )?;
            run(format!(
                "openssl req {key} -subj /CN={name} -keyout {} -out {}",
                file(&format!("{name}.key")),
                file(&format!("{name}.csr"))
            ))?;
            run(format!(
                "openssl x509 -req -days 2 -CAcreateserial -in {} -CA {} -CAkey {} -extfile {} -out {}",
                file(&format!("{name}.csr")),
                file("ca.pem"),
                file("ca.key"),
                file("san"),
                file(&format!("{name}.pem"))
            ))?;
        }
        Ok(())
    }

    fn make_users(&self, nodes: &[&str]) -> Result<()> {
        let root = format!("{}:{}", ROOT.0, ROOT.1);
        self.etcdctl(&["user", "add", &root])?;
        self.etcdctl(&["user", "grant-role", ROOT.0, "root"])?;
        self.roles(&["init"], "")?;
        self.roles(&["writer", WRITER], WRITER_PASSWORD)?;
        for node in nodes {
            self.roles(&["node", node], &format!("password-of-{node}"))?;
        }
        self.etcdctl(&["auth", "enable"])?;
        for (user, password) in std::iter::once((WRITER.to_owned(), WRITER_PASSWORD.to_owned()))
            .chain(nodes.iter().map(|node| (format!("vrouter-{node}"), format!("password-of-{node}"))))
        {
            std::fs::write(self.directory.join(format!("{user}.password")), format!("{password}\n"))?;
        }
        Ok(())
    }

    /// The script that is shipped.
    fn roles(&self, arguments: &[&str], password: &str) -> Result<()> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/etcd/roles.sh");
        let mut command = self.client(script.to_str().context("path")?);
        command.args(["--prefix", &self.prefix]).args(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            writeln!(stdin, "{password}").ok();
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("roles.sh {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// A command that has etcdctl's environment, on the first member.
    fn client(&self, program: &str) -> Command {
        let mut command = self.members[0].host.netns().command(program);
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", self.endpoints());
        if self.secured {
            command.env("ETCDCTL_CACERT", self.file("ca.pem"));
        }
        command
    }

    /// Runs etcdctl as root, and returns what it prints.
    pub fn etcdctl(&self, arguments: &[&str]) -> Result<String> {
        self.etcdctl_at(&self.endpoints(), arguments)
    }

    /// Stores a value by etcd's JSON gateway, and returns when it is stored: for measuring, since a client that has to
    /// start first takes longer than what is measured.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        ensure!(!self.secured, "users and TLS are etcdctl's");
        let body = format!("{{\"key\":\"{}\",\"value\":\"{}\"}}", BASE64.encode(key), BASE64.encode(value));
        let at = format!("{}:2379", self.members[0].address);
        let request = format!(
            "POST /v3/kv/put HTTP/1.1\r\nHost: {at}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let answer = self.members[0].host.netns().enter(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect(&at)?;
            stream.write_all(request.as_bytes())?;
            std::io::read_to_string(stream)
        })??;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "etcd does not take {key}: {answer}");
        Ok(())
    }

    /// The same on some of the members.
    fn etcdctl_at(&self, endpoints: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.client("etcdctl");
        command.env("ETCDCTL_ENDPOINTS", endpoints);
        let users = self.directory.join(format!("{WRITER}.password")).exists();
        if users {
            command.env("ETCDCTL_USER", format!("{}:{}", ROOT.0, ROOT.1));
        }
        let output = command
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("cannot run etcdctl; is it installed?")?;
        if !output.status.success() {
            bail!("etcdctl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn start_member(&mut self, index: usize, state: &str) -> Result<()> {
        let scheme = self.scheme();
        let peers: Vec<String> = self
            .members
            .iter()
            .map(|member| format!("{}={scheme}://{}:2380", member.name, member.address))
            .collect();
        let Member { host, name, address, .. } = &self.members[index];
        let data = self.directory.join(format!("{name}.data"));
        let log =
            OpenOptions::new().create(true).append(true).open(self.directory.join(format!("{name}.log")))?;
        let mut command = host.netns().command("etcd");
        command
            .args(["--name", name, "--data-dir"])
            .arg(&data)
            .args(["--listen-peer-urls", &format!("{scheme}://{address}:2380")])
            .args(["--initial-advertise-peer-urls", &format!("{scheme}://{address}:2380")])
            .args(["--listen-client-urls", &format!("{scheme}://{address}:2379,{scheme}://127.0.0.1:2379")])
            .args(["--advertise-client-urls", &format!("{scheme}://{address}:2379")])
            .args(["--initial-cluster", &peers.join(",")])
            .args(["--initial-cluster-state", state, "--initial-cluster-token", "lab", "--logger", "zap"])
            // Not durable, and not to be: the lab is gone before the machine is.
            .arg("--unsafe-no-fsync");
        if self.secured {
            for (kind, what) in [("", "cert-file"), ("peer-", "cert-file")] {
                command.args([format!("--{kind}{what}"), self.file(&format!("{name}.pem"))]);
            }
            for kind in ["", "peer-"] {
                command.args([format!("--{kind}key-file"), self.file(&format!("{name}.key"))]);
            }
            command.args(["--peer-trusted-ca-file", &self.file("ca.pem"), "--peer-client-cert-auth"]);
        }
        command.stdout(log.try_clone()?).stderr(log);
        self.members[index].process = Some(Process::spawn_as_is(&mut command)?);
        Ok(())
    }

    /// Waits until it answers.
    pub fn wait_healthy(&self) -> Result<()> {
        wait::until("etcd answers", HEALTHY, || {
            Ok(self.etcdctl(&["get", "--limit=1", "--prefix", "/"]).is_ok())
        })
    }

    /// Kills members by SIGKILL.
    pub fn kill(&mut self, indexes: impl IntoIterator<Item = usize>) {
        for index in indexes {
            if let Some(mut process) = self.members[index].process.take() {
                process.kill();
            }
        }
    }

    /// Starts members again that were killed.
    pub fn restart(&mut self, indexes: impl IntoIterator<Item = usize>) -> Result<()> {
        indexes.into_iter().try_for_each(|index| self.start_member(index, "existing"))
    }

    /// Stops members where they are, or lets them go on: a disk that hangs looks like this to everybody else.
    pub fn freeze(&mut self, frozen: bool) -> Result<()> {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        let mut processes = self.members.iter_mut().filter_map(|member| member.process.as_mut());
        processes.try_for_each(|process| process.signal(signal))
    }

    /// The member that leads.
    pub fn leader(&self) -> Result<usize> {
        let status = self.etcdctl(&["endpoint", "status", "--write-out=json"])?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let members = status.as_array().context("no members")?;
        let leads = |member: &&serde_json::Value| {
            let status = &member["Status"];
            status["header"]["member_id"] == status["leader"]
        };
        let leader = members.iter().find(leads).context("no leader")?;
        let endpoint = leader["Endpoint"].as_str().context("no endpoint")?;
        self.members.iter().position(|member| endpoint.contains(&member.address)).context("an unknown leader")
    }

    /// Saves a backup.
    pub fn backup(&self) -> Result<PathBuf> {
        let path = self.directory.join("backup.db");
        std::fs::remove_file(&path).ok();
        let endpoint = format!("{}://{}:2379", self.scheme(), self.members[0].address);
        self.etcdctl_at(&endpoint, &["snapshot", "save", &path.display().to_string()])?;
        Ok(path)
    }

    /// Ends all members and starts them with what was in a backup, as an operator does.
    pub fn restore(&mut self, backup: &Path) -> Result<()> {
        self.kill(0..MEMBERS.len());
        let scheme = self.scheme();
        let peers: Vec<String> = self
            .members
            .iter()
            .map(|member| format!("{}={scheme}://{}:2380", member.name, member.address))
            .collect();
        for Member { name, address, .. } in &self.members {
            let data = self.directory.join(format!("{name}.data"));
            std::fs::remove_dir_all(&data)?;
            self.etcdctl(&[
                "snapshot",
                "restore",
                &backup.display().to_string(),
                "--name",
                name,
                "--initial-cluster",
                &peers.join(","),
                "--initial-cluster-token",
                "lab",
                "--initial-advertise-peer-urls",
                &format!("{scheme}://{address}:2380"),
                "--data-dir",
                &data.display().to_string(),
            ])?;
        }
        self.restart(0..MEMBERS.len())?;
        self.wait_healthy()
    }

    /// Lets the members run on after the handle is gone.
    pub fn keep(mut self) {
        for member in &mut self.members {
            if let Some(process) = member.process.take() {
                process.detach();
            }
        }
    }

    /// What a client needs to be somebody: [`WRITER`], or `vrouter-NODE`.
    pub fn arguments(&self, user: &str) -> Vec<String> {
        let mut arguments =
            vec!["--etcd".to_owned(), self.endpoints(), "--etcd-prefix".to_owned(), self.prefix.clone()];
        if self.secured {
            arguments.extend(["--etcd-ca".to_owned(), self.file("ca.pem")]);
            arguments.extend(["--etcd-user".to_owned(), user.to_owned()]);
            arguments.extend(["--etcd-password-file".to_owned(), self.file(&format!("{user}.password"))]);
        }
        arguments
    }

    /// What the keys begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Options for the agent of a node.
    pub fn agent(&self, lab: &Lab, node: &str) -> AgentOptions {
        let mut etcd = self.arguments(&format!("vrouter-{node}"));
        etcd.extend(["--state-dir".to_owned(), lab.directory().join("state").display().to_string()]);
        AgentOptions { etcd: Some(etcd), ..AgentOptions::default() }
    }
}
