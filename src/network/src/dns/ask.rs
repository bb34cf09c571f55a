//! One question to one DNS server, without a runtime: how a diagnosis tries the cluster's DNS.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

/// How long one packet may take before the question is sent again.
const RETRY: Duration = Duration::from_secs(1);

/// The IPv4 addresses that `server` knows for `name` (a full name), asked by UDP from the network namespace
/// of the calling thread. `limit` bounds all attempts.
///
/// # Errors
/// `TimedOut` without an answer, `NotFound` when the name does not exist, otherwise what the server or the
/// kernel says.
pub fn ask(server: SocketAddr, name: &str, limit: Duration) -> io::Result<Vec<IpAddr>> {
    let mut name = Name::from_ascii(name).map_err(io::Error::other)?;
    name.set_fqdn(true);
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, RecordType::A));
    let bytes = message.to_vec().map_err(io::Error::other)?;

    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    let deadline = Instant::now() + limit;
    let mut buffer = vec![0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{server} does not answer")));
        }
        socket.set_read_timeout(Some(left.min(RETRY)))?;
        socket.send(&bytes)?;
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        let Ok(answer) = Message::from_vec(&buffer[..length]) else { continue };
        if answer.metadata.id != message.metadata.id {
            continue;
        }
        return match answer.metadata.response_code {
            ResponseCode::NoError => Ok(addresses(&answer)),
            ResponseCode::NXDomain => {
                Err(io::Error::new(io::ErrorKind::NotFound, format!("{server} does not know the name")))
            }
            code => Err(io::Error::other(format!("{server} answers {code}"))),
        };
    }
}

fn addresses(answer: &Message) -> Vec<IpAddr> {
    answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::A;

    /// A server that ignores the first question and answers the second.
    fn server(code: ResponseCode) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            for turn in 0.. {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { return };
                if turn == 0 {
                    continue;
                }
                let mut answer = Message::from_vec(&buffer[..length]).unwrap();
                let name = answer.queries[0].name().clone();
                assert_eq!(name.to_ascii(), "kubernetes.default.svc.cluster.local.");
                answer.metadata.response_code = code;
                answer.add_answer(Record::from_rdata(name, 5, RData::A(A::new(10, 96, 0, 1))));
                socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
            }
        });
        address
    }

    #[test]
    fn a_lost_question_is_asked_again() {
        let name = "kubernetes.default.svc.cluster.local";
        let found = ask(server(ResponseCode::NoError), name, Duration::from_secs(60)).unwrap();
        assert_eq!(found, [IpAddr::from([10, 96, 0, 1])]);
        let error = ask(server(ResponseCode::NXDomain), name, Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = ask(silent.local_addr().unwrap(), name, Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
