//! Debian's etcd on the same disk, beside Kedge: puts and gets of 1 KB by 16 clients, bytes written for them, an
//! idle time with the writes of one node's Lease, and how long three members take to find a new leader.
//!
//! etcd is spoken to as its own client does, by gRPC on one connection a client, without TLS. Kedge's side goes
//! through HTTPS and everything that the API server does with a request: the comparison favours etcd.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kedge_base::Tasks;
use tokio::net::TcpStream;

use crate::client::{self, JSON, Target};
use crate::leader::Failovers;
use crate::requests::{Call, Caller, create, run, spread};
use crate::table::Table;
use crate::{CLIENTS, process};

const WRITES: usize = 10_000;
const READS: usize = 50_000;
const KILLS: usize = 8;
/// As often as a kubelet renews its Lease, and about as large.
const LEASE: (Duration, usize) = (Duration::from_secs(10), 600);

/// The program, when there is one.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("ETCD").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    named
        .into_iter()
        .chain(std::env::split_paths(&path).map(|dir| dir.join("etcd")))
        .find(|file| file.is_file())
}

pub(crate) async fn measure(
    target: &Target,
    kedge: u32,
    idle: Duration,
    leader: Option<Failovers>,
    table: &mut Table,
) -> anyhow::Result<()> {
    let Some(program) = program() else {
        table
            .note("etcd", "left out: it is not installed (apt install etcd-server, or ETCD=FILE)".to_owned());
        return Ok(());
    };
    // Where Kedge's data is, so that both have the same disk.
    let base = std::env::var_os("KEDGE_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let folder = base.join(format!("kedge-load-etcd-{}", std::process::id()));
    let result = all(target, kedge, idle, leader, table, &program, &folder).await;
    let _ = std::fs::remove_dir_all(&folder);
    result
}

async fn all(
    target: &Target,
    kedge: u32,
    idle: Duration,
    leader: Option<Failovers>,
    table: &mut Table,
    program: &Path,
    folder: &Path,
) -> anyhow::Result<()> {
    let tasks = target.tasks();
    let mut one = Members::start(program, &folder.join("one"), 1)?;
    let pid = one.members[0].child.id();
    let mut client = one.client(tasks, 0).await?;

    let written = |pid: u32| process::field(&format!("/proc/{pid}/io"), "write_bytes:");
    let before = written(pid)?;
    let put = spread(tasks, pid, one.clients(tasks, true).await?, WRITES).await?;
    let of_etcd = (written(pid)? - before) / WRITES as f64;
    let got = spread(tasks, pid, one.clients(tasks, false).await?, READS).await?;
    let (start, before, cpu) = (Instant::now(), written(pid)?, process::cpu_seconds(pid)?);
    while start.elapsed() < idle {
        client.put("lease", &vec![b'x'; LEASE.1]).await?;
        tokio::time::sleep(LEASE.0.min(idle)).await;
    }
    let hours = start.elapsed().as_secs_f64() / 3600.0;
    let idle_written = (written(pid)? - before) / 1e6 / hours;
    let idle_cpu = (process::cpu_seconds(pid)? - cpu) / hours / 36.0;
    let memory = process::resident(pid)?;
    drop(client);
    one.end();

    let mut api = target.connect().await?;
    client::namespace(&mut api, "load-etcd").await?;
    let path = "/api/v1/namespaces/load-etcd/configmaps";
    let before = written(kedge)?;
    let created = run(target, CLIENTS, WRITES, move |index| create(path, index)).await?;
    let of_kedge = (written(kedge)? - before) / WRITES as f64;
    let read = run(target, CLIENTS, READS, move |index| Call {
        method: "GET",
        path: format!("{path}/c-{}", index % WRITES),
        content_type: JSON,
        body: String::new(),
    })
    .await?;
    api.must("DELETE", "/api/v1/namespaces/load-etcd", JSON, "").await?;

    let failover = failover(tasks, program, folder).await?;
    table.heading(&[
        "same disk, same run",
        "Kedge, through its API by HTTPS",
        "etcd alone, by gRPC without TLS",
    ]);
    let bytes = |bytes: f64| format!("{:.1} KB", bytes / 1e3);
    let rate = |outcome: &crate::requests::Outcome| format!("{:.0} /s, {}", outcome.rate(), outcome.more());
    for (what, ours, theirs) in [
        ("write 1 KB, 16 clients", rate(&created), rate(&put)),
        ("read, 16 clients", rate(&read), rate(&got)),
        ("bytes written to disk for each write", bytes(of_kedge), bytes(of_etcd)),
        (
            "a write of 600 bytes every 10 s: disk; CPU (Kedge: see idle)",
            String::new(),
            format!("{idle_written:.1} MB an hour; {idle_cpu:.2} %"),
        ),
        ("memory after it (RSS; Kedge: see memory)", String::new(), format!("{memory:.0} MiB")),
        (
            "three members, leader killed until the next acknowledged write",
            leader.map(|leader| leader.to_string()).unwrap_or_default(),
            failover.to_string(),
        ),
    ] {
        table.line(&[what.to_owned(), ours, theirs]);
    }
    Ok(())
}

async fn failover(tasks: &Tasks, program: &Path, folder: &Path) -> anyhow::Result<Failovers> {
    let mut three = Members::start(program, &folder.join("three"), 3)?;
    for index in 0..3 {
        three.client(tasks, index).await?.put("ready", b"yes").await?;
    }
    let mut times = Vec::new();
    for kill in 0..KILLS {
        let leader = three.leader(tasks).await?;
        // Connections that are there already, as a client of three endpoints has them.
        let mut others = Vec::new();
        for index in (0..3).filter(|index| *index != leader) {
            others.push(three.client(tasks, index).await?);
        }
        three.members[leader].child.kill().context("kill the leader")?;
        let start = Instant::now();
        let key = format!("kill-{kill}");
        'acknowledged: loop {
            for client in &mut others {
                let put = tokio::time::timeout(Duration::from_millis(100), client.put(&key, b"x"));
                if put.await.is_ok_and(|put| put.is_ok()) {
                    break 'acknowledged;
                }
            }
            if start.elapsed() > Duration::from_secs(60) {
                bail!("etcd acknowledged nothing for a minute after its leader was killed");
            }
        }
        times.push(start.elapsed());
        three.restart(leader)?;
        three.client(tasks, leader).await?.put("back", b"yes").await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    three.end();
    times.sort_unstable();
    Ok(Failovers(times))
}

struct Member {
    child: Child,
    port: u16,
}

/// A group of etcd members on this machine.
struct Members {
    members: Vec<Member>,
    commands: Vec<Vec<String>>,
    program: PathBuf,
}

impl Drop for Members {
    fn drop(&mut self) {
        self.end();
    }
}

impl Members {
    fn start(program: &Path, folder: &Path, count: usize) -> anyhow::Result<Self> {
        let listeners: Vec<std::net::TcpListener> =
            (0..count * 2).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let ports: Vec<u16> = listeners
            .iter()
            .map(|listener| listener.local_addr().map(|at| at.port()))
            .collect::<Result<_, _>>()?;
        drop(listeners);
        let peer = |index: usize| format!("http://127.0.0.1:{}", ports[count + index]);
        let cluster: Vec<String> = (0..count).map(|index| format!("m{index}={}", peer(index))).collect();
        let mut made = Self { members: Vec::new(), commands: Vec::new(), program: program.to_owned() };
        for (index, port) in ports.iter().take(count).enumerate() {
            let own = format!("http://127.0.0.1:{port}");
            let data = folder.join(format!("m{index}")).display().to_string();
            let pairs = [
                ("--name", format!("m{index}")),
                ("--data-dir", data),
                ("--listen-client-urls", own.clone()),
                ("--advertise-client-urls", own),
                ("--listen-peer-urls", peer(index)),
                ("--initial-advertise-peer-urls", peer(index)),
                ("--initial-cluster", cluster.join(",")),
                ("--logger", "zap".to_owned()),
                ("--log-level", "error".to_owned()),
            ];
            made.commands
                .push(pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect());
            let child = made.spawn(index)?;
            made.members.push(Member { child, port: ports[index] });
        }
        Ok(made)
    }

    fn spawn(&self, index: usize) -> anyhow::Result<Child> {
        Command::new(&self.program)
            .args(&self.commands[index])
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH.replace("aarch64", "arm64"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))
    }

    fn restart(&mut self, index: usize) -> anyhow::Result<()> {
        self.members[index].child.wait().context("wait for a killed member")?;
        self.members[index].child = self.spawn(index)?;
        Ok(())
    }

    fn end(&mut self) {
        for member in &mut self.members {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }

    /// A connection to a member that takes writes.
    async fn client(&self, tasks: &Tasks, index: usize) -> anyhow::Result<Etcd> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let error = match Etcd::connect(tasks, self.members[index].port).await {
                Ok(mut client) => match client.put("hello", b"x").await {
                    Ok(()) => return Ok(client),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if Instant::now() > deadline {
                return Err(error.context("etcd does not serve"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn clients(&self, tasks: &Tasks, write: bool) -> anyhow::Result<Vec<Load>> {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(Load { client: self.client(tasks, 0).await?, write, value: vec![b'x'; 1024] });
        }
        Ok(clients)
    }

    /// Which member leads.
    async fn leader(&self, tasks: &Tasks) -> anyhow::Result<usize> {
        let mut found = Vec::new();
        for index in 0..self.members.len() {
            found.push(self.client(tasks, index).await?.status().await?);
        }
        let leader = found.first().map(|(_, leader)| *leader).context("no members")?;
        found.iter().position(|(own, _)| *own == leader).context("nobody leads")
    }
}

struct Load {
    client: Etcd,
    write: bool,
    value: Vec<u8>,
}

impl Caller for Load {
    async fn call(&mut self, index: usize) -> anyhow::Result<()> {
        let key = format!("/registry/configmaps/load/c-{}", index % WRITES);
        if self.write { self.client.put(&key, &self.value).await } else { self.client.get(&key).await }
    }
}

/// One gRPC connection. The four messages are simple enough to be written by hand.
struct Etcd {
    sender: SendRequest<Full<Bytes>>,
    port: u16,
}

impl Etcd {
    async fn connect(tasks: &Tasks, port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.context("connect to etcd")?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tasks.spawn_until_stopped("etcd connection", async move {
            // Its end shows at the next request.
            let _ = connection.await;
        });
        Ok(Self { sender, port })
    }

    async fn put(&mut self, key: &str, value: &[u8]) -> anyhow::Result<()> {
        let mut message = field(1, key.as_bytes());
        message.extend(field(2, value));
        self.call("/etcdserverpb.KV/Put", &message).await.map(drop)
    }

    async fn get(&mut self, key: &str) -> anyhow::Result<()> {
        let answer = self.call("/etcdserverpb.KV/Range", &field(1, key.as_bytes())).await?;
        // The header alone has some 30 bytes.
        if answer.len() < 1024 { bail!("{key} is not there") } else { Ok(()) }
    }

    /// The member's own id and its leader's.
    async fn status(&mut self) -> anyhow::Result<(u64, u64)> {
        let answer = self.call("/etcdserverpb.Maintenance/Status", &[]).await?;
        let fields = fields(&answer).context("read etcd's status")?;
        let header = fields
            .iter()
            .find_map(|field| if let (1, Value::Bytes(bytes)) = field { Some(*bytes) } else { None });
        let header =
            self::fields(header.context("etcd's status has no header")?).context("read its header")?;
        let number = |fields: &[(u64, Value<'_>)], wanted: u64| {
            let found = fields.iter().find(|(field, _)| *field == wanted);
            match found {
                Some((_, Value::Number(number))) => *number,
                _ => 0,
            }
        };
        Ok((number(&header, 2), number(&fields, 4)))
    }

    async fn call(&mut self, path: &str, message: &[u8]) -> anyhow::Result<Bytes> {
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).context("a message of less than 4 GiB")?.to_be_bytes());
        frame.extend(message);
        let request = Request::builder()
            .method("POST")
            .uri(format!("http://127.0.0.1:{}{path}", self.port))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(frame)))
            .context("make a request")?;
        self.sender.ready().await.context("the connection to etcd")?;
        let response = self.sender.send_request(request).await.with_context(|| format!("etcd {path}"))?;
        let early = response.headers().get("grpc-status").cloned();
        let collected = response.into_body().collect().await.with_context(|| format!("read {path}"))?;
        let late = collected.trailers().and_then(|trailers| trailers.get("grpc-status").cloned());
        match early.or(late) {
            Some(status) if status == "0" => {}
            status => bail!("etcd {path}: status {status:?}"),
        }
        let bytes = collected.to_bytes();
        Ok(bytes.slice(5.min(bytes.len())..))
    }
}

/// A field of bytes, as protobuf writes it.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 128 {
        message.push((length & 127) as u8 | 128);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend(bytes);
    message
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message that has numbers and bytes only.
fn fields(mut message: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = number(&mut message)?;
        let value = match key & 7 {
            0 => Value::Number(number(&mut message)?),
            2 => {
                let length = usize::try_from(number(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(length)?;
                message = rest;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        found.push((key >> 3, value));
    }
    Some(found)
}

fn number(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for place in 0..10 {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 127) << (7 * place);
        if byte & 128 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_protobuf() {
        let mut message = field(1, b"key");
        message.extend(field(2, &[7; 300]));
        message.extend([0x20, 0x96, 0x01]);
        assert_eq!(&message[..7], [0x0a, 3, b'k', b'e', b'y', 0x12, 0xac]);
        let fields = fields(&message).unwrap();
        assert!(matches!(fields[0], (1, Value::Bytes(b"key"))));
        assert!(matches!(fields[1], (2, Value::Bytes(bytes)) if bytes.len() == 300));
        assert!(matches!(fields[2], (4, Value::Number(150))));
        assert!(super::fields(&message[..10]).is_none(), "cut off");
    }
}
