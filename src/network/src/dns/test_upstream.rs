//! A DNS server for tests to forward to.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record};
use kedge_base::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::name::parse_name;

pub(super) fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub(super) fn name(text: &str) -> Name {
    parse_name(text).unwrap()
}

/// Another DNS server. Its answers are set by name; it counts the questions.
/// An old one refuses EDNS. Before each answer comes one to something else, as an attacker would try.
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    asked: Arc<AtomicUsize>,
    tasks: Tasks,
}

pub(super) type Answers = HashMap<&'static str, (ResponseCode, Vec<Record>)>;

impl Upstream {
    pub(super) async fn start(answers: Answers) -> Self {
        Self::start_as(answers, false).await
    }

    pub(super) async fn start_as(answers: Answers, old: bool) -> Self {
        let tasks = Tasks::new("upstream");
        let asked = Arc::new(AtomicUsize::new(0));
        // The same port for both protocols.
        let (socket, listener) = loop {
            let socket = UdpSocket::bind(loopback()).await.unwrap();
            if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()).await {
                break (socket, listener);
            }
        };
        let address = socket.local_addr().unwrap();
        let answers = Arc::new(Mutex::new(answers));
        let (known, count) = (answers.clone(), asked.clone());
        tasks.spawn_until_stopped("udp", async move {
            let mut buffer = vec![0; 4096];
            loop {
                let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let mut response = respond(&buffer[..length], &known);
                for forged in forgeries(&response) {
                    socket.send_to(&forged, client).await.unwrap();
                }
                if old && Message::from_vec(&buffer[..length]).unwrap().edns.is_some() {
                    response = Message::error_msg(response.metadata.id, OpCode::Query, ResponseCode::FormErr);
                }
                if response.to_vec().unwrap().len() > 512 {
                    response.answers.clear();
                    response.metadata.truncation = true;
                }
                socket.send_to(&response.to_vec().unwrap(), client).await.unwrap();
            }
        });
        tasks.spawn_until_stopped("tcp", async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let length = stream.read_u16().await.unwrap();
                let mut buffer = vec![0; length.into()];
                stream.read_exact(&mut buffer).await.unwrap();
                let response = respond(&buffer, &answers).to_vec().unwrap();
                stream.write_u16(u16::try_from(response.len()).unwrap()).await.unwrap();
                stream.write_all(&response).await.unwrap();
            }
        });
        Self { address, asked, tasks }
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

/// Another answer under another id, to another question, as a question, and cut off.
fn forgeries(response: &Message) -> [Vec<u8>; 4] {
    let changed = |change: fn(&mut Message)| {
        let mut forged = response.clone();
        forged.answers = vec![address("www.example.com", 66)];
        change(&mut forged);
        forged.to_vec().unwrap()
    };
    let mut cut = changed(|forged| forged.metadata.id ^= 1);
    cut.truncate(13);
    [
        changed(|forged| forged.metadata.id ^= 1),
        changed(|forged| forged.queries[0].name = name("other.example.com")),
        changed(|forged| forged.metadata.message_type = MessageType::Query),
        cut,
    ]
}

fn respond(request: &[u8], answers: &Mutex<Answers>) -> Message {
    let request = Message::from_vec(request).unwrap();
    let mut response = Message::response(request.metadata.id, OpCode::Query);
    response.metadata.recursion_desired = true;
    response.metadata.recursion_available = true;
    response.add_queries(request.queries.clone());
    let asked = request.queries[0].name.to_ascii();
    assert_eq!(asked, asked.to_ascii_lowercase(), "questions are asked in lower case");
    match answers.lock().unwrap().get(asked.as_str()) {
        Some((code, records)) => {
            response.metadata.response_code = *code;
            response.add_answers(records.clone());
        }
        None => {
            response.metadata.response_code = ResponseCode::NXDomain;
            let zone = name("example.com");
            let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, 60);
            response.add_authority(Record::from_rdata(zone, 60, RData::SOA(soa)));
        }
    }
    response
}

pub(super) fn address(owner: &str, last: u8) -> Record {
    Record::from_rdata(name(owner), 300, RData::A(A::new(192, 0, 2, last)))
}
